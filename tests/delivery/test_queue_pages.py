"""Pages of the queue: whatever waits is found by a claim, alone or in a page, and once."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from random import Random

import pytest
from django.db import transaction

from campaigns.models import Campaign
from delivery import claiming, filling, queue, queue_pages
from delivery.audit import audit_campaign
from delivery.models import Delivery, QueuePage
from delivery.outcomes import Accepted, Deferred, Phase, Reply
from delivery.settlement import Settlement
from delivery.states import IN_HAND, DeliveryStatus
from tests.delivery.conftest import beside, hand_over, make_campaign, make_unfilled, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("either_way")]

S = DeliveryStatus
OK = Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok")
GREY = Reply(Phase.RCPT, 450, "4.2.0 Greylisted")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch) -> None:
    monkeypatch.setattr(queue_pages, "SIZE", 4)


@pytest.fixture
def campaign(mailing_list, now) -> Campaign:
    """A campaign of ten letters: pages of four, four and two."""
    campaign = make_unfilled(mailing_list, now, 10)
    assert filling.fill_page(campaign, 100, now) == 10
    assert filling.fill_page(campaign, 100, now) is None
    return campaign


def ids() -> list[int]:
    return list(Delivery.objects.order_by("pk").values_list("pk", flat=True))


def pages() -> list[tuple[int, int]]:
    return list(QueuePage.objects.order_by("pk").values_list("next_id", "last_id"))


def claimed(lease, campaign, wanted, now) -> list[int]:
    return [claim.id for claim in claiming.claim(lease, [campaign.pk], wanted, now)]


def is_sound(campaign: Campaign) -> bool:
    """Whether each waiting letter is where claims look, and nothing else is. Leases apart."""
    imbalances = [imbalance.what for imbalance in audit_campaign(campaign.pk).imbalances]
    return not [what for what in imbalances if "lease" not in what]


def test_what_is_filled_stands_in_pages_and_needs_no_index(campaign):
    letters = ids()
    assert pages() == [
        (letters[0], letters[3]),
        (letters[4], letters[7]),
        (letters[8], letters[9]),
    ]
    assert not Delivery.objects.filter(waits_alone=True).exists()


def test_a_claim_moves_the_mark_and_forgets_a_page_that_was_read(campaign, lease, now):
    letters = ids()
    assert claimed(lease, campaign, 3, now) == letters[:3]
    assert pages()[0] == (letters[3], letters[3])
    # Over the ends of two pages.
    assert claimed(lease, campaign, 6, now) == letters[3:9]
    assert pages() == [(letters[9], letters[9])]
    assert claimed(lease, campaign, 6, now) == letters[9:]
    assert pages() == []
    assert claimed(lease, campaign, 6, now) == []
    assert statuses(campaign) == {"claimed": 10}


def test_a_page_without_any_letter_is_no_end(campaign, lease, now):
    """As where another campaign was filled at the same time, and where readers were deleted."""
    letters = ids()
    Delivery.objects.filter(pk__in=letters[:8]).delete()
    assert claimed(lease, campaign, 5, now) == letters[8:]
    assert pages() == []


def test_what_is_given_back_waits_alone_and_goes_before_pages_that_came_later(campaign, lease, now):
    letters = ids()
    assert claimed(lease, campaign, 2, now) == letters[:2]
    assert queue.release(lease) == 2
    assert set(Delivery.objects.filter(waits_alone=True).values_list("pk", flat=True)) == {
        *letters[:2]
    }
    assert claimed(lease, campaign, 3, now) == letters[:3]
    assert not Delivery.objects.filter(waits_alone=True).exists()


def test_what_is_due_later_waits_behind_the_pages(campaign, lease, now):
    """A group that was paused, or a server that greylists, is not caught up with at once."""
    letters = ids()
    (first,) = claiming.claim(lease, [campaign.pk], 1, now)
    hand_over(lease, [first.id], now)
    deferral = Settlement(S.DEFERRED, GREY, now + timedelta(minutes=1), used_an_attempt=True)
    queue.settle(lease, [(first, Deferred(GREY), deferral)], now)
    later = now + timedelta(minutes=2)
    assert claimed(lease, campaign, 5, later) == letters[1:6]
    assert claimed(lease, campaign, 9, later) == [*letters[6:], letters[0]]


def test_a_page_that_a_faster_clock_wrote_is_not_read_too_soon(campaign, lease, now):
    before = now - timedelta(seconds=2)
    assert claimed(lease, campaign, 5, before) == []
    assert claiming.next_due([campaign.pk], ["default"]) == now
    assert len(claimed(lease, campaign, 5, now)) == 5


def test_campaigns_whose_letters_are_mixed_are_claimed_apart(mailing_list, campaign, lease, now):
    other = make_campaign(mailing_list, now, name="Other")
    letters = ids()
    Delivery.objects.filter(pk__in=letters[::2]).update(campaign=other)
    assert claimed(lease, campaign, 10, now) == letters[1::2]
    assert set(Delivery.objects.filter(campaign=other).values_list("status", flat=True)) == {
        S.QUEUED
    }


def test_a_cancelled_campaign_leaves_no_page(campaign, now):
    campaign.cancel(now)
    assert queue.cancel_waiting(campaign.pk, 7, now) == 7
    assert queue.cancel_waiting(campaign.pk, 7, now) == 3
    assert queue.cancel_waiting(campaign.pk, 7, now) == 0
    assert pages() == []
    assert statuses(campaign) == {"cancelled": 10}


def test_letters_that_are_spread_wait_alone(campaign, lease, now):
    letters = ids()
    with transaction.atomic():
        assert queue_pages.spread(campaign.pk, 6) == 6
    assert pages() == [(letters[6], letters[7]), (letters[8], letters[9])]
    assert claimed(lease, campaign, 8, now) == letters[:8]
    assert is_sound(campaign)


def test_the_span_of_what_waits(campaign, lease, now):
    letters = ids()
    claimed(lease, campaign, 5, now)
    assert queue_pages.spans([campaign.pk, 0]) == {campaign.pk: (letters[5], letters[9])}
    queue.release(lease)
    assert queue_pages.spans([campaign.pk]) == {campaign.pk: (letters[0], letters[9])}
    claimed(lease, campaign, 10, now)
    assert queue_pages.spans([campaign.pk]) == {}


def test_neighbouring_pages_are_one_stretch(campaign):
    letters = ids()
    assert queue_pages.stretches(campaign.pk) == [(letters[0], letters[9])]
    QueuePage.objects.filter(last_id=letters[7]).update(next_id=letters[6])
    assert queue_pages.stretches(campaign.pk) == [
        (letters[0], letters[3]),
        (letters[6], letters[9]),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_waiting_letter_is_found_once(mailing_list, lease, now, clock, seed):
    """Claims, answers of all kinds, releases and fills in any order: the audit holds after each,
    and in the end every letter was sent once."""
    dice = Random(seed)
    campaign = make_unfilled(mailing_list, now, 40)
    in_hand: dict[int, claiming.Claimed] = {}
    sent: Counter[int] = Counter()

    def fill() -> None:
        filling.fill_page(campaign, dice.randint(1, 12), clock())

    def claim() -> None:
        taken = claiming.claim(lease, [campaign.pk], dice.randint(1, 11), clock())
        assert not in_hand.keys() & {one.id for one in taken}
        in_hand.update((one.id, one) for one in taken)

    def answer() -> None:
        some = list(in_hand.values())[: dice.randint(0, 6)]
        assert len(hand_over(lease, [one.id for one in some], clock())) == len(some)
        for one in some:
            del in_hand[one.id]
            if dice.random() < 0.3:
                settlement = Settlement(S.DEFERRED, GREY, clock() + timedelta(minutes=1))
                queue.settle(lease, [(one, Deferred(GREY), settlement)], clock())
            else:
                queue.settle(lease, [(one, Accepted(OK), Settlement(S.SENT, OK))], clock())
                sent[one.id] += 1

    def release() -> None:
        assert queue.release(lease) == len(in_hand)
        in_hand.clear()

    def spread() -> None:
        with transaction.atomic():
            queue_pages.spread(campaign.pk, dice.randint(1, 5))

    moves = [fill, claim, claim, answer, answer, release, spread]
    for _step in range(60):
        dice.choice(moves)()
        clock.advance(seconds=dice.randint(0, 20))
        assert is_sound(campaign)
    while filling.fill_page(campaign, 100, clock()) is not None:
        pass
    release()
    while any(statuses(campaign).get(state, 0) for state in (S.QUEUED, S.DEFERRED, *IN_HAND)):
        clock.advance(minutes=1)
        claim()
        answer()
    assert len(sent) == 40
    assert set(sent.values()) == {1}
    assert pages() == []


# ------------------------------------------------------------------------------------- at once


@pytest.mark.postgresql
def test_claims_at_once_read_different_pages(campaign, lease, now):
    letters = ids()
    with transaction.atomic():
        queue_pages.first(campaign.pk)
        assert beside("2s", lambda: claimed(lease, campaign, 3, now)) == letters[4:7]


@pytest.mark.postgresql
def test_letters_that_somebody_else_holds_get_a_page_of_their_own(campaign, lease, now):
    """As when their readers are being deleted. Nobody waits, and nothing is lost."""
    letters = ids()
    with transaction.atomic():
        list(Delivery.objects.select_for_update().filter(pk__in=[letters[1], letters[3]]))
        assert beside("2s", lambda: claimed(lease, campaign, 2, now)) == [letters[0], letters[2]]
        assert pages()[-1] == (letters[0], letters[2])
        taken = beside("2s", lambda: claimed(lease, campaign, 9, now))
        taken += beside("2s", lambda: claimed(lease, campaign, 9, now))
        assert sorted(taken) == letters[4:]
        assert is_sound(campaign)
        # Nothing else is left.
        assert beside("2s", lambda: claimed(lease, campaign, 9, now)) == []
    assert sorted(claimed(lease, campaign, 9, now) + claimed(lease, campaign, 9, now)) == [
        letters[1],
        letters[3],
    ]
    assert pages() == []
    assert statuses(campaign) == {"claimed": 10}
