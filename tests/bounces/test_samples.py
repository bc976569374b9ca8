"""Each sample mail gives the report beside it, in all the bytes in which it may come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bounces.policy import class_of
from bounces.reading import incoming, read_bounce, read_mail
from bounces.report import BounceReport
from tests.bounces.reencodings import ALL, HARMLESS
from tests.bounces.samples import SAMPLES, expected

STANDARD = [sample for sample in SAMPLES if expected(sample) is not None]
NEGATIVE = [sample for sample in SAMPLES if not expected(sample)]


def read(raw: bytes) -> list[dict[str, object]] | None:
    """What the configured detectors say, in the form of the files beside the samples."""
    answer = read_mail(incoming(raw))
    if answer is None or answer.reports is None:
        return None
    return [
        {
            "recipient": report.recipient,
            "action": report.action,
            "status": report.status,
            "hard": report.hard,
            "class": str(class_of(report)),
        }
        for report in answer.reports
        if isinstance(report, BounceReport)
    ]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_gives_the_report_beside_it(sample: Path) -> None:
    assert read(sample.read_bytes()) == expected(sample)


@pytest.mark.parametrize("reencode", ALL, ids=lambda function: function.__name__)
@pytest.mark.parametrize("sample", STANDARD, ids=lambda path: path.stem)
def test_a_report_is_read_in_whatever_bytes_it_comes(
    sample: Path, reencode: Callable[[bytes], bytes]
) -> None:
    assert read(reencode(sample.read_bytes())) == expected(sample)


@pytest.mark.parametrize("reencode", HARMLESS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("sample", NEGATIVE, ids=lambda path: path.stem)
def test_nobody_is_marked_by_a_mail_that_is_no_bounce(
    sample: Path, reencode: Callable[[bytes], bytes]
) -> None:
    assert read_bounce(reencode(sample.read_bytes())) == []


def test_there_is_an_expected_report_beside_every_sample() -> None:
    assert len(SAMPLES) >= 70
    assert all(sample.with_suffix(".json").exists() for sample in SAMPLES)
