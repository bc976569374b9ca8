"""What every provider must keep, as a suite that third parties run against theirs.

    from tests.contracts.provider import ProviderContract

    class TestMyProvider(ProviderContract):
        def make(self): return MyProvider(...)

``make`` gives a new provider whose far side accepts everything; ``broken`` one whose far side
cannot be reached; override ``taken`` if the far side can tell what it took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Accepted, Deferred, Outcome, Unavailable
from delivery.providers.base import Provider


def letter(number: int) -> OutgoingMessage:
    return OutgoingMessage(
        number,
        Envelope(f"bounce+{number}@bounces.example.org", f"reader{number}@example.org"),
        (
            f"From: <news@example.org>\r\nTo: <reader{number}@example.org>\r\n".encode(),
            f"Message-ID: <{number}@news.example.org>\r\nSubject: Hello\r\n\r\n".encode(),
            b".\r\nBye\r\n",
        ),
        f"<{number}@news.example.org>",
    )


class ProviderContract:
    """Inherit, and give ``make`` and ``broken``."""

    def make(self) -> Provider:
        raise NotImplementedError

    def broken(self) -> Provider:
        raise NotImplementedError

    def taken(self) -> Sequence[OutgoingMessage] | None:
        """What the far side took, in any order; None when it cannot be asked."""
        return None

    @staticmethod
    def send(provider: Provider, letters: Sequence[OutgoingMessage]) -> list[Outcome]:
        async def run() -> list[Outcome]:
            await provider.open()
            try:
                return await asyncio.gather(*(provider.send(one) for one in letters))
            finally:
                await provider.close()

        return asyncio.run(run())

    def test_it_says_how_many_letters_may_be_on_their_way(self) -> None:
        assert self.make().concurrency >= 1

    def test_every_letter_is_answered(self) -> None:
        provider = self.make()
        letters = [letter(number) for number in range(provider.concurrency * 3)]
        outcomes = self.send(provider, letters)
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        taken = self.taken()
        if taken is not None:
            assert sorted(t.envelope.rcpt_to for t in taken) == sorted(
                one.envelope.rcpt_to for one in letters
            )

    def test_it_can_be_opened_again_after_it_was_closed(self) -> None:
        provider = self.make()
        self.send(provider, [letter(1)])
        (outcome,) = self.send(provider, [letter(2)])
        assert isinstance(outcome, Accepted)

    def test_closing_what_sent_nothing_does_no_harm(self) -> None:
        self.send(self.make(), [])

    def test_a_far_side_that_cannot_be_reached_is_no_readers_fault_and_raises_nothing(self) -> None:
        """The letter had not left: so neither Unconfirmed, nor Rejected."""
        (outcome,) = self.send(self.broken(), [letter(1)])
        assert isinstance(outcome, Unavailable | Deferred)
