"""One mail in: stored as it is, then examined, and what follows from it in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import InterfaceError, OperationalError, transaction
from django.db.models import F

from bounces.classification import judge
from bounces.conf import bounce_settings
from bounces.correlation import Correlation, Finding, correlate
from bounces.detectors.base import IncomingMail
from bounces.models import OPEN_VERDICTS, Bounce, Kind, ReceivedMail, Verdict
from bounces.policy import class_of, reason_to_suppress
from bounces.reading import Answer, incoming, read_mail
from bounces.report import BounceReport, Report, names, printable
from campaigns.addresses import address_key
from campaigns.models import Suppression
from delivery.models import Delivery
from delivery.queue import mark_bounced

logger = logging.getLogger(__name__)

# A mail whose examiner died so often (killed, out of memory) is left to a person.
MOST_EXAMINATIONS = 3


def take_in(
    mailbox: str, uid_validity: str, uid: str, raw: bytes, now: datetime
) -> tuple[ReceivedMail, Verdict]:
    """Stores a mail and examines it. One that was taken in before is not stored again, and is
    examined only if that was never finished."""
    mail, is_new = store(mailbox, uid_validity, uid, raw, now)
    return mail, examine(mail, now) if is_new else examine_again(mail, now)


def store(
    mailbox: str, uid_validity: str, uid: str, raw: bytes, now: datetime
) -> tuple[ReceivedMail, bool]:
    """Writes the mail down before anything is made of it; False when it was there already.

    ``raw`` beyond LARGEST_MAIL_BYTES is cut off.
    """
    largest = bounce_settings().largest_mail_bytes
    return ReceivedMail.objects.get_or_create(
        mailbox=mailbox,
        uid_validity=uid_validity,
        uid=uid,
        defaults={"received_at": now, "raw": raw[:largest], "truncated": len(raw) > largest},
    )


def examine_again(mail: ReceivedMail, now: datetime) -> Verdict:
    """Examines a mail whose verdict is still open: its examiner died, or its letter was not yet
    settled. A mail that keeps killing its examiner is given up."""
    if mail.verdict not in OPEN_VERDICTS:
        return Verdict(mail.verdict)
    if mail.verdict == Verdict.NEW:
        if mail.examinations >= MOST_EXAMINATIONS:
            return _give_up(mail, now, "its examination broke off too often")
        ReceivedMail.objects.filter(pk=mail.pk).update(examinations=F("examinations") + 1)
    return examine(mail, now)


def examine(mail: ReceivedMail, now: datetime) -> Verdict:
    """Reads a stored mail and does what follows from it; the verdict.

    Whatever is in the mail, it does not raise: a mail that cannot be examined is kept as FAILED.
    A database that is out of order is not the mail's fault: that is raised, and the verdict stays
    open.
    """
    try:
        # Reading comes before the transaction: on SQLite that would stop every other writer.
        incoming_mail = incoming(bytes(mail.raw or b""))
        answer = read_mail(incoming_mail)
        with transaction.atomic():
            return _record(mail.pk, incoming_mail, answer, now)
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        logger.exception("bounces.examination_failed", extra={"received_mail": mail.pk})
        return _give_up(mail, now, f"{type(error).__name__}: {error}")


def forget_raw(now: datetime, most: int = 1000) -> int:
    """Drops the raw bytes of mails beyond their retention; how many, at most ``most``."""
    old = (
        ReceivedMail.objects.filter(
            received_at__lt=now - bounce_settings().raw_retention, raw__isnull=False
        )
        .order_by("received_at")
        .values_list("pk", flat=True)[:most]
    )
    return ReceivedMail.objects.filter(pk__in=list(old)).update(raw=None)


def _record(
    mail_id: int, incoming_mail: IncomingMail, answer: Answer | None, now: datetime
) -> Verdict:
    """Everything that a mail changes, in the caller's transaction."""
    # Whoever else examines it waits here, and then finds it closed.
    mail = ReceivedMail.objects.select_for_update().defer("raw").get(pk=mail_id)
    if mail.verdict not in OPEN_VERDICTS:
        return Verdict(mail.verdict)
    mail.examined_at = now
    mail.sender = printable(incoming_mail.header("from"), 200)
    mail.subject = printable(incoming_mail.header("subject"), 200)
    mail.detector = answer.detector[:200] if answer else ""
    if answer is None or answer.reports is None:
        mail.verdict = Verdict.UNRECOGNISED
    elif not answer.reports:
        mail.verdict = Verdict.NOTHING
    else:
        correlation = correlate(incoming_mail, answer.reports, mail.received_at, now)
        mail.remark = "" if correlation.finding is Finding.MATCHED else str(correlation.finding)
        if correlation.finding is Finding.TOO_EARLY:
            mail.verdict = Verdict.WAITING
        else:
            mail.verdict = Verdict.BOUNCE
            _apply(mail, answer.reports, correlation, now)
    mail.save(update_fields=["examined_at", "sender", "subject", "detector", "verdict", "remark"])
    logger.info("bounces.examined", extra={"received_mail": mail.pk, "verdict": mail.verdict})
    return Verdict(mail.verdict)


