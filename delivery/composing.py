"""Claimed deliveries -> messages: the letter of the edition, addressed to each reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from campaigns.conf import campaign_settings
from campaigns.letter import Addressee, Letter, LetterError, letter_of
from campaigns.models import Edition
from campaigns.tokens import Purpose, TokenSigner
from campaigns.unsubscribe import unsubscribe_url
from delivery.conf import delivery_settings
from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Phase, Rejected, Reply
from delivery.queue import Claimed


@dataclass(frozen=True, slots=True)
class Unwritable:
    """A letter that could not be composed for this reader: nobody's server was asked."""

    claimed: Claimed
    outcome: Rejected


def compose(
    claims: Sequence[Claimed], now: datetime
) -> tuple[list[OutgoingMessage], list[Unwritable]]:
    """The messages in the order of the claims, and those that could not be written.

    An unwritable letter ends as REJECTED with the reason: one reader's odd data must not stop
    the campaign, and must not be tried for ever.
    """
    messages, unwritable = [], []
    for claimed in claims:
        try:
            messages.append(_compose(claimed, now))
        except LetterError as error:
            reply = Reply.of(Phase.LOCAL, None, f"The letter could not be written: {error}")
            unwritable.append(Unwritable(claimed, Rejected(reply, rule="unwritable")))
    return messages, unwritable


def _compose(claimed: Claimed, now: datetime) -> OutgoingMessage:
    letter = _letter(claimed.edition_id)
    message_id = message_id_of(claimed.id, claimed.campaign_id)
    content = letter.render(
        Addressee(
            rcpt_to=claimed.rcpt_to,
            name=claimed.name,
            language=claimed.language,
            attributes=claimed.attributes,
            campaign_id=claimed.campaign_id,
            list_name=claimed.list_name,
            list_label=claimed.list_label,
            message_id=message_id,
            # A test letter carries no reader: its link shows the page and ends nothing.
            unsubscribe_url=unsubscribe_url(
                claimed.campaign_id, 0 if claimed.is_test else claimed.subscriber_id
            ),
            date=now,
        )
    )
    envelope = envelope_of(claimed.id, claimed.rcpt_to, letter.from_email)
    return OutgoingMessage(claimed.id, envelope, content, message_id)


def envelope_of(delivery_id: int, rcpt_to: str, from_email: str) -> Envelope:
    """The envelope of a delivery: a return path of its own (VERP), or the author's address where
    the settings name none."""
    pattern = delivery_settings().return_path
    token = TokenSigner(campaign_settings().token_keys).sign(Purpose.RETURN_PATH, delivery_id)
    return Envelope(pattern.replace("{token}", token) if pattern else from_email, rcpt_to)


def message_id_of(delivery_id: int, campaign_id: int) -> str:
    """The Message-ID of a delivery, with angle brackets: the same at every attempt, so that a
    reader's server may recognise a second copy; another one for every reader (Gmail 4.7.28)."""
    settings = campaign_settings()
    token = TokenSigner(settings.token_keys).sign(Purpose.MESSAGE_ID, delivery_id)
    return f"<{token}.{campaign_id}@{settings.message_id_domain}>"


@lru_cache(maxsize=16)
def _letter(edition_id: int) -> Letter:
    """An edition never changes once it is written, so it is read and compiled once a process."""
    return letter_of(Edition.objects.get(pk=edition_id))
