"""A CSV file as records, in constant memory, from the start or from any record's end onward.

The file may be anything: each physical line, each record and the number of its lines are bounded,
and what breaks a bound is one refused record, not the end of the import. Line numbers are those
of a text editor: a quoted cell over three lines counts three.

Bytes are split into lines before they are decoded, not by TextIOWrapper: its tell() is slow and
opaque, it has no bound on a line that survives decoding, and a checkpoint needs plain offsets.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from django.utils.translation import gettext as _

CHUNK_BYTES = 64 * 1024
# A hundred columns of 1 KB, some of them in scripts that need three bytes a letter.
LARGEST_RECORD_BYTES = 256 * 1024
# A quote that is never closed would swallow the rest of the file: look no further than this.
LINES_PER_RECORD = 100
COLUMNS = 100
DELIMITERS = (",", ";", "\t")

AUTO = "auto"
# What a person may choose; each is a codec of Python. UTF-16 is told LE or BE by its mark.
ENCODINGS = (AUTO, "utf-8", "utf-16", "windows-1252", "iso-8859-1")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class UnreadableFileError(ValueError):
    """The file as a whole cannot be imported; the message says why, and what to do, to a person."""


class _FaultyLineError(Exception):
    """A line that no cell can be read from; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How to read a file: found out by ``inspect``. ``start``: bytes of the byte-order mark."""

    codec: str
    start: int
    newline: bytes
    delimiter: str


class Record(NamedTuple):
    """One record. ``line``: number of its first physical line, from 1.

    With a ``fault`` (a reason for a person) the only cell is the beginning of that line.
    """

    line: int
    cells: list[str]
    fault: str = ""


class _Line(NamedTuple):
    # None: longer than LARGEST_RECORD_BYTES, and skipped.
    text: str | None
    end: int


def inspect(path: Path, encoding: str = AUTO, delimiter: str = "") -> Layout:
    """How this file is to be read. An empty delimiter is guessed from the first line.

    UnreadableFileError for a file that is empty, no text, or not in the encoding asked for.
    """
    try:
        with path.open("rb") as file:
            sample = file.read(CHUNK_BYTES)
    except OSError as error:
        raise UnreadableFileError(_("The file cannot be opened: %s") % error.strerror) from error
    if not sample.strip():
        raise UnreadableFileError(_("The file is empty."))
    if sample.startswith(b"PK\x03\x04"):
        raise UnreadableFileError(
            _("This is a ZIP file or a workbook, not CSV. Save the sheet as “CSV UTF-8” first.")
        )
    codec, start = _codec(sample, encoding)
    newline = _newline(sample, codec)
    first_line = sample[start:].decode(codec, "replace").lstrip("\r\n")
    first_line = re.split(r"[\r\n]", first_line, maxsplit=1)[0]
    if "\0" in first_line:
        raise UnreadableFileError(
            _(
                "The first line holds NUL bytes: this is not a text file, or it is UTF-16 without "
                "a byte-order mark. Save it as “CSV UTF-8”."
            )
        )
    return Layout(codec, start, newline, delimiter or guess_delimiter(first_line))


def _codec(sample: bytes, encoding: str) -> tuple[str, int]:
    """The codec and the length of the byte-order mark, which knows better than any choice."""
    for mark, codec in _MARKS:
        if sample.startswith(mark):
            return codec, len(mark)
    if encoding == "utf-16":
        raise UnreadableFileError(
            _("A UTF-16 file begins with a byte-order mark, and this one does not.")
        )
    return ("utf-8" if encoding == AUTO else encoding), 0


def _newline(sample: bytes, codec: str) -> bytes:
    """The bytes that end a line: LF (with or without CR before it), or CR alone (old Macintosh)."""
    line_feed, carriage_return = "\n".encode(codec), "\r".encode(codec)
    alone = carriage_return in sample and line_feed not in sample
    return carriage_return if alone else line_feed


def guess_delimiter(header: str) -> str:
    """Comma, semicolon or tab: whichever the header line has most of outside of quotes."""
    outside = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=outside.count)


def first_undecodable_line(path: Path, layout: Layout) -> int | None:
    """The number of the first line that is not in the layout's encoding; None when all are.

    Reads the whole file once, at the disk's speed: a wrong encoding is found before the first
    reader is written, not after half of them.
    """
    decoder = codecs.getincrementaldecoder(layout.codec)("strict")
    newline = layout.newline.decode(layout.codec)
    lines = 0
    with path.open("rb") as file:
        file.seek(layout.start)
        while True:
            chunk = file.read(CHUNK_BYTES)
            try:
                lines += decoder.decode(chunk, final=not chunk).count(newline)
            except UnicodeDecodeError as error:
                # error.object is the chunk and what the decoder had kept of the one before.
                sound = error.object[: error.start].decode(layout.codec, "ignore")
                return lines + sound.count(newline) + 1
            if not chunk:
                return None


def undecodable(line: int, codec: str) -> UnreadableFileError:
    """The error to raise for a line that is not in the chosen encoding."""
    return UnreadableFileError(
        _(
            "Line %(line)d is not %(encoding)s. Choose the encoding that the file was saved in, "
            "often Windows-1252, or save it as “CSV UTF-8”."
        )
        % {"line": line, "encoding": codec.upper()}
    )


class PhysicalLines:
    """The lines of a file as text, with their numbers and where they end.

    An iterator for csv.reader that remembers the lines of the record under way, so that those
    after a broken first line can be read again on their own.
    """

    def __init__(self, file: BinaryIO, layout: Layout, offset: int, number: int) -> None:
        file.seek(offset)
        self.number = number
        self.offset = offset
        self._file = file
        self._codec = layout.codec
        self._newline = layout.newline
        self._unit = len(layout.newline)
        self._buffer = b""
        self._base = offset  # of the buffer's first byte in the file
        self._at = 0  # in the buffer
        self._waiting: deque[_Line] = deque()
        self._taken: list[_Line] = []
        self._taken_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line. _FaultyLineError when it can be part of no record."""
        line = self._waiting.popleft() if self._waiting else self._read_line()
        self._taken.append(line)
        self._taken_bytes += line.end - self.offset
        self.number += 1
        self.offset = line.end
        if line.text is None:
            raise _FaultyLineError(_("The line is longer than %d bytes.") % LARGEST_RECORD_BYTES)
        if "\0" in line.text:
            raise _FaultyLineError(_("The line holds a NUL byte."))
        if len(self._taken) > LINES_PER_RECORD or self._taken_bytes > LARGEST_RECORD_BYTES:
            raise _FaultyLineError(_never_closed())
        return line.text

    def begin_record(self) -> None:
        """Forgets the lines of the record before."""
        self._taken.clear()
        self._taken_bytes = 0

    def keep_first_line_only(self) -> str:
        """Puts every line of the record but its first back to be read again; returns the first."""
        first, *others = self._taken
        self._waiting.extendleft(reversed(others))
        self.number -= len(others)
        self.offset = first.end
        return (first.text or "").rstrip("\r\n")

    def _read_line(self) -> _Line:
        search_from, too_long = self._at, False
        while (end := self._find_newline(search_from)) < 0:
            pending = len(self._buffer) - self._at
            if too_long or pending > LARGEST_RECORD_BYTES:
                too_long, pending = True, pending % self._unit
            chunk = self._file.read(CHUNK_BYTES)
            if not chunk:
                return self._last_line(too_long)
            self._base += len(self._buffer) - pending
            self._buffer = self._buffer[len(self._buffer) - pending :] + chunk
            self._at = 0
            search_from = pending - pending % self._unit
        raw = self._buffer[self._at : end]
        self._at = end
        too_long = too_long or len(raw) > LARGEST_RECORD_BYTES
        return _Line(None if too_long else self._decode(raw), self._base + end)

    def _last_line(self, too_long: bool) -> _Line:
        """What stands after the last newline; StopIteration when nothing does."""
        raw = self._buffer[self._at :]
        self._at = len(self._buffer)
        if not raw and not too_long:
            raise StopIteration
        return _Line(None if too_long else self._decode(raw), self._base + self._at)

    def _find_newline(self, start: int) -> int:
        """Where the line ends, its newline included; -1 when the buffer does not hold the end."""
        at = self._buffer.find(self._newline, start)
        # In UTF-16 the two bytes of a newline may also be halves of two other letters.
        while at >= 0 and (at - self._at) % self._unit:
            at = self._buffer.find(self._newline, at + 1)
        return at + self._unit if at >= 0 else -1

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode(self._codec)
        except UnicodeDecodeError as error:
            raise undecodable(self.number + len(self._waiting) + 1, self._codec) from error


