"""Checks of the merge fields: is there a value for each, and may it stand where it stands?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from django.utils.translation import gettext_lazy as _

from campaigns.document import LINK_ATTRIBUTES, read_document
from campaigns.letter import BUILT_IN, Letter, merge_text
from campaigns.models import Edition
from campaigns.placeholders import HiddenTags
from campaigns.preflight.findings import Finding
from campaigns.preflight.sample import Sample, attributes_of
from campaigns.template_source import Piece, PieceKind, identifiers, split

OFTEN = 0.2  # the share of readers from which on an empty field is worth a warning
_DEFAULT = re.compile(r"\|\s*(?:default|d)\b")
_SAFE_START = re.compile(r"\|\s*url\s*\Z|\Aunsubscribe_url\Z")
# Of attributes that are there only under a condition.
_LINK_IN_SOURCE = re.compile(
    rf"\b(?:{'|'.join(LINK_ATTRIBUTES)})\s*=\s*[\"']?\s*(\{{\{{.*?\}}\}})",
    re.IGNORECASE | re.DOTALL,
)


def field_findings(letter: Letter, edition: Edition, sample: Sample) -> Iterator[Finding]:
    yield from _merge_fields(letter, edition, sample)
    yield from _unguarded_links(edition)


def _merge_fields(letter: Letter, edition: Edition, sample: Sample) -> Iterator[Finding]:
    pieces = [p for part in (edition.subject, edition.html, edition.text) for p in split(part)]
    unknown = letter.unknown_names(sample.attribute_names)
    bare = {name for name in unknown if not _is_guarded(name, pieces)}
    if bare:
        yield Finding(
            "fail",
            "unknown_field",
            _("A merge field is known of no reader, and nothing stands in for it."),
            ", ".join(sorted(bare)),
        )
    if unknown - bare:
        yield Finding(
            "warn",
            "field_of_nobody",
            _("A merge field is known of no reader: each gets what stands in for it."),
            ", ".join(sorted(unknown - bare)),
        )
    often_empty = [
        name
        for name in sorted(identifiers(pieces) & (sample.attribute_names | {"name", "language"}))
        if not _is_guarded(name, pieces) and _empty_share(name, sample) > OFTEN
    ]
    if often_empty:
        yield Finding(
            "warn",
            "field_often_empty",
            _("A merge field is empty for many readers, and nothing stands in for it."),
            ", ".join(often_empty),
        )


def _is_guarded(name: str, pieces: list[Piece]) -> bool:
    """Whether a template says what to do without the value: a default, or a condition."""
    uses = [piece for piece in pieces if name in identifiers([piece])]
    return any(piece.kind is PieceKind.CONTROL for piece in uses) or all(
        _DEFAULT.search(piece.inside) for piece in uses
    )


def _empty_share(name: str, sample: Sample) -> float:
    values = (
        getattr(reader, name) if name in BUILT_IN else attributes_of(reader).get(name, "")
        for reader in sample.readers
    )
    empty = sum(not merge_text(value) for value in values)
    return empty / max(len(sample.readers), 1)


def _unguarded_links(edition: Edition) -> Iterator[Finding]:
    """A value that begins a link decides where it leads: ``javascript:`` as well."""
    hidden = HiddenTags(edition.html)
    conditional = [
        match[1] for source in hidden.stretches for match in _LINK_IN_SOURCE.finditer(source)
    ]
    unguarded = {
        source
        for link in read_document(hidden.html).links
        if link.attribute in LINK_ATTRIBUTES
        for source in _unguarded(link.address, hidden)
    } | {source for source in conditional if not _SAFE_START.search(source[2:-2].strip(" -+"))}
    if unguarded:
        yield Finding(
            "fail",
            "unguarded_link",
            _("A link begins with a merge field that does not go through the url filter."),
            ", ".join(sorted(unguarded)),
        )


def _unguarded(address: str, hidden: HiddenTags) -> Iterator[str]:
    begins = True
    for number, text in hidden.tags_and_text(address):
        piece = hidden.piece(number) if number is not None else None
        if piece is None:
            begins = begins and not text.strip()
        elif piece.kind is PieceKind.CONTROL:
            # Each branch of a condition may begin the address anew.
            begins = begins or piece.keyword in {"else", "elif"}
        elif piece.kind is PieceKind.EXPRESSION:
            if begins and not _SAFE_START.search(piece.inside):
                yield piece.source
            begins = False
