"""Fixtures that every test may use. Clock, dice and provider are passed in; parts are real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.test import TransactionTestCase
from pytest_django import DjangoDbBlocker

from tests.browser import chromium as chromium  # a fixture for whoever asks for it
from tests.fresh_database import FreshDatabase


@pytest.fixture
def now() -> datetime:
    """A fixed moment: a Saturday morning."""
    return datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """The test database, and a quick way to empty it after each test that commits."""
    with django_db_blocker.unblock():
        fresh = FreshDatabase()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda case: fresh.restore())
        yield


def pytest_configure() -> None:
    """A shell starts what it puts into the background with Ctrl-C ignored, and the programs that
    these tests interrupt would inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Of clusters that tests start: no test asks DNS.
    os.environ.setdefault("LOOK_UP_EXCHANGES", "0")
    # A password is hashed for half a second, so that nobody can try many. Each test of an admin
    # page makes a user.
    fast = "django.contrib.auth.hashers.MD5PasswordHasher"
    settings.PASSWORD_HASHERS = [fast, *settings.PASSWORD_HASHERS]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as cores: tests wait for servers and child processes much of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return -(-3 * (cores or 1) // 2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses what this database can tell, and begins with what takes long.

    On PostgreSQL, tests that touch no database are left out: they ran with SQLite. On SQLite,
    tests of what only PostgreSQL does (marker ``postgresql``) are left out.
    """
    on_postgresql = os.environ.get("DATABASE_URL", "").startswith("postgres")
    fixtures = {"db", "transactional_db", "live_server"}
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        asks = fixtures & set(getattr(item, "fixturenames", ()))
        touches = bool(asks) or item.get_closest_marker("django_db") is not None
        is_here = touches if on_postgresql else item.get_closest_marker("postgresql") is None
        (chosen if is_here else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = sorted(chosen, key=lambda item: "end_to_end" not in str(item.path))
