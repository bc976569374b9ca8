"""Each sample mail gives the report beside it, in all the bytes in which it may come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bounces.policy import class_of
from bounces.reading import incoming, read_bounce, read_mail
from bounces.report import BounceReport, Report
from tests.bounces.forwarding import WAYS
from tests.bounces.reencodings import ALL, HARMLESS, with_carriage_returns_alone
from tests.bounces.samples import SAMPLES, expected

POSITIVE = [sample for sample in SAMPLES if expected(sample)]
NEGATIVE = [sample for sample in SAMPLES if not expected(sample)]


def read(raw: bytes) -> list[dict[str, object]] | None:
    """What the configured detectors say, in the form of the files beside the samples."""
    answer = read_mail(incoming(raw))
    if answer is None or answer.reports is None:
        return None
    return [as_expected(report) for report in answer.reports]


def as_expected(report: Report) -> dict[str, object]:
    if not isinstance(report, BounceReport):
        return {"recipient": report.recipient, "complaint": report.feedback_type}
    told: dict[str, object] = {
        "recipient": report.recipient,
        "action": report.action,
        "status": report.status,
        "hard": report.hard,
        "class": str(class_of(report)),
    }
    # The files name only the exception.
    return told if report.witnessed else told | {"witnessed": False}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_gives_the_report_beside_it(sample: Path) -> None:
    assert read(sample.read_bytes()) == expected(sample)


def by_name(way: Callable[[bytes], bytes]) -> str:
    return way.__name__


@pytest.mark.parametrize("way", [*ALL, with_carriage_returns_alone], ids=by_name)
def test_a_report_is_read_in_whatever_bytes_it_comes(way: Callable[[bytes], bytes]) -> None:
    found = {sample.stem: read(way(sample.read_bytes())) for sample in POSITIVE}
    assert found == {sample.stem: expected(sample) for sample in POSITIVE}


@pytest.mark.parametrize("way", [*HARMLESS, with_carriage_returns_alone], ids=by_name)
def test_nobody_is_marked_by_a_mail_that_is_no_bounce(way: Callable[[bytes], bytes]) -> None:
    marked = [sample.stem for sample in NEGATIVE if read_bounce(way(sample.read_bytes()))]
    assert marked == []


@pytest.mark.parametrize("way", WAYS, ids=by_name)
def test_nobody_is_marked_by_a_bounce_that_is_passed_on(way: Callable[[bytes], bytes]) -> None:
    marked = [sample.stem for sample in SAMPLES if read_bounce(way(sample.read_bytes()))]
    assert marked == []


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    assert len(SAMPLES) >= 300
    assert len(NEGATIVE) >= 60
    assert all(sample.with_suffix(".json").exists() for sample in SAMPLES)


def test_an_address_that_only_a_text_names_is_not_read_as_bounced() -> None:
    alone = [
        sample
        for sample in POSITIVE
        if all(report.get("witnessed") is False for report in expected(sample) or [])
    ]
    assert len(alone) >= 3
    assert all(read_bounce(sample.read_bytes()) == [] for sample in alone)
