"""A task queue whose lock dies with its holder, for the processes of a django-q2 cluster.

Whoever waits at a multiprocessing.Queue holds its lock, and an idle worker waits all the time; so
does the process that saves results. Kill such a one (out of memory, an impatient person), and
nobody of that cluster ever gets a task again, or ever stores a result: a semaphore knows no holder.
The kernel lifts a file lock when its process dies, however it does.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from pathlib import Path
from types import TracebackType

from django_q.queues import Queue

_PAUSE = 0.01


class ProcessLock:
    """A lock between processes, not between the threads of one: the kernel keeps it by process."""

    def __init__(self) -> None:
        self._file, path = tempfile.mkstemp(prefix="pennypost-queue-")
        # Forked processes inherit it, and nobody else needs it by name.
        Path(path).unlink()

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """As multiprocessing.Lock's."""
        if block and timeout is None:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            return True
        end = time.monotonic() + (timeout or 0.0 if block else 0.0)
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= end:
                    return False
                time.sleep(_PAUSE)
            else:
                return True

    def release(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class LastingQueue(Queue):  # type: ignore[misc]  # django-q2 has no types
    """django-q2's queue between forked processes, which survives the death of any of them."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._rlock, self._wlock = ProcessLock(), ProcessLock()
