"""Mails in: stored as they are, then examined, and what follows from them in one transaction.

Many at a time, because a round trip to the database costs more than reading a mail: a batch is
stored in one transaction and recorded in another. Where a batch breaks, each of its mails is tried
alone, so that one that cannot be recorded harms no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F
from django.utils.translation import gettext as _

from bounces.classification import judge
from bounces.conf import bounce_settings
from bounces.correlation import (
    SUSPICIOUS,
    Clues,
    Correlation,
    Finding,
    correlate,
)
from bounces.models import (
    OPEN_VERDICTS,
    Bounce,
    BounceClassChoices,
    Breaker,
    Kind,
    ReceivedMail,
    Verdict,
)
from bounces.policy import class_of, reason_to_suppress
from bounces.reading import Reading
from bounces.reading_process import ReadingProcess, UnreadableError
from bounces.report import BounceReport, Report, names, printable
from bounces.soft_bounces import COUNTED_CLASSES, bouncing_too_often
from campaigns.addresses import address_key
from campaigns.models import Campaign, Suppression
from campaigns.states import SubscriptionStatus, SuppressionReason
from campaigns.unsubscribe import Link, subscribed
from delivery import doubts
from delivery.alerts import open_alerts, raise_alert, resolve
from delivery.models import Alert, Delivery
from delivery.outcomes import Unavailable
from delivery.queue import mark_all_bounced
from delivery.returned import about_us, take_back

logger = logging.getLogger(__name__)

# A mail whose examiner died so often (killed, out of memory) is left to a person.
MOST_EXAMINATIONS = 3
HELD_BACK = "the breaker for forged tokens is open: nothing is marked until a person closes it"
# One transaction: on SQLite it keeps every other writer waiting.
FORGOTTEN_AT_ONCE = 1000
REFUSALS_CEASE_AFTER = timedelta(days=1)
CAUSE_OF_FORGERY = "forged tokens"
UNSIGNED = Correlation(Finding.UNSIGNED)
BY_COMPLAINT = "complaint"
TAKEN_BACK = "it is about our own mailbox or tenant: the letter is queued again"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A mail as it came out of a mailbox."""

    uid: str
    raw: bytes


def take_in(
    mailbox: str,
    uid_validity: str,
    fetched: Sequence[Fetched],
    now: datetime,
    reader: ReadingProcess[Reading],
    also: Callable[[], None] = lambda: None,
) -> list[Verdict]:
    """Stores mails and examines them; their verdicts, in the same order. Those that were taken in
    before are not stored again, and are examined only if that was never finished.

    ``also`` is done in the transaction of the results."""
    before, mails = store(mailbox, uid_validity, fetched, now)
    again = {
        mail.uid: examine_again(mail, now, reader)
        for mail in mails
        if mail.uid in before and mail.verdict in OPEN_VERDICTS
    }
    raws = {one.uid: one.raw for one in fetched}
    new = [mail for mail in mails if mail.uid not in before]
    for mail in new:
        mail.raw = _cut(raws[mail.uid])
    verdicts = {mail.uid: Verdict(mail.verdict) for mail in mails} | again
    verdicts |= {
        mail.uid: verdict
        for mail, verdict in zip(new, examine(new, now, reader, also), strict=True)
    }
    return [verdicts[one.uid] for one in fetched]


def store(
    mailbox: str, uid_validity: str, fetched: Sequence[Fetched], now: datetime
) -> tuple[set[str], list[ReceivedMail]]:
    """Writes mails down before anything is made of them: the uids of those that were there
    already, and the rows of all, without ``raw``.

    ``raw`` beyond LARGEST_MAIL_BYTES is cut off.
    """
    largest = bounce_settings().largest_mail_bytes
    of_mailbox = ReceivedMail.objects.filter(mailbox=mailbox, uid_validity=uid_validity)
    rows = of_mailbox.filter(uid__in=[one.uid for one in fetched])
    before = set(rows.values_list("uid", flat=True))
    ReceivedMail.objects.bulk_create(
        [
            ReceivedMail(
                mailbox=mailbox,
                uid_validity=uid_validity,
                uid=one.uid,
                received_at=now,
                raw=_cut(one.raw),
                truncated=len(one.raw) > largest,
            )
            for one in fetched
            if one.uid not in before
        ],
        # Another poller may be at it.
        ignore_conflicts=True,
    )
    return before, list(rows.defer("raw"))


