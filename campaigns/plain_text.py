"""The text part, made from the HTML: what a reader without pictures would want to read.

Links keep their address, lists their bullets, headings stand out, tables have a line per row, and
merge fields stay merge fields. What the HTML hides (style sheets, a preheader) is left out.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from campaigns.html_scan import VOID_ELEMENTS
from campaigns.merge import LetterError
from campaigns.placeholders import HiddenTags
from campaigns.template_source import PieceKind, UnclosedTagError

_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_PARAGRAPHS = _HEADINGS | {"blockquote", "dl", "hr", "ol", "p", "pre", "table", "ul"}
_BLOCKS = _PARAGRAPHS | {
    *("address", "article", "aside", "body", "center", "dd", "div", "dt", "fieldset", "figcaption"),
    *("figure", "footer", "form", "header", "li", "main", "nav", "section", "tr"),
}
_SKIPPED = {
    *("head", "iframe", "object", "script", "select", "style", "svg", "template", "textarea"),
    "title",
}
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|mso-hide\s*:\s*all", re.I)
_SPACES = re.compile(r"[ \t\r\n\f]+")


def text_of_html(source: str) -> str:
    """The text of an HTML template, itself a template. LetterError when its tags do not split."""
    try:
        hidden = HiddenTags(source)
    except UnclosedTagError as error:
        raise LetterError(f"HTML: {error}") from error
    writer = _Writer(hidden)
    writer.feed(hidden.html)
    writer.close()
    return hidden.reveal(writer.text())


class _Writer(HTMLParser):
    """Writes the text while it reads the HTML; placeholders are written as they are."""

    def __init__(self, hidden: HiddenTags) -> None:
        super().__init__(convert_charrefs=True)
        self._hidden = hidden
        self._lines: list[str] = [""]
        self._skipping: list[str] = []  # open elements, from the hidden one on
        self._lists: list[int | None] = []  # of <ol> the next number, of <ul> None
        self._links: list[tuple[str, list[str]]] = []  # of each open <a> the address and the words

    def text(self) -> str:
        """What was written, with at most one empty line in a row."""
        lines = [line.rstrip() for line in self._lines]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"

    # ------------------------------------------------------------------------- html.parser's calls

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if self._skipping or tag in _SKIPPED or _is_hidden(attributes):
            if tag not in VOID_ELEMENTS:
                self._skipping.append(tag)
            return
        if tag in _BLOCKS:
            self._break(paragraph=tag in _PARAGRAPHS and not self._lists)
        match tag:
            case "br":
                self._lines.append("")
            case "hr":
                self._write("-" * 40)
                self._break(paragraph=True)
            case "ul" | "ol":
                self._lists.append(1 if tag == "ol" else None)
            case "li":
                self._write_bullet()
            case "td" | "th" if self._lines[-1].strip():
                self._write(" | ")
            case "img":
                self._write(attributes.get("alt", ""))
            case "a":
                self._links.append((attributes.get("href", ""), []))

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            # An end tag that was forgotten must not hide the rest of the letter.
            if tag in self._skipping:
                del self._skipping[self._skipping.index(tag) :]
            return
        if tag == "a" and self._links:
            self._end_link(*self._links.pop())
        if tag in _HEADINGS and self._lines[-1].strip():
            self._lines.append(("=" if tag == "h1" else "-") * min(len(self._lines[-1]), 72))
        if tag in {"ul", "ol"} and self._lists:
            self._lists.pop()
        if tag in _BLOCKS:
            self._break(paragraph=tag in _PARAGRAPHS and not self._lists)

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._write(_SPACES.sub(" ", data))

    def handle_comment(self, data: str) -> None:
        match = self._hidden.comment.fullmatch(data)
        if match is None:
            return
        piece = self._hidden.piece(int(match[1]))
        # A condition that begins in a hidden element may end behind it.
        if piece and (not self._skipping or piece.kind is PieceKind.CONTROL):
            self._write(f"<!--{data}-->")

    # ------------------------------------------------------------------------------------- writing

    def _write(self, text: str) -> None:
        if self._links:
            self._links[-1][1].append(text)
        line = self._lines[-1]
        self._lines[-1] = line + (text.lstrip(" ") if not line or line.endswith(" ") else text)

    def _write_bullet(self) -> None:
        depth = max(len(self._lists) - 1, 0)
        number = self._lists[-1] if self._lists else None
        if number is not None:
            self._lists[-1] = number + 1
        self._lines[-1] = "  " * depth + ("- " if number is None else f"{number}. ")

    def _break(self, *, paragraph: bool = False) -> None:
        if self._lines[-1].strip():
            self._lines.append("")
        else:
            self._lines[-1] = ""  # a cell with nothing but &nbsp; in it
        if paragraph and len(self._lines) > 1 and self._lines[-2].strip():
            self._lines.append("")

    def _end_link(self, address: str, written: list[str]) -> None:
        """Writes the address behind the link's words, unless they are the address."""
        if not address or address.startswith("#"):
            return
        words = "".join(written).strip()
        if not words:
            self._write(address)
        elif address.removeprefix("mailto:") != words:
            self._write(f" ({address})")


def _is_hidden(attributes: dict[str, str]) -> bool:
    return "hidden" in attributes or bool(_HIDDEN_STYLE.search(attributes.get("style", "")))
