"""Merge fields: minijinja, fenced in.

What an author writes is a program that runs once per reader, so it gets nothing to run away with:
no loader, no globals, no method calls, few filters, counted steps (fuel), strings for values. What
a reader's data holds is never markup: values are escaped in HTML, there is no ``safe`` filter and
no ``autoescape`` tag, and an address in a link goes through the ``url`` filter. What fuel cannot
stop (memory) is tried in a child process first: campaigns/trial.py.

A template renders in two ways that give the same text. ``render`` gives the text itself.
``render_encoded`` gives quoted-printable, at a tenth of the cost of encoding the rendered text:
the text between the tags is encoded once, when the template is compiled, and each value alone,
when it is written (quoted_printable.py has the rules by which the pieces fit). Where the tags are
nothing but names of fields, as in most letters, the pieces are joined without minijinja.

Imports no Django: the child process starts in a fraction of the time without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from minijinja import Environment, Markup, TemplateError, safe

from campaigns import quoted_printable
from campaigns.template_source import Piece, PieceKind, UnclosedTagError, identifiers, split

# Steps of minijinja's machine; a long newsletter takes some hundreds, an endless loop 2 ms.
FUEL = 100_000
LARGEST_TEMPLATE = 200 * 1024  # octets of UTF-8
LARGEST_OUTPUT = 1024 * 1024  # characters
LONGEST_VALUE = 10_000  # characters of one merge value; the rest is cut off

# Every filter of minijinja 3.0 but those that do little. ``safe`` and ``striptags`` would make
# markup of a reader's data; ``replace``, ``format``, ``indent`` and their like make much of little.
# Left: abs capitalize count d default e escape first float int last length lower round title trim
# upper urlencode, and ``url``, which is ours.
_REMOVED_FILTERS = (
    "attr batch bool chain dictsort filesizeformat format groupby indent items join lines list map "
    "max min pluralize pprint reject rejectattr replace reverse safe select selectattr slice sort "
    "split string striptags sum tojson truncate unique wordwrap zip"
)
# ``debug`` shows the whole context; the others make objects and loops.
_REMOVED_GLOBALS = "debug range namespace cycler joiner lipsum dict"

_FLAT_TAGS = {"if", "elif", "else", "endif", "for", "endfor", "with", "endwith", "set"}
# These put what they hold into a variable or through a filter: it must not be encoded by then.
_CAPTURING_TAGS = {"filter", "macro", "call", "block"}
_TAGS = {*_FLAT_TAGS, *_CAPTURING_TAGS, "endset", *(f"end{tag}" for tag in _CAPTURING_TAGS)}

# {% set x = 1 %}, and not the block {% set x %} ... {% endset %}, with or without filters.
_ASSIGNMENT = re.compile(r"set\s[^|'\"]*=").match
_OPENING = re.compile(r"\{[{%#]")
_URL = re.compile(r"(?:https?://|mailto:)[^\s<>\"\x00-\x20\x7f]+", re.IGNORECASE)
# A value that is its own quoted-printable: no "=", nothing to escape, no dot at the beginning, no
# space at the end.
_PLAIN_TEXT = re.compile(r"(?!\.)[ -<>-~]{0,74}[!-<>-~]").fullmatch
_PLAIN_HTML = re.compile(r"(?!\.)[ !#-%(-;?-~]{0,74}[!#-%(-;?-~]").fullmatch
_SOFT_BREAK = quoted_printable.SOFT_BREAK.encode("ascii")
_LONGEST_PLAIN_SEGMENT = quoted_printable.LONGEST_LINE + len("\r\n")

Finalizer = Callable[[object], str]


class LetterError(ValueError):
    """A letter cannot be made, with the reason for the person who wrote or sends it."""


def url_filter(value: object) -> str:
    """The value when it is a web or mail address, nothing otherwise.

    Nothing of ``javascript:`` or of a path without host is kept: what is no address leads nowhere.
    """
    text = _as_text(value).strip()
    return text if _URL.fullmatch(text) else ""


class MergeTemplate:
    """One part of a letter, compiled. ``part`` names it in errors: subject, HTML, text."""

    def __init__(self, part: str, source: str, *, html: bool = False) -> None:
        """LetterError for what does not compile, is too large, or uses a tag that is not ours."""
        octets = source.encode("utf-8", "replace")  # half a character is not compiled
        if len(octets) > LARGEST_TEMPLATE:
            raise LetterError(f"{part}: larger than {LARGEST_TEMPLATE // 1024} KB")
        self.part, source = part, octets.decode("utf-8")
        self._text = _environment(html, _html_value if html else _as_text)
        self._add(self._text, source)
        try:
            pieces = split(source)
        except UnclosedTagError as error:
            raise LetterError(f"{part}: {error}") from error
        _refuse_foreign_tags(part, pieces)
        self.is_static = not any(piece.is_tag for piece in pieces)
        finalizer = _encoded_html_value if html else _encoded_value
        self._form = _form(pieces, self.unknown_names(set()), finalizer)
        # A superset of what it looks up, so that nothing is missing when a name is also assigned;
        # of a form just that, for each letter looks for a value of each.
        self.identifiers = self._form.names if self._form is not None else identifiers(pieces)
        self._encoded: Environment | None = None
        if self._form is None and _is_flat(pieces):
            # No auto-escaping: the finalizer escapes before it encodes.
            self._encoded = _environment(False, finalizer)
            self._add(self._encoded, _encoded_source(pieces))

    def unknown_names(self, known: set[str]) -> set[str]:
        """The names that the template looks up and that are neither known nor assigned in it."""
        return self._text.undeclared_variables_in_template(self.part) - known

    def render(self, values: Mapping[str, str]) -> str:
        """The part for one reader. LetterError with the line and the reason."""
        return self._render(self._text, values)

    def render_encoded(self, values: Mapping[str, str]) -> str:
        """The same in quoted-printable, as one segment."""
        return b"".join(self.segments(values, {})).decode("ascii")

    def segments(self, values: Mapping[str, str], plain: Mapping[str, bytes]) -> list[bytes]:
        """The same as segments to be joined. ``plain``: of the values, those that ``plain_segment``
        knows how to write."""
        if self._form is not None:
            segments, most = self._form.filled(values, plain)
            if most > LARGEST_OUTPUT:
                self._measure(sum(map(len, segments)))
            return segments
        return [self._rendered_segment(values).encode("ascii")]

    def _rendered_segment(self, values: Mapping[str, str]) -> str:
        if self._encoded is None:
            return quoted_printable.segment(self._render(self._text, values))
        try:
            return self._render(self._encoded, values)
        except LetterError:
            self._render(self._text, values)  # fails likewise, and knows the author's line
            raise

    def _render(self, environment: Environment, values: Mapping[str, str]) -> str:
        try:
            output = environment.render_template(self.part, **values)
        except TemplateError as error:
            raise self._error(error) from error
        self._measure(len(output))
        return output

    def _measure(self, size: int) -> None:
        if size > LARGEST_OUTPUT:
            raise LetterError(f"{self.part}: larger than {LARGEST_OUTPUT // 1024} KB when filled")

    def _add(self, environment: Environment, source: str) -> None:
        try:
            environment.add_template(self.part, source)
        except TemplateError as error:
            raise self._error(error) from error

    def _error(self, error: TemplateError) -> LetterError:
        line = f", line {error.line}" if error.line else ""
        reason = error.message.split(" (in ", 1)[0]
        return LetterError(f"{self.part}{line}: {reason}")


def _environment(auto_escape: bool, finalizer: Finalizer) -> Environment:
    environment = Environment(
        debug=False,
        fuel=FUEL,
        pycompat=False,
        undefined_behavior="lenient",
        auto_escape_callback=lambda _name: auto_escape,
        keep_trailing_newline=True,
        finalizer=finalizer,
    )
    for name in _REMOVED_FILTERS.split():
        environment.remove_filter(name)
    for name in _REMOVED_GLOBALS.split():
        environment.remove_global(name)
    environment.add_filter("url", url_filter)
    return environment


def _refuse_foreign_tags(part: str, pieces: list[Piece]) -> None:
    for piece in pieces:
        if piece.kind is PieceKind.CONTROL and piece.keyword not in _TAGS:
            raise LetterError(f"{part}: the tag {{% {piece.keyword} %}} is not available")


# ------------------------------------------------------------------------------ values as written


def _as_text(value: object) -> str:
    """What an expression's value is written as; nothing for what is undefined."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _html_value(value: object) -> str:
    # Markup is what a macro or a {% set %} block captured: it was escaped on its way in.
    return safe(value if isinstance(value, Markup) else escape(_as_text(value)))


