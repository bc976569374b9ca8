"""A person's hand on what was recorded: examine a mail again, undo a suppression.

Examining again reads a stored mail with the detectors of today and shows the difference before
anything changes. Applied, the old rows stay and count no more (``replaced``); a suppression that
the new reading does not bear out is lifted. A letter that moved to BOUNCED stays there: it is
final, and its campaign may have been closed with that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction

from bounces.correlation import Correlation, Finding
from bounces.intake import (
    Case,
    apply,
    correlate_all,
    decide,
    evidence_of,
    note_reading,
    write_examined,
)
from bounces.models import Bounce, Breaker, Kind, ReceivedMail, Verdict
from bounces.policy import class_of
from bounces.reading import Reading
from bounces.report import BounceReport, Report, printable
from campaigns.models import Suppression


@dataclass(frozen=True, slots=True)
class Told:
    """What a reading says, in the words of a page. Hostile text: escape it."""

    verdict: Verdict
    detector: str
    version: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    before: Told
    after: Told

    @property
    def is_none(self) -> bool:
        """Whether the same would be recorded; another version that agrees changes nothing."""
        return (self.before.verdict, self.before.lines) == (self.after.verdict, self.after.lines)


def difference(mail: ReceivedMail, reading: Reading) -> Difference:
    """What is recorded of a mail, and what a reading of today says. Changes nothing."""
    rows = mail.bounces.filter(replaced=False).order_by("id")
    before = Told(
        Verdict(mail.verdict),
        mail.detector,
        mail.detector_version,
        tuple(sorted(_row_in_words(row) for row in rows)),
    )
    answer = reading.answer
    if answer is None or answer.reports is None:
        return Difference(before, Told(Verdict.UNRECOGNISED, "", "", ()))
    verdict = Verdict.BOUNCE if answer.reports else Verdict.NOTHING
    lines = tuple(sorted(_report_in_words(report) for report in answer.reports))
    return Difference(before, Told(verdict, answer.detector, answer.version, lines))


def apply_again(mail_id: int, reading: Reading, now: datetime, by: Any = None) -> Verdict:
    """Records a new reading in the place of the old one, in one transaction; the new verdict."""
    with transaction.atomic():
        mail = ReceivedMail.objects.select_for_update().defer("raw").get(pk=mail_id)
        old = list(mail.bounces.filter(replaced=False))
        Bounce.objects.filter(pk__in=[row.pk for row in old]).update(replaced=True)
        case = note_reading(mail, reading, now)
        if case is not None:
            correlate_all([case], now)
            _remember(case, old)
            if decide(case, Breaker.is_tripped()):
                apply([case], now)
        _lift_what_is_not_borne_out(mail, old, case, now, by)
        write_examined([mail], now)
    return Verdict(mail.verdict)


def undo(bounce: Bounce, now: datetime, by: Any = None) -> bool:
    """Lifts the suppression that a bounce led to; False where it is not in force any more, or was
    set for another reason."""
    sources = [evidence_of(row) for row in bounce.received_mail.bounces.all()]
    suppression = (
        Suppression.in_force().filter(address_key=bounce.address_key, source__in=sources).first()
    )
    if suppression is None or not suppression.lift(now=now, by=by):
        return False
    Bounce.objects.filter(
        received_mail=bounce.received_mail_id, suppressed=True, undone_at__isnull=True
    ).update(undone_at=now, undone_by=by)
    return True


def _remember(case: Case, old: list[Bounce]) -> None:
    """The letter that this very mail moved has bounced already, and that is no replay."""
    delivery = case.delivery
    if delivery is None:
        return
    ours = [row for row in old if row.delivery_id == delivery.pk]
    if any(row.counted for row in ours) and case.correlation.finding is Finding.ALREADY_BOUNCED:
        case.correlation = Correlation(Finding.MATCHED, delivery)
        case.moved_before = True
    elif any(row.kind == Kind.COMPLAINT for row in ours):
        case.moved_before = True


def _lift_what_is_not_borne_out(
    mail: ReceivedMail, old: list[Bounce], case: Case | None, now: datetime, by: Any
) -> None:
    rows = case.rows if case else []
    deciding = [rows[place] for place in case.ruling] if case else []
    for row in old:
        if not row.suppressed or row.undone_at is not None:
            continue
        if any(_suppresses(new) for new in deciding):
            Bounce.objects.filter(pk__in=[new.pk for new in deciding]).update(suppressed=True)
        else:
            undo(row, now, by)


def _suppresses(row: Bounce) -> bool:
    return row.kind == Kind.COMPLAINT or row.bounce_class == "hard"


def _row_in_words(row: Bounce) -> str:
    if row.kind == Kind.COMPLAINT:
        return f"{row.recipient or '?'}: {row.action}"
    return f"{row.recipient}: {row.bounce_class} {row.status}".rstrip()


def _report_in_words(report: Report) -> str:
    recipient = printable(report.recipient, 320)
    if not isinstance(report, BounceReport):
        return f"{recipient or '?'}: {printable(report.feedback_type, 30)}"
    return f"{recipient}: {class_of(report)} {printable(report.status, 11)}".rstrip()
