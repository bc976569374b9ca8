"""Complaints: the Abuse Reporting Format of RFC 5965, also as the feedback loop of RFC 9477 (CFBL).

A reader who presses "this is spam" wants no more letters: that is a complaint, not a bounce, and
the address works. Most providers redact the reader (Original-Rcpt-To missing, or a hash in its
place), so the report may name nobody; the token of the returned Message-ID or of
Original-Mail-From knows better.

Quirks: report-type left out; Original-Rcpt-To repeated, with or without angle brackets;
Feedback-Type in capitals; the report part encoded; Yahoo and Comcast send message/rfc822, CFBL
permits text/rfc822-headers with little more than the Message-ID; `opt-out` (in drafts of the RFC,
and still sent) with Removal-Recipient. `not-spam` takes a complaint back and marks nobody; nor do
`auth-failure` (RFC 6591: somebody forged us), `virus` and `other`, which no reader wrote.
"""

from __future__ import annotations

from bounces.detectors.addresses import read_recipient, without_comments
from bounces.detectors.base import IncomingMail
from bounces.detectors.mime import Part, own_parts, read_fields
from bounces.detectors.returned import addresses_in, returned_copy
from bounces.report import ComplaintReport, printable

REPORT_TYPE = "message/feedback-report"
# RFC 5965 section 3.1 and its registry.
COMPLAINTS = frozenset({"abuse", "fraud", "opt-out", "opt-out-list"})
# Who complained; the reader of a redacted report is "".
_NAMES = ("original-rcpt-to", "removal-recipient")
MOST_COMPLAINTS = 10


class FeedbackReportDetector:
    """Answers for every mail with a feedback report of its own; reports complaints."""

    version = "1"

    def detect(self, mail: IncomingMail) -> list[ComplaintReport] | None:
        part = _report_part(mail)
        return None if part is None else _complaints(mail, part)

    def because(self, mail: IncomingMail) -> str:
        part = _report_part(mail)
        if part is None:
            return "no message/feedback-report part of the mail's own"
        kind = _feedback_type(_fields(part))
        meaning = "a complaint" if kind in COMPLAINTS else "no reader's complaint"
        return f"Feedback-Type is “{printable(kind, 40) or 'missing'}”: {meaning}"


def _report_part(mail: IncomingMail) -> Part | None:
    """The report that speaks for this mail: in a multipart/report, or at the top of the mail."""
    for part, containers in own_parts(mail.parts):
        if part.content_type != REPORT_TYPE:
            continue
        if not containers or any(
            container.content_type == "multipart/report"
            or container.report_type == "feedback-report"
            for container in containers
        ):
            return part
    return None


def _complaints(mail: IncomingMail, part: Part) -> list[ComplaintReport]:
    fields = _fields(part)
    kind = _feedback_type(fields)
    if kind not in COMPLAINTS:
        return []
    returned = returned_copy(mail)
    sender = next(
        (address for name, value in fields if name == "original-mail-from"
         for address in addresses_in(value)), "",
    )  # fmt: skip
    named = dict.fromkeys(
        address for name, value in fields if name in _NAMES and (address := read_recipient(value))
    )
    return [
        ComplaintReport(
            recipient=recipient,
            feedback_type=kind,
            message_id=returned.message_id,
            return_path=sender or returned.return_path,
        )
        for recipient in list(named)[:MOST_COMPLAINTS] or [""]
    ]


def _fields(part: Part) -> tuple[tuple[str, str], ...]:
    return read_fields(part.decoded().strip() + b"\n")


def _feedback_type(fields: tuple[tuple[str, str], ...]) -> str:
    written = next((value for name, value in fields if name == "feedback-type"), "")
    words = without_comments(written).lower().split()
    return words[0].strip(";,") if words else ""
