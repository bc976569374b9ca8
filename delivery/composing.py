"""Claimed deliveries -> messages: the letter of the edition, addressed to each reader."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain

from django.db import DatabaseError

from campaigns.conf import campaign_settings
from campaigns.letter import Addressee, Letter, LetterError, letter_of
from campaigns.models import Edition
from campaigns.tokens import LetterTokens, Purpose
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


def compose(
    claims: Sequence[Claimed], letters: Letters, now: datetime
) -> Iterator[OutgoingMessage | Rejected]:
    """The message for each reader, or why it cannot be written; written when it is asked for.

    An unwritable letter is REJECTED: one reader's odd data must not stop the campaign, and must
    not be tried for ever. Nobody's server was asked.
    """
    for claimed, tokens in zip(claims, _signed(claims), strict=True):
        try:
            yield _compose(claimed, tokens, letters[claimed.edition_id], now)
            continue
        except LetterError as error:
            text = f"The letter could not be written: {error}"
        except Exception as error:
            logger.exception("delivery.unwritable", extra={"delivery": claimed.id})
            text = f"The letter could not be written: {type(error).__name__}"
        yield Rejected(Reply.of(Phase.LOCAL, None, text), rule="unwritable")


def _signed(claims: Sequence[Claimed]) -> Iterable[LetterTokens | Exception]:
    """The tokens of each letter, or why it can have none: a number too large for them, perhaps."""
    try:
        return campaign_settings().signer.sign_letters(
            # A test letter carries no reader: its link shows the page and ends nothing.
            (claimed.id, claimed.campaign_id, NOBODY if claimed.is_test else claimed.subscriber_id)
            for claimed in claims
        )
    except Exception as error:
        if len(claims) == 1:
            return [error]
        return chain.from_iterable(_signed([claimed]) for claimed in claims)


def _compose(
    claimed: Claimed,
    tokens: LetterTokens | Exception,
    letter: Letter | LetterError,
    now: datetime,
) -> OutgoingMessage:
    if isinstance(letter, LetterError):
        raise letter
    if isinstance(tokens, Exception):
        raise tokens
    of_return_path, of_message_id, of_unsubscribe = tokens
    message_id = _message_id(of_message_id, claimed.campaign_id)
    segments = letter.segments(
        # By position: by name it takes twice as long.
        Addressee(
            claimed.rcpt_to, claimed.name, claimed.language, claimed.attributes or {},
            claimed.campaign_id, claimed.list_name, claimed.list_label, message_id,
            url_of(of_unsubscribe), now,
        )
    )  # fmt: skip
    envelope = _envelope(of_return_path, claimed.rcpt_to, letter.from_email)
    # Letter.segments promises that no line begins with a dot.
    return OutgoingMessage(claimed.id, envelope, segments, message_id, True)


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
