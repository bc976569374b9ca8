"""Where in an HTML document a position lies, in one pass, for any input.

Not an HTML parser: it answers one question, "text, tag, comment or raw text?", as the tokeniser of
the HTML standard would (section 13.2.5), and changes nothing. html.parser cannot say where in its
input it stands within an attribute, and css_inline gives back another document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

# They have no end tag (HTML standard, section 13.1.2).
VOID_ELEMENTS = frozenset(
    {
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"),
        *("track", "wbr"),
    }
)


class Region(Enum):
    TEXT = auto()
    TAG = auto()  # <p class="x">
    COMMENT = auto()  # <!-- ... -->
    DECLARATION = auto()  # <!DOCTYPE ...>, and <![if mso]>, which browsers take for a comment
    RAW_TEXT = auto()  # the inside of style, script, title, textarea


@dataclass(frozen=True, slots=True)
class Span:
    region: Region
    start: int
    end: int
    name: str = ""  # of the tag, lower case, with its "/"


_TAG_NAME = re.compile(r"</?[A-Za-z][^\s/>]*")
_QUOTE_OR_END = re.compile(r"""["'>]""")
_RAW_TEXT_ELEMENTS = frozenset({"style", "script", "title", "textarea"})


def spans(html: str) -> Iterator[Span]:
    """The document cut into regions, in order and without a gap."""
    position = 0
    while position < len(html):
        start = _next_markup(html, position)
        if start > position:
            yield Span(Region.TEXT, position, start)
        if start == len(html):
            return
        span = (_declaration if html[start + 1] == "!" else _tag)(html, start)
        yield span
        position = span.end
        if span.name in _RAW_TEXT_ELEMENTS:
            end = _end_of_raw_text(html, position, span.name)
            if end > position:
                yield Span(Region.RAW_TEXT, position, end)
            position = end


def _next_markup(html: str, position: int) -> int:
    """Where the next tag, comment or declaration begins; a "<" before anything else is text."""
    while (position := html.find("<", position)) >= 0:
        if html.startswith("<!", position) or _TAG_NAME.match(html, position):
            return position
        position += 1
    return len(html)


def _declaration(html: str, start: int) -> Span:
    if html.startswith("<!--", start):
        end = html.find("-->", start + 4)
        return Span(Region.COMMENT, start, len(html) if end < 0 else end + 3)
    end = html.find(">", start)
    return Span(Region.DECLARATION, start, len(html) if end < 0 else end + 1)


def _tag(html: str, start: int) -> Span:
    match = _TAG_NAME.match(html, start)
    assert match is not None
    name, position = match[0][1:].lower(), match.end()
    while found := _QUOTE_OR_END.search(html, position):
        if found[0] == ">":
            return Span(Region.TAG, start, found.end(), name)
        closing = html.find(found[0], found.end())
        if closing < 0:
            break
        position = closing + 1
    return Span(Region.TAG, start, len(html), name)


def _end_of_raw_text(html: str, position: int, name: str) -> int:
    closing = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE).search(html, position)
    return closing.start() if closing else len(html)
