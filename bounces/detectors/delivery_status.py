"""Delivery status notifications: RFC 3464 in the container of RFC 6522, and RFC 6533.

Quirks that are ordinary, each from real mail: report-type left out; the type RFC822 in capitals;
comments after Action and Status; fields folded; the close boundary missing; the status part
encoded; Original-Recipient different from Final-Recipient (aliases), which then is an X.400 name
or a source route; one recipient eleven times. Postfix, Exchange and Google mark their bounces
Auto-Submitted: auto-replied, so that field disproves nothing.

Read too, because it is cheap and safe: a status part in multipart/mixed (OpenSMTPD means it so)
when a daemon sent the mail; ``Action : failed``; ``rfc/822``; several recipients in one group
(AOL); the actions error, failure and expired, which are never hard; a boundary that is not the one
that the header names. A group with a line that is no field is dropped: nobody is marked on half a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from bounces.classification import BounceClass, classify, first_code, judge
from bounces.detectors.addresses import read_recipient, without_comments
from bounces.detectors.base import IncomingMail
from bounces.detectors.mime import FIELD, LONGEST_FIELD, Part, own_parts, to_text
from bounces.detectors.returned import message_id_in, returned_copy
from bounces.detectors.senders import is_a_machine, is_a_mail_system, is_an_answer_or_forwarded
from bounces.report import BounceReport, printable
from delivery.status_codes import EnhancedStatus

STATUS_TYPES = frozenset({"message/delivery-status", "message/global-delivery-status"})
# What else travels as multipart/report: receipts (they have a Final-Recipient too), complaints,
# TLS reports.
OTHER_REPORTS = frozenset({"disposition-notification", "feedback-report", "tlsrpt"})

FAILED = "failed"
# RFC 3464 section 2.3.3 knows only "failed"; these mean it, but come from servers whose codes
# nobody should trust with a reader's address.
ALSO_FAILED = frozenset({"failure", "error", "expired"})

MAX_REPORTS = 100

_WORD = re.compile(r"[A-Za-z]+")
# Fields of a letter, never of a status: from here on the status part ran into the returned copy.
_LETTER_FIELDS = frozenset({"received", "from", "subject", "message-id", "mime-version"})
_RECIPIENT_FIELDS = frozenset({"original-recipient", "final-recipient"})


@dataclass(slots=True)
class Group:
    """The fields about one recipient (or, without one, about the message). First value counts."""

    fields: dict[str, str] = field(default_factory=dict)
    broken: bool = False

    def value(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def names_a_recipient(self) -> bool:
        return not _RECIPIENT_FIELDS.isdisjoint(self.fields)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of one mail: reports, and a line on every group for a person."""

    reports: list[BounceReport]
    notes: list[str]


class DeliveryStatusDetector:
    """Answers for every mail with a status part of its own."""

    version = "3"

    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        parts = status_parts(mail)
        return read(mail, parts).reports if parts else None

    def because(self, mail: IncomingMail) -> str:
        parts = status_parts(mail)
        if not parts:
            return "no message/delivery-status part of the mail's own"
        return "\n".join(
            [f"{part.content_type} in {mail.parts.content_type}" for part in parts]
            + read(mail, parts).notes
        )


def status_parts(mail: IncomingMail) -> list[Part]:
    """The status parts that speak for this mail: never one of a forwarded or returned mail.

    Within multipart/report nothing more is asked (RFC 6522). In any other container a person may
    have attached it, so a daemon must have sent the mail.
    """
    found = []
    for part, containers in own_parts(mail.parts):
        if part.content_type not in STATUS_TYPES:
            continue
        if any(container.report_type in OTHER_REPORTS for container in containers):
            continue
        at_top = bool(containers) and _is_report(containers[0])
        within = any(_is_report(container) for container in containers)
        by_machine = is_a_mail_system(mail) if within else is_a_machine(mail)
        by_person = is_an_answer_or_forwarded(mail)
        if at_top or (within and (by_machine or not by_person)) or (by_machine and not by_person):
            found.append(part)
    return found


def read(mail: IncomingMail, parts: list[Part]) -> Reading:
    """Reports of all groups that failed, one for each recipient, and notes on all groups."""
    reports: dict[str, BounceReport] = {}
    notes: list[str] = []
    for part in parts:
        groups = _groups_of(part)
        message_id = _returned_message_id(mail, groups)
        envelope_id = next((g.value("original-envelope-id") for g in groups), "")
        for group in groups:
            if not group.names_a_recipient or len(reports) >= MAX_REPORTS:
                continue
            report = _report(group, mail, message_id, envelope_id)
            if isinstance(report, str):
                notes.append(report)
                continue
            _keep_the_softer(reports, report)
            verdict = judge(report.status, report.diagnostic)
            notes.append(
                f"{report.recipient}: {report.action} {report.status}, "
                f"{verdict.bounce_class}: {verdict.because}"
            )
    return Reading(list(reports.values()), notes)


