"""Free ports on this machine."""

from __future__ import annotations

import socket

TRIES = 50


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of localhost, and we may."""
    # Asked first: a wildcard listener does not keep every system from binding 127.0.0.1.
    for address in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((address, port), timeout=0.5).close()
        except OSError:
            continue
        return False
    try:
        # create_server sets SO_REUSEADDR, as the servers that we start do.
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_port(preferred: int, but_not: int | None = None) -> int:
    """The preferred port, or the next one after it that is free and is not ``but_not``.

    OSError when there is none among the next TRIES.
    """
    for port in range(preferred, preferred + TRIES):
        if port != but_not and is_free(port):
            return port
    raise OSError(f"no port from {preferred} to {preferred + TRIES - 1} is free")