def _never_closed() -> str:
    return _("A quote opens in this line and is not closed.")


def _reason(error: csv.Error) -> str:
    """Why a record is broken, for a person. csv tells its errors apart by their text only."""
    message = str(error)
    if "unexpected end of data" in message:
        return _never_closed()
    if "field larger" in message:
        return _("A cell is longer than %d characters.") % csv.field_size_limit()
    if "expected after" in message:
        return _("A quoted cell goes on after its closing quote.")
    if "new-line character" in message:
        return _("A carriage return stands in the middle of the line.")
    return _("Not valid CSV: %s.") % message


class CsvSource:
    """The records of a file, from the header on or from where ``resume`` says.

    A context manager and an iterator of Record; a blank line is a record without cells. ``line``
    and ``offset`` tell how far the records handed out so far reach: what to give to ``resume``.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.layout = layout
        self._file: BinaryIO = path.open("rb")
        self.resume(offset=layout.start, line=0)

    def __enter__(self) -> CsvSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        return self

    def resume(self, *, offset: int, line: int) -> None:
        """Goes on after ``line`` physical lines, which end at byte ``offset``."""
        self._lines = PhysicalLines(self._file, self.layout, offset, line)
        # Strict: a stray quote must not glue two readers into one. A line that was misread
        # leniently would vanish without a word.
        self._reader = csv.reader(
            self._lines, delimiter=self.layout.delimiter, strict=True, skipinitialspace=True
        )

    @property
    def line(self) -> int:
        return self._lines.number

    @property
    def offset(self) -> int:
        return self._lines.offset

    def __next__(self) -> Record:
        lines = self._lines
        first = lines.number + 1
        lines.begin_record()
        try:
            return Record(first, next(self._reader))
        except csv.Error as error:
            return Record(first, [lines.keep_first_line_only()[:300]], _reason(error))
        except _FaultyLineError as error:
            text = lines.keep_first_line_only()[:300].replace("\0", "�")
            return Record(first, [text], str(error))
