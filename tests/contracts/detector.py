"""What every detector must keep, as a suite that third parties run against theirs.

    from tests.contracts.detector import DetectorContract

    class TestMyDetector(DetectorContract):
        def make(self): return MyDetector()
        def own(self): return [b"a mail that it must know and that names somebody", ...]

``own`` gives mails for which it must report somebody; ``quiet`` ones that it must know and for
which nobody bounced (a delay, say).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest

from bounces.detectors.base import Detector, IncomingMail
from bounces.report import BounceReport, ComplaintReport
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import raw_sample

# No detector of bounces may claim these: a person wrote them, or forwards somebody else's bounce.
PEOPLE = [
    "a-letter-of-a-reader",
    "forwarded-as-attachment",
    "status-part-attached-by-a-person",
    "report-forwarded-inline",
    "quoted-in-a-reply",
    "auto-reply-that-quotes-550",
]


class DetectorContract:
    """Inherit, and give ``make`` and ``own``."""

    def make(self) -> Detector:
        raise NotImplementedError

    def own(self) -> Sequence[bytes]:
        raise NotImplementedError

    def quiet(self) -> Sequence[bytes]:
        return []

    def test_it_is_made_without_arguments(self) -> None:
        type(self.make())()

    def test_it_reports_who_failed_in_its_own_mails(self) -> None:
        for raw in self.own():
            reports = self.make().detect(IncomingMail(raw))
            assert reports
            for report in reports:
                assert isinstance(report, BounceReport | ComplaintReport)

    def test_a_bounce_names_an_address_and_a_status_or_none(self) -> None:
        for raw in self.own():
            for report in self.make().detect(IncomingMail(raw)) or []:
                if isinstance(report, BounceReport):
                    assert "@" in report.recipient
                    assert report.action == report.action.lower()
                    assert report.status == "" or report.status.count(".") == 2
                    assert isinstance(report.hard, bool)

    def test_it_knows_its_quiet_mails_and_names_nobody(self) -> None:
        for raw in self.quiet():
            reports = self.make().detect(IncomingMail(raw))
            assert reports is not None
            assert not reports

    @pytest.mark.parametrize("name", PEOPLE)
    def test_it_marks_nobody_for_what_a_person_wrote(self, name: str) -> None:
        assert not self.make().detect(IncomingMail(raw_sample(name)))

    @pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
    def test_it_survives_hostile_mail(self, raw: bytes) -> None:
        self.make().detect(IncomingMail(raw))

    def test_it_holds_no_state_between_mails(self) -> None:
        detector = self.make()
        first = [detector.detect(IncomingMail(raw)) for raw in self.own()]
        second = [detector.detect(IncomingMail(raw)) for raw in self.own()]
        assert first == second

    def test_it_leaves_the_mail_as_it_was(self) -> None:
        for raw in self.own():
            mail = IncomingMail(raw)
            parts = copy.deepcopy(mail.parts)
            self.make().detect(mail)
            assert mail.raw == raw
            assert mail.parts == parts
