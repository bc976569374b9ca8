"""Fixtures that every test may use. Clock, dice and provider are passed in; parts are real."""

from __future__ import annotations

import gc
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
    # Processes are killed in tests, never the machine: nothing needs to reach the disk. (Of the
    # PostgreSQL that postgresql.py starts the same is true.)
    options = settings.DATABASES["default"].get("OPTIONS", {})
    if "init_command" in options:
        options["init_command"] += " PRAGMA synchronous=OFF;"


def pytest_collection_finish() -> None:
    """Some 100,000 objects, of Django and of the tests, live until the end: the garbage collector
    need not look through them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: tests wait for servers and child processes much of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 2 * (cores or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses what this database can tell, and begins with what takes long.

    On PostgreSQL, tests that touch no database are left out: they ran with SQLite. So are those of
    what lies beyond the database (marker ``one_database``): what a browser makes of a page, and
    what each answer of Microsoft 365 leads to. Whatever they write and read is written and
    read on PostgreSQL by others: the views, claims, limits and doubts by their own tests, and all
    of it together by a campaign of two days with faults of all kinds, by people in a browser from
    import to bounce, and by processes that are killed. On SQLite, tests of what only PostgreSQL
    does (marker ``postgresql``) are left out.
    """
    on_postgresql = os.environ.get("DATABASE_URL", "").startswith("postgres")
    fixtures = {"db", "transactional_db", "live_server"}
    chosen: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        asks = fixtures & set(getattr(item, "fixturenames", ()))
        touches = bool(asks) or item.get_closest_marker("django_db") is not None
        elsewhere = "one_database" if on_postgresql else "postgresql"
        is_here = (touches or not on_postgresql) and item.get_closest_marker(elsewhere) is None
        (chosen if is_here else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = sorted(chosen, key=_turn_of)


# A long file that begins last is waited for by everybody. Those with processes, a browser or
# whole days in them, the longest first.
LONG = (
    "test_browser", "test_demo", "test_scenarios", "test_demo_mailboxes", "test_smtp_scenarios",
    "test_admin_in_a_browser", "test_killed_worker", "test_limits", "test_resolution",
    "test_permits", "test_killed_poller", "test_soak", "test_two_days", "test_worker_in_trouble",
    "test_steering", "test_limits_real_time",
)  # fmt: skip


def _turn_of(item: pytest.Item) -> int:
    return LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
