"""Fixtures that every test may use. Clock, dice and provider are passed in; parts are real."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.browser import chromium as chromium  # a fixture for whoever asks for it


@pytest.fixture
def now() -> datetime:
    """A fixed moment: a Saturday morning."""
    return datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
