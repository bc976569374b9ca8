"""A worker's slice: what is written before, on and after the wire."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest
from django.db import connection, transaction

from campaigns.models import CampaignTotals, Subscriber, Subscription, Suppression
from delivery import claiming, coordinator, filling, leases, limits, queue
from delivery.clocks import Timer
from delivery.conf import delivery_settings
from delivery.models import Attempt, Delivery, WorkerLease
from delivery.outcomes import (
    Accepted,
    Deferred,
    Phase,
    Rejected,
    Reply,
    Unavailable,
)
from delivery.providers.memory import MemoryProvider
from delivery.tally import SHARDS_OF_CLAIMS
from tests.delivery.conftest import (
    coordinate,
    delivery_to,
    hand_over,
    letters_to,
    make_campaign,
    make_readers,
    make_unfilled,
    make_worker,
    run_slice,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

BUSY = Reply(Phase.MAIL, 451, "4.7.500 Server busy")


def test_a_campaign_is_sent_and_finished(campaign, readers, clock):
    done = run_slice(clock)
    assert done.sent == 12
    assert done.wait_until is None
    assert sorted(m.envelope.rcpt_to for m in MemoryProvider.outbox) == sorted(
        r.email for r in readers
    )
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert statuses(campaign) == {"sent": 12}
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def test_each_letter_has_its_own_return_path_and_message_id(campaign, clock):
    run_slice(clock)
    assert len({m.envelope.mail_from for m in MemoryProvider.outbox}) == 12
    assert len({m.message_id for m in MemoryProvider.outbox}) == 12
    for message in MemoryProvider.outbox:
        assert message.envelope.mail_from.startswith("bounce+")
        assert f"Message-ID: {message.message_id}\r\n".encode() in message.content
        assert b"https://news.example.org/u/" in message.content


def test_every_letter_is_sending_in_the_database_before_it_leaves(campaign, clock):
    seen = []

    def look(message):
        # In a thread of its own: the event loop may not touch the ORM.
        def read():
            seen.append(Delivery.objects.get(pk=message.reference).status)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = look
    run_slice(clock)
    assert seen == ["sending"] * 12


def test_a_deferred_letter_is_tried_again_when_it_is_due_with_the_same_message_id(campaign, clock):
    grey = Reply(Phase.RCPT, 450, "4.2.0 Greylisted")
    first_tries = []

    def greylist(message):
        if message.envelope.rcpt_to == "reader3@example.org" and not first_tries:
            first_tries.append(message)
            return Deferred(grey)
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = greylist
    done = run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "deferred": 1}
    assert timedelta(minutes=5) <= done.wait_until - clock() <= timedelta(minutes=6)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "sending"

    clock.advance(minutes=6)
    assert coordinate(clock) == {"default": 3}
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    (second,) = letters_to("reader3@example.org")
    assert second.message_id == first_tries[0].message_id
    assert second.envelope == first_tries[0].envelope
    assert delivery_to("reader3@example.org").attempts == 2


def test_the_providers_trouble_pauses_it_and_uses_no_attempt(campaign, clock):
    MemoryProvider.answer = lambda message: Unavailable(BUSY, rule="server too busy")
    done = run_slice(clock)
    assert statuses(campaign) == {"queued": 12}
    assert set(Delivery.objects.values_list("attempts", flat=True)) == {0}
    assert done.wait_until == clock() + timedelta(seconds=30)
    # One letter met the trouble. Those noted with it did not leave any more.
    assert Attempt.objects.count() == 1
    assert coordinate(clock) == {}
    clock.advance(seconds=31)
    MemoryProvider.answer = None
    assert coordinate(clock) == {"default": 3}
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}


def test_a_refused_login_stops_the_provider_until_a_person_opens_it(campaign, clock):
    reply = Reply(Phase.AUTH, 535, "5.7.8 Credentials invalid")
    MemoryProvider.answer = lambda message: Unavailable(reply, needs_a_person=True)
    run_slice(clock)
    MemoryProvider.answer = None
    clock.advance(days=10)
    assert coordinate(clock) == {}
    assert run_slice(clock).sent == 0
    limits.resume("default", clock())
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}


def test_a_pause_of_one_provider_delays_no_other(campaign, mailing_list, clock):
    other = make_campaign(mailing_list, clock(), name="June", provider="other")
    limits.pause("default", Unavailable(BUSY), clock())
    assert coordinate(clock) == {"other": 3}
    run_slice(clock, alias="other")
    assert statuses(other) == {"sent": 12}
    assert statuses(campaign) == {"queued": 12}


def test_a_refused_reader_is_rejected_and_the_others_get_their_letters(campaign, clock):
    gone = Reply(Phase.RCPT, 550, "5.1.1 User unknown")
    MemoryProvider.answer = lambda message: (
        Rejected(gone, address_is_bad=True)
        if message.envelope.rcpt_to == "reader5@example.org"
        else Accepted(Reply(Phase.LOCAL, 250, "kept"))
    )
    run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "rejected": 1}
    coordinate(clock)
    (suppression,) = Suppression.in_force()
    assert suppression.address_key == "reader5@example.org"
    assert suppression.evidence == "550 5.1.1 User unknown"


def test_a_provider_that_raises_leaves_its_letter_unconfirmed_and_the_rest_goes_on(campaign, clock):
    def raise_for_one(message):
        if message.envelope.rcpt_to == "reader7@example.org":
            raise RuntimeError("a bug in a provider")
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = raise_for_one
    run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
    assert "a bug in a provider" in delivery_to("reader7@example.org").reply


def test_pausing_stops_within_one_wave_and_resuming_sends_the_rest(campaign, clock):
    def pause_at_the_third(message):
        if len(MemoryProvider.outbox) == 2:
            thread = threading.Thread(target=campaign.pause)
            thread.start()
            thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = pause_at_the_third
    run_slice(clock)
    assert statuses(campaign) == {"sent": 5, "queued": 7}
    MemoryProvider.answer = None
    campaign.refresh_from_db()
    campaign.resume()
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}


def test_cancelling_while_it_runs_leaves_a_ledger_that_balances(campaign, clock):
    def cancel_at_the_third(message):
        if len(MemoryProvider.outbox) == 2:
            thread = threading.Thread(target=campaign.cancel, args=(clock(),))
            thread.start()
            thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = cancel_at_the_third
    run_slice(clock)
    coordinate(clock)
    assert statuses(campaign) == {"sent": 5, "cancelled": 7}


def test_a_reader_who_unsubscribes_while_the_campaign_runs_gets_nothing_more(mailing_list, clock):
    make_readers(mailing_list, 20)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    last = Delivery.objects.latest("id").rcpt_to

    def unsubscribe_the_last(message):
        if not MemoryProvider.outbox:

            def move():
                Subscription.objects.get(subscriber__email=last).move(
                    "unsubscribed", source="one-click"
                )

            thread = threading.Thread(target=move)
            thread.start()
            thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = unsubscribe_the_last
    run_slice(clock)
    assert letters_to(last) == []
    assert statuses(campaign) == {"sent": 19, "suppressed": 1}


def test_a_letter_that_cannot_be_written_for_one_reader_stops_nobody_else(campaign, clock):
    Subscriber.objects.filter(email="reader2@example.org").update(attributes={"first_name": "Zero"})
    run_slice(clock)
    assert statuses(campaign) == {"sent": 11, "rejected": 1}
    assert "could not be written" in delivery_to("reader2@example.org").reply
    assert not Suppression.objects.exists()


def test_an_unconfirmed_letter_is_not_sent_again_by_itself(campaign, clock):
    leases.make_places("default", 3)
    lease = leases.take("default", 3, "dead:1", clock(), timedelta(seconds=60))
    claims = claiming.claim(lease, [campaign.pk], 5, clock())
    hand_over(lease, [c.id for c in claims[:2]], clock())
    clock.advance(seconds=61)
    coordinate(clock)
    run_slice(clock)
    coordinate(clock)
    assert statuses(campaign) == {"sent": 10, "unconfirmed": 2}
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert len(MemoryProvider.outbox) == 10


def test_a_worker_that_lost_its_lease_sends_nothing_more(campaign, alone, clock):
    def lose_the_lease(message):
        if len(MemoryProvider.outbox) == 2:

            def reclaim():
                ((lease, _expires_at),) = leases.held()
                queue.release(lease)
                leases.give_back(lease)

            thread = threading.Thread(target=reclaim)
            thread.start()
            thread.join()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = lose_the_lease
    worker = make_worker(clock)
    asyncio.run(worker.run_slice())
    # The wave on the wire was finished and written; no other wave left.
    assert len(MemoryProvider.outbox) == 5
    assert statuses(campaign) == {"sent": 5, "queued": 7}


def test_a_rate_is_kept_by_claiming_no_more_than_it_grants(campaign, clock, settings):
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": {
            "default": {
                "BACKEND": "delivery.providers.memory.MemoryProvider",
                "LIMITS": [{"cap": "4/hour"}],
            }
        }
    }
    done = run_slice(clock)
    assert statuses(campaign) == {"sent": 4, "queued": 8}
    # The log of a cap has steps: 12.5 s of an hour.
    assert timedelta(hours=1) < done.wait_until - clock() < timedelta(hours=1, seconds=13)
    clock.advance(hours=1, seconds=13)
    run_slice(clock)
    assert statuses(campaign) == {"sent": 8, "queued": 4}


def test_nobody_goes_home_while_the_queue_is_being_filled(mailing_list, clock):
    """Four workers and one short first page: whoever got nothing of it waits for the next one."""
    campaign = make_unfilled(mailing_list, clock(), readers=12)
    worker = make_worker(clock)

    def fill() -> None:
        filling.fill_page(campaign, 5, clock())
        connection.close()

    class FillsMeanwhile(Timer):
        async def wait(self, event, seconds):
            assert 0 < seconds < 1
            await asyncio.to_thread(fill)
            clock.advance(seconds=seconds)

    worker.timer = FillsMeanwhile()
    done = asyncio.run(worker.run_slice())
    assert (done.sent, done.wait_until) == (12, None)
    assert statuses(campaign) == {"sent": 12}


def test_workers_are_called_before_the_first_page_is_written(mailing_list, clock):
    """They need as long to come as it takes."""
    make_unfilled(mailing_list, clock(), readers=12)
    calls: list[tuple[str, int, int]] = []
    coordinator.coordinate(
        delivery_settings(),
        clock,
        lambda alias, count: calls.append((alias, count, Delivery.objects.count())),
        timedelta(seconds=20),
        dice=Random(1),
        recorders=None,
    )
    assert calls == [("default", 3, 0), ("default", 3, 12)]


def test_a_surplus_worker_leaves_at_once(campaign, clock):
    leases.make_places("default", 3)
    for number in range(3):
        leases.take("default", 3, f"host:{number}", clock(), timedelta(seconds=60))
    done = run_slice(clock)
    assert not done.lease_was_free
    assert MemoryProvider.outbox == []


class HeldUpClaim(threading.Thread):
    """Has the next claim wait for its row until as many letters are sent as are waited for.

    ``seen``: how many these were; empty where they did not come in time.
    """

    def __init__(self, is_enough: Callable[[int], bool], seconds: float) -> None:
        super().__init__()
        self.is_enough = is_enough
        self.seconds = seconds
        self.is_held, self.is_over = threading.Event(), threading.Event()
        self.seen: list[int] = []

    def begin(self) -> None:
        """From when this returns the claim has to wait."""
        self.start()
        self.is_held.wait(30)

    def run(self) -> None:
        with transaction.atomic():
            list(CampaignTotals.objects.select_for_update().filter(shard=SHARDS_OF_CLAIMS))
            self.is_held.set()
            give_up = time.monotonic() + self.seconds
            while not self.seen and time.monotonic() < give_up:
                sent = Delivery.objects.filter(status="sent").count()
                if self.is_enough(sent):
                    self.seen.append(sent)
            self.is_over.set()
        connection.close()


@pytest.mark.postgresql
def test_outcomes_are_written_while_the_next_claim_waits(campaign, alone, clock):
    claim = HeldUpClaim(lambda sent: sent == 10, seconds=30)

    def answer(message):
        if not MemoryProvider.outbox:
            claim.begin()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = answer
    run_slice(clock)
    claim.join()
    assert claim.seen == [10]  # the first claim's, while the second waited for its row
    assert statuses(campaign) == {"sent": 12}


@pytest.mark.postgresql
@pytest.mark.parametrize(("at_once", "answered"), [(200, 50), (100, 25), (20, 10)])
def test_beside_a_claim_smaller_waves_are_exchanged(
    mailing_list, alone, clock, settings, monkeypatch, at_once, answered
):
    """A quarter of what may be SENDING, or 25 letters; and half of it where that is less."""
    settings.DELIVERY |= {"SEND_BATCH_SIZE": at_once, "CYCLE_BATCH_SIZE": at_once}
    monkeypatch.setattr("delivery.worker.LONGEST_UNWRITTEN", 60.0)
    make_readers(mailing_list, at_once + 20)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    claim = HeldUpClaim(lambda sent: sent > 0, seconds=10)

    class FallsSilent(MemoryProvider):
        async def send(self, message):
            if not self.outbox:
                claim.begin()
            if len(self.outbox) == answered:
                await asyncio.to_thread(claim.is_over.wait, 30)
            return await super().send(message)

    run_slice(clock, FallsSilent())
    claim.join()
    assert claim.seen == [answered]
    assert statuses(campaign) == {"sent": at_once + 20}


def test_a_stopping_worker_finishes_its_wave_and_releases_the_rest(campaign, clock):
    worker = make_worker(clock)

    def stop(message):
        worker.stopping.set()
        return Accepted(Reply(Phase.LOCAL, 250, "kept"))

    MemoryProvider.answer = stop
    asyncio.run(worker.run_slice())
    assert statuses(campaign) == {"sent": 5, "queued": 7}
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def test_answers_that_do_not_come_are_not_awaited_for_ever_after_sigterm(campaign, clock):
    class Silent(MemoryProvider):
        async def send(self, message):
            os.kill(os.getpid(), signal.SIGTERM)
            return await asyncio.Event().wait()

    class Hurried(Timer):
        """A minute goes by whenever somebody looks."""

        passed = 0.0

        def ticks(self):
            self.passed += 60
            return self.passed

    worker = make_worker(clock, Silent())
    worker.timer = Hurried()
    done = asyncio.run(worker.run_slice())
    assert done.sent == 0
    # What may have left is reclaim's: it stays noted, under a place that was not given back.
    assert statuses(campaign) == {"sending": 5, "queued": 7}
    assert WorkerLease.objects.filter(claim_key__isnull=False).count() == 1


def test_test_letters_are_sent_from_a_draft_and_counted_nowhere(mailing_list, readers, clock):
    draft = make_campaign(mailing_list, clock(), name="Draft")
    draft.unschedule()
    filling.queue_tests(
        draft, draft.editions.get().pk, [("me@example.org", "me@example.org")], None, clock()
    )
    run_slice(clock)
    (letter,) = letters_to("me@example.org")
    assert b"List-Unsubscribe:" in letter.content
    assert delivery_to("me@example.org").status == "sent"
    assert statuses(draft) == {}
