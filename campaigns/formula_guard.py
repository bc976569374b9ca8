"""The formula guard: what we export as CSV is never run by a spreadsheet (CWE-1236).

A cell that a spreadsheet would take for a formula gets an apostrophe in front, which the program
shows as text. Reading takes it away again, so that what we exported can be imported unchanged.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator

# Apostrophes in front are counted in, or a cell that came with one of its own would lose it.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r＝＋－＠]")
_GUARDED = re.compile(r"'" + _FORMULA.pattern)


def guard(cell: str) -> str:
    """The cell as it may stand in a CSV file: begins with an apostrophe if it was a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguard(cell: str) -> str:
    """The cell that ``guard`` was given."""
    return cell[1:] if cell.startswith("'") and _GUARDED.match(cell) else cell


class _Echo:
    """A file to csv.writer that hands back what is written to it."""

    def write(self, text: str) -> str:
        return text


def csv_lines(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """The rows as guarded lines of CSV (RFC 4180), every cell in quotes, one at a time."""
    writer = csv.writer(_Echo(), quoting=csv.QUOTE_ALL)
    for row in rows:
        yield writer.writerow([guard(str(cell)) for cell in row])
