"""What a provider gets: an envelope and the exact bytes of a letter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Envelope(NamedTuple):
    """RFC 5321 section 2.3.1: the reverse path and the one forward path. Never shown to readers."""

    mail_from: str
    rcpt_to: str


class OutgoingMessage(NamedTuple):
    """One letter to one reader.

    ``segments`` are the whole RFC 5322 message one behind the other: CRLF line ends only, ends with
    CRLF, no line over 998 octets, 7-bit, not dot-stuffed. Letters share what is the same in all of
    them, so that the next twenty take little more room than one. ``message_id`` is the value of its
    Message-ID field with the angle brackets. ``reference`` names the letter in logs and on the
    caller's side.
    ``has_no_dots``: no line begins with a dot, so none has to be doubled on the wire (RFC 5321
    section 4.5.2); False where nobody has looked.
    """

    reference: int
    envelope: Envelope
    segments: Sequence[bytes]
    message_id: str
    has_no_dots: bool = False

    @property
    def content(self) -> bytes:
        """The message in one piece, put together anew each time."""
        return b"".join(self.segments)

    @property
    def octets(self) -> int:
        """How many the message has."""
        return sum(map(len, self.segments))
