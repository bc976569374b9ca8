"""An Edition compiled once, and filled for each reader: the exact bytes that go on the wire.

A letter is written from a skeleton. What is the same for all readers (the fixed header fields, the
text between the merge fields in quoted-printable) is made when the letter is compiled; what differs
is made per reader and checked where it is made. Python's email package takes no part in it
(header_fields.py says why); the tests compare every byte's meaning with what it would have written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from campaigns.conf import campaign_settings
from campaigns.header_fields import (
    clean_subject,
    date_field,
    mailbox_field,
    message_id_field,
    subject_field,
)
from campaigns.list_headers import feedback_id_field, list_id_field, unsubscribe_fields
from campaigns.merge import LONGEST_VALUE, LetterError, MergeTemplate, plain_segment
from campaigns.models import Edition

# "=_" cannot occur in quoted-printable (RFC 2045 section 6.7), so no body contains the boundary.
BOUNDARY = "=_pennypost"
LONGEST_LINE = 998  # octets without CRLF, RFC 5322 section 2.1.1

# The merge fields that every letter has, and where their values come from.
BUILT_IN = {
    "email": "rcpt_to",
    "name": "name",
    "language": "language",
    "list_name": "list_name",
    "unsubscribe_url": "unsubscribe_url",
}

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Addressee(NamedTuple):
    """What a letter needs to know of one reader.

    ``list_name`` and ``list_label``: the list through which the reader was chosen; empty for a
    test letter, which then has no List-Id. ``message_id``: with angle brackets.
    ``unsubscribe_url``: at most 75 characters, empty where there is nothing to unsubscribe from.
    ``date``: aware; the moment of sending, not of planning.
    """

    rcpt_to: str
    name: str
    language: str
    attributes: Mapping[str, object]
    campaign_id: int
    list_name: str
    list_label: str
    message_id: str
    unsubscribe_url: str
    date: datetime


@dataclass(frozen=True, slots=True)
class LetterSource:
    """The content of an edition: what a letter is compiled from."""

    from_name: str
    from_email: str
    reply_to: str
    subject: str
    html: str
    text: str


class Letter:
    """One edition, ready to be filled. Rendering changes nothing in it: threads may share it."""

    def __init__(self, source: LetterSource, *, list_id_domain: str, sender_id: str) -> None:
        """LetterError for templates that do not compile and addresses that cannot be written."""
        self._subject = MergeTemplate("subject", source.subject)
        self._html = MergeTemplate("HTML", source.html, html=True)
        self._text = MergeTemplate("text", source.text)
        self.from_email = source.from_email
        self._list_id_domain = list_id_domain
        self._sender_id = sender_id
        names = self._subject.identifiers | self._html.identifiers | self._text.identifiers
        self._names = [(name, BUILT_IN.get(name)) for name in names]
        try:
            self._from = mailbox_field("From", source.from_name, source.from_email)
            if source.reply_to:
                self._from += mailbox_field("Reply-To", "", source.reply_to)
            static = self._subject.is_static
            self._subject_field = subject_field(source.subject) if static else ""
        except ValueError as error:
            raise LetterError(str(error)) from error
        # Of the few lists of a campaign; a letter needs one pair of fields per list.
        self._list_fields = lru_cache(maxsize=64)(self._make_list_fields)

    def render(self, addressee: Addressee) -> bytes:
        """The whole message (RFC 5322): CRLF only, 7-bit, no line over 998 octets or that begins
        with a dot, ends with CRLF. LetterError as for ``segments``."""
        return b"".join(self.segments(addressee))

    def segments(self, addressee: Addressee) -> list[bytes]:
        """The same in segments. What is the same for all readers is in all their letters the same
        object: it is neither copied nor kept for each.

        LetterError when a merge field fails for this reader or a value cannot stand in a header.
        """
        values, plain = self._values(addressee)
        try:
            head = "".join(
                (
                    date_field(addressee.date),
                    self._from,
                    mailbox_field("To", addressee.name, addressee.rcpt_to),
                    self._subject_field or subject_field(self._subject.render(values)),
                    message_id_field(addressee.message_id),
                    self._list_fields(
                        addressee.campaign_id, addressee.list_name, addressee.list_label
                    ),
                    _unsubscribe_fields(addressee.unsubscribe_url),
                    _BEFORE_TEXT,
                )
            ).encode("ascii")
            text, html = self._text.segments(values, plain), self._html.segments(values, plain)
            return [head, *text, _BEFORE_HTML, *html, _END]
        except LetterError:
            raise
        except ValueError as error:
            raise LetterError(str(error)) from error

    def render_subject(self, addressee: Addressee) -> str:
        """The subject as the reader sees it."""
        return clean_subject(self._subject.render(self.merge_values(addressee)))

    def render_html(self, addressee: Addressee) -> str:
        """The HTML part before encoding."""
        return self._html.render(self.merge_values(addressee))

    def render_text(self, addressee: Addressee) -> str:
        """The text part before encoding."""
        return self._text.render(self.merge_values(addressee))

    def unknown_names(self, known: set[str]) -> set[str]:
        """The merge fields of all parts that are neither known nor built in."""
        known = known | set(BUILT_IN)
        return set().union(
            *(part.unknown_names(known) for part in (self._subject, self._html, self._text))
        )

    def merge_values(self, addressee: Addressee) -> dict[str, str]:
        """The values of the merge fields that this letter mentions, as strings.

        What is empty is left out, so that ``default`` works; a built-in name is never taken from
        the attributes.
        """
        return self._values(addressee)[0]

    def _values(self, addressee: Addressee) -> tuple[dict[str, str], dict[str, bytes]]:
        """The same, and the segments of those that are plain: what needs no more than one look."""
        values: dict[str, str] = {}
        plain: dict[str, bytes] = {}
        attributes = addressee.attributes
        for name, built_in in self._names:
            value = getattr(addressee, built_in) if built_in else attributes.get(name)
            if isinstance(value, str) and (segment := plain_segment(value)) is not None:
                values[name], plain[name] = value, segment
            elif value is not None and (text := merge_text(value)):
                values[name] = text
        return values, plain

    def _make_list_fields(self, campaign_id: int, name: str, label: str) -> str:
        fields = feedback_id_field(campaign_id, label, self._sender_id)
        return list_id_field(name, label, self._list_id_domain) + fields if label else fields


def letter_of(edition: Edition) -> Letter:
    """The edition's letter, compiled once per process as long as it is among the last few.

    Found by content, not by key: an unsaved edition has none, and a changed setting is another
    letter.
    """
    settings = campaign_settings()
    source = LetterSource(
        from_name=edition.from_name,
        from_email=edition.from_email,
        reply_to=edition.reply_to,
        subject=edition.subject,
        html=edition.html,
        text=edition.text,
    )
    return _compiled(source, settings.list_id_domain, settings.sender_id)


@lru_cache(maxsize=8)
def _compiled(source: LetterSource, list_id_domain: str, sender_id: str) -> Letter:
    return Letter(source, list_id_domain=list_id_domain, sender_id=sender_id)


def merge_text(value: object) -> str:
    """A value as a merge field shows it: strings and numbers as they are, ``true`` for True,
    nothing for lists and objects; without controls, cut to LONGEST_VALUE characters."""
    if isinstance(value, str):
        text = value[:LONGEST_VALUE]
        return text if text.isprintable() else _UNPRINTABLE.sub("", text)
    if isinstance(value, bool):
        return "true" if value else ""
    return str(value) if isinstance(value, int | float) else ""


# ------------------------------------------------------------------------------- the fixed parts


_PART = (
    f"--{BOUNDARY}\r\nContent-Type: text/{{}}; charset=utf-8\r\n"
    "Content-Transfer-Encoding: quoted-printable\r\n\r\n"
)
_BEFORE_TEXT = (
    "MIME-Version: 1.0\r\n"
    f'Content-Type: multipart/alternative; boundary="{BOUNDARY}"\r\n\r\n' + _PART.format("plain")
)
# The CRLF before a boundary belongs to the boundary (RFC 2046 section 5.1.1), not to the part.
_BEFORE_HTML = ("\r\n" + _PART.format("html")).encode("ascii")
_END = f"\r\n--{BOUNDARY}--\r\n".encode("ascii")


def _unsubscribe_fields(url: str) -> str:
    return unsubscribe_fields(url) if url else ""


# ------------------------------------------------------------------------------------- the audit


# Field name -> how often it may stand in a letter. Everything else is refused.
PLANNED_FIELDS: dict[str, tuple[int, int]] = {
    "Date": (1, 1),
    "From": (1, 1),
    "Reply-To": (0, 1),
    "To": (1, 1),
    "Subject": (1, 1),
    "Message-ID": (1, 1),
    "List-Id": (0, 1),
    "Feedback-ID": (1, 1),
    "List-Unsubscribe": (0, 1),
    "List-Unsubscribe-Post": (0, 1),
    "MIME-Version": (1, 1),
    "Content-Type": (1, 1),
}
_NEVER_FOLDED = frozenset({"Message-ID", "List-Id", "List-Unsubscribe", "List-Unsubscribe-Post"})


def audit(content: bytes) -> None:
    """Reads a finished letter as a stranger would. LetterError for anything that was not planned:
    a field too many or too few, a bare CR or LF, a line over 998 octets or that begins with a dot,
    an octet beyond ASCII, an encoded word in a List-* field.

    Takes several times as long as rendering, so it runs where letters are tried (preflight, tests);
    on the hot path each value is checked where its field is made.
    """
    if not content.isascii():
        raise LetterError("audit: an octet beyond ASCII")
    # SMTP smuggling begins with a bare CR or LF (CVE-2023-51764).
    pairs = content.count(b"\r\n")
    if content.count(b"\n") != pairs or content.count(b"\r") != pairs:
        raise LetterError("audit: a bare CR or LF")
    lines = content.decode("ascii").split("\r\n")
    if any(len(line) > LONGEST_LINE for line in lines):
        raise LetterError("audit: a line of more than 998 octets")
    if any(line.startswith(".") for line in lines):
        raise LetterError("audit: a line that begins with a dot")
    if lines[-1]:
        raise LetterError("audit: the letter does not end with CRLF")
    fields = _header_fields(lines[: lines.index("")])
    _refuse_unplanned([name for name, _value in fields])
    for name, value in fields:
        if name.startswith("List-") and "=?" in value:
            raise LetterError(f"audit: an encoded word in {name}")
        if name in _NEVER_FOLDED and "\r\n" in value:
            raise LetterError(f"audit: {name} is folded")


def _header_fields(lines: list[str]) -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    for line in lines:
        if line[0] in " \t":
            if not fields or not line.strip():
                raise LetterError("audit: a continuation of nothing")
            fields[-1] = (fields[-1][0], f"{fields[-1][1]}\r\n{line}")
        else:
            name, colon, value = line.partition(":")
            if not colon:
                raise LetterError("audit: a line of the header is no field")
            fields.append((name, value))
    return fields


def _refuse_unplanned(names: list[str]) -> None:
    for name in names:
        if name not in PLANNED_FIELDS:
            raise LetterError(f"audit: the field {name!r} was not planned")
    for name, (least, most) in PLANNED_FIELDS.items():
        if not least <= names.count(name) <= most:
            raise LetterError(f"audit: the field {name} stands {names.count(name)} times")
    if ("List-Unsubscribe" in names) != ("List-Unsubscribe-Post" in names):
        raise LetterError("audit: List-Unsubscribe and List-Unsubscribe-Post belong together")