def examine_again(mail: ReceivedMail, now: datetime, reader: ReadingProcess[Reading]) -> Verdict:
    """Examines a mail whose verdict is still open: its examiner died, or its letter was not yet
    settled. A mail that keeps killing its examiner is given up."""
    if mail.verdict not in OPEN_VERDICTS:
        return Verdict(mail.verdict)
    if mail.verdict == Verdict.NEW:
        if mail.examinations >= MOST_EXAMINATIONS:
            return _give_up(mail, now, "its examination broke off too often")
        ReceivedMail.objects.filter(pk=mail.pk).update(examinations=F("examinations") + 1)
    return examine([mail], now, reader)[0]


def examine(
    mails: Sequence[ReceivedMail],
    now: datetime,
    reader: ReadingProcess[Reading],
    also: Callable[[], None] = lambda: None,
) -> list[Verdict]:
    """Reads stored mails and does what follows from them, and ``also`` in the same transaction;
    their verdicts, in the same order.

    Whatever is in a mail, it does not raise: one that cannot be examined is kept as FAILED. A
    database that is out of order is not the mails' fault: that is raised, and they stay open.
    """
    verdicts: dict[int, Verdict] = {}
    readings: dict[int, Reading] = {}
    # Reading comes before the transaction: on SQLite that would stop every other writer.
    for mail in mails:
        try:
            readings[mail.pk] = reader.read(bytes(mail.raw or b""))
        except UnreadableError as error:
            logger.warning("bounces.unreadable", extra={"received_mail": mail.pk})
            verdicts[mail.pk] = _give_up(mail, now, str(error))
        for answer in readings[mail.pk].failed if mail.pk in readings else ():
            logger.warning(
                "bounces.detector_failed",
                extra={"received_mail": mail.pk, "detector": answer.detector},
            )
    with transaction.atomic():
        verdicts |= _record_or_give_up({m.pk: m for m in mails if m.pk in readings}, readings, now)
        also()
    return [verdicts[mail.pk] for mail in mails]


def _record_or_give_up(
    mails: dict[int, ReceivedMail], readings: dict[int, Reading], now: datetime
) -> dict[int, Verdict]:
    if not readings:
        return {}
    try:
        with transaction.atomic():
            return _record(readings, now)
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        if len(readings) > 1:
            verdicts: dict[int, Verdict] = {}
            for pk, reading in readings.items():
                verdicts |= _record_or_give_up(mails, {pk: reading}, now)
            return verdicts
        (pk,) = readings
        logger.exception("bounces.examination_failed", extra={"received_mail": pk})
        return {pk: _give_up(mails[pk], now, f"{type(error).__name__}: {error}")}


def forget_raw(now: datetime) -> int:
    """Drops the raw bytes of the oldest mails beyond their retention; of how many, at most
    FORGOTTEN_AT_ONCE."""
    old = (
        ReceivedMail.objects.filter(
            received_at__lt=now - bounce_settings().raw_retention, raw__isnull=False
        )
        .order_by("received_at")
        .values_list("pk", flat=True)[:FORGOTTEN_AT_ONCE]
    )
    return ReceivedMail.objects.filter(pk__in=list(old)).update(raw=None)


def resolve_ceased_refusals(now: datetime) -> int:
    """Ends the alerts about refused letters of campaigns that had none for a day; how many."""
    alerts = open_alerts().filter(kind=Alert.Kind.RETURNED, campaign__isnull=False)
    refused = Bounce.objects.filter(
        campaign__in=alerts.values("campaign"),
        bounce_class=BounceClassChoices.BLOCKED,
        at__gt=now - REFUSALS_CEASE_AFTER,
    )
    over = alerts.exclude(campaign__in=refused.values("campaign")).values_list("cause", flat=True)
    return sum(resolve(cause, now) for cause in list(over))


# ------------------------------------------------------------------------------- one transaction


@dataclass(slots=True)
class Case:
    """One mail with reports, on its way through a transaction."""

    mail: ReceivedMail
    reports: tuple[Report, ...]
    # Of the return paths that it was sent to; not yet verified.
    tokens: tuple[str, ...]
    correlation: Correlation = UNSIGNED
    rows: list[Bounce] = field(default_factory=list)
    # The places of the reports that decide about the reader; none where nobody is to be marked.
    ruling: list[int] = field(default_factory=list)
    # An earlier examination of this very mail moved the letter.
    moved_before: bool = False
    # It speaks of our own mailbox or tenant.
    trouble: Unavailable | None = None

    @property
    def delivery(self) -> Delivery | None:
        return self.correlation.delivery

    @property
    def is_bounce(self) -> bool:
        return any(isinstance(self.reports[place], BounceReport) for place in self.ruling)

    @property
    def deciding(self) -> list[Report]:
        return [self.reports[place] for place in self.ruling]


