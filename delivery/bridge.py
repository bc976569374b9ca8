"""The only door from asyncio to the ORM: whole sync units of work, in one database thread. SQLite's
run where they are asked for: the database is in this process, so there is nothing to wait for but
the disk, and a thread that competes with a busy event loop for the interpreter takes six times as
long as the unit itself.

Beside it a session (delivery/session.py, for SQLite delivery/sqlite_session.py) for what a worker
does all the time. The ORM's ``a...`` methods are not used: they cannot be transactional in Django
5.2 and cost some thirty times as much per row as a set-based unit in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from django.db import connection, connections

from delivery.session import Session
from delivery.sql import keeps_statements
from delivery.sqlite_session import SQLiteSession

P = ParamSpec("P")
R = TypeVar("R")


class Bridge:
    """One thread with one database connection, or for SQLite none: its units run in the event loop,
    on its thread's connection. Units run one after the other, in order.

    ``session``: for prepared statements and SQLite's procedures without the thread; None where
    nothing can be prepared. It is a connection of its own, and knows nothing of the units' order.
    """

    def __init__(self, thread: ThreadPoolExecutor | None = None) -> None:
        """``thread``: somebody else's, who ends it after this."""
        self._is_guest = thread is not None
        if thread is None and connection.vendor != "sqlite":
            thread = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._thread = thread
        self.session = _session()

    def beside(self) -> AbstractAsyncContextManager[Bridge]:
        """For what shall not wait for this one's units and statements: another session, or where
        there is none another thread. For SQLite this one."""
        if self._thread is None:
            return contextlib.nullcontext(self)
        return Bridge(self._thread if self.session is not None else None)

    async def open(self) -> None:
        """Has the session connect, where there is one, while something else is done."""
        if self.session is not None:
            await self.session.open()

    async def call(self, unit: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a unit of work. It may open a transaction; it must not touch the network. Whoever
        is cancelled while he waits does not interrupt it."""
        loop = asyncio.get_running_loop()
        if self._thread is None:
            with _no_loop_to_be_seen(loop):
                result = unit(*args, **kwargs)
            await asyncio.sleep(0)  # whoever calls again and again leaves the others their turns
            return result
        return await loop.run_in_executor(self._thread, lambda: unit(*args, **kwargs))

    async def reconnect(self) -> None:
        """Closes the thread's connection, which may be broken; the next unit opens another. Not
        ``connection.close``: that names the connection of the thread in which it is written. A
        session does so by itself."""
        await self.call(connections.close_all)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.session is not None:
            await self.session.close()
        if self._is_guest or self._thread is None:
            return
        closed = self._thread.submit(connections.close_all)
        try:
            await asyncio.shield(asyncio.wrap_future(closed))
        finally:
            # Also where we are cancelled while we wait: no connection outlives its thread.
            self._thread.shutdown()


def _session() -> Session | SQLiteSession | None:
    if connection.vendor == "sqlite":
        return SQLiteSession() if SQLiteSession.is_possible() else None
    return Session() if keeps_statements() else None


@contextlib.contextmanager
def _no_loop_to_be_seen(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Django refuses its ORM to a thread in which an event loop runs, lest two coroutines share a
    transaction. A unit of work has no ``await`` in it."""
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
