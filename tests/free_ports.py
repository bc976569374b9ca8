"""Ports for servers of other programs, which cannot be told to take any and to say which."""

from __future__ import annotations

from random import SystemRandom

from config.demo.ports import is_free

# Below those that Linux (from 32768) and other systems give to whoever asks for any port, and to
# each connection: one of those may be gone until the other program wants it.
BEGIN, END = 10_000, 32_000
# A demo takes the next ones after those that it is told.
STEP = 10


def free_ports(count: int) -> list[int]:
    """Ports of localhost on which nobody listens, and which nobody gets by chance."""
    dice = SystemRandom()
    found: list[int] = []
    while len(found) < count:
        port = dice.randrange(BEGIN, END, STEP)
        if port not in found and is_free(port):
            found.append(port)
    return found
