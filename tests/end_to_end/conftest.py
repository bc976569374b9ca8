"""What several runs with real clusters need."""

from __future__ import annotations

import pytest
from django_q.conf import Conf

from tests.end_to_end.clusters import SECRET_KEY


@pytest.fixture
def cluster_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process signs tasks as the clusters do: they take none from a stranger."""
    monkeypatch.setattr(Conf, "SECRET_KEY", SECRET_KEY)
