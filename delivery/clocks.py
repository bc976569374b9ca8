"""The one clock that all hosts share: the database's.

Hosts disagree about the time, by seconds and sometimes by much more. A pause until ten o'clock,
the end of a lease and the window of a limit must mean the same moment to all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic

from django.db import connection
from django.utils import timezone


def database_now() -> datetime:
    """The moment by the database server's clock, read when it is asked for: after the locks that
    the caller holds, not when its transaction began. SQLite is on this host, and so is its clock.
    """
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def shared_clock() -> Callable[[], datetime]:
    """The database's clock, asked once and carried on by this host's monotonic one.

    Good to the time that the question took, which is nothing to a pause or a lease. Limits need
    more and ask anew each time.
    """
    asked = monotonic()
    began = database_now().timestamp() - asked

    def now() -> datetime:
        # Each letter asks; with a timedelta it takes twice as long.
        return datetime.fromtimestamp(began + monotonic(), UTC)

    return now


class Timer:
    """How a process measures time by itself, in seconds, and how it waits. A test passes in one
    whose days go by at once."""

    def ticks(self) -> float:
        """Seconds that only grow."""
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        """Lets so much time go by."""
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Lets so much time go by, or less when the event comes."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
