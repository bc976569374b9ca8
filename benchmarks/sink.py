"""A server that takes every letter as fast as Python can, and names each of them in a log.

    python benchmarks/sink.py [--port 0] [--log FILE] [--latency 0.05] [--processes 1] [--plain]

Prints ``host:port`` when all its processes listen. The log holds one recipient a line, in the
order of acceptance, written before the answer leaves, so that lost and doubled letters can be
counted.
``--latency``: seconds between the arrival of a group of commands and its answers, as one round
trip of a distant server. ``--plain``: announces neither PIPELINING nor CHUNKING. It stores
nothing, refuses nothing, and checks only what it needs to count: it is not a test server (that is
tests/smtp_server.py), it must not be the limit of what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import BinaryIO, cast

_END = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    """One connection: commands, or a letter up to its final dot, or a chunk of known length."""

    def __init__(self, log: BinaryIO | None, latency: float, extensions: bytes) -> None:
        self.log = log
        self.latency = latency
        self.extensions = extensions
        self.buffer = b""
        self.searched = 0
        self.recipient = b""
        self.in_letter = False
        self.chunk_left = 0
        self.is_last_chunk = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods without the base class.
        self.transport = cast(asyncio.Transport, transport)
        self.answer([b"220 sink ESMTP\r\n"])

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        answers: list[bytes] = []
        while self.buffer and (
            self.letter(answers)
            if self.in_letter
            else self.chunk(answers)
            if self.chunk_left
            else self.command(answers)
        ):
            pass
        if answers:
            self.answer(answers)

    def answer(self, answers: list[bytes]) -> None:
        octets = b"".join(answers)
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self.write, octets)
        else:
            self.write(octets)

    def write(self, octets: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(octets)
            if octets.endswith(b"221 bye\r\n"):
                self.transport.close()

    def letter(self, answers: list[bytes]) -> bool:
        at = self.buffer.find(_END, max(0, self.searched - 4))
        if at < 0:
            self.searched = len(self.buffer)
            return False
        self.buffer = self.buffer[at + 5 :]
        self.searched = 0
        self.in_letter = False
        self.take(answers)
        return True

    def chunk(self, answers: list[bytes]) -> bool:
        taken = min(self.chunk_left, len(self.buffer))
        self.buffer = self.buffer[taken:]
        self.chunk_left -= taken
        if self.chunk_left:
            return False
        if self.is_last_chunk:
            self.take(answers)
        else:
            answers.append(b"250 2.0.0 chunk\r\n")
        return True

    def take(self, answers: list[bytes]) -> None:
        if self.log is not None:
            self.log.write(self.recipient)
        answers.append(b"250 2.0.0 Ok: queued as 4bXyZ1234567\r\n")

    def command(self, answers: list[bytes]) -> bool:
        at = self.buffer.find(b"\r\n")
        if at < 0:
            return False
        line, self.buffer = self.buffer[:at], self.buffer[at + 2 :]
        match line[:4].upper():
            case b"MAIL":
                answers.append(b"250 2.1.0 Ok\r\n")
            case b"RCPT":
                self.recipient = line[line.find(b"<") + 1 : line.find(b">")] + b"\n"
                answers.append(b"250 2.1.5 Ok\r\n")
            case b"DATA":
                self.in_letter = True
                answers.append(b"354 go\r\n")
            case b"BDAT":
                words = line.split()
                self.chunk_left = int(words[1])
                self.is_last_chunk = len(words) > 2
                if not self.chunk_left:
                    self.take(answers)
            case b"EHLO":
                answers.append(self.extensions)
            case b"QUIT":
                answers.append(b"221 bye\r\n")
            case _:
                answers.append(b"250 2.0.0 Ok\r\n")
        return True


def listening(port: int) -> socket.socket:
    """A socket that clients may connect to from now on, beside others of the same port."""
    return socket.create_server(("127.0.0.1", port), backlog=4096, reuse_port=True)


async def serve(listener: socket.socket, log: Path | None, latency: float, plain: bool) -> None:
    """Answers until SIGTERM; the log is complete then."""
    offers = [b"sink", b"8BITMIME", b"SIZE 52428800"]
    offers += [] if plain else [b"PIPELINING", b"CHUNKING"]
    extensions = b"".join(b"250-%s\r\n" % offer for offer in offers[:-1])
    extensions += b"250 %s\r\n" % offers[-1]
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("ab", buffering=1 << 20)) if log is not None else None
        server = await loop.create_server(
            lambda: Session(file, latency, extensions), sock=listener, backlog=4096
        )
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)
            if file is not None:
                file.flush()
        server.close()


def run(listener: socket.socket, log: Path | None, latency: float, plain: bool) -> None:
    try:
        import uvloop

        uvloop.run(serve(listener, log, latency, plain))
    except ImportError:
        asyncio.run(serve(listener, log, latency, plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    # All of them listen before the address is printed: who connects at once waits for an answer,
    # and is not refused. A process keeps no socket but its own, or connections to one that has
    # ended would be taken and never answered.
    own = listening(args.port)
    port = own.getsockname()[1]
    children = []
    for number in range(1, args.processes):
        listener = listening(port)
        child = os.fork()
        if child == 0:
            own.close()
            log = args.log.with_name(f"{args.log.name}.{number}") if args.log else None
            run(listener, log, args.latency, args.plain)
            os._exit(0)
        listener.close()
        children.append(child)
    print(f"127.0.0.1:{port}", flush=True)
    run(own, args.log, args.latency, args.plain)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main())
