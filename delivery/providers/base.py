"""What a provider is. A class of your own needs no base class: these four names are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from delivery.message import OutgoingMessage
from delivery.outcomes import Outcome


class Provider(Protocol):
    """Hands letters to a mail system. Constructed with OPTIONS as keywords; opens nothing then.

    ``send`` answers with an Outcome, whatever the far side does, and does not raise for it. The
    hardest line is the one between Unavailable and Unconfirmed: had the letter left? Only when
    it certainly had not may the answer be Unavailable or Deferred. It is called up to
    ``concurrency`` times at once, from one event loop.
    """

    @property
    def concurrency(self) -> int:
        """How many letters may be on their way at once in this process; at least 1."""

    async def open(self) -> None:
        """Called once before the first letter. Need not connect yet."""

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Hands one letter over and says what was answered."""

    async def close(self) -> None:
        """Called once after the last letter; never raises for a broken connection."""


@runtime_checkable
class ReportsFinalDot(Protocol):
    """Optional: a provider that knows the moment after which a letter may have been taken.

    It calls ``note(message.reference)`` just *before* it hands the last octets over. After a crash
    letters that had not come so far return to the queue instead of being in doubt; without this,
    every letter given to ``send`` and not answered is in doubt.
    """

    def watch(self, note: Callable[[int], None]) -> None:
        """Called once before ``open``."""


@runtime_checkable
class KeepsConnections(Protocol):
    """Optional: a provider that keeps connections open, so that all hosts together can stay below
    the far side's limit. Without this a provider's connections are not counted."""

    @property
    def connections(self) -> int:
        """How many it would keep open in this process."""

    async def keep_connections(self, most: int) -> int:
        """From now on at most so many; ``concurrency`` follows. Called while no letter is on its
        way, and once before the first. Idle connections above it are closed before this returns;
        how many it may still have open."""


@runtime_checkable
class Confirms(Protocol):
    """Optional: a provider that can look whether a letter was taken after all."""

    async def confirm(self, message: OutgoingMessage) -> Outcome | None:
        """What became of a letter whose hand-over was Unconfirmed.

        Accepted: it is proven. None: no trace of it, which proves nothing yet. Unconfirmed: it is
        there and has not left, so it must not be sent again. Unavailable: one could not look; when
        it needs a person, looking is not permitted. Only envelope and Message-ID of ``message`` are
        known; its content is empty.
        """


# ---------------------------------------------------------------------------------- mailboxes


@dataclass(frozen=True, slots=True)
class Allowance:
    """What all who use a mailbox through the same ``channel`` may do together: requests under way
    at once, requests and octets of their bodies in any window."""

    channel: str
    at_once: int
    requests: int
    requests_window: timedelta
    octets: int
    octets_window: timedelta


@dataclass(frozen=True, slots=True)
class Turn:
    """Leave for one request to a mailbox. ``is_first``: the first after a silence, which should be
    a cheap one."""

    key: int = 0
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class Rest:
    """No leave now: for how long, and why."""

    wait: timedelta
    because: str


class Gate(Protocol):
    """Asked before each request to a mailbox, and told after it (delivery/mailboxes.py)."""

    async def ask(self, octets: int = 0) -> Turn | Rest:
        """Leave for one request with a body of so many octets, or how long the mailbox rests."""

    async def done(self, turn: Turn, silence: str = "") -> None:
        """The request is over, whatever came of it. ``silence``: the answer, if it was one after
        which nothing may touch the mailbox for a while."""


class OpenGate:
    """Where nobody else uses the mailbox: tests of a provider alone, a script."""

    async def ask(self, octets: int = 0) -> Turn | Rest:
        return Turn()

    async def done(self, turn: Turn, silence: str = "") -> None:
        """Nobody waits."""


@runtime_checkable
class ActsAsMailbox(Protocol):
    """Optional: a provider that sends as a mailbox, which other providers and readers of bounces
    use too. It asks its gate before each request and tells it afterwards."""

    @property
    def mailbox(self) -> str:
        """The address in lower case; empty for a provider that is no mailbox after all."""

    @property
    def allowance(self) -> Allowance | None:
        """What its users share beside the silence; None for nothing that the gate counts."""

    def guard(self, gate: Gate) -> None:
        """Called once before ``open``."""
