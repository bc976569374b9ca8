"""Our own detectors keep the contract that third parties' are held to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bounces.detectors.auto_reply import AutoReplyDetector
from bounces.detectors.base import Detector, IncomingMail
from bounces.detectors.delivery_status import DeliveryStatusDetector
from bounces.detectors.feedback_report import FeedbackReportDetector
from bounces.detectors.plain_text import PlainTextDetector
from bounces.report import BounceReport, ComplaintReport
from tests.bounces.samples import raw_sample
from tests.contracts.detector import DetectorContract


class TestDeliveryStatusDetector(DetectorContract):
    def make(self) -> Detector:
        return DeliveryStatusDetector()

    def own(self) -> Sequence[bytes]:
        return [
            raw_sample("postfix-user-unknown"),
            raw_sample("exchange-quota"),
            raw_sample("sendmail-two-groups-and-one-delivered"),
            raw_sample("opensmtpd-multipart-mixed"),
        ]

    def quiet(self) -> Sequence[bytes]:
        return [raw_sample("postfix-delayed"), raw_sample("postfix-delivered")]


class TestFeedbackReportDetector(DetectorContract):
    def make(self) -> Detector:
        return FeedbackReportDetector()

    def own(self) -> Sequence[bytes]:
        return [raw_sample("complaint"), raw_sample("rfc-5965-full-abuse")]

    def quiet(self) -> Sequence[bytes]:
        return [raw_sample("not-spam-in-capitals"), raw_sample("auth-failure-report")]


class TestAutoReplyDetector(DetectorContract):
    def make(self) -> Detector:
        return AutoReplyDetector()

    def own(self) -> Sequence[bytes]:
        return []

    def quiet(self) -> Sequence[bytes]:
        return [
            raw_sample("auto-reply-that-quotes-550"),
            raw_sample("mdn-displayed"),
            raw_sample("tls-report"),
            raw_sample("dmarc-aggregate-zip"),
            raw_sample("outlook-automatic-reply"),
        ]


class TestPlainTextDetector(DetectorContract):
    def make(self) -> Detector:
        return PlainTextDetector()

    def own(self) -> Sequence[bytes]:
        return [
            raw_sample("qmail-with-copy"),
            raw_sample("exim-generated-from-ours"),
            raw_sample("exchange-2010-text"),
            raw_sample("html-only-notice"),
        ]

    def quiet(self) -> Sequence[bytes]:
        return [raw_sample("gmail-text-delay"), raw_sample("success-in-words")]


class TestFluflBounceDetector(DetectorContract):
    """The optional one; the extra `dev` installs its package."""

    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("flufl.bounce", reason="the optional package flufl.bounce is missing")

    def make(self) -> Detector:
        from bounces.detectors.flufl_bounce import FluflBounceDetector

        return FluflBounceDetector()

    def own(self) -> Sequence[bytes]:
        return [raw_sample("qmail-with-copy"), raw_sample("exim-with-copy")]

    def test_what_only_the_text_names_is_left_to_others(self) -> None:
        for name in ("qmail-no-copy", "exim-list-member-not-in-copy", "human-quotes-qmail"):
            assert not self.make().detect(IncomingMail(raw_sample(name)))

    def test_delays_and_status_parts_are_left_to_others(self) -> None:
        for name in ("gmail-text-delay", "exim-delay-warning", "postfix-user-unknown"):
            assert self.make().detect(IncomingMail(raw_sample(name))) is None

    def test_a_mail_without_from_does_not_raise(self) -> None:
        assert self.make().detect(IncomingMail(raw_sample("no-from-no-return-path"))) is None


def test_the_complaint_carries_the_tokens_that_name_its_letter() -> None:
    (complaint,) = (
        FeedbackReportDetector().detect(IncomingMail(raw_sample("rfc-5965-full-abuse"))) or []
    )
    assert complaint == ComplaintReport(
        recipient="user@isp.example",
        feedback_type="abuse",
        message_id="<aeaaaaaaaaagxxnvodkxvxqs.7@news.example.org>",
        return_path="bounce+aeaaaaaaaaagxxnvodkxvxqs@bounces.example.org",
    )


def test_a_text_gives_our_address_the_one_it_was_made_to_and_the_reason() -> None:
    mail = IncomingMail(raw_sample("sendmail-expanded-from"))
    (report,) = PlainTextDetector().detect(mail) or []
    assert isinstance(report, BounceReport)
    assert report.recipient == "alan@example.edu"
    assert report.final_recipient == "al@internal.example.edu"
    assert "(reason: 550 5.1.1 User unknown)" in report.diagnostic
    assert report.message_id == "<aeaaaaaaaaagxxnvodkxvxqs.7@news.example.org>"


def test_every_detector_of_ours_says_which_version_of_it_answered() -> None:
    for detector in (
        DeliveryStatusDetector, FeedbackReportDetector, AutoReplyDetector, PlainTextDetector
    ):  # fmt: skip
        assert detector.version
