"""Quoted-printable (RFC 2045 section 6.7), written so that pieces can be joined.

A *segment* begins at column 0 and ends with a line break: a hard one where its text ends with one,
a soft one (``=`` CRLF) otherwise. Segments joined in any order and number decode to their texts
joined, and no line is longer than 76 characters, whatever the texts were.

And no line begins with a dot: where SMTP ends a letter with one (RFC 5321 section 4.5.2), nothing
in ours can be taken for that end, and nobody has to look through ten kilobytes for lines that
begin so.
"""

from __future__ import annotations

import binascii
import re

LONGEST_LINE = 76
SOFT_BREAK = "=\r\n"

_LINE_ENDS = re.compile(r"\r\n?")
# binascii.b2a_qp encodes a space before a line end after it has measured the line.
_TOO_LONG = re.compile(rb"^([^\n]{74,})(=20|=09)$", re.MULTILINE)
# A line that begins with a dot, and what follows; the dot takes two characters more.
_DOT_FIRST = re.compile(rb"^\.([^\n]*)$", re.MULTILINE)
_DOT = "=2E"


def encode(text: str) -> str:
    """The text in quoted-printable, its line ends as CRLF; a lone surrogate becomes "?"."""
    raw = _LINE_ENDS.sub("\n", text).encode("utf-8", "replace")
    lines = _TOO_LONG.sub(rb"\1=\n\2", binascii.b2a_qp(raw, istext=True))
    dots = 1
    while dots:  # again where a line was broken between two
        lines, dots = _DOT_FIRST.subn(_with_its_dot_encoded, lines)
    return lines.replace(b"\n", b"\r\n").decode("ascii")


def _with_its_dot_encoded(line: re.Match[bytes]) -> bytes:
    dot, rest = _DOT.encode("ascii"), line[1]
    return dot + (rest if len(dot) + len(rest) <= LONGEST_LINE else b"=\n" + rest)


def segment(text: str) -> str:
    """The text as a segment; nothing for nothing."""
    encoded = encode(text)
    if not encoded or encoded.endswith("\n"):
        return encoded
    last = len(encoded) - encoded.rfind("\n") - 1
    if last < LONGEST_LINE:
        return encoded + SOFT_BREAK
    # No room for the "=": the line is cut, but not within the three characters of one octet.
    cut = len(encoded) - 1
    while "=" in encoded[cut - 2 : cut]:
        cut -= 1
    end = encoded[cut:]
    return encoded[:cut] + SOFT_BREAK + (_DOT if end == "." else end) + SOFT_BREAK
