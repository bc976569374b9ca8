"""Which letter came back? Only a signed token answers that; an address alone never does.

A forged report is perfect mail, and no reader of bytes can refuse it. The token of the return
path is signed for one delivery and travels in the envelope, so a mail to it comes from a server
that had the letter. Where a provider sets the envelope itself, the token of our Message-ID in the
returned headers does. A token is believed for thirty days after its letter left, and only while
the letter counts as sent: a replayed one finds it bounced already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from bounces.detectors.base import IncomingMail
from bounces.report import Report
from campaigns.conf import campaign_settings
from campaigns.tokens import Purpose, TokenSigner
from delivery.conf import delivery_settings
from delivery.models import Delivery
from delivery.states import FINAL, DeliveryStatus

# Servers give up after days (RFC 5321 section 4.5.4.1: at least 4-5), never after a month.
BELIEVED_FOR = timedelta(days=30)
# A report may be quicker than the commit of the hand-over that it answers; a worker that died
# then is cleared up within minutes.
PATIENCE = timedelta(days=1)

# The envelope recipient as local servers write it down; To is what a sender may choose freely,
# and comes last.
ENVELOPE_FIELDS = ("delivered-to", "x-original-to", "envelope-to", "to")
MOST_ADDRESSES = 50


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


@dataclass(frozen=True, slots=True)
class Correlation:
    """``delivery`` is given for every genuine token whose letter is here, whatever its state; only
    MATCHED permits to change anything."""

    finding: Finding
    delivery: Delivery | None = None


def correlate(
    mail: IncomingMail, reports: Iterable[Report], received_at: datetime, now: datetime
) -> Correlation:
    """The letter that a mail speaks of: by the return path it was sent to, else by the Message-ID
    in the returned headers. ``received_at`` is when the mail was taken in.

    A return path of ours with a wrong token ends the search: somebody is trying.
    """
    signer = TokenSigner(campaign_settings().token_keys)
    genuine = True
    for token in return_path_tokens(mail):
        numbers = signer.read(Purpose.RETURN_PATH, token)
        if numbers:
            return _judged(numbers[0], received_at, now)
        genuine = False
    if not genuine:
        return Correlation(Finding.FORGED)
    for report in reports:
        numbers = signer.read(Purpose.MESSAGE_ID, message_id_token(report.message_id))
        if numbers:
            return _judged(numbers[0], received_at, now)
    return Correlation(Finding.UNSIGNED)


def return_path_tokens(mail: IncomingMail) -> Iterator[str]:
    """What stands in the place of {token}, in every address that has the shape of our return
    path. Not yet verified."""
    pattern = _return_path_pattern(delivery_settings().return_path)
    if pattern is None:
        return
    seen = 0
    for name in ENVELOPE_FIELDS:
        for value in mail.headers(name):
            for match in pattern.finditer(value):
                yield match["token"]
                seen += 1
                if seen == MOST_ADDRESSES:
                    return


def message_id_token(message_id: str) -> str:
    """The token in a Message-ID of ours, ``<TOKEN.CAMPAIGN@DOMAIN>``; "" for others'."""
    left, _, domain = message_id.strip().strip("<>").rpartition("@")
    if domain.lower() != campaign_settings().message_id_domain.lower():
        return ""
    return left.partition(".")[0]


@lru_cache(maxsize=4)
def _return_path_pattern(return_path: str) -> re.Pattern[str] | None:
    """None where there is no return path of our own: the provider sets the envelope."""
    before, placeholder, after = return_path.partition("{token}")
    if not placeholder:
        return None
    return re.compile(
        rf"(?<![\w.+-]){re.escape(before)}(?P<token>[a-z0-9]{{1,64}}){re.escape(after)}(?![\w-])",
        re.IGNORECASE | re.ASCII,
    )


def _judged(delivery_id: int, received_at: datetime, now: datetime) -> Correlation:
    """Whether the letter of a genuine token is one that can come back."""
    delivery = Delivery.objects.filter(pk=delivery_id).first()
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
