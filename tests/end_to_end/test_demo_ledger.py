"""The demo's ledger finds every kind of difference between the database and the server's log."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from config.demo.ledger import (
    Entry,
    Letter,
    LogLine,
    differences,
    differences_of_suppressions,
    differences_of_totals,
    entries_of,
    read_log,
    table,
)
from config.demo.readers import fates, readers
from config.demo.world import Fate, fate_of


def letter(number: int, status: str) -> Letter:
    return Letter(f"r{number}@x.org", status, f"bounce+{number}@b.org", f"<{number}@n.org>")


def line(number: int, event: str) -> LogLine:
    message_id = f"<{number}@n.org>" if event == "accepted" else ""
    return LogLine(event, f"bounce+{number}@b.org", f"r{number}@x.org", message_id)


LETTERS = [letter(1, "sent"), letter(2, "bounced"), letter(3, "rejected"), letter(4, "sent")]
LINES = [
    line(1, "accepted"),
    line(2, "accepted"),
    line(2, "reported"),
    line(3, "refused"),
    line(4, "deferred"),
    line(4, "accepted"),
]


def test_two_records_of_the_same_do_not_differ() -> None:
    assert differences(LETTERS, LINES) == []


def test_a_sent_letter_that_the_server_never_saw_is_found() -> None:
    (found,) = differences(LETTERS, LINES[1:])
    assert found == "r1@x.org: the letter is sent, and the server accepted it 0 times"


def test_a_letter_that_was_accepted_twice_is_found() -> None:
    found = differences(LETTERS, [*LINES, line(1, "accepted")])
    assert found == [
        "r1@x.org: the letter is sent, and the server accepted it 2 times",
        "the server accepted 2 letters for r1@x.org",
        "2 accepted letters carry <1@n.org>",
    ]


def test_a_letter_that_the_database_does_not_know_is_found() -> None:
    (found,) = differences(LETTERS, [*LINES, line(9, "accepted")])
    assert found == (
        "r9@x.org: the server accepted a letter from <bounce+9@b.org>, "
        "which the database does not know"
    )


def test_a_second_letter_to_a_reader_under_another_return_path_is_found() -> None:
    twin = replace(letter(5, "sent"), rcpt_to="R1@x.org")
    twin_line = replace(line(5, "accepted"), rcpt_to="R1@x.org")
    assert differences([*LETTERS, twin], [*LINES, twin_line]) == [
        "the server accepted 2 letters for r1@x.org"
    ]


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        (line(3, "accepted"), "is rejected, and the server accepted it 1 times"),
        (line(1, "reported"), "is sent, and the server reported it 1 times"),
        (replace(line(1, "deferred"), rcpt_to="r4@x.org"), "under which r4@x.org was deferred"),
    ],
)
def test_a_line_that_contradicts_the_status_is_found(planted: LogLine, sentence: str) -> None:
    assert any(sentence in found for found in differences(LETTERS, [*LINES, planted]))


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (line(3, "refused"), "is rejected, and the server did not refuse it"),
        (line(2, "reported"), "is bounced, and the server reported it 0 times"),
    ],
)
def test_a_line_that_is_missing_is_found(missing: LogLine, sentence: str) -> None:
    (found,) = differences(LETTERS, [one for one in LINES if one != missing])
    assert sentence in found


def test_another_letter_in_the_envelope_of_one_is_found() -> None:
    lines = [replace(LINES[0], message_id="<8@n.org>"), *LINES[1:]]
    assert differences(LETTERS, lines) == [
        "r1@x.org: the letter is <1@n.org>, and the server accepted <8@n.org>"
    ]


@pytest.mark.parametrize("status", ["queued", "unconfirmed", "suppressed", "cancelled"])
def test_a_letter_in_any_other_state_must_not_have_been_accepted(status: str) -> None:
    assert differences([letter(1, status)], []) == []
    assert differences([letter(1, status)], [line(1, "accepted")]) != []


def test_totals_are_compared_with_the_counted_rows() -> None:
    counted = Counter({"sent": 2, "rejected": 1})
    assert differences_of_totals({"eligible": 3, "sent": 2, "rejected": 1}, counted) == []
    assert differences_of_totals({"eligible": 4, "sent": 3, "rejected": 1}, counted) == [
        "the totals say 3 sent, the rows 2",
        "4 readers were eligible, 3 rows",
    ]


def test_suppressions_are_compared_address_by_address() -> None:
    right = Counter(r.email for r in readers() if fate_of(r.email) in {Fate.REFUSED, Fate.REPORTED})
    assert differences_of_suppressions(right) == []
    wrong = right - Counter({"gone-0001@letters.example.org": 1}) + Counter({"ada@x.org": 2})
    assert differences_of_suppressions(wrong) == [
        "gone-0001@letters.example.org is not suppressed",
        "ada@x.org is suppressed and should not be",
        "ada@x.org is suppressed 2 times",
    ]


def test_the_entries_expect_exactly_what_the_addresses_say() -> None:
    totals = {"eligible": 2000, "sent": 1920, "bounced": 60, "rejected": 20, "expired": 0}
    lines = [
        LogLine(event, "", "")
        for event, count in {
            "accepted": 1980,
            "refused": 20,
            "deferred": 40,
            "reported": 60,
        }.items()
        for _ in range(count)
    ]
    assert fates().total() == 2000
    assert all(entry.holds for entry in entries_of(2000, totals, lines, 80))
    wrong = entries_of(2000, totals | {"unconfirmed": 1}, lines, 80)
    assert [entry.label for entry in wrong if not entry.holds] == ["anything else"]


def test_the_table_marks_what_differs() -> None:
    assert table([Entry("Sent", 1920, 1920), Entry("refused", 20, 19, indent=1)]) == [
        "             expected     found",
        "Sent            1,920     1,920  ✓",
        "  refused          20        19  ✗",
    ]


def test_half_a_line_at_the_end_of_the_log_does_not_count(tmp_path: Path) -> None:
    whole = {"event": "refused", "mail_from": "a@x.org", "rcpt_to": "b@x.org", "reply": "550 no"}
    log = tmp_path / "log"
    log.write_text(json.dumps(whole) + "\n" + '{"event": "acc', encoding="utf-8")
    assert read_log(log) == [LogLine("refused", "a@x.org", "b@x.org", "")]
