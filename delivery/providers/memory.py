"""Keeps letters in memory: for tests, and as the shortest example of a provider."""

from __future__ import annotations

from collections.abc import Callable

from delivery.message import OutgoingMessage
from delivery.outcomes import Accepted, Outcome, Phase, Reply


class MemoryProvider:
    """``sent`` holds every letter handed over. ``answer`` may decide another outcome.

    All instances share one outbox, for the worker makes its own instance.
    """

    outbox: list[OutgoingMessage] = []
    answer: Callable[[OutgoingMessage], Outcome] | None = None

    def __init__(self, concurrency: int = 10) -> None:
        self.concurrency = concurrency

    async def open(self) -> None:
        """Nothing to open."""

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Accepts, unless ``answer`` says otherwise."""
        decide = type(self).answer
        outcome = decide(message) if decide else Accepted(Reply(Phase.LOCAL, 250, "kept"))
        if isinstance(outcome, Accepted):
            self.outbox.append(message)
        return outcome

    async def close(self) -> None:
        """Nothing to close."""
