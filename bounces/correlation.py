"""Which letter came back? Only a signed token answers that; an address alone never does.

A forged report is perfect mail, and no reader of bytes can refuse it. The token of the return
path is signed for one delivery and travels in the envelope, so a mail to it comes from a server
that had the letter. Where a provider sets the envelope itself, the token of our Message-ID in the
returned headers does. A token is believed for thirty days after its letter left, and only while
the letter counts as sent: a replayed one finds it bounced already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from bounces.envelope import tokens_in
from bounces.report import ComplaintReport, Report
from campaigns.conf import campaign_settings
from campaigns.tokens import Purpose
from delivery.message_ids import deliveries_of
from delivery.models import Delivery
from delivery.states import FINAL, DeliveryStatus

# Servers give up after days (RFC 5321 section 4.5.4.1: at least 4-5), never after a month.
BELIEVED_FOR = timedelta(days=30)
# A report may be quicker than the commit of the hand-over that it answers; a worker that died
# then is cleared up within minutes.
PATIENCE = timedelta(days=1)


class Finding(StrEnum):
    """What correlation came to."""

    MATCHED = "matched"
    TOO_EARLY = "its letter is not settled yet"
    UNSIGNED = "no token of ours"
    FORGED = "a return path of ours with a token that is not genuine"
    UNKNOWN = "a genuine token, but its letter is not here"
    TOO_OLD = "a genuine token, but its letter left more than 30 days ago"
    NOT_SENT = "a genuine token, but its letter was never handed over"
    ALREADY_BOUNCED = "a genuine token that was used before: its letter has bounced already"
    NOT_OPEN = "a genuine token, but its letter did not count as sent"


# What a server that had the letter does not send, or once in a while at most. Many of them are an
# attack, or a key of ours is known to somebody.
SUSPICIOUS = frozenset(
    {
        Finding.FORGED,
        Finding.UNKNOWN,
        Finding.TOO_OLD,
        Finding.NOT_SENT,
        Finding.ALREADY_BOUNCED,
    }
)


@dataclass(frozen=True, slots=True)
class Correlation:
    """``delivery`` is given for every genuine token whose letter is here, whatever its state; only
    MATCHED permits to change anything."""

    finding: Finding
    delivery: Delivery | None = None


@dataclass(frozen=True, slots=True)
class Clues:
    """What a mail has to say of its letter. ``tokens`` are those of the return paths that it was
    sent to (envelope.py), ``received_at`` is when it was taken in."""

    tokens: Sequence[str]
    reports: Sequence[Report]
    received_at: datetime


def correlate(mails: Sequence[Clues], now: datetime) -> list[Correlation]:
    """The letter that each of the mails speaks of, in their order; two queries for all of them."""
    named = [named_letter(mail.tokens, mail.reports) for mail in mails]
    unsigned = [mail for mail, one in zip(mails, named, strict=True) if one is Finding.UNSIGNED]
    # Of mails without a token: those whose letter's Message-ID the provider had replaced.
    assigned = deliveries_of(one for mail in unsigned for one in message_ids_in(mail.reports))
    for place, mail in enumerate(mails):
        if named[place] is Finding.UNSIGNED:
            ids = (assigned[one] for one in message_ids_in(mail.reports) if one in assigned)
            named[place] = next(ids, Finding.UNSIGNED)
    wanted = {one for one in named if not isinstance(one, Finding)}
    letters = Delivery.objects.in_bulk(wanted) if wanted else {}
    return [
        Correlation(one)
        if isinstance(one, Finding)
        else judge_letter(letters.get(one), mail.received_at, now)
        for mail, one in zip(mails, named, strict=True)
    ]


def named_letter(tokens: Iterable[str], reports: Iterable[Report]) -> int | Finding:
    """The delivery id of the first genuine token: of the return path, else of the Message-ID in
    the returned headers, else of the return path that a complaint names. Asks no database.

    A return path of ours with a wrong token ends the search: somebody is trying.
    """
    signer = campaign_settings().signer
    genuine = True
    for token in tokens:
        numbers = signer.read(Purpose.RETURN_PATH, token)
        if numbers:
            return numbers[0]
        genuine = False
    if not genuine:
        return Finding.FORGED
    for report in reports:
        numbers = signer.read(Purpose.MESSAGE_ID, message_id_token(report.message_id))
        if numbers is None and isinstance(report, ComplaintReport):
            found = (
                signer.read(Purpose.RETURN_PATH, token) for token in tokens_in(report.return_path)
            )
            numbers = next(filter(None, found), None)
        if numbers:
            return numbers[0]
    return Finding.UNSIGNED


def message_ids_in(reports: Iterable[Report]) -> set[str]:
    """The Message-IDs of the returned letters. One that a provider gave a letter in place of ours
    is as good a witness as our token: only who had the letter can know it."""
    return {report.message_id for report in reports if report.message_id}


def message_id_token(message_id: str) -> str:
    """The token in a Message-ID of ours, ``<TOKEN.CAMPAIGN@DOMAIN>``; "" for others'."""
    left, _, domain = message_id.strip().strip("<>").rpartition("@")
    if domain.lower() != campaign_settings().message_id_domain.lower():
        return ""
    return left.partition(".")[0]


def judge_letter(delivery: Delivery | None, received_at: datetime, now: datetime) -> Correlation:
    """Whether the letter of a genuine token is one that can come back; None: it is not here."""
    if delivery is None:
        return Correlation(Finding.UNKNOWN)
    left_at = delivery.handed_over_at
    if left_at is None:
        return Correlation(Finding.NOT_SENT, delivery)
    if received_at - left_at > BELIEVED_FOR:
        return Correlation(Finding.TOO_OLD, delivery)
    if delivery.status in {DeliveryStatus.SENT, DeliveryStatus.UNCONFIRMED}:
        return Correlation(Finding.MATCHED, delivery)
    if delivery.status == DeliveryStatus.BOUNCED:
        return Correlation(Finding.ALREADY_BOUNCED, delivery)
    if delivery.status not in FINAL and now - received_at < PATIENCE:
        return Correlation(Finding.TOO_EARLY, delivery)
    return Correlation(Finding.NOT_OPEN, delivery)
