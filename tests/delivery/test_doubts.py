"""Letters in doubt: by evidence, by a person, by the campaign's policy; each once and on record."""

import threading
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Q

from campaigns.models import Campaign, CampaignEvent, Subscription, Suppression
from campaigns.signals import unsubscribed
from delivery import doubts, queue
from delivery.models import Delivery, Resolution
from delivery.outcomes import Accepted, Deferred, Phase, Reply, Unconfirmed
from delivery.providers.memory import MemoryProvider
from delivery.story import story_of
from tests.delivery.conftest import (
    coordinate,
    delivery_to,
    letters_to,
    run_slice,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

LOST = Unconfirmed(Reply(Phase.FINAL_DOT, None, "Connection lost"), rule="connection lost")
TAKEN = Accepted(Reply(Phase.LOCAL, 250, "kept"))
READER = "reader4@example.org"


@pytest.fixture
def ada(db) -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def doubtful(campaign, clock):
    """A campaign that was sent, and of whose letters one is in doubt; the letters that left."""
    left = []

    def answer(message):
        left.append(message)
        return LOST if message.envelope.rcpt_to == READER and len(left) <= 12 else TAKEN

    MemoryProvider.answer = answer
    run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
    return left


@pytest.fixture
def finished(doubtful, campaign, clock) -> Delivery:
    """The letter in doubt of a campaign that has finished."""
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    return delivery_to(READER)


def with_policy(campaign, policy="resend"):
    Campaign.objects.filter(pk=campaign.pk).update(on_doubt=policy)
    campaign.refresh_from_db()


def test_a_doubt_is_held_by_default(doubtful, campaign, clock):
    coordinate(clock)
    clock.advance(days=3)
    assert coordinate(clock) == {}
    assert run_slice(clock).sent == 0
    assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
    assert not Resolution.objects.exists()


def test_the_policy_sends_a_doubt_again_once_after_ten_minutes_with_the_same_message_id(
    doubtful, campaign, clock
):
    with_policy(campaign)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "sending", "it does not finish before its doubts are sent again"
    clock.advance(minutes=9)
    coordinate(clock)
    assert delivery_to(READER).status == "unconfirmed"
    clock.advance(minutes=2)
    assert coordinate(clock) == {"default": 3}
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    first, second = [message for message in doubtful if message.envelope.rcpt_to == READER]
    assert first.message_id == second.message_id
    assert first.envelope == second.envelope
    resolution = Resolution.objects.get()
    assert (resolution.means, resolution.status, resolution.by) == ("policy", "queued", None)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"


def test_a_letter_that_is_lost_twice_is_not_sent_a_third_time(doubtful, campaign, clock):
    with_policy(campaign)
    MemoryProvider.answer = lambda message: LOST
    for _round in range(4):
        clock.advance(minutes=11)
        coordinate(clock)
        run_slice(clock)
    assert delivery_to(READER).status == "unconfirmed"
    assert Resolution.objects.count() == 1
    assert delivery_to(READER).attempt_log.count() == 2
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished", "what is held keeps no campaign open"


def test_what_a_person_sent_again_the_policy_does_not_send_a_third_time(
    doubtful, campaign, clock, ada
):
    with_policy(campaign)
    doubts.send_again([delivery_to(READER).pk], clock(), by=ada)
    MemoryProvider.answer = lambda message: LOST
    run_slice(clock)
    clock.advance(hours=1)
    assert doubts.resend_due(clock(), timedelta(minutes=10), Q()) == 0


def test_the_policy_waits_while_evidence_is_still_looked_for(doubtful, campaign, clock):
    with_policy(campaign)
    clock.advance(hours=1)
    assert doubts.resend_due(clock(), timedelta(minutes=10), Q(pk=0)) == 0
    assert doubts.resend_due(clock(), timedelta(minutes=10), Q()) == 1


def test_a_paused_campaigns_doubts_wait_with_it(doubtful, campaign, clock):
    with_policy(campaign)
    campaign.pause()
    clock.advance(hours=1)
    coordinate(clock)
    assert delivery_to(READER).status == "unconfirmed"


def test_an_unsubscription_through_the_letter_is_evidence_that_it_arrived(
    finished, campaign, clock
):
    unsubscribed.send(Subscription, campaign_id=campaign.pk, subscriber_id=finished.subscriber_id)
    finished.refresh_from_db()
    assert finished.status == "sent"
    assert statuses(campaign) == {"sent": 12}
    resolution = Resolution.objects.get()
    assert (resolution.means, resolution.status) == ("evidence", "sent")
    assert "unsubscribe link" in resolution.because
    campaign.refresh_from_db()
    assert campaign.status == "finished"


def test_an_unsubscription_changes_no_letter_that_is_not_in_doubt(campaign, readers, clock):
    unsubscribed.send(Subscription, campaign_id=campaign.pk, subscriber_id=readers[0].pk)
    assert statuses(campaign) == {"queued": 12}
    assert not Resolution.objects.exists()


def test_a_report_that_comes_back_ends_the_doubt(finished, campaign):
    with transaction.atomic():
        assert queue.mark_all_bounced([finished.pk])
    assert statuses(campaign) == {"sent": 11, "bounced": 1}


def test_a_person_treats_a_doubt_as_sent_and_it_is_on_record(finished, campaign, clock, ada):
    assert doubts.treat_as_sent([finished.pk], clock(), by=ada) == 1
    assert statuses(campaign) == {"sent": 12}
    resolution = Resolution.objects.get()
    assert (resolution.means, resolution.by, resolution.at) == ("person", ada, clock())
    finished.refresh_from_db()
    titles = [line.title for line in story_of(finished)]
    assert "Treated as sent by ada" in titles
    assert not any("Accepted by" in title for title in titles), "nobody read an answer"


def test_a_person_sends_a_doubt_of_a_finished_campaign_again_and_it_finishes_anew(
    finished, campaign, clock, ada
):
    clock.advance(days=2)
    assert doubts.send_again([finished.pk], clock(), by=ada) == doubts.SentAgain(queued=1)
    campaign.refresh_from_db()
    assert (campaign.status, campaign.finished_at) == ("sending", None)
    assert statuses(campaign) == {"sent": 11, "queued": 1}
    assert CampaignEvent.objects.get(action="reopened").by == ada
    assert coordinate(clock) == {"default": 3}
    run_slice(clock)
    coordinate(clock)
    campaign.refresh_from_db()
    assert (campaign.status, campaign.finished_at) == ("finished", clock())
    finished.refresh_from_db()
    assert [line.title for line in story_of(finished)][-1].startswith("Accepted by")


def test_a_letter_sent_again_after_days_may_be_deferred_like_any_other(finished, clock, ada):
    clock.advance(days=2)
    doubts.send_again([finished.pk], clock(), by=ada)
    MemoryProvider.answer = lambda message: Deferred(Reply(Phase.RCPT, 450, "4.2.0 Greylisted"))
    run_slice(clock)
    finished.refresh_from_db()
    assert finished.status == "deferred"


def test_sending_again_looks_anew_whether_the_reader_may_get_it(finished, campaign, clock, ada):
    Suppression.add(READER, "complaint", source="test")
    doubts.send_again([finished.pk], clock(), by=ada)
    before = len(letters_to(READER))
    run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "suppressed": 1}
    assert len(letters_to(READER)) == before


