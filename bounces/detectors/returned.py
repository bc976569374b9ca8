"""What a notification brings back of our letter: the whole, its headers, or a text below a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bounces.detectors.addresses import is_address
from bounces.detectors.base import IncomingMail
from bounces.detectors.mime import Part, own_parts, read_fields, to_text
from bounces.report import printable

RETURNED_TYPES = frozenset(
    {
        "message/rfc822",
        "text/rfc822-headers",
        "message/global",
        "message/global-headers",
        # Not registered, and written all the same.
        "message/rfc822-headers",
        "text/rfc822-header",
    }
)
# To whom a letter was meant to go, in its own header.
_RECIPIENT_FIELDS = frozenset(
    {
        *("to", "cc", "bcc", "resent-to", "apparently-to"),
        *("delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-rcpt-to"),
    }
)
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,300}>")
_RECEIVED_FOR = re.compile(r"\bfor\s+<?([^\s<>;()]+@[^\s<>;()]+)>?", re.IGNORECASE)
# Not every codec of Python's: some take quadratic time.
_CHARSETS = re.compile(
    r"utf-?8|iso-8859-\d+|windows-125\d|cp125\d|koi8-[ru]|iso-2022-(?:jp|kr)|shift_jis|euc-(?:jp|kr)"
    r"|gb2312|gbk|gb18030|big5",
    re.IGNORECASE,
)
_CHARSET = re.compile(r"charset=[\"']?([\w.-]{1,40})", re.IGNORECASE)
# One character class and one @: linear, whatever is written.
ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@[\w.-]{1,255}")


@dataclass(frozen=True, slots=True)
class Returned:
    """``message_id`` with its brackets, ``return_path`` without; "" where there is none.
    ``recipients`` in lower case."""

    message_id: str = ""
    return_path: str = ""
    recipients: frozenset[str] = frozenset()


Fields = Iterable[tuple[str, str]]


def returned_copy(mail: IncomingMail) -> Returned:
    """What the returned parts of a mail say; of the first one that has a Message-ID, else all of
    them together."""
    fields: list[tuple[str, str]] = []
    for part, _ in own_parts(mail.parts):
        if part.content_type in RETURNED_TYPES:
            fields += header_of(part.decoded())
    return of_header(fields)


def header_of(octets: bytes) -> tuple[tuple[str, str], ...]:
    """The header fields at the beginning of a returned letter."""
    octets = octets.lstrip(b"\r\n")
    return read_fields(re.split(rb"\r?\n\r?\n", octets, maxsplit=1)[0])


def of_header(fields: Fields) -> Returned:
    """What a letter's header says about who it was and whom it was for."""
    message_id = return_path = ""
    recipients: set[str] = set()
    for name, value in fields:
        if name == "message-id" and not message_id:
            match = _MESSAGE_ID.search(value)
            message_id = printable(match[0], 320) if match else ""
        elif name == "x-microsoft-original-message-id":
            # Microsoft replaced ours and kept it here.
            message_id = message_id_in(value) or message_id
        elif name in {"return-path", "x-envelope-from"} and not return_path:
            return_path = next(addresses_in(value), "")
        elif name in _RECIPIENT_FIELDS:
            recipients.update(address.lower() for address in addresses_in(value))
        elif name == "received":
            recipients.update(address.lower() for address in _RECEIVED_FOR.findall(value))
    return Returned(message_id, return_path, frozenset(filter(is_address, recipients)))


def message_id_in(text: str) -> str:
    """A Message-ID with its brackets, fit to be stored; "" without one."""
    match = _MESSAGE_ID.search(text)
    return printable(match[0], 320) if match else ""


def addresses_in(text: str) -> Iterator[str]:
    """Everything in a text that has the shape of an address, without the dot that ended its
    sentence."""
    for match in ADDRESS.finditer(text):
        address = match[0].rstrip(".").lstrip("'`.")
        if is_address(address):
            yield address


def words_of(part: Part, longest: int) -> str:
    """At most ``longest`` octets of a part as text, in the charset that it claims."""
    charset = _CHARSET.search(part.value("content-type"))
    return as_text(part.decoded()[:longest], charset[1] if charset else "")


def as_text(octets: bytes, charset: str = "") -> str:
    """Octets as text with plain line ends: in the charset that they claim, where that is true;
    else line by line, so that junk in one line spoils no other."""
    octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if _CHARSETS.fullmatch(charset):
        try:
            return octets.decode(charset)
        except (LookupError, ValueError):
            pass
    return "\n".join(map(to_text, octets.split(b"\n")))