def _record(readings: dict[int, Reading], now: datetime) -> dict[int, Verdict]:
    """Everything that mails change, in the caller's transaction."""
    # Whoever else examines them waits here, and then finds them closed.
    locked = (
        ReceivedMail.objects.select_for_update().filter(pk__in=readings).defer("raw").order_by("pk")
    )
    mails = [mail for mail in locked if mail.verdict in OPEN_VERDICTS]
    closed = {mail.pk: Verdict(mail.verdict) for mail in locked if mail not in mails}
    cases = [
        case for mail in mails if (case := note_reading(mail, readings[mail.pk], now)) is not None
    ]
    correlate_all(cases, now)
    tripped = Breaker.is_tripped() if cases else False
    apply([case for case in cases if decide(case, tripped)], now)
    write_examined(mails, now)
    for mail in mails:
        logger.info("bounces.examined", extra={"received_mail": mail.pk, "verdict": mail.verdict})
    return closed | {mail.pk: Verdict(mail.verdict) for mail in mails}


def write_examined(mails: Sequence[ReceivedMail], now: datetime) -> None:
    """Saves what ``note_reading`` and ``decide`` changed, of all mails in one statement.

    Not bulk_update: compiling its CASE for each field took longer than all else in the batch.
    """
    if not mails:
        return
    changes = ", ".join(
        f"{name} = new.column{place}" for place, name in enumerate(EXAMINED_FIELDS, start=2)
    )
    row = f"({', '.join(['%s'] * (1 + len(EXAMINED_FIELDS)))})"
    values = [
        value
        for mail in mails
        for value in (mail.pk, *(getattr(mail, name) for name in EXAMINED_FIELDS))
    ]
    statement = (
        f"UPDATE {ReceivedMail._meta.db_table} AS mail SET examined_at = %s, {changes}"  # noqa: S608
        f" FROM (VALUES {', '.join([row] * len(mails))}) AS new WHERE mail.id = new.column1"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [connection.ops.adapt_datetimefield_value(now), *values])


EXAMINED_FIELDS = ("sender", "subject", "detector", "detector_version", "verdict", "remark")


def note_reading(mail: ReceivedMail, reading: Reading, now: datetime) -> Case | None:
    """Writes into the row, unsaved, what was read; a case where somebody is reported."""
    answer = reading.answer
    mail.examined_at, mail.remark = now, ""
    mail.sender, mail.subject = reading.sender, reading.subject
    mail.detector = answer.detector[:200] if answer else ""
    mail.detector_version = answer.version if answer else ""
    if answer is None or answer.reports is None:
        mail.verdict = Verdict.UNRECOGNISED
        if reading.failed:
            mail.remark = printable(f"{reading.failed[0].detector}: {reading.failed[0].error}", 500)
        return None
    if not answer.reports:
        mail.verdict = Verdict.NOTHING
        return None
    return Case(mail, answer.reports, reading.tokens)


def correlate_all(cases: Sequence[Case], now: datetime) -> None:
    """Finds the letters of all cases."""
    clues = [Clues(case.tokens, case.reports, case.mail.received_at) for case in cases]
    for case, correlation in zip(cases, correlate(clues, now), strict=True):
        case.correlation = correlation


def decide(case: Case, tripped: bool) -> bool:
    """Sets the verdict; False where nothing of the mail is written down yet, or at all."""
    finding = case.correlation.finding
    case.mail.remark = "" if finding is Finding.MATCHED else str(finding)
    if finding is Finding.TOO_EARLY:
        case.mail.verdict = Verdict.WAITING
        return False
    if finding is Finding.MATCHED and tripped:
        case.mail.verdict, case.mail.remark = Verdict.HELD, HELD_BACK
        return False
    case.reports = believed(case)
    if not case.reports:
        case.mail.verdict = Verdict.UNRECOGNISED
        case.mail.remark = "only its text names somebody, and no letter of ours is a second witness"
        return False
    case.mail.verdict = Verdict.BOUNCE
    return True


def believed(case: Case) -> tuple[Report, ...]:
    """The reports without those that only a text makes of somebody who is not the token's
    reader: then our own sent log is no second witness."""
    reader = case.delivery.address_key if case.delivery else ""
    return tuple(
        report
        for report in case.reports
        if not isinstance(report, BounceReport)
        or report.witnessed
        or (reader and names(report, reader))
    )


