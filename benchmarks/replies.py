"""How many replies a second the classification table judges, on the texts of its tests.

    .venv/bin/python -m benchmarks.replies

Prints replies a second for the whole mixture and the slowest single text, and the worst that a
hostile server can do with a text of the longest length that is kept.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path

from delivery.outcomes import LONGEST_REPLY, Phase, Reply, Speaker
from delivery.replies import classify

TEXTS = Path(__file__).parent.parent / "tests" / "delivery" / "replies.csv"
ROUNDS = 100
HOSTILE = (
    "1.2.3.4 ",
    "user ",
    "exceed ",
    "a" * LONGEST_REPLY,
    "@a",
    "ip 1",
    " \n",
    "retry in ",
    "[1.1.1.1]",
    "client host ",
    "does not pass ",
    "said: ",
)


def replies() -> list[Reply]:
    """The replies of the tests' file."""
    with TEXTS.open(encoding="utf-8") as file:
        return [
            Reply(
                Phase(row["phase"]),
                int(row["code"]) if row["code"] else None,
                row["text"].replace("\\n", "\n"),
                Speaker(row["speaker"]),
            )
            for row in csv.DictReader(file, delimiter="|", quoting=csv.QUOTE_NONE)
        ]


def seconds_for(some: list[Reply], rounds: int) -> float:
    """The time that it takes to classify these replies so often."""
    begin = time.perf_counter()
    for _ in range(rounds):
        for reply in some:
            classify(reply)
    return time.perf_counter() - begin


def main() -> None:
    """Measures and prints."""
    some = replies()
    seconds_for(some, 1)
    took = seconds_for(some, ROUNDS)
    print(f"{len(some)} replies: {len(some) * ROUNDS / took:,.0f} a second")
    slowest = max(some, key=lambda reply: seconds_for([reply], 20))
    print(f"slowest: {20 / seconds_for([slowest], 20):,.0f} a second: {slowest}"[:100])
    hostile = [
        Reply(phase, code, (text * LONGEST_REPLY)[:LONGEST_REPLY], speaker)
        for text in HOSTILE
        for phase in (Phase.MAIL, Phase.RCPT, Phase.FINAL_DOT)
        for code in (421, 450, 550)
        for speaker in Speaker
    ]
    worst = max(hostile, key=lambda reply: seconds_for([reply], 1))
    print(f"worst: {seconds_for([worst], 1) * 1000:.1f} ms: {worst}"[:100])


if __name__ == "__main__":
    main()
