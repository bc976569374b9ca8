"""Who holds a lease: a host, a process, and whether that process still lives here."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def this_host() -> str:
    """A name for this machine and its process numbers.

    Two containers may share a host name and number their processes alike; the boot id and the
    namespace of the process numbers tell them apart (Linux; elsewhere the host name alone).
    """
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:
        pass
    return "/".join(parts)


def holder_name() -> str:
    """This process, as a lease names its holder."""
    return f"{this_host()}:{os.getpid()}:{_started(os.getpid())}"


def is_here(holder: str) -> bool:
    """Whether the holder ran on this machine: then its flight recorder is here too."""
    return holder.rsplit(":", 2)[0] == this_host()


def is_alive(holder: str) -> bool:
    """Whether a holder on this machine still lives. A process number that was given to another
    process since is told apart by the time of its start."""
    _host, pid, started = holder.rsplit(":", 2)
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; "" where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A killed worker whose parent has not looked yet does nothing any more.
    return "dead" if fields[0] in "ZX" else fields[19]
