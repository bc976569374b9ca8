"""SQLite's counterpart of a session: a process beside the worker (delivery/sqlite_server.py), asked
through a socket that the event loop watches."""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import socket
import subprocess
import sys
from collections import deque
from typing import Any, TypeVar, cast

from django.db import DEFAULT_DB_ALIAS, connections, utils

from delivery import sqlite_server, statements
from delivery.sql import Row, Statement, Steps, run_by
from delivery.sqlite_server import LENGTH, Opened
from delivery.states import DeliveryStatus

T = TypeVar("T")
# By itself: without site-packages, and without the folder in which it lies on its path, where
# modules are called like some of Python's own.
_COMMAND = (sys.executable, "-I", "-S", sqlite_server.__file__)
# What of Django's parameters is about its own connections.
_DJANGOS_OWN = ("detect_types", "check_same_thread", "isolation_level", "factory")
_ERRORS = (
    utils.DataError,
    utils.DatabaseError,
    utils.IntegrityError,
    utils.InterfaceError,
    utils.InternalError,
    utils.NotSupportedError,
    utils.OperationalError,
    utils.ProgrammingError,
)
_ERRORS_BY_NAME = {error.__name__: error for error in _ERRORS}


class SQLiteSession:
    """A process with a connection of its own to Django's default database, which is a file. It is
    started with the first statement, and again where it has ended. Who asks while it answers
    somebody else is next."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: _Channel | None = None
        self._starting = asyncio.Lock()

    @staticmethod
    def is_possible() -> bool:
        """Whether another process can open Django's default database, and run this Python."""
        django: Any = connections[DEFAULT_DB_ALIAS]
        return bool(sys.executable) and not django.is_in_memory_db()

    async def run(self, steps: Steps[T]) -> T:
        """Runs the statements' procedures, each of which commits, until the last one's answer was
        made use of. Django's errors: SQLite's, after which the connection is another, and
        OperationalError where the process ended; then whether the last was committed is unknown.
        Where the caller is cancelled it does not go on."""
        return await run_by(self._ask, steps)

    async def open(self) -> None:
        """Starts the process, so that the first statement need not wait for it; it will say what is
        wrong where that fails."""
        with contextlib.suppress(utils.Error):
            await self._started()

    async def _ask(self, statement: Statement) -> Row | None:
        channel = await self._started()
        try:
            return await channel.ask((statement.procedure, statement.portable))
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _started(self) -> _Channel:
        if self._channel is not None and not self._channel.is_lost:
            return self._channel
        async with self._starting:
            if self._channel is None or self._channel.is_lost:
                await self.close()
                self._channel = await self._start()
                await self._channel.ask(tuple(_opened()))
        return self._channel

    async def _start(self) -> _Channel:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603
                    _COMMAND, stdin=theirs.fileno(), stdout=subprocess.DEVNULL
                )
            loop = asyncio.get_running_loop()
            _transport, channel = await loop.create_unix_connection(_Channel, sock=ours)
        except OSError as error:
            ours.close()
            raise utils.OperationalError(
                f"SQLite's process could not be started: {error}"
            ) from error
        return channel

    async def close(self) -> None:
        """Ends the process, at once: between two transactions it has nothing to lose, and in one
        SQLite rolls back. Another statement would start a new one."""
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if process is not None:
            process.kill()
            process.wait()
        if channel is not None:
            channel.close()


def _opened() -> Opened:
    """What the process is told. As Django's own connection, without its functions, which none of
    these statements calls."""
    django: Any = connections[DEFAULT_DB_ALIAS]
    options = django.get_connection_params()
    for name in _DJANGOS_OWN:
        options.pop(name, None)
    init = ["PRAGMA foreign_keys = ON", *filter(None, map(str.strip, django.init_commands))]
    options["database"] = str(options["database"])
    return Opened(options, init, statements.SQLITE, DeliveryStatus.QUEUED.value)


class _Channel(asyncio.Protocol):
    """Requests and answers, in order."""

    def __init__(self) -> None:
        self.is_lost = False
        self._transport: asyncio.WriteTransport | None = None
        self._read = bytearray()
        self._waiting: deque[asyncio.Future[tuple[Any, ...]]] = deque()

    async def ask(self, request: tuple[Any, ...]) -> Row | None:
        """The answer; the error where it is one."""
        assert self._transport is not None
        if self.is_lost:
            raise _ended()
        content = marshal.dumps(request)
        self._transport.write(LENGTH.pack(len(content)) + content)
        future: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        is_answer, *rest = await future
        if is_answer:
            answer: Row | None = rest[0]
            return answer
        name, text = rest
        if (error := _ERRORS_BY_NAME.get(name)) is not None:
            raise error(text)
        raise RuntimeError(f"{name}: {text}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._read += data
        while len(self._read) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._read)[0]
            if len(self._read) < end:
                return
            content = bytes(self._read[LENGTH.size : end])
            del self._read[:end]
            future = self._waiting.popleft()
            if not future.done():  # cancelled
                future.set_result(marshal.loads(content))  # noqa: S302 - our own process

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(_ended())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _ended() -> utils.OperationalError:
    return utils.OperationalError("SQLite's process has ended")