def plain_segment(value: str) -> bytes | None:
    """The segment of a value that is written alike in text and in HTML, as most are: a short string
    of printable ASCII without anything to escape or a dot at its beginning. None for any other."""
    return value.encode("ascii") + _SOFT_BREAK if _PLAIN_HTML(value) else None


def _encoded_value(value: object) -> str:
    if type(value) is str and _PLAIN_TEXT(value):
        return value + quoted_printable.SOFT_BREAK
    return quoted_printable.segment(_as_text(value))


def _encoded_html_value(value: object) -> str:
    if type(value) is str and _PLAIN_HTML(value):
        return value + quoted_printable.SOFT_BREAK
    return quoted_printable.segment(_html_value(value))


# ------------------------------------------------------------------------------------------- forms


# {{ name }}, and {{ name | default("a word") }} with a string that holds no escapes.
_FIELD = re.compile(
    r"""(\w+)(?:\s*\|\s*(?:default|d)\s*\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\))?"""
).fullmatch


@dataclass(frozen=True, slots=True)
class _Form:
    """Encoded text with blanks for values: filled in less than half of minijinja's time.

    ``blanks``: the places among the pieces where values stand, and their names; the piece at such
    a place is what stands there when the value is missing. ``octets``: how many there are at most
    when all values are plain.
    """

    pieces: list[bytes]
    blanks: list[tuple[int, str]]
    finalizer: Finalizer
    octets: int

    @property
    def names(self) -> set[str]:
        """Those of its blanks."""
        return {name for _place, name in self.blanks}

    def filled(
        self, values: Mapping[str, str], plain: Mapping[str, bytes]
    ) -> tuple[list[bytes], int]:
        """Its segments, and how many octets they have at most."""
        pieces, most = self.pieces.copy(), self.octets
        for place, name in self.blanks:
            segment = plain.get(name)
            if segment is None:
                if name not in values:
                    continue
                segment = self.finalizer(values[name]).encode("ascii")
                most += len(segment)
            pieces[place] = segment
        return pieces, most


