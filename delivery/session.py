"""A database session of the event loop's own: prepared statements, without a thread. PostgreSQL.

A busy event loop gives up the interpreter when it has to, every five milliseconds. A unit of work
in a thread asks for it after each round trip, and the loop hears of the end when the thread had its
turn: 2 to 5 ms for a statement that takes the server a tenth of one. Here the loop is told by the
socket. So what a worker does all the time, claiming and exchanging waves, runs here, and everything
else in the bridge's thread with Django's ORM.
"""

from __future__ import annotations

import contextlib
from typing import TypeVar

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import AsyncConnection, AsyncRawCursor, Error, sql

from delivery.sql import KEPT_PLANS, Row, Statement, Steps, run_by

T = TypeVar("T")
# What of Django's parameters is about its own, synchronous, connections.
_DJANGOS_OWN = ("cursor_factory", "context", "prepare_threshold")


class Session:
    """One connection to Django's default database, opened with the first statement and after an
    error. One task at a time uses it. Each statement commits."""

    def __init__(self) -> None:
        # The only one of its connection: a new one for each statement takes a sixth of the time of
        # an exchange of no letter.
        self._cursor: AsyncRawCursor[Row] | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Runs statements until the last one's answer was made use of. Django's errors, after which
        the connection is another: whether the last statement was committed is unknown then."""
        try:
            with connections[DEFAULT_DB_ALIAS].wrap_database_errors:
                return await run_by(self._ask, steps)
        except BaseException:
            await self.close()
            raise

    async def _ask(self, statement: Statement) -> Row | None:
        cursor = self._cursor or await self._connect()
        await cursor.execute(*statement.numbered, prepare=True)
        return await cursor.fetchone()

    async def open(self) -> None:
        """Connects, so that the first statement need not wait for it; it will say what is wrong
        where that fails."""
        with contextlib.suppress(Error):
            await self._connect()

    async def _connect(self) -> AsyncRawCursor[Row]:
        django = connections[DEFAULT_DB_ALIAS]
        options = django.get_connection_params()
        for name in _DJANGOS_OWN:
            options.pop(name, None)
        connection = await AsyncConnection.connect(**options, autocommit=True)
        try:
            if role := django.settings_dict["OPTIONS"].get("assume_role"):
                await connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            await connection.execute(KEPT_PLANS)
        except BaseException:
            await connection.close()
            raise
        # Not before: a session that was not told who it is and how to plan is none.
        self._cursor = AsyncRawCursor(connection)
        return self._cursor

    async def close(self) -> None:
        """Ends the session; another statement would begin a new one."""
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            await cursor.connection.close()
