"""A template cut into text and tags, by the same rules by which minijinja reads it.

Three things are done to a template between its tags, and each must leave the tags alone: its text
is encoded once for the wire (merge.py), its CSS is inlined (inlining.py), and a text part is made
from it (plain_text.py). All three stand on ``split``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum, auto


class PieceKind(Enum):
    TEXT = auto()
    RAW = auto()  # {% raw %} ... {% endraw %}: text that may look like tags
    EXPRESSION = auto()  # {{ ... }}
    CONTROL = auto()  # {% ... %}
    COMMENT = auto()  # {# ... #}


@dataclass(frozen=True, slots=True)
class Piece:
    """One run of text, or one tag.

    ``source``: as it was written; all sources joined are the template. ``text``: what TEXT and RAW
    render to, after the whitespace control ({%- and -%}) of their neighbours. ``inside``: what
    stands between a tag's delimiters, whitespace marks left out.
    """

    kind: PieceKind
    source: str
    text: str = ""
    inside: str = ""

    @property
    def keyword(self) -> str:
        """The first word of a CONTROL tag: if, for, endfor."""
        words = self.inside.split(maxsplit=1)
        return words[0] if words else ""

    @property
    def is_tag(self) -> bool:
        """Whether the source is something that an HTML parser must not see."""
        return self.kind is not PieceKind.TEXT


class UnclosedTagError(ValueError):
    """A tag that begins and does not end."""


_OPENING = re.compile(r"\{[{%#]")
_CLOSING = {"{{": "}}", "{%": "%}"}
# What matters inside a tag: strings (which may hold anything), brackets, and the two endings.
_INSIDE = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?[}%]\}|[\[({})\]]""", re.DOTALL)
_RAW = re.compile(r"\{%[-+]?\s*raw\s*([-+]?)%\}")
_END_RAW = re.compile(r"\{%([-+]?)\s*endraw\s*([-+]?)%\}")
# White_Space of Unicode, as Rust trims it; Python's strip() would take \x1c to \x1f as well.
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_WORD = re.compile(r"[^\W\d]\w*")
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def split(source: str) -> list[Piece]:
    """The pieces of a template, in order. UnclosedTagError when a tag does not end."""
    pieces: list[Piece] = []
    position = 0
    while position < len(source):
        opening = _OPENING.search(source, position)
        start = opening.start() if opening else len(source)
        if start > position:
            text = source[position:start]
            pieces.append(Piece(PieceKind.TEXT, text, text))
        if opening is None:
            break
        pieces.append(_tag_at(source, start))
        position = start + len(pieces[-1].source)
    return _with_whitespace_control(pieces)


def identifiers(pieces: list[Piece]) -> set[str]:
    """Every word in the tags outside of strings: the names that a template might look up, and
    some more (keywords, filters)."""
    return {
        word
        for piece in pieces
        if piece.kind in {PieceKind.EXPRESSION, PieceKind.CONTROL}
        for word in _WORD.findall(_STRING.sub(" ", piece.inside))
    }


def _tag_at(source: str, start: int) -> Piece:
    delimiter = source[start : start + 2]
    if delimiter == "{#":
        return _comment_at(source, start)
    if delimiter == "{%" and (raw := _RAW.match(source, start)):
        return _raw_at(source, raw)
    end = _end_of_tag(source, start + 2, _CLOSING[delimiter])
    inside = source[start + 2 : end - 2]
    kind = PieceKind.EXPRESSION if delimiter == "{{" else PieceKind.CONTROL
    return Piece(kind, source[start:end], inside=_unmarked(inside).strip())


def _comment_at(source: str, start: int) -> Piece:
    end = source.find("#}", start + 2)
    if end < 0:
        raise UnclosedTagError("a comment that begins with {# does not end with #}")
    return Piece(PieceKind.COMMENT, source[start : end + 2])


def _raw_at(source: str, opening: re.Match[str]) -> Piece:
    closing = _END_RAW.search(source, opening.end())
    if closing is None:
        raise UnclosedTagError("{% raw %} has no {% endraw %}")
    text = source[opening.end() : closing.start()]
    if opening[1] == "-":
        text = text.lstrip(_SPACES)
    if closing[1] == "-":
        text = text.rstrip(_SPACES)
    return Piece(PieceKind.RAW, source[opening.start() : closing.end()], text)


def _end_of_tag(source: str, position: int, closing: str) -> int:
    """Where the tag ends whose inside begins at ``position``. Inside of brackets an ending is none:
    ``{{ {"a": {"b": 1}} }}`` is one tag."""
    depth = 0
    # The mark of {{- belongs to the opening, also when the tag is empty: {{-}}.
    position += source[position : position + 1] in {"-", "+"}
    while token := _INSIDE.search(source, position):
        position = token.end()
        mark = token[0]
        if mark[0] in "'\"":
            continue
        if len(mark) > 1:
            if depth == 0 and mark.endswith(closing):
                return position
            # A bracket and half of what follows: read on behind the first character.
            position = token.start() + 1
            depth -= mark[0] == "}" and depth > 0
        else:
            depth += 1 if mark in "[({" else -1 if depth else 0
    raise UnclosedTagError(f"a tag has no {closing}")


def _unmarked(inside: str) -> str:
    """The inside without whitespace marks."""
    return inside[inside[:1] in {"-", "+"} : len(inside) - (inside[-1:] in {"-", "+"})]


def _with_whitespace_control(pieces: list[Piece]) -> list[Piece]:
    """Takes the spaces from each text that stand before ``{%-`` and behind ``-%}``."""
    trimmed = list(pieces)
    for index, piece in enumerate(pieces):
        if piece.kind is not PieceKind.TEXT:
            continue
        text = piece.text
        if index and pieces[index - 1].source[-3:-2] == "-":
            text = text.lstrip(_SPACES)
        if index + 1 < len(pieces) and pieces[index + 1].source[2:3] == "-":
            text = text.rstrip(_SPACES)
        trimmed[index] = replace(piece, text=text)
    return trimmed
