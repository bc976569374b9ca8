"""What the far side said, as values. An exception means that *we* or the settings are wrong.

The five outcomes answer "whose trouble is it?": the reader's side (Deferred, Rejected), the
provider's side (Unavailable), nobody's (Accepted), and the honest rest (Unconfirmed).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from delivery.status_codes import EnhancedStatus

LONGEST_REPLY = 1000


class Phase(StrEnum):
    """How far the dialogue had come. Up to BODY the server cannot have taken the letter."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # DATA written, 354 not seen
    FINAL_DOT = "final dot"  # the whole letter was handed to the socket
    HTTP = "http"  # a provider that speaks no SMTP
    LOCAL = "local"  # written to this machine's disk


class Speaker(StrEnum):
    """Who says it. The same words mean different things: our submission server speaks about us,
    the reader's own server about the reader, the letter, or our name with it."""

    SUBMISSION = "submission"
    READER = "reader"


class Throttle(StrEnum):
    """What a refusal asks of us beyond this one letter: of the provider's connections
    (Unavailable), or of the group of domains to which the reader belongs (Deferred)."""

    SLOW = "slow"  # fewer connections, a lower rate
    PAUSE = "pause"  # nothing at all for ``retry_after``


class Reply(NamedTuple):
    """A reply, verbatim. ``code`` is None where there was none (lost connection, time-out):
    ``text`` then is our own description."""

    phase: Phase
    code: int | None
    text: str
    speaker: Speaker = Speaker.SUBMISSION

    @property
    def enhanced(self) -> EnhancedStatus | None:
        """The enhanced status that the reply's text begins with, if any."""
        return EnhancedStatus.leading(self.text) if self.code is not None else None

    def __str__(self) -> str:
        return f"{self.code} {self.text}" if self.code is not None else self.text

    @classmethod
    def of(
        cls,
        phase: Phase,
        code: int | None,
        text: str,
        speaker: Speaker = Speaker.SUBMISSION,
    ) -> Reply:
        """A reply with control characters removed and cut to LONGEST_REPLY characters.

        The text comes from outside and will be stored and shown; line ends of a multi-line
        reply are kept.
        """
        if text.isascii() and text.isprintable():
            return cls(phase, code, text[:LONGEST_REPLY], speaker)  # nearly every reply
        clean = "".join(
            character if character == "\n" or character.isprintable() else " " for character in text
        )
        # PostgreSQL cannot store surrogates, which aiosmtplib uses for octets beyond UTF-8.
        clean = clean.encode("utf-8", "replace").decode("utf-8")
        return cls(phase, code, clean[:LONGEST_REPLY], speaker)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider's server took responsibility (RFC 5321 section 6.1): sent, not delivered.

    ``provider_message_id``: the Message-ID that it gave the letter in place of ours, with its
    angle brackets; empty where it kept ours, or did not say."""

    reply: Reply
    provider_message_id: str = ""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A temporary refusal from the reader's side: uses an attempt. ``retry_after``: the far
    side's own wish, None for our schedule. ``throttle``: it spoke about all that we send to its
    group of domains; ``needs_a_person``: and waiting alone will not mend that."""

    reply: Reply
    retry_after: timedelta | None = None
    rule: str = ""
    throttle: Throttle | None = None
    needs_a_person: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """Final for this reader. ``address_is_bad``: the mailbox or its domain does not exist, so the
    address is suppressed; a refusal of content or policy leaves the address alone."""

    reply: Reply
    address_is_bad: bool = False
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The provider's trouble, the letter certainly not taken: uses no attempt, pauses the
    provider for ``retry_after`` (None: the default). ``needs_a_person``: a configuration error;
    trying again by ourselves would only lock the account. ``throttle``: fewer connections, or a
    lower rate, would have avoided it."""

    reply: Reply
    retry_after: timedelta | None = None
    needs_a_person: bool = False
    rule: str = ""
    throttle: Throttle | None = None


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Lost after the letter had left: it may or may not have been taken (RFC 1047).

    ``rests``: the provider answered as if it were in trouble, so that one letter after the other
    would become doubtful; it rests for ``retry_after`` (None: the default).
    ``provider_message_id``: as of Accepted; then the letter is looked for by that one."""

    reply: Reply
    rule: str = ""
    rests: bool = False
    retry_after: timedelta | None = None
    provider_message_id: str = ""


Outcome = Accepted | Deferred | Rejected | Unavailable | Unconfirmed
_OUTCOMES = (Accepted, Deferred, Rejected, Unavailable, Unconfirmed)


def checked(outcome: object) -> Outcome:
    """What a provider answered, fit to be written: a reply of its own making may hold characters
    that no database takes, and then nobody could ever write what became of its letter.

    TypeError for what is no outcome.
    """
    if not isinstance(outcome, _OUTCOMES):
        raise TypeError(f"a provider answered {type(outcome).__name__}, which is no outcome")
    reply = outcome.reply
    if reply.text.isprintable():
        return outcome  # nearly every reply
    return replace(outcome, reply=Reply.of(reply.phase, reply.code, reply.text, reply.speaker))
