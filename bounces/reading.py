"""One raw mail through the configured detectors: the public door to reading bounces."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bounces.conf import bounce_settings, detectors
from bounces.detectors.base import Detector, Explaining, IncomingMail
from bounces.envelope import return_path_tokens
from bounces.policy import class_of
from bounces.report import BounceReport, ComplaintReport, Report, decoded_words, printable
from campaigns.hostile_text import visible

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one detector said. ``reports`` is None for "not mine", also when it raised: ``error``
    then says what."""

    detector: str
    reports: tuple[Report, ...] | None
    error: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """All that intake wants to know of one mail. ``tokens`` are what stands in the return path's
    place for one, not yet verified; ``answer`` is None when no detector knows the mail; ``failed``
    are the answers of detectors that raised."""

    sender: str
    subject: str
    tokens: tuple[str, ...]
    answer: Answer | None
    failed: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """``answers`` of the detectors in their order, up to the one that knew the mail; ``because``
    in that one's own words, several lines or ""."""

    answers: tuple[Answer, ...]
    because: str

    @property
    def answer(self) -> Answer | None:
        """The answer that counts; None when nobody knew the mail."""
        return next((answer for answer in self.answers if answer.reports is not None), None)

    def lines(self) -> list[str]:
        """The whole explanation for a person at a terminal, to which the mail gives no orders."""
        told = [_told(answer) for answer in self.answers]
        told += [f"  {line}" for line in self.because.splitlines()]
        if self.answer is None:
            told.append("No detector knows this mail: nobody is marked.")
        elif not self.answer.reports:
            told.append("Nobody bounced: nobody is marked.")
        else:
            told += [_summary(report) for report in self.answer.reports]
        return [visible(line) for line in told]


def read_bounce(raw: bytes) -> list[BounceReport]:
    """Who finally failed, according to a raw mail; [] for every other mail.

    Reads at most LARGEST_MAIL_BYTES of it. That somebody is named here marks nobody yet: whether
    the mail speaks of a letter of ours is decided by correlation. Whom only a free text names is
    left out: without the mailbox's token that is not to be believed.
    """
    answer = read_mail(incoming(raw))
    reports = answer.reports if answer and answer.reports else ()
    return [report for report in reports if isinstance(report, BounceReport) and report.witnessed]


def read_mail(mail: IncomingMail) -> Answer | None:
    """The answer of the first detector that knows the mail; None when none does."""
    return next((answer for answer in _answers(mail) if answer.reports is not None), None)


def read_whole(raw: bytes) -> Reading:
    """A raw mail through all stages that need no database."""
    mail = incoming(raw)
    answer, failed = None, []
    for given in _answers(mail):
        if given.error:
            failed.append(given)
        if given.reports is not None:
            answer = given
            break
    return Reading(
        sender=printable(decoded_words(mail.header("from")), 200),
        subject=printable(decoded_words(mail.header("subject")), 200),
        tokens=tuple(return_path_tokens(mail)),
        answer=answer,
        failed=tuple(failed),
    )


def _answers(mail: IncomingMail) -> Iterator[Answer]:
    """What each detector says, in their order; asked one by one."""
    for path, detector in detectors():
        yield ask(path, detector, mail)


def ask(path: str, detector: Detector, mail: IncomingMail) -> Answer:
    """One detector's answer. One that raises is logged and passed over: the others go on."""
    try:
        reports: Sequence[Report] | None = detector.detect(mail)
        if reports is None:
            return Answer(path, None)
        version = printable(str(getattr(detector, "version", "")), 60)
        if not all(isinstance(report, BounceReport | ComplaintReport) for report in reports):
            raise TypeError("detect() gave something that is no report")
        return Answer(path, tuple(reports), version=version)
    # Somebody else's code on a hostile mail; RecursionError is an Exception too.
    except Exception as error:
        logger.exception("bounces.detector_failed", extra={"detector": path})
        return Answer(path, None, f"{type(error).__name__}: {error}")


def explain(raw: bytes) -> Explanation:
    """Which detector answers for a raw mail, and why; nothing is written."""
    mail = incoming(raw)
    answers: list[Answer] = []
    for path, detector in detectors():
        answers.append(ask(path, detector, mail))
        if answers[-1].reports is not None:
            return Explanation(tuple(answers), _because(detector, mail))
    return Explanation(tuple(answers), "")


def ask_everybody(raw: bytes) -> list[tuple[Answer, str]]:
    """What each detector would say of a mail if the others were not there, and its reasons."""
    mail = incoming(raw)
    return [(ask(path, detector, mail), _because(detector, mail)) for path, detector in detectors()]


def incoming(raw: bytes) -> IncomingMail:
    """The mail as detectors get it, cut to the size that is kept of one."""
    return IncomingMail(raw[: bounce_settings().largest_mail_bytes])


def _because(detector: Detector, mail: IncomingMail) -> str:
    if not isinstance(detector, Explaining):
        return ""
    try:
        return detector.because(mail)
    except Exception as error:  # its answer stands; only its reasons are missing
        logger.exception("bounces.detector_failed", extra={"detector": type(detector).__name__})
        return f"(no reasons: {type(error).__name__}: {error})"


def _told(answer: Answer) -> str:
    if answer.error:
        return f"{answer.detector}: failed and was passed over ({answer.error})"
    if answer.reports is None:
        return f"{answer.detector}: not mine"
    if not answer.reports:
        return f"{answer.detector}: mine, and nobody bounced"
    return f"{answer.detector}: mine, {len(answer.reports)} reported"


def _summary(report: Report) -> str:
    if isinstance(report, ComplaintReport):
        return f"{report.recipient or '(redacted)'} complained: {report.feedback_type}"
    return (
        f"{report.recipient}: action={report.action} status={report.status or '-'} "
        f"class={class_of(report)} hard={'yes' if report.hard else 'no'}\n"
        f"  diagnostic: {report.diagnostic or '-'}"
    )
