"""The whole story of one letter, told from what was written down. Reading only.

Delivery knows what it did itself: queued, handed over, what was answered. What came back later
is known downstream, so downstream is asked by a signal and never imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.dispatch import Signal
from django.utils.translation import gettext as _

from delivery.models import Attempt, Delivery, Resolution
from delivery.outcomes import Phase
from delivery.states import DeliveryStatus

# Sent while a story is told. Argument: delivery. Receivers return list[StoryLine], [] for nothing.
story_asked = Signal()


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One thing that happened. ``quote`` is verbatim text from outside, ``detail`` our own words
    about it, or such text where nobody tells them apart: both must be escaped.

    ``tone`` is one of neutral, info, good, warning, bad: how the page colours it.
    """

    at: datetime
    title: str
    detail: str = ""
    tone: str = "neutral"
    quote: str = ""


def story_of(delivery: Delivery) -> list[StoryLine]:
    """Every line of a letter's story, the oldest first; what is still to come stands last."""
    lines = [
        *_beginning(delivery),
        *_attempts(delivery),
        *_resolutions(delivery),
        *_ending(delivery),
        *what_came_back(delivery),
    ]
    # Stable: lines of one moment stay in the order in which they were told.
    return sorted(lines, key=lambda line: line.at)


def what_came_back(delivery: Delivery) -> list[StoryLine]:
    """The lines that are told downstream."""
    answers: list[tuple[Any, Any]] = story_asked.send(Delivery, delivery=delivery)
    return [line for _receiver, answer in answers for line in answer]


def _beginning(delivery: Delivery) -> Iterator[StoryLine]:
    if delivery.is_test:
        how = _("A test letter, asked for by a person.")
    elif delivery.mailing_list is not None:
        how = _("The reader was chosen through the list %(list)s.") % {
            "list": delivery.mailing_list.name
        }
    else:
        how = ""
    yield StoryLine(delivery.queued_at, _("Queued"), how)


def _attempts(delivery: Delivery) -> Iterator[StoryLine]:
    for attempt in delivery.attempt_log.all():
        yield StoryLine(
            attempt.at,
            _verdict(attempt),
            _circumstances(attempt),
            _tone(attempt),
            _verbatim(attempt.code, attempt.reply),
        )
    # The hand-overs before this one are told by their attempts.
    if delivery.handed_over_at is not None:
        yield StoryLine(
            delivery.handed_over_at,
            _("Handed over to the provider %(provider)s") % {"provider": delivery.provider},
            tone="info",
        )


def _resolutions(delivery: Delivery) -> Iterator[StoryLine]:
    """How doubts about it ended, and through whom."""
    for resolution in delivery.resolutions.all():
        sent_again = resolution.status == DeliveryStatus.QUEUED
        match resolution.means:
            case Resolution.Means.EVIDENCE:
                title = _("The doubt is over: it had been taken")
            case Resolution.Means.POLICY:
                title = _("To be sent again once, as its campaign says of letters in doubt")
            case _person:
                by = str(resolution.by) if resolution.by else _("somebody who is gone")
                title = (
                    _("To be sent again, said %(by)s")
                    if sent_again
                    else _("Treated as sent by %(by)s")
                ) % {"by": by}
        tone = "warning" if sent_again else "good"
        yield StoryLine(resolution.at, title, resolution.because, tone)


def _verdict(attempt: Attempt) -> str:
    """What an attempt came to, and whose trouble it was, in words."""
    match attempt.outcome:
        case "rejected" if attempt.phase == Phase.LOCAL:
            return _("Our own trouble: this letter could not be written for this reader")
        case "deferred":
            return _("Refused for now by the reader's side: it uses an attempt")
        case "rejected":
            return _("Refused for good by the reader's side")
        case "unavailable":
            return _("The provider's own trouble, not the reader's: it uses no attempt")
        case "returned":
            return _("It came back because of us, not of its reader: it is sent again")
        case "unconfirmed":
            return _("No answer after the letter had left: it may or may not have been taken")
        case other:
            return _("Attempt: %(outcome)s") % {"outcome": other}


def _tone(attempt: Attempt) -> str:
    return {"rejected": "bad", "deferred": "warning", "unconfirmed": "warning"}.get(
        attempt.outcome, "neutral"
    )


def _circumstances(attempt: Attempt) -> str:
    """Where in the dialogue the reply came, which rule read it, and what it led to."""
    parts = [
        _("Provider %(provider)s") % {"provider": attempt.provider},
        _("phase %(phase)s") % {"phase": attempt.phase},
    ]
    if attempt.rule:
        parts.append(_("rule %(rule)s") % {"rule": attempt.rule})
    parts.append(_("led to: %(status)s") % {"status": attempt.get_status_display()})
    return " · ".join(parts)


def _verbatim(code: int | None, reply: str) -> str:
    return f"{code} {reply}" if code is not None else reply


def unconfirmed_in_words() -> str:
    """What an operator reads beside every letter in doubt."""
    return _(
        "The connection broke after the letter had been handed over. It may or may not have "
        "arrived; sending it again may give the reader two copies."
    )


def _ending(delivery: Delivery) -> Iterator[StoryLine]:
    """Where it stands, unless its last attempt has said so already."""
    status, settled = delivery.status, delivery.settled_at
    if status == DeliveryStatus.DEFERRED:
        yield StoryLine(delivery.due_at, _("Due for the next attempt"), tone="info")
    if settled is None:
        return
    match status:
        case DeliveryStatus.SENT if not _was_confirmed(delivery):
            yield _accepted(delivery, settled)
        case DeliveryStatus.BOUNCED if not _was_in_doubt(delivery):
            # settled_at is now the day of the bounce. What came back is told by who received it.
            yield _accepted(delivery, delivery.handed_over_at or delivery.queued_at)
        case DeliveryStatus.UNCONFIRMED:
            yield StoryLine(settled, _("In doubt"), unconfirmed_in_words(), "warning")
        case DeliveryStatus.EXPIRED:
            yield StoryLine(
                settled,
                _("Given up"),
                _("Every attempt of the retry schedule was refused."),
                "bad",
            )
        case DeliveryStatus.SUPPRESSED:
            yield StoryLine(
                settled,
                _("Suppressed before it was sent"),
                _("When its turn came, the reader had unsubscribed or the address was suppressed."),
                "warning",
            )
        case DeliveryStatus.CANCELLED:
            yield StoryLine(
                settled, _("Cancelled with its campaign, before it was sent"), tone="warning"
            )


def _accepted(delivery: Delivery, at: datetime) -> StoryLine:
    return StoryLine(
        at,
        _("Accepted by the provider's server: sent, not yet proof of delivery"),
        tone="good",
        quote=_verbatim(delivery.code, delivery.reply),
    )


def _was_in_doubt(delivery: Delivery) -> bool:
    """Whether the last attempt ended without an answer: then there was no acceptance to tell. One
    that was sent again and accepted has no line for that attempt, only for the one before."""
    attempts = list(delivery.attempt_log.all())
    return (
        bool(attempts)
        and attempts[-1].status == DeliveryStatus.UNCONFIRMED
        and not any(
            resolution.status == DeliveryStatus.QUEUED and resolution.at >= attempts[-1].at
            for resolution in delivery.resolutions.all()
        )
    )


def _was_confirmed(delivery: Delivery) -> bool:
    """Whether it counts as sent because a doubt ended so, and not by an answer that was read."""
    resolutions = list(delivery.resolutions.all())
    return bool(resolutions) and resolutions[-1].status == DeliveryStatus.SENT
