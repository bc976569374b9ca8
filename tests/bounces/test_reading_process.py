"""A mail has so much time and memory, whatever a detector does with it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from bounces.detectors.base import IncomingMail
from bounces.models import ReceivedMail
from bounces.poller import poll
from bounces.reading import read_whole
from bounces.reading_process import ReadingProcess, UnreadableError
from bounces.report import BounceReport
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, report, return_path
from tests.bounces.samples import raw_sample
from tests.bounces.test_maildir import put


class Backtracking:
    """The regular expression that a third party should not have written."""

    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        if b"bomb" in mail.raw:
            re.match(r"(a+)+$", "a" * 60 + "b")
        return None


class Sleeping:
    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        while b"bomb" in mail.raw:
            try:
                time.sleep(60)
            except BaseException:
                continue
        return None


class Greedy:
    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        hoard: list[bytes] = []
        while b"bomb" in mail.raw:
            hoard.append(bytes(16 * 1024 * 1024))
        return None


class Suicidal:
    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        if b"bomb" in mail.raw:
            import os

            os._exit(1)
        return None


BOMB = b"Subject: bomb\n\n"


def use(settings, detector: type) -> None:
    path = f"{detector.__module__}.{detector.__qualname__}"
    settings.BOUNCES = settings.BOUNCES | {"DETECTORS": [path, *settings.BOUNCES["DETECTORS"]]}


@pytest.mark.parametrize("detector", [Backtracking, Sleeping, Suicidal])
def test_t13_a_mail_that_is_never_read_to_its_end_is_stopped_and_the_next_is_read(
    settings, detector
):
    use(settings, detector)
    with ReadingProcess(read_whole, seconds=0.3) as reader:
        for _ in range(2):
            with pytest.raises(UnreadableError):
                reader.read(BOMB)
            answer = reader.read(raw_sample("postfix-user-unknown")).answer
            assert answer is not None and answer.reports


def test_t13_a_detector_that_hoards_memory_is_passed_over(settings) -> None:
    use(settings, Greedy)
    with ReadingProcess(read_whole) as reader:
        reading = reader.read(BOMB)
        assert "MemoryError" in reading.failed[0].error
        assert reader.read(raw_sample("postfix-user-unknown")).answer


@pytest.mark.django_db
def test_a_poll_keeps_such_a_mail_for_a_person_and_goes_on(
    settings, deliver: Deliver, now, monkeypatch
) -> None:
    use(settings, Backtracking)
    monkeypatch.setattr(ReadingProcess.__init__, "__defaults__", (0.3, 200 * 1024 * 1024))
    maildir = Path(settings.BOUNCES["MAILBOXES"]["default"]["OPTIONS"]["path"])
    letter = deliver()
    put(maildir, BOMB)
    put(maildir, report(delivered_to=return_path(letter)))
    assert poll("default", now).verdicts == {"failed": 1, "bounce": 1}
    assert "0.3 seconds" in ReceivedMail.objects.get(verdict="failed").remark
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED


def test_the_child_ends_with_its_parent_and_leaves_no_zombie() -> None:
    with ReadingProcess(read_whole) as reader:
        reader.read(b"Subject: x\n\n")
        child = reader._child
        assert Path(f"/proc/{child}").exists()
    assert not Path(f"/proc/{child}").exists()


def test_a_process_that_read_nothing_forks_nobody() -> None:
    with ReadingProcess(read_whole) as reader:
        assert reader._child == 0
