"""The demo's child processes: started in groups of their own, watched, and stopped without fail."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# A django-q2 worker ends its letters on the wire first; then it is killed.
GRACE_SECONDS = 10.0
TAIL_LINES = 30


class ChildError(Exception):
    """A child process died, or did not come up. The text is for the person at the terminal."""


@dataclass
class Child:
    """A process that we started, leader of its own group, and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def ending(self) -> str:
        """The last lines of its log, introduced and indented, for a message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
        return f"The end of {self.log}:\n{tail}"

    def must_live(self) -> None:
        """ChildError with the end of its log when it is dead."""
        if not self.is_alive:
            status = self.process.returncode
            raise ChildError(f"The {self.name} ended with status {status}. {self.ending()}")


@dataclass
class Children:
    """All of them. Leaving the block stops them, however it is left; so does the interpreter's end.

    ``kept_open``: descriptors that every child inherits (the lock of the demo's folder, so that
    the folder stays locked while any of them is alive).
    """

    environment: Mapping[str, str]
    log_folder: Path
    kept_open: Sequence[int] = ()
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Children:
        atexit.register(self.stop)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        atexit.unregister(self.stop)

    def start(self, name: str, log_name: str, command: Sequence[str]) -> Child:
        """Starts a command; its output goes to ``log_name`` in the log folder."""
        log = self.log_folder / log_name
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C reaches us alone, and we stop it in good order.
                process_group=0,
                pass_fds=tuple(self.kept_open),
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def must_live(self) -> None:
        """ChildError when one of them is dead."""
        for child in self.children:
            child.must_live()

    def wait_for(self, child: Child, is_ready: Callable[[], bool], seconds: float) -> None:
        """Waits until a child is ready; ChildError when it dies or takes too long."""
        deadline = time.monotonic() + seconds
        while not is_ready():
            child.must_live()
            if time.monotonic() > deadline:
                raise ChildError(
                    f"The {child.name} did not answer within {seconds:.0f} seconds. "
                    f"{child.ending()}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM to each, SIGKILL to what is left of their groups after GRACE_SECONDS."""
        children, self.children = self.children, []
        with _uninterrupted():
            for child in children:
                if child.is_alive:
                    child.process.terminate()
            deadline = time.monotonic() + GRACE_SECONDS
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(deadline - time.monotonic(), 0))
            for child in children:
                # The group outlives its leader while a member of it lives.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.process.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C or SIGTERM must not leave half of the children behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def answers(port: int, expected: bytes = b"", request: bytes = b"") -> bool:
    """Whether a server on this port of 127.0.0.1 answers with ``expected`` at the beginning."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(request)
            return connection.recv(len(expected) or 1).startswith(expected)
    except OSError:
        return False
