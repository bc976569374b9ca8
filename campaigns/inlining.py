"""CSS moved from style sheets into the elements, where every mail program reads it.

css_inline would fetch style sheets from the web and from this machine's disk by itself; it is told
not to. It ends the process on 40,000 nested elements: call it in a child process only
(campaigns/trial.py).
"""

from __future__ import annotations

import html
import re

import css_inline

from campaigns.html_scan import Region, spans
from campaigns.merge import LetterError
from campaigns.placeholders import HiddenTags
from campaigns.template_source import UnclosedTagError, split

_TABLE_BODY = re.compile(r"</?tbody>")
# Shown by no mail program, read by all as the line behind the subject.
_PREHEADER = (
    '<div style="display:none;max-height:0;max-width:0;overflow:hidden;opacity:0;'
    'font-size:1px;line-height:1px;mso-hide:all">{}</div>'
)


def inline_css(source: str, preheader: str = "") -> str:
    """The template as a whole document, its CSS inlined, its tags as they were.

    ``preheader`` (it may have tags too) is hidden at the beginning of the body. Style sheets stay
    for what cannot be inlined, such as @media. LetterError when a tag stands where it would be
    lost.
    """
    doctype, source = _without_doctype(source)
    try:
        hidden = HiddenTags(_whole_document(source))
    except UnclosedTagError as error:
        raise LetterError(f"HTML: {error}") from error
    inliner = css_inline.CSSInliner(load_remote_stylesheets=False, keep_style_tags=True)
    try:
        document = inliner.inline(hidden.html)
    except css_inline.InlineError as error:
        raise LetterError(f"HTML: the CSS cannot be inlined: {error}") from error
    if lost := hidden.lost(document):
        raise LetterError(f"HTML: {lost[0]} stands where no tag can be kept")
    if "<tbody" not in hidden.html.lower():
        # Put in by the parser, and between a loop's {% for %} and {% endfor %} in the wrong place.
        document = _TABLE_BODY.sub("", document)
    position = _start_of_body(document)
    head, body = hidden.reveal(document[:position]), hidden.reveal(document[position:])
    return doctype + head + _preheader(preheader) + body


def _without_doctype(source: str) -> tuple[str, str]:
    """The author's own DOCTYPE and the rest: the parser would keep only its name, and mail
    programs lay out XHTML Transitional otherwise than HTML."""
    for span in spans(source):
        text = source[span.start : span.end]
        if span.region is Region.DECLARATION and text.lower().startswith("<!doctype"):
            return text, source[: span.start] + source[span.end :]
    return "<!DOCTYPE html>", source


def _whole_document(source: str) -> str:
    """A fragment in a body of its own; otherwise a tag that it begins with would end up before
    <html>."""
    if any(span.name in {"html", "head", "body"} for span in spans(source)):
        return source
    return f"<html><head></head><body>{source}</body></html>"


def _start_of_body(document: str) -> int:
    """Behind <body>, which css_inline always writes."""
    return next(
        span.end for span in spans(document) if span.region is Region.TAG and span.name == "body"
    )


def _preheader(text: str) -> str:
    if not text.strip():
        return ""
    escaped = (p.source if p.is_tag else html.escape(p.source) for p in split(text))
    return _PREHEADER.format("".join(escaped))
