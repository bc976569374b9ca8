"""Reading in a process of its own, which may be killed: a mail has so many seconds and so much
memory, whatever a detector does with it.

Our own detectors are linear and bounded, and need 0.2 ms a mail (under 0.1 s for the worst that
tests/bounces/hostile.py knows). A custom one is somebody else's code: a regular expression that
never ends holds the interpreter, and only another process can stop it. The child is forked when
the first mail is read and kept for the next ones (0.1 ms a mail); it touches neither database nor
network. *Instead of* an alarm signal: that works in the main thread only, and not against memory.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

logger = logging.getLogger(__name__)

SECONDS_PER_MAIL = 4.0
# On top of what the process has when it begins.
MEMORY_PER_MAIL = 200 * 1024 * 1024


class UnreadableError(Exception):
    """The reading was stopped: too long, too much memory, or the child died of it."""


Result = TypeVar("Result")


class ReadingProcess(Generic[Result]):
    """``with ReadingProcess(read_whole) as reader: reader.read(raw)``. Not shared by threads.

    ``function`` makes something of raw bytes that can be pickled.
    """

    def __init__(
        self,
        function: Callable[[bytes], Result],
        seconds: float = SECONDS_PER_MAIL,
        memory: int = MEMORY_PER_MAIL,
    ) -> None:
        self._function = function
        self._seconds = seconds
        self._memory = memory
        self._child = 0
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def read(self, raw: bytes) -> Result:
        """What the function makes of a raw mail. UnreadableError when it was stopped; the next
        mail is read by a new child."""
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(raw)
            if not pipe.poll(self._seconds):
                raise UnreadableError(f"reading it took more than {self._seconds:g} seconds")
            succeeded, answer = pipe.recv()
        except (EOFError, OSError) as error:
            self._stop()
            raise UnreadableError("the process that read it died") from error
        except UnreadableError:
            self._stop()
            raise
        if not succeeded:
            raise UnreadableError(answer)
        return cast(Result, answer)

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        self._child = os.fork()
        if not self._child:
            try:
                ours.close()
                _confine(self._memory)
                _serve(theirs, self._function)
            finally:
                # No clean-up of what belongs to the parent: database connections above all.
                os._exit(0)
        theirs.close()
        self._pipe = ours
        return ours

    def _stop(self) -> None:
        if self._pipe is None:
            return
        self._pipe.close()
        self._pipe = None
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)


def _confine(memory: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere than on Linux there is only the time limit
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, most))


def _serve(pipe: Connection, function: Callable[[bytes], object]) -> None:
    """Reads mails until the parent closes its end, or is gone."""
    parent = os.getppid()
    while True:
        # Another child forked meanwhile may hold our parent's end open: so the pipe alone would
        # not tell that the parent was killed.
        while not pipe.poll(5):
            if os.getppid() != parent:
                return
        try:
            raw = pipe.recv_bytes()
        except EOFError:
            return
        try:
            pipe.send((True, function(raw)))
        except Exception as error:
            logger.exception("bounces.reading_failed")
            pipe.send((False, f"{type(error).__name__}: {error}"[:500]))