def _apply(
    mail: ReceivedMail, reports: Sequence[Report], correlation: Correlation, now: datetime
) -> None:
    """A row for each report; the letter moves and its reader is suppressed where a token of ours
    permits it."""
    delivery = correlation.delivery
    rows = Bounce.objects.bulk_create([_bounce(mail, report, delivery, now) for report in reports])
    if correlation.finding is not Finding.MATCHED or delivery is None:
        return
    ruling = _ruling(reports, delivery.address_key)
    bounced = any(isinstance(reports[place], BounceReport) for place in ruling)
    # False: another mail about the same letter was quicker, and this one is a replay.
    if bounced and not mark_bounced(delivery.pk):
        return
    first = rows[ruling[0]]
    reason = reason_to_suppress([reports[place] for place in ruling])
    suppressed = reason is not None and Suppression.add(
        delivery.rcpt_to,
        reason,
        source=f"{first.get_kind_display()} {first.pk} ({first.status or first.action})",
        evidence=first.diagnostic or first.because,
    )
    Bounce.objects.filter(pk__in=[rows[place].pk for place in ruling]).update(
        counted=bounced, suppressed=suppressed
    )
    logger.info(
        "bounces.marked",
        extra={"delivery": delivery.pk, "bounce": first.pk, "suppressed": suppressed},
    )


def _ruling(reports: Sequence[Report], reader: str) -> list[int]:
    """The places of the reports that decide about the reader (an address key).

    Those that name the reader. Where none does, the address forwards to others, the token is
    better evidence than a name, and all of them count together.
    """
    places = [place for place, report in enumerate(reports) if names(report, reader)]
    return places or list(range(len(reports)))


def _bounce(mail: ReceivedMail, report: Report, delivery: Delivery | None, now: datetime) -> Bounce:
    """The row of a report. Everything in it is hostile text, and is made fit to be stored."""
    recipient = printable(report.recipient, 320)
    row = Bounce(
        received_mail=mail,
        delivery=delivery,
        campaign_id=delivery.campaign_id if delivery else None,
        recipient=recipient,
        # Of the reader where one is known: behind an alias that is not the address named.
        address_key=delivery.address_key if delivery else address_key(recipient),
        at=now,
    )
    if not isinstance(report, BounceReport):
        row.kind, row.action = Kind.COMPLAINT, printable(report.feedback_type, 30)
        return row
    row.action, row.status = printable(report.action, 30), printable(report.status, 11)
    row.diagnostic = printable(report.diagnostic)
    row.bounce_class = class_of(report)
    row.because = judge(report.status, report.diagnostic).because[:300]
    return row


def _give_up(mail: ReceivedMail, now: datetime, remark: str) -> Verdict:
    """Keeps a mail for a person; what another process has decided meanwhile stands."""
    ReceivedMail.objects.filter(pk=mail.pk, verdict__in=OPEN_VERDICTS).update(
        verdict=Verdict.FAILED, examined_at=now, remark=printable(remark, 500)
    )
    return Verdict.FAILED
