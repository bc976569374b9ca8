"""What a detector says: values, whatever the mail looked like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header

LONGEST_DIAGNOSTIC = 2000
LONGEST_HEADER = 1000
_XTEXT = re.compile(r"\+([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class BounceReport:
    """One recipient that a mail reports as finally failed. A delay or a success makes none.

    ``recipient`` is what we sent to, as far as the mail tells: Original before Final recipient.
    ``action`` is the reporter's word in lower case (``failed``), ``status`` is x.y.z or "",
    ``diagnostic`` the far server's answer, unfolded but otherwise as written.
    ``hard`` is the detector's claim that the address is gone. Intake believes it only where the
    rule of classification.py agrees: a detector may be more careful than the rule, never less.
    The rest serves correlation; "" is "not in the mail". ``message_id`` is that of the returned
    copy, with its angle brackets. ``witnessed`` is False where nothing but a free text names the
    recipient: such a report counts only if the token's own reader is named.
    """

    recipient: str
    action: str
    status: str
    hard: bool
    diagnostic: str
    original_recipient: str = ""
    final_recipient: str = ""
    remote_mta: str = ""
    envelope_id: str = ""
    message_id: str = ""
    witnessed: bool = True


@dataclass(frozen=True, slots=True)
class ComplaintReport:
    """A reader called the letter spam (RFC 5965), and that is what ``feedback_type`` says.

    ``recipient`` may be "": most providers redact it, and the token knows better.
    ``return_path`` is the MAIL FROM of the letter, where the report or the returned copy has it.
    """

    recipient: str
    feedback_type: str
    message_id: str = ""
    return_path: str = ""


Report = BounceReport | ComplaintReport


def names(report: Report, address_key: str) -> bool:
    """Whether the report names this address (lower case) in one of the spellings in use."""
    written: tuple[str, ...] = (report.recipient,)
    if isinstance(report, BounceReport):
        written += (report.original_recipient, report.final_recipient)
    return any(
        spelling.lower() == address_key for address in written for spelling in spellings(address)
    )


def spellings(address: str) -> Iterator[str]:
    """The address as written, then what it may stand for.

    Some servers report ORCPT without decoding its xtext (RFC 3461 section 4: ``+2B`` is ``+``),
    some write an encoded word into the local part. Both are legal atoms as well, so the literal
    form comes first and a decoded one counts only where we know that we sent to it.
    """
    yield address
    decoded = _XTEXT.sub(lambda match: chr(int(match[1], 16)), address)
    if decoded != address:
        yield decoded
    local, at, domain = address.rpartition("@")
    if local.startswith("=?") and local.endswith("?=") and (words := decoded_words(local)) != local:
        yield f"{words}{at}{domain}"


def decoded_words(text: str) -> str:
    """A header's value with its encoded words (RFC 2047) as people read them; as written, where
    they cannot be read. At most LONGEST_HEADER characters of it, for some codecs are slow."""
    text = text[:LONGEST_HEADER]
    if "=?" not in text:
        return text
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return text


def printable(text: str, longest: int = LONGEST_DIAGNOSTIC) -> str:
    """Text from outside, fit to be stored and shown: one line, no control, bidi or NUL characters.

    PostgreSQL refuses NUL and surrogates; bidi overrides would let a sender rewrite our pages.
    """
    clean = "".join(
        character if character.isprintable() else " " for character in text[: 2 * longest]
    )
    return " ".join(clean.split())[:longest]
