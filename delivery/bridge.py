"""The only door from asyncio to the ORM: whole sync units of work in one database thread.

Beside it a session (delivery/session.py) for what a worker does all the time. The ORM's ``a...``
methods are not used: they cannot be transactional in Django 5.2 and cost some thirty times as much
per row as a set-based unit in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from django.db import connection, connections

from delivery.session import Session
from delivery.sql import keeps_statements

P = ParamSpec("P")
R = TypeVar("R")


class Bridge:
    """One thread with one database connection. Units run one after the other, in order.

    ``session``: for prepared statements without the thread; None where nothing can be prepared. It
    is a connection of its own, and knows nothing of the units' order.
    """

    def __init__(self, thread: ThreadPoolExecutor | None = None) -> None:
        """``thread``: somebody else's, who ends it after this."""
        self._is_guest = thread is not None
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="database")
        self.session = Session() if keeps_statements() else None

    def beside(self) -> AbstractAsyncContextManager[Bridge]:
        """For what shall not wait for this one's units and statements: another session, or where
        there is none another thread. For SQLite this one, for there one transaction writes at a
        time."""
        if connection.vendor == "sqlite":
            return contextlib.nullcontext(self)
        return Bridge(self._thread if self.session is not None else None)

    async def call(self, unit: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a unit of work in the database thread. It may open a transaction; it must not
        touch the network. A cancelled caller does not interrupt the unit."""
        loop = asyncio.get_running_loop()
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
        if self._is_guest:
            return
        closed = self._thread.submit(connections.close_all)
        try:
            await asyncio.shield(asyncio.wrap_future(closed))
        finally:
            # Also where we are cancelled while we wait: no connection outlives its thread.
            self._thread.shutdown()
