"""Claimed deliveries -> messages: the letter of the edition, addressed to each reader."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from django.db import DatabaseError

from campaigns.conf import campaign_settings
from campaigns.letter import Addressee, Letter, LetterError, letter_of
from campaigns.models import Edition
from campaigns.tokens import Purpose
from campaigns.unsubscribe import NOBODY, url_of
from delivery.claiming import Claimed
from delivery.conf import delivery_settings
from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Phase, Rejected, Reply

logger = logging.getLogger(__name__)


# The compiled letters of editions, by edition; the error of one that does not compile.
Letters = dict[int, Letter | LetterError]


def letters_of(claims: Sequence[Claimed]) -> Letters:
    """The letters that these claims need. Asks the database; composing does not."""
    return {edition_id: _letter(edition_id) for edition_id in {c.edition_id for c in claims}}


def compose(claimed: Claimed, letters: Letters, now: datetime) -> OutgoingMessage | Rejected:
    """The message for one reader, or why it cannot be written.

    An unwritable letter is REJECTED: one reader's odd data must not stop the campaign, and must
    not be tried for ever. Nobody's server was asked.
    """
    try:
        return _compose(claimed, letters[claimed.edition_id], now)
    except LetterError as error:
        text = f"The letter could not be written: {error}"
    except Exception as error:
        logger.exception("delivery.unwritable", extra={"delivery": claimed.id})
        text = f"The letter could not be written: {type(error).__name__}"
    return Rejected(Reply.of(Phase.LOCAL, None, text), rule="unwritable")


def _compose(claimed: Claimed, letter: Letter | LetterError, now: datetime) -> OutgoingMessage:
    if isinstance(letter, LetterError):
        raise letter
    # A test letter carries no reader: its link shows the page and ends nothing.
    reader = NOBODY if claimed.is_test else claimed.subscriber_id
    tokens = campaign_settings().signer.sign_letter(claimed.id, claimed.campaign_id, reader)
    message_id = _message_id(tokens.message_id, claimed.campaign_id)
    content = letter.render(
        # By position: by name it takes twice as long.
        Addressee(
            claimed.rcpt_to, claimed.name, claimed.language, claimed.attributes,
            claimed.campaign_id, claimed.list_name, claimed.list_label, message_id,
            url_of(tokens.unsubscribe), now,
        )
    )  # fmt: skip
    envelope = _envelope(tokens.return_path, claimed.rcpt_to, letter.from_email)
    # Letter.render promises that no line begins with a dot.
    return OutgoingMessage(claimed.id, envelope, content, message_id, True)


def envelope_of(delivery_id: int, rcpt_to: str, from_email: str) -> Envelope:
    """The envelope of a delivery: a return path of its own (VERP), or the author's address where
    the settings name none."""
    token = campaign_settings().signer.sign(Purpose.RETURN_PATH, delivery_id)
    return _envelope(token, rcpt_to, from_email)


def _envelope(token: str, rcpt_to: str, from_email: str) -> Envelope:
    pattern = delivery_settings().return_path
    return Envelope(pattern.replace("{token}", token) if pattern else from_email, rcpt_to)


def message_id_of(delivery_id: int, campaign_id: int) -> str:
    """The Message-ID of a delivery, with angle brackets: the same at every attempt, so that a
    reader's server may recognise a second copy; another one for every reader (Gmail 4.7.28)."""
    token = campaign_settings().signer.sign(Purpose.MESSAGE_ID, delivery_id)
    return _message_id(token, campaign_id)


def _message_id(token: str, campaign_id: int) -> str:
    return f"<{token}.{campaign_id}@{campaign_settings().message_id_domain}>"


@lru_cache(maxsize=16)
def _letter(edition_id: int) -> Letter | LetterError:
    """The letter, read and compiled once a process."""
    try:
        return letter_of(Edition.objects.get(pk=edition_id))
    except LetterError as error:
        return error
    except DatabaseError:
        raise
    except Exception as error:
        # One campaign's odd letter must not stop the others of its provider.
        logger.exception("delivery.unwritable", extra={"edition": edition_id})
        return LetterError(type(error).__name__)