def apply(cases: Sequence[Case], now: datetime) -> None:
    """A row for each report; letters move and readers are suppressed where a token of ours
    permits it."""
    for case in cases:
        if case.correlation.finding is Finding.MATCHED and case.delivery:
            case.ruling = _ruling(case.reports, case.delivery.address_key)
    _take_back([case for case in cases if case.is_bounce], now)
    _move_letters([case for case in cases if case.is_bounce])
    _only_first_complaints([case for case in cases if case.ruling and not case.is_bounce])
    for case in cases:
        case.rows = [_bounce(case, report, now) for report in case.reports]
        for place in case.ruling:
            case.rows[place].counted = case.is_bounce
    Bounce.objects.bulk_create([row for case in cases for row in case.rows])
    _suppress([case for case in cases if case.ruling])
    for case in cases:
        if case.delivery and case.ruling and not case.is_bounce:
            # Whoever complains about a letter has it.
            doubts.confirm(case.delivery.pk, "A complaint about it came back.", now)
            _unsubscribe(case)
    _alert(cases, now)


def _take_back(cases: Sequence[Case], now: datetime) -> None:
    """Letters that came back because of our own quota or account are queued again (delivery says
    so), and decide about no reader."""
    for case in cases:
        troubles = [
            about_us(case.delivery.provider, report.status, report.diagnostic)
            for report in case.deciding
            if case.delivery and isinstance(report, BounceReport)
        ]
        case.trouble = troubles[0] if troubles and all(troubles) else None
    ours = [case for case in cases if case.trouble]
    # What was sent again since the mail came is not what it speaks of.
    current = [case for case in ours if not _left_later(case)]
    taken = (
        take_back({c.delivery.pk: c.trouble for c in current if c.delivery and c.trouble}, now)
        if current
        else set()
    )
    for case in ours:
        if case.delivery and (_left_later(case) or case.delivery.pk in taken):
            case.ruling = []
            case.mail.remark = TAKEN_BACK


def _left_later(case: Case) -> bool:
    left_at = case.delivery.handed_over_at if case.delivery else None
    return left_at is not None and left_at > case.mail.received_at


def _move_letters(cases: Sequence[Case]) -> None:
    """SENT -> BOUNCED. Of several mails about one letter the first moves it; the others, and those
    that come too late for a race, decide nothing."""
    waiting = {case.delivery.pk for case in cases if case.delivery and not case.moved_before}
    moved = mark_all_bounced(sorted(waiting)) if waiting else set()
    for case in cases:
        if case.delivery is None or case.moved_before:
            continue
        if case.delivery.pk in moved:
            moved.remove(case.delivery.pk)
        else:
            case.ruling = []
            case.mail.remark = str(Finding.ALREADY_BOUNCED)


def _only_first_complaints(cases: Sequence[Case]) -> None:
    """A complaint decides once for each letter: a copy of it must not bring back a suppression
    that a person has lifted."""
    letters = {case.delivery.pk for case in cases if case.delivery and not case.moved_before}
    if not letters:
        return
    known = set(
        Bounce.objects.filter(
            delivery__in=letters, kind=Kind.COMPLAINT, replaced=False
        ).values_list("delivery_id", flat=True)
    )
    for case in cases:
        if case.delivery is None or case.moved_before:
            continue
        if case.delivery.pk in known:
            case.ruling = []
        known.add(case.delivery.pk)


def _suppress(cases: Sequence[Case]) -> None:
    """The readers of hard bounces and complaints, and those whose soft ones are too many."""
    soft = {
        case.delivery.address_key
        for case in cases
        if case.delivery
        and any(case.rows[place].bounce_class in COUNTED_CLASSES for place in case.ruling)
    }
    too_often = bouncing_too_often(soft, bounce_settings().soft_bounces)
    wanted: list[tuple[Case, Suppression]] = []
    for case in cases:
        reason = reason_to_suppress(case.deciding)
        if reason is None and case.delivery and case.delivery.address_key in too_often:
            reason = SuppressionReason.SOFT_BOUNCES
        if reason is not None and case.delivery:
            wanted.append((case, _suppression(case, case.delivery, reason)))
    new = Suppression.add_many(row for _, row in wanted) if wanted else set()
    suppressed: list[int] = []
    for case, row in wanted:
        if row.address_key in new:
            new.remove(row.address_key)
            suppressed += [case.rows[place].pk for place in case.ruling]
    if suppressed:
        Bounce.objects.filter(pk__in=suppressed).update(suppressed=True)
    for case in cases:
        first = case.rows[case.ruling[0]]
        logger.info(
            "bounces.marked",
            extra={
                "delivery": first.delivery_id,
                "bounce": first.pk,
                "suppressed": first.pk in suppressed,
            },
        )


