"""A mail cut into its own parts, and no further.

Python's email package parses message/delivery-status into a list of messages, does not decode
an encoded one, swallows returned headers where a boundary is damaged, and walks into the very
mails that must not be read. Here a part's bytes stay whole, message/* is opaque, and the cost is
linear in the size whatever a hostile sender writes. The grammar of Content-Type is the standard
library's.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message

# No bounce seen comes near these; what lies beyond is not read, and that is no error.
MAX_DEPTH = 20
MAX_PARTS = 100
MAX_FIELDS = 200
LONGEST_FIELD = 8000
# The standard library splits parameters in quadratic time.
LONGEST_CONTENT_TYPE = 2000

_END_OF_HEADERS = re.compile(rb"^\r*\n", re.MULTILINE)
# Where the header of a report names another boundary than the one that is used, or none.
_FIRST_DELIMITER = re.compile(
    rb"^--([^\s\r\n]{1,70})\r*\n(?=Content-)", re.MULTILINE | re.IGNORECASE
)
# RFC 5322 section 3.6.8, and the spaces before the colon that section 4.5 still has to read.
FIELD = re.compile(r"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One entity (RFC 2045): its header fields, and its body or its parts.

    ``content_type`` and ``report_type`` (RFC 6522, "" without) are in lower case; text/plain where
    no type is given. ``parts`` is empty for all that is not multipart, and for a digest.
    """

    fields: tuple[tuple[str, str], ...]
    content_type: str
    report_type: str
    body: bytes
    parts: tuple[Part, ...] = ()

    def values(self, name: str) -> list[str]:
        """The unfolded values of every field of that name, in any case of letters."""
        name = name.lower()
        return [value for field_name, value in self.fields if field_name == name]

    def value(self, name: str) -> str:
        """The first value, or ""."""
        return next(iter(self.values(name)), "")

    def decoded(self) -> bytes:
        """The body with its transfer encoding undone; as it stands where that is none, or lied."""
        encoding = self.value("content-transfer-encoding").strip().lower().partition(" ")[0]
        if encoding == "quoted-printable":
            return quopri.decodestring(self.body)
        if encoding == "base64":
            letters = re.sub(rb"[^A-Za-z0-9+/]", b"", self.body)
            try:
                # A mail cut short ends anywhere: what is whole before that counts.
                return base64.b64decode(letters[: len(letters) // 4 * 4] + _rest(letters))
            except binascii.Error:
                return self.body
        return self.body


@dataclass(slots=True)
class _Room:
    parts: int = field(default=MAX_PARTS)


def read_mail(raw: bytes) -> Part:
    """The mail as a tree of its own parts. Never raises, whatever the bytes are."""
    if raw.count(b"\r") > 8 * raw.count(b"\n"):
        raw = raw.replace(b"\r", b"\n")  # kept by a Macintosh of the last century
    return _read_part(_without_wrapping(raw), _Room(), depth=0)


def read_fields(block: bytes) -> tuple[tuple[str, str], ...]:
    """Header fields (lower-case name, unfolded value) of a block; what is no field is skipped."""
    found: list[tuple[str, list[str]]] = []
    for line in block.split(b"\n"):
        text = to_text(line.rstrip(b"\r")[:LONGEST_FIELD])
        if text[:1] in {" ", "\t"}:
            if found:
                found[-1][1].append(text.strip())
            continue
        match = FIELD.match(text)
        if match:
            if len(found) == MAX_FIELDS:
                break
            found.append((match[1].lower(), [match[2].strip()]))
    return tuple((name, " ".join(lines).strip()[:LONGEST_FIELD]) for name, lines in found)


def to_text(octets: bytes) -> str:
    """UTF-8 where it is, else Latin-1: 8-bit headers in some old charset are normal in bounces."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("latin-1")


def own_parts(part: Part) -> Iterator[tuple[Part, tuple[Part, ...]]]:
    """Every leaf with its containers, outermost first. Below message/* there is nothing of the
    mail's own, and a digest is a collection of other people's mail."""
    stack: list[tuple[Part, tuple[Part, ...]]] = [(part, ())]
    while stack:
        here, containers = stack.pop()
        if here.parts:
            stack.extend((child, (*containers, here)) for child in reversed(here.parts))
        else:
            yield here, containers


def _without_wrapping(raw: bytes) -> bytes:
    """Without what storage put in front: a byte order mark, an mbox From_ line, blank lines."""
    for _ in range(2):
        raw = raw.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
        if raw.startswith((b"From ", b">From ")):
            raw = raw.partition(b"\n")[2]
    return raw


def _read_part(octets: bytes, room: _Room, depth: int) -> Part:
    end = _END_OF_HEADERS.search(octets)
    header, body = (octets[: end.start()], octets[end.end() :]) if end else (octets, b"")
    fields = read_fields(header)
    written = next((value for name, value in fields if name == "content-type"), "")
    grammar = Message()
    grammar["Content-Type"] = written[:LONGEST_CONTENT_TYPE] or "text/plain"
    # A comment (RFC 2045 section 5.1) may follow the type.
    content_type = grammar.get_content_type().partition("(")[0].strip()
    boundary = _parameter(grammar, "boundary").rstrip()
    parts: tuple[Part, ...] = ()
    if (
        content_type.startswith("multipart/")
        and content_type != "multipart/digest"
        and boundary
        and depth < MAX_DEPTH
    ):
        parts = tuple(_children(body, boundary, room, depth + 1))
    if not parts and depth < MAX_DEPTH and content_type == "multipart/report":
        guessed = _FIRST_DELIMITER.search(body)
        if guessed:
            parts = tuple(_children(body, to_text(guessed[1]), room, depth + 1))
    report_type = _parameter(grammar, "report-type").strip().lower()
    return Part(fields, content_type, report_type, b"" if parts else body, parts)


def _children(body: bytes, boundary: str, room: _Room, depth: int) -> Iterator[Part]:
    """The parts between the delimiters. A missing close delimiter is normal; one in the middle
    (a nested multipart that reused its parent's boundary) does not end the reading."""
    delimiter = re.compile(
        rb"^--" + re.escape(boundary.encode("utf-8", "replace")) + rb"(--)?[ \t]*\r*(?:\n|\Z)",
        re.MULTILINE,
    )
    start: int | None = None
    for match in delimiter.finditer(body):
        if start is not None and room.parts:
            room.parts -= 1
            yield _read_part(body[start : match.start()], room, depth)
        start = None if match[1] else match.end()
        if not room.parts:
            return
    if start is not None:
        yield _read_part(body[start:], room, depth)


def _parameter(grammar: Message, name: str) -> str:
    """A parameter of Content-Type as text; "" where it is missing or beyond reading."""
    try:
        value = grammar.get_param(name)
    except (ValueError, LookupError, TypeError):
        return ""
    if isinstance(value, tuple):  # RFC 2231: charset, language, value
        value = value[2]
    return value if isinstance(value, str) else ""


def _rest(letters: bytes) -> bytes:
    """The last incomplete quantum of base64, padded; b"" where not even one octet is whole."""
    rest = letters[len(letters) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""
