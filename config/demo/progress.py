"""How far the campaign is: its totals as one line, with the pace of the last seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from config.demo.terminal import GREEN, RED, YELLOW, Terminal

SETTLED = ("sent", "bounced", "rejected", "expired", "suppressed", "cancelled", "unconfirmed")
WAITING = ("queued", "claimed", "sending", "deferred")
PACE_SECONDS = 3.0
FIRST_PACE_SECONDS = 0.5
NUMBERS_WIDTH = 84


class Progress:
    """Draws the totals of a campaign, as often as it is given them."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.began = time.monotonic()
        self._history: deque[tuple[float, int]] = deque([(self.began, 0)])

    def show(self, totals: Mapping[str, int], *, at_once: bool = False) -> None:
        settled = sum(totals[name] for name in SETTLED)
        total = totals["eligible"]
        counts = ", ".join(
            f"{totals[name]:,} {name}" for name in (*SETTLED, *WAITING) if totals[name]
        )
        percent = 100 * settled // total if total else 0
        numbers = (
            f"{settled:>5,} of {total:,}  {self.pace(settled):>4.0f}/s  {counts or 'starting'}"
        )
        # The same width from the first to the last drawing, whatever the numbers are.
        room = min(max(self.terminal.width - NUMBERS_WIDTH, 16), 40)
        bar = self.terminal.bar(
            [
                (totals["sent"] + totals["bounced"], GREEN),
                (settled - totals["sent"] - totals["bounced"], RED),
                (totals["deferred"], YELLOW),
            ],
            total,
            room,
        )
        if self.terminal.redraws:
            numbers = shortened(numbers, self.terminal.width - room - len("     100 % "))
        self.terminal.live(f"    {bar} {percent:>3} % {numbers}", at_once=at_once)

    def pace(self, settled: int) -> float:
        """Letters settled a second, over the last seconds; 0 when it began just now."""
        now = time.monotonic()
        self._history.append((now, settled))
        while now - self._history[0][0] > PACE_SECONDS and len(self._history) > 2:
            self._history.popleft()
        then, before = self._history[0]
        return (settled - before) / (now - then) if now - then > FIRST_PACE_SECONDS else 0.0


def shortened(text: str, width: int) -> str:
    """``text`` cut to ``width`` characters, at a comma where there is one."""
    if len(text) <= width:
        return text
    return text[:width].rpartition(", ")[0] or text[:width]