def _suppression(case: Case, delivery: Delivery, reason: SuppressionReason) -> Suppression:
    first = case.rows[case.ruling[0]]
    return Suppression(
        address_key=delivery.address_key,
        reason=reason,
        source=evidence_of(first),
        evidence=first.diagnostic or first.because,
    )


def evidence_of(bounce: Bounce) -> str:
    """How a suppression names the bounce that led to it, whatever the language of the page."""
    return f"{bounce.kind} {bounce.pk} ({bounce.status or bounce.action})"


def _unsubscribe(case: Case) -> None:
    """Who complains wants no more of this campaign's lists; the suppression may be lifted one
    day, and must not bring the letters back."""
    if case.delivery is None or case.delivery.subscriber_id is None:
        return
    for subscription in subscribed(Link(case.delivery.campaign_id, case.delivery.subscriber_id)):
        subscription.move(
            SubscriptionStatus.UNSUBSCRIBED,
            source=BY_COMPLAINT,
            note=evidence_of(case.rows[0])[:200],
            campaign_id=case.delivery.campaign_id,
        )


def _alert(cases: Sequence[Case], now: datetime) -> None:
    """What a person has to mend: refusals that are about us, and floods of forged reports."""
    refused = {
        case.delivery.campaign_id: row
        for case in cases
        for row in case.rows
        if case.delivery and row.counted and row.bounce_class == BounceClassChoices.BLOCKED
    }
    for campaign_id, row in refused.items():
        logger.warning("bounces.blocked", extra={"campaign": campaign_id})
        raise_alert(
            Alert.Kind.RETURNED,
            cause_of_refusals(campaign_id),
            _("Letters come back because of us, not of their readers"),
            _("%(because)s. Look at reputation, SPF, DKIM and DMARC; nobody was suppressed.")
            % {"because": row.because},
            now,
            campaign=Campaign(pk=campaign_id),
        )
    suspicious = sum(case.correlation.finding in SUSPICIOUS for case in cases)
    most = bounce_settings().most_forged_a_day
    if suspicious and Breaker.add(suspicious, most, now):
        logger.error("bounces.breaker_tripped", extra={"forged": most})
        raise_alert(
            Alert.Kind.RETURNED,
            CAUSE_OF_FORGERY,
            _("Somebody forges bounces: nobody is marked any more"),
            _("%(most)s mails within a day had tokens that are not to be believed.")
            % {"most": most},
            now,
        )


def cause_of_refusals(campaign_id: int) -> str:
    return f"bounces blocked {campaign_id}"


def _ruling(reports: Sequence[Report], reader: str) -> list[int]:
    """The places of the reports that decide about the reader (an address key).

    Those that name the reader. Where none does, the address forwards to others, the token is
    better evidence than a name, and all of them count together.
    """
    places = [place for place, report in enumerate(reports) if names(report, reader)]
    return places or list(range(len(reports)))


def _bounce(case: Case, report: Report, now: datetime) -> Bounce:
    """The row of a report. Everything in it is hostile text, and is made fit to be stored."""
    delivery = case.delivery
    recipient = printable(report.recipient, 320)
    key = delivery.address_key if delivery else address_key(recipient)
    row = Bounce(
        received_mail=case.mail,
        delivery=delivery,
        campaign_id=delivery.campaign_id if delivery else None,
        recipient=recipient,
        # Of the reader where one is known: behind an alias that is not the address named.
        address_key=key,
        domain=key.rpartition("@")[2][:255],
        at=now,
    )
    if not isinstance(report, BounceReport):
        row.kind, row.action = Kind.COMPLAINT, printable(report.feedback_type, 30)
        return row
    row.action, row.status = printable(report.action, 30), printable(report.status, 11)
    row.diagnostic = printable(report.diagnostic)
    if case.trouble is not None:
        row.bounce_class = BounceClassChoices.BLOCKED
        row.because = f"{case.trouble.rule}: about us, not about the reader"
        return row
    row.bounce_class = class_of(report)
    row.because = judge(report.status, report.diagnostic).because[:300]
    return row


def _cut(raw: bytes) -> bytes:
    return raw[: bounce_settings().largest_mail_bytes]


def _give_up(mail: ReceivedMail, now: datetime, remark: str) -> Verdict:
    """Keeps a mail for a person; what another process has decided meanwhile stands."""
    ReceivedMail.objects.filter(pk=mail.pk, verdict__in=OPEN_VERDICTS).update(
        verdict=Verdict.FAILED, examined_at=now, remark=printable(remark, 500)
    )
    return Verdict.FAILED
