"""Fixtures that every test may use. Clock, dice and provider are passed in; parts are real."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from tests.browser import chromium as chromium  # a fixture for whoever asks for it


@pytest.fixture
def now() -> datetime:
    """A fixed moment: a Saturday morning."""
    return datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PostgreSQL, leaves out the tests that touch no database: they ran with SQLite."""
    if not os.environ.get("DATABASE_URL", "").startswith("postgres"):
        return
    fixtures = {"db", "transactional_db", "live_server"}
    here: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        uses = fixtures & set(getattr(item, "fixturenames", ()))
        here[bool(uses) or item.get_closest_marker("django_db") is not None].append(item)
    config.hook.pytest_deselected(items=here[False])
    items[:] = here[True]
