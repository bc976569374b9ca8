"""The only door from asyncio to the ORM: whole sync units of work in one database thread.

The ORM's ``a...`` methods are not used: they cannot be transactional in Django 5.2 and cost some
thirty times as much per row as a set-based unit in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from django.db import connections

P = ParamSpec("P")
R = TypeVar("R")


class Bridge:
    """One thread with one database connection. Units run one after the other, in order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    async def call(self, unit: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a unit of work in the database thread. It may open a transaction; it must not
        touch the network. A cancelled caller does not interrupt the unit."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: unit(*args, **kwargs))

    async def reconnect(self) -> None:
        """Closes the thread's connection, which may be broken; the next unit opens another. Not
        ``connection.close``: that names the connection of the thread in which it is written."""
        await self.call(connections.close_all)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        closed = self._thread.submit(connections.close_all)
        try:
            await asyncio.shield(asyncio.wrap_future(closed))
        finally:
            # Also where we are cancelled while we wait: no connection outlives its thread.
            self._thread.shutdown()
