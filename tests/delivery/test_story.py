"""A letter's story: every line in its order, verbatim, and in words about whose trouble it was."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from delivery.models import Delivery
from delivery.story import StoryLine, story_asked, story_of
from tests.delivery.rows import a_campaign, a_letter, a_list, a_reader, an_attempt

pytestmark = pytest.mark.django_db
MINUTE = timedelta(minutes=1)


def told(delivery: Delivery) -> list[str]:
    return [line.title for line in story_of(Delivery.objects.get(pk=delivery.pk))]


def test_a_letter_that_was_deferred_once_and_then_accepted_tells_it_in_order(now: datetime) -> None:
    letter = a_letter(
        a_campaign(),
        a_reader("ada@example.org"),
        now,
        mailing_list=a_list("Weekly"),
        handed_over_at=now + 10 * MINUTE,
        settled_at=now + 10 * MINUTE,
        provider="default",
        code=250,
        reply="2.0.0 Ok: queued as 4bXy",
    )
    an_attempt(letter, now + MINUTE, "deferred", rule="greylisting")
    lines = story_of(letter)
    assert [line.title for line in lines] == [
        "Queued",
        "Refused for now by the reader's side: it uses an attempt",
        "Handed over to the provider default",
        "Accepted by the provider's server: sent, not yet proof of delivery",
    ]
    assert lines == sorted(lines, key=lambda line: line.at)
    assert "Weekly" in lines[0].detail
    assert lines[1].quote == "450 4.2.0 Greylisted"
    assert lines[1].detail == (
        "Provider default · phase rcpt · rule greylisting · led to: Deferred"
    )
    assert lines[3].quote == "250 2.0.0 Ok: queued as 4bXy"


@pytest.mark.parametrize(
    ("outcome", "phase", "words"),
    [
        ("rejected", "rcpt", "reader's side"),
        ("rejected", "local", "Our own trouble"),
        ("unavailable", "greeting", "provider's own trouble"),
        ("unconfirmed", "final dot", "may or may not have been taken"),
    ],
)
def test_each_attempt_says_whose_trouble_it_was(
    now: datetime, outcome: str, phase: str, words: str
) -> None:
    letter = a_letter(a_campaign(), "ada@example.org", now, "queued")
    an_attempt(letter, now, outcome, phase=phase)
    assert any(words in title for title in told(letter))


def test_a_letter_in_doubt_is_explained(now: datetime) -> None:
    letter = a_letter(a_campaign(), "ada@example.org", now, "unconfirmed", settled_at=now)
    last = story_of(letter)[-1]
    assert "may or may not have arrived" in last.detail
    assert "two copies" in last.detail


@pytest.mark.parametrize(
    ("status", "title"),
    [
        ("expired", "Given up"),
        ("suppressed", "Suppressed before it was sent"),
        ("cancelled", "Cancelled with its campaign, before it was sent"),
    ],
)
def test_a_letter_that_never_left_says_why(now: datetime, status: str, title: str) -> None:
    letter = a_letter(a_campaign(), "ada@example.org", now, status, settled_at=now)
    assert told(letter)[-1] == title


def test_a_deferred_letter_says_when_it_is_due(now: datetime) -> None:
    letter = a_letter(
        a_campaign(), "ada@example.org", now, "deferred", settled_at=now, due_at=now + 5 * MINUTE
    )
    assert story_of(letter)[-1] == StoryLine(
        now + 5 * MINUTE, "Due for the next attempt", tone="info"
    )


def test_what_came_back_is_told_by_whoever_received_it(now: datetime) -> None:
    letter = a_letter(
        a_campaign(),
        "ada@example.org",
        now,
        "bounced",
        handed_over_at=now + MINUTE,
        settled_at=now + 3 * MINUTE,
        code=250,
        reply="2.0.0 Ok",
    )
    came_back = StoryLine(now + 2 * MINUTE, "It came back", "550 5.1.1 no such user", "bad")

    def tell(*, delivery: Delivery, **_: object) -> list[StoryLine]:
        return [came_back] if delivery == letter else []

    story_asked.connect(tell)
    try:
        lines = story_of(letter)
    finally:
        story_asked.disconnect(tell)
    assert lines[-1] == came_back
    assert "Accepted by the provider's server: sent, not yet proof of delivery" in [
        line.title for line in lines
    ]


def test_a_bounce_of_a_letter_in_doubt_tells_of_no_acceptance(now: datetime) -> None:
    letter = a_letter(
        a_campaign(), "ada@example.org", now, "bounced", settled_at=now, handed_over_at=now
    )
    an_attempt(letter, now, "unconfirmed", status="unconfirmed", code=None, reply="lost")
    assert not any("Accepted" in title for title in told(letter))
