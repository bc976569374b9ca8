"""A letter that is too large for one request: its attachments apart, octet for octet.

Only the parts of the outermost multipart are taken out. The header is not touched: a parser that
wrote it anew would fold List-Unsubscribe.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser


class TooLargeError(ValueError):
    """What remains without attachments is too large still."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One part that was taken out, decoded. ``content_id`` without brackets; empty for none."""

    name: str
    content_type: str
    content: bytes
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """A letter without the attachments that were taken out, and those."""

    content: bytes
    attachments: tuple[Attachment, ...] = ()


def split(content: bytes, largest: int) -> Split:
    """Takes out the largest attachments until the rest has at most ``largest`` octets.

    TooLargeError when that is not enough, and for a letter that is no multipart.
    """
    message = BytesParser().parsebytes(content)
    boundary = message.get_boundary()
    if not message.is_multipart() or not boundary:
        raise TooLargeError(f"{len(content)} octets of text are too many for Microsoft Graph")
    delimiter = b"\r\n--" + boundary.encode("ascii", "replace")
    preamble, *pieces = content.split(delimiter)
    parts = pieces[:-1]  # the last piece is what follows the closing delimiter
    candidates = sorted(range(len(parts)), key=lambda n: len(parts[n]), reverse=True)
    size, taken = len(content), {}
    for n in candidates:
        if size <= largest:
            break
        attachment = _attachment(parts[n])
        if attachment is not None:
            taken[n] = attachment
            size -= len(delimiter) + len(parts[n])
    kept = [piece for n, piece in enumerate(parts) if n not in taken]
    if size > largest or not kept:
        raise TooLargeError(f"{size} octets without attachments are too many for Microsoft Graph")
    return Split(
        delimiter.join([preamble, *kept, pieces[-1]]), tuple(taken[n] for n in sorted(taken))
    )


def _attachment(piece: bytes) -> Attachment | None:
    """The attachment in a piece between two delimiters; None for the text of the letter."""
    part: Message = BytesParser().parsebytes(piece.lstrip(b" \t").removeprefix(b"\r\n"))
    content_id = str(part.get("Content-ID", "")).strip().strip("<>")
    is_attached = part.get_content_disposition() == "attachment" or bool(content_id)
    decoded = part.get_payload(decode=True)
    if part.is_multipart() or not is_attached or not isinstance(decoded, bytes):
        return None
    return Attachment(
        part.get_filename() or "attachment", part.get_content_type(), decoded, content_id
    )
