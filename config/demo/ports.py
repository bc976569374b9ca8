"""Free ports on this machine."""

from __future__ import annotations

import socket


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


def free_port(preferred: int, tries: int = 50) -> int:
    """The preferred port, or the next one after it that is free; OSError when none is."""
    for port in range(preferred, preferred + tries):
        if is_free(port):
            return port
    raise OSError(f"no port from {preferred} to {preferred + tries - 1} is free")
