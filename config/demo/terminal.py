"""What the person at the terminal sees: steps that are done, and a line that lives."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

GREEN, YELLOW, RED, GREY, BOLD = "32", "33", "31", "90", "1"
# Without a terminal (a CI log) a living line becomes a line of its own, this often.
PLAIN_SECONDS = 1.0


class Terminal:
    """Prints steps, and redraws one line in place where the output is a terminal.

    Colours are left out for a file, for TERM=dumb, and when NO_COLOR is set.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        is_terminal = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.redraws = is_terminal
        self.colours = is_terminal and "NO_COLOR" not in os.environ
        self._drawn = False
        self._printed, self._printed_at = "", 0.0
        self._characters = (self.out.encoding or "ascii").lower().replace("-", "")

    @property
    def width(self) -> int:
        return shutil.get_terminal_size((100, 24)).columns

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours else text

    def line(self, text: str = "") -> None:
        """A line that stays; it takes the place of a living one."""
        self._write(("\r\x1b[K" if self._drawn else "") + text + "\n")
        self._drawn = False

    def live(self, text: str, *, at_once: bool = False) -> None:
        """The living line: redrawn, or printed once a second when it is another one
        (``at_once``: in any case)."""
        if self.redraws:
            self._write("\r\x1b[K" + text)
            self._drawn = True
            return
        was_long_ago = time.monotonic() - self._printed_at >= PLAIN_SECONDS
        if at_once or (was_long_ago and text != self._printed):
            self._printed, self._printed_at = text, time.monotonic()
            self._write(text + "\n")

    def keep(self) -> None:
        """Leaves the living line where it is."""
        if self._drawn:
            self._write("\n")
            self._drawn = False

    def done(self, text: str, seconds: float | None = None) -> None:
        took = f"  {seconds:.1f} s" if seconds is not None else ""
        self.line(f"  {self.paint('✓', GREEN)} {text}{self.paint(took, GREY)}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A step with its time, ticked when it ends well."""
        began = time.monotonic()
        if self.redraws:
            # Cut to one line: a longer one could not be redrawn.
            self.live(f"  {self.paint('·', GREY)} {text[: self.width - 5]}")
        yield
        self.done(text, time.monotonic() - began)

    def bar(self, parts: list[tuple[int, str]], total: int, width: int) -> str:
        """A bar of ``width`` cells: each part's share in its colour, the rest open."""
        full, open_ = ("█", "░") if self._characters.startswith("utf") else ("#", ".")
        cells, so_far, drawn = "", 0, 0
        for number, colour in parts:
            so_far += number
            reach = width * so_far // max(total, 1)
            cells += self.paint(full * (reach - drawn), colour) if reach > drawn else ""
            drawn = reach
        return cells + self.paint(open_ * (width - drawn), GREY)

    def _write(self, text: str) -> None:
        encoding = self.out.encoding or "ascii"
        self.out.write(text.encode(encoding, "replace").decode(encoding))
        self.out.flush()