def test_a_cancelled_campaigns_doubts_are_not_sent_again(doubtful, campaign, clock, ada):
    campaign.cancel(clock())
    letter = delivery_to(READER)
    assert doubts.send_again([letter.pk], clock(), by=ada) == doubts.SentAgain(cancelled=1)
    assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
    assert doubts.treat_as_sent([letter.pk], clock(), by=ada) == 1


def test_only_doubts_are_resolved_and_only_once(finished, campaign, clock, ada):
    everything = list(Delivery.objects.values_list("pk", flat=True))
    assert doubts.treat_as_sent(everything, clock(), by=ada) == 1
    assert doubts.treat_as_sent(everything, clock(), by=ada) == 0
    assert doubts.send_again(everything, clock(), by=ada) == doubts.SentAgain()
    assert not doubts.confirm(finished.pk, "too late", clock())
    assert Resolution.objects.count() == 1
    assert statuses(campaign) == {"sent": 12}


def test_many_doubts_are_resolved_in_small_transactions(
    campaign, clock, ada, django_assert_max_num_queries, monkeypatch
):
    MemoryProvider.answer = lambda message: LOST
    run_slice(clock)
    monkeypatch.setattr(doubts, "AT_ONCE", 5)
    ids = list(Delivery.objects.values_list("pk", flat=True))
    with django_assert_max_num_queries(40):
        assert doubts.send_again(ids, clock(), by=ada).queued == 12
    assert statuses(campaign) == {"queued": 12}
    assert Resolution.objects.count() == 12


def test_a_doubt_that_is_sent_again_while_the_campaign_finishes_is_not_left_behind(
    doubtful, campaign, clock, ada, monkeypatch
):
    letter = delivery_to(READER)
    count = queue.counted

    def decide():
        doubts.send_again([letter.pk], clock(), by=ada)
        connection.close()

    person = threading.Thread(target=decide)

    def count_while_a_person_decides(campaign_id):
        counted = count(campaign_id)
        person.start()
        # She has to wait for the lock; without one she would be done by now.
        person.join(0.5)
        return counted

    monkeypatch.setattr(queue, "counted", count_while_a_person_decides)
    coordinate(clock)
    person.join(60)
    monkeypatch.undo()
    campaign.refresh_from_db()
    assert campaign.status == "sending"
    assert statuses(campaign) == {"sent": 11, "queued": 1}