def _form(pieces: list[Piece], looked_up: set[str], finalizer: Finalizer) -> _Form | None:
    """The template as a form; None when there is more to it than text and fields.

    ``looked_up``: the names that minijinja finds in it, for it alone knows which words are names
    and which are ``true``, ``none`` or a number.
    """
    written: list[str] = []
    blanks: list[tuple[int, str]] = []
    for place, piece in enumerate(pieces):
        match piece.kind:
            case PieceKind.TEXT | PieceKind.COMMENT:
                written.append(quoted_printable.segment(piece.text))
            case PieceKind.EXPRESSION:
                field = _FIELD(piece.inside)
                if field is None or field[1] not in looked_up:
                    return None
                written.append(finalizer(field[2] or field[3] or ""))
                blanks.append((place, field[1]))
            case _:
                return None
    segments = [segment.encode("ascii") for segment in written]
    most = sum(map(len, segments)) + _LONGEST_PLAIN_SEGMENT * len(blanks)
    return _Form(segments, blanks, finalizer, most)


# ------------------------------------------------------------------------------ encoded templates


def _is_flat(pieces: list[Piece]) -> bool:
    """Whether everything that the template writes goes straight to its output."""
    for piece in pieces:
        if piece.kind is PieceKind.CONTROL:
            if piece.keyword not in _FLAT_TAGS or "recursive" in piece.inside:
                return False
            if piece.keyword == "set" and not _ASSIGNMENT(piece.inside):
                return False
    return True


def _encoded_source(pieces: list[Piece]) -> str:
    """The template with its text in quoted-printable, each run of text a segment of its own.

    Comments and whitespace marks are gone: their work is done, and trimming would break lines.
    """
    written = []
    for piece in pieces:
        match piece.kind:
            case PieceKind.TEXT | PieceKind.RAW:
                written.append(_encoded_text(piece.text))
            case PieceKind.EXPRESSION:
                written.append("{{ " + piece.inside + " }}")
            case PieceKind.CONTROL:
                written.append("{% " + piece.inside + " %}")
    return "".join(written)


def _encoded_text(text: str) -> str:
    """A segment in which nothing looks like a tag."""
    encoded = quoted_printable.segment(text)
    if not _OPENING.search(encoded):
        return encoded
    # Only {% raw %} has braces that open nothing. One octet per line is ugly, rare and right.
    return "".join(
        "=7B=\r\n" if part == "{" else quoted_printable.segment(part)
        for part in re.split(r"(\{)", text)
    )
