"""A template's tags, hidden from HTML parsers and put back afterwards.

A parser that sees ``<table>{% for ... %}<tr>`` moves the tag out of the table, and one that sees
``<td {% if x %}class="a"{% else %}class="b"{% endif %}>`` drops the second class. So each tag
becomes something that a parser keeps where it is: a comment between elements, a word within an
attribute's value, an attribute without value among attributes, a CSS comment for a style sheet
that is not plain CSS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from campaigns.html_scan import Region, Span, spans
from campaigns.template_source import Piece, PieceKind, split

_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_IN_UNQUOTED_VALUE = re.compile(r"=[^\s\"'>]*\Z")
_LOOKS_LIKE_A_TAG = re.compile(r"\{[{%#]")


class HiddenTags:
    """``html`` is the template without tags; ``restore`` puts them into what became of it."""

    def __init__(self, source: str) -> None:
        """UnclosedTagError when the template does not even split."""
        self._pieces: list[Piece] = []
        self._hidden: list[str] = []
        self._nested: set[int] = set()  # hidden as part of something larger
        stem = "pp"
        while stem in source.lower():
            stem += "q"
        self._stem = stem
        self._word = re.compile(rf"{stem}(\d+)x")
        self._any = re.compile(
            rf'<!--{stem}(\d+)c-->|/\*{stem}(\d+)s\*/|{stem}(\d+)a=""|{stem}(\d+)x'
        )
        self.comment = re.compile(rf"{stem}(\d+)c")
        html = "".join(self._hide_piece(piece) for piece in split(source))
        self.html = "".join(self._regions(html))

    def piece(self, number: int) -> Piece | None:
        """The tag behind a placeholder; None when several, or something else, were hidden."""
        return self._pieces[number] if number < len(self._pieces) else None

    @property
    def stretches(self) -> list[str]:
        """What was hidden as more than one tag: conditional attributes, style sheets."""
        return self._hidden[len(self._pieces) :]

    def tags_and_text(self, value: str) -> Iterator[tuple[int | None, str]]:
        """An attribute's value in order: (number, "") for a placeholder, (None, text) otherwise."""
        position = 0
        for match in self._word.finditer(value):
            if match.start() > position:
                yield None, value[position : match.start()]
            yield int(match[1]), ""
            position = match.end()
        if position < len(value):
            yield None, value[position:]

    def reveal(self, text: str) -> str:
        """The text with its tags; everything else in it stays text, also where it looks like one
        (``&#123;{`` comes back from a parser as ``{{``)."""
        parts, position = [], 0
        for match in self._any.finditer(text):
            parts += [_literal(text[position : match.start()]), self._hidden[_number(match)]]
            position = match.end()
        return "".join([*parts, _literal(text[position:])])

    def lost(self, text: str) -> list[str]:
        """The tags that are no longer in the text: a parser found no place for them."""
        kept = self._nested | {_number(match) for match in self._any.finditer(text)}
        return [source for number, source in enumerate(self._hidden) if number not in kept]

    # ------------------------------------------------------------------------------------ hiding

    def _hide_piece(self, piece: Piece) -> str:
        if not piece.is_tag:
            return piece.source
        self._pieces.append(piece)
        self._hidden.append(piece.source)
        return f"{self._stem}{len(self._hidden) - 1}x"

    def _hide(self, text: str) -> int:
        """The number under which a stretch of text is hidden, its tags as they were written."""
        self._nested.update(int(match[1]) for match in self._word.finditer(text))
        self._hidden.append(self._word.sub(lambda match: self._hidden[int(match[1])], text))
        return len(self._hidden) - 1

    def _regions(self, html: str) -> Iterator[str]:
        previous: Span | None = None
        for span in spans(html):
            text = html[span.start : span.end]
            match span.region:
                case Region.TEXT:
                    yield self._word.sub(rf"<!--{self._stem}\1c-->", text)
                case Region.TAG:
                    yield self._tag(text)
                case Region.DECLARATION if not text.lower().startswith("<!doctype"):
                    yield f"<!--{self._stem}{self._hide(text)}c-->"
                case Region.RAW_TEXT if previous and previous.name == "style":
                    yield self._style(text)
                case _:
                    yield text
            previous = span

    def _style(self, text: str) -> str:
        """A style sheet with conditions or loops is not CSS: hidden whole."""
        numbers = [int(match[1]) for match in self._word.finditer(text)]
        if all(self._pieces[number].kind is PieceKind.EXPRESSION for number in numbers):
            return text
        return f"/*{self._stem}{self._hide(text)}s*/"

    def _tag(self, text: str) -> str:
        """Hides what lies between the first and the last template tag among the attributes."""
        bare = [match for match in self._word.finditer(text) if _is_bare(text, match.start())]
        if not bare:
            return text
        start, end = bare[0].start(), bare[-1].end()
        hidden = f" {self._stem}{self._hide(text[start:end])}a "
        return text[:start] + hidden + text[end:]


def _is_bare(tag: str, position: int) -> bool:
    """Whether the position in a tag is in no attribute's value."""
    before = _QUOTED.sub("value ", tag[:position])
    quoted = '"' in before or "'" in before
    return not quoted and not _IN_UNQUOTED_VALUE.search(before)


def _number(match: re.Match[str]) -> int:
    return int(next(group for group in match.groups() if group is not None))


def _literal(text: str) -> str:
    return _LOOKS_LIKE_A_TAG.sub(lambda match: '{{ "' + match[0] + '" }}', text)
