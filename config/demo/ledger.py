"""The final ledger: what Pennypost wrote down, beside what the SMTP server saw, letter by letter.

Plain values, no database: what is compared here comes from two processes that know nothing of
each other's records.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.demo.readers import fates, readers
from config.demo.world import Fate, fate_of


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter as Pennypost's database has it; ``return_path`` and ``message_id`` are its own."""

    rcpt_to: str
    status: str
    return_path: str
    message_id: str


@dataclass(frozen=True, slots=True)
class LogLine:
    """What the SMTP server did: accepted, refused, deferred or reported."""

    event: str
    mail_from: str
    rcpt_to: str
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger. ``indent`` shows that it is a part of the line above."""

    label: str
    expected: int
    found: int
    indent: int = 0

    @property
    def holds(self) -> bool:
        return self.expected == self.found


def read_log(path: Path) -> list[LogLine]:
    """The server's log. The last line counts only when it was written to its end."""
    lines = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                found = json.loads(line)
                lines.append(LogLine(*(found.get(name, "") for name in LogLine.__slots__)))
    return lines


def differences(letters: Sequence[Letter], lines: Sequence[LogLine]) -> list[str]:
    """Every difference between the two records, each in a sentence; [] when there is none.

    A letter's lines are those with its own return path. SENT and BOUNCED need one acceptance, by
    its own reader and with its own Message-ID; every other status needs none; REJECTED also needs
    a refusal. BOUNCED needs a report, and no other status may have one. Beyond the letters: no
    line of an unknown letter, no reader accepted twice, no Message-ID twice.
    """
    lines_of: dict[str, list[LogLine]] = defaultdict(list)
    for line in lines:
        lines_of[line.mail_from].append(line)
    found: list[str] = []
    for letter in letters:
        found += _differences_of(letter, lines_of.pop(letter.return_path, []))
    for mail_from, unknown in lines_of.items():
        found.append(
            f"{unknown[0].rcpt_to}: the server {unknown[0].event} a letter from <{mail_from}>, "
            "which the database does not know"
        )
    accepted = [line for line in lines if line.event == "accepted"]
    found += _twice(
        "the server accepted {} letters for", (line.rcpt_to.lower() for line in accepted)
    )
    found += _twice("{} accepted letters carry", (line.message_id for line in accepted))
    return found


def _differences_of(letter: Letter, lines: Sequence[LogLine]) -> list[str]:
    events = Counter(line.event for line in lines)
    was_taken = letter.status in {"sent", "bounced"}
    found = []
    if events["accepted"] != was_taken:
        found.append(f"is {letter.status}, and the server accepted it {events['accepted']} times")
    if letter.status == "rejected" and not events["refused"]:
        found.append("is rejected, and the server did not refuse it")
    if events["reported"] != (letter.status == "bounced"):
        found.append(f"is {letter.status}, and the server reported it {events['reported']} times")
    for line in lines:
        if line.rcpt_to.lower() != letter.rcpt_to.lower():
            found.append(f"has the return path under which {line.rcpt_to} was {line.event}")
        if line.event == "accepted" and line.message_id != letter.message_id:
            found.append(f"is {letter.message_id}, and the server accepted {line.message_id}")
    return [f"{letter.rcpt_to}: the letter {sentence}" for sentence in found]


def _twice(sentence: str, values: Iterable[str]) -> list[str]:
    return [
        f"{sentence.format(count)} {value}" for value, count in Counter(values).items() if count > 1
    ]


def entries_of(
    imported: int,
    totals: Mapping[str, int],
    lines: Sequence[LogLine],
    suppressed: int,
    fate: Counter[Fate] | None = None,
    server: str = "SMTP server",
) -> list[Entry]:
    """What this run had to come to, beside what it came to. ``fate``: how many meet which."""
    fate = fate or fates()
    everybody = sum(fate.values())
    events = Counter(line.event for line in lines)
    usual = ("sent", "bounced", "rejected")
    others = sum(
        count for name, count in totals.items() if name not in usual and name != "eligible"
    )
    sent = fate[Fate.TAKEN] + fate[Fate.DEFERRED_ONCE]
    return [
        Entry("Readers imported", everybody, imported),
        Entry("Letters to eligible readers", everybody, totals["eligible"]),
        Entry("sent", sent, totals["sent"], indent=1),
        Entry("sent, then bounced", fate[Fate.REPORTED], totals["bounced"], indent=1),
        Entry("rejected", fate[Fate.REFUSED], totals["rejected"], indent=1),
        Entry("anything else", 0, others, indent=1),
        Entry(f"Letters that the {server} accepted", everybody - fate[Fate.REFUSED],
              events["accepted"]),
        Entry("refused to a reader (550)", fate[Fate.REFUSED], events["refused"], indent=1),
        Entry("deferred once (450)", fate[Fate.DEFERRED_ONCE], events["deferred"], indent=1),
        Entry("reported afterwards", fate[Fate.REPORTED], events["reported"], indent=1),
        Entry("Addresses suppressed", fate[Fate.REFUSED] + fate[Fate.REPORTED], suppressed),
    ]  # fmt: skip


def differences_of_totals(totals: Mapping[str, int], counted: Counter[str]) -> list[str]:
    """The campaign's kept totals against its rows, counted."""
    found = [
        f"the totals say {total:,} {name}, the rows {counted[name]:,}"
        for name, total in totals.items()
        if name != "eligible" and total != counted[name]
    ]
    if totals["eligible"] != sum(counted.values()):
        found.append(
            f"{totals['eligible']:,} readers were eligible, {sum(counted.values()):,} rows"
        )
    return found


def differences_of_suppressions(found: Counter[str]) -> list[str]:
    """The suppressed addresses against those that the world told us not to write to again."""
    expected = {
        reader.email.lower()
        for reader in readers()
        if fate_of(reader.email) in {Fate.REFUSED, Fate.REPORTED}
    }
    return [
        *(f"{address} is not suppressed" for address in sorted(expected - found.keys())),
        *(
            f"{address} is suppressed and should not be"
            for address in sorted(found.keys() - expected)
        ),
        *(f"{address} is suppressed {n} times" for address, n in found.items() if n > 1),
    ]


def table(entries: Sequence[Entry]) -> list[str]:
    """The lines of the ledger: label, expected, found, and whether they agree."""
    width = max(len(entry.label) + 2 * entry.indent for entry in entries) + 2
    lines = [f"{'':{width}}{'expected':>10}{'found':>10}"]
    for entry in entries:
        label = "  " * entry.indent + entry.label
        mark = "✓" if entry.holds else "✗"
        lines.append(f"{label:{width}}{entry.expected:>10,}{entry.found:>10,}  {mark}")
    return lines
