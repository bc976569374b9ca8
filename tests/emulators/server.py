"""Puts an ASGI application on a socket of this machine, by h11: no server of our own to install.

A ``Drop`` of the emulator breaks the connection without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Any

import h11

from tests.emulators.graph import Drop, GraphEmulator


class EmulatorServer:
    """The emulator at http://127.0.0.1:port, in a thread of its own."""

    def __init__(self, emulator: GraphEmulator, port: int = 0) -> None:
        self.emulator = emulator
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> EmulatorServer:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="graph-emulator", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, ready: threading.Event) -> None:
        self._failure: OSError | None = None
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        try:
            server = await asyncio.start_server(self._converse, "127.0.0.1", self.port)
        except OSError as failure:
            self._failure = failure
            ready.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(Drop, OSError, h11.RemoteProtocolError):
                await self._requests(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other on a kept connection."""
        connection = h11.Connection(h11.SERVER)
        while True:
            request, body = await self._request(connection, reader, writer)
            if request is None:
                return
            path, _, query = request.target.partition(b"?")
            scope: dict[str, Any] = {
                "type": "http",
                "method": request.method.decode(),
                "path": path.decode(),
                "query_string": query,
                "headers": list(request.headers),
            }
            events = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive(events: Any = events) -> dict[str, Any]:
                return next(events)

            async def send(event: dict[str, Any]) -> None:
                if event["type"] == "http.response.start":
                    start = h11.Response(status_code=event["status"], headers=event["headers"])
                    writer.write(connection.send(start) or b"")
                else:
                    writer.write(connection.send(h11.Data(event["body"])) or b"")
                    writer.write(connection.send(h11.EndOfMessage()) or b"")
                    await writer.drain()

            await self.emulator(scope, receive, send)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    @staticmethod
    async def _request(
        connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[h11.Request | None, bytes]:
        request, body = None, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    writer.write(connection.send(go_on) or b"")
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return request, bytes(body)
            else:
                return None, b""