def _report(
    group: Group, mail: IncomingMail, message_id: str, envelope_id: str
) -> BounceReport | str:
    """The report of a group, or the reason why it makes none."""
    if group.broken:
        return "a group with a line that is no field: dropped"
    word = _WORD.search(without_comments(group.value("action")))
    action = word[0].lower() if word else ""
    if action != FAILED and action not in ALSO_FAILED:
        return f"Action is “{action or 'missing'}”: no final failure"
    original = read_recipient(group.value("original-recipient"))
    final = read_recipient(group.value("final-recipient"))
    # Original is what we sent to; Final is what a server behind an alias made of it.
    recipient = original or final or _only_failed_recipient(mail)
    if not recipient:
        return "the recipient is no mail address, and no header names the one that failed"
    diagnostic = printable(group.value("diagnostic-code"))
    status = _status(group.value("status"), diagnostic)
    return BounceReport(
        recipient=recipient,
        action=action,
        status=status,
        hard=action == FAILED and classify(status, diagnostic) is BounceClass.HARD,
        diagnostic=diagnostic,
        original_recipient=original,
        final_recipient=final,
        remote_mta=printable(group.value("remote-mta"), 255),
        envelope_id=printable(envelope_id, 255),
        message_id=message_id,
    )


def _status(value: str, diagnostic: str) -> str:
    """The leading x.y.z of Status; the diagnostic's where Status has none; "" without both."""
    written = without_comments(value)
    code = EnhancedStatus.leading(written) or first_code(written) or first_code(diagnostic)
    return str(code) if code else ""


def _keep_the_softer(reports: dict[str, BounceReport], report: BounceReport) -> None:
    """One result for each recipient; where a mail contradicts itself, not the hard one."""
    key = report.recipient.lower()
    if key not in reports or (reports[key].hard and not report.hard):
        reports[key] = report


def _groups_of(part: Part) -> list[Group]:
    """The groups of a status part. Where it claims an encoding that it does not have, the bytes
    as they stand are tried."""
    groups = list(read_groups(part.decoded()))
    if not any(group.names_a_recipient for group in groups):
        groups = list(read_groups(part.body)) or groups
    return groups


def read_groups(octets: bytes) -> Iterator[Group]:
    """Groups of fields between blank lines (RFC 3464 section 2.1).

    Ends where the text has left the status part: at a delimiter, or at a letter's own header,
    which stands here where a boundary is damaged. That last group is given too, for its
    Message-ID.
    """
    group, last = Group(), ""
    for line in octets.split(b"\n"):
        text = to_text(line.rstrip(b"\r")[:LONGEST_FIELD])
        if text.startswith("--"):
            break
        if not text.strip():
            if group.fields or group.broken:
                yield group
                if not _LETTER_FIELDS.isdisjoint(group.fields):
                    return
            group, last = Group(), ""
            continue
        if text[0] in " \t":
            if last:
                folded = f"{group.fields[last]} {text.strip()}"
                group.fields[last] = folded[:LONGEST_FIELD]
            elif not group.fields:
                group.broken = True
            continue
        match = FIELD.match(text)
        if not match:
            group.broken, last = True, ""
            continue
        name = match[1].lower()
        if name in _RECIPIENT_FIELDS and name in group.fields:
            yield group  # no blank line between two recipients
            group = Group(broken=group.broken)
        if name in group.fields:
            last = ""  # a repeated field and its folded lines: the first one counts
            continue
        group.fields[name], last = match[2].strip(), name
    if group.fields or group.broken:
        yield group


def _returned_message_id(mail: IncomingMail, groups: list[Group]) -> str:
    """The Message-ID of the returned copy or of its headers, with brackets; "" without any."""
    if message_id := returned_copy(mail).message_id:
        return message_id
    # A damaged boundary: the returned header stands among the groups.
    found = (message_id_in(group.value("message-id")) for group in groups)
    return next(filter(None, found), "")


def _is_report(part: Part) -> bool:
    return part.content_type == "multipart/report" or part.report_type == "delivery-status"


def _only_failed_recipient(mail: IncomingMail) -> str:
    """Exim's X-Failed-Recipients, where a pipe or a file failed: the reader is the one address
    in it. With several, nobody knows which."""
    named = [
        address
        for value in mail.headers("x-failed-recipients")
        for address in map(read_recipient, value.split(","))
        if address
    ]
    return named[0] if len(named) == 1 else ""
