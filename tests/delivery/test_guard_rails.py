"""Guard rails: a campaign whose letters fail alike stops, and nobody is suppressed by it."""

import asyncio

import pytest

from campaigns.models import Campaign, CampaignEvent, CampaignTotals, Suppression
from delivery import filling, guard_rails
from delivery.conf import GuardRails
from delivery.guard_rails import Burst, find_burst, rates_of
from delivery.models import Alert, Attempt, Delivery
from delivery.outcomes import Accepted, Phase, Rejected, Reply
from delivery.providers.memory import MemoryProvider
from tests.delivery.conftest import (
    coordinate,
    make_campaign,
    make_readers,
    make_worker,
    run_slice,
    statuses,
)

RAILS = GuardRails()
GONE = Rejected(Reply(Phase.RCPT, 550, "5.1.1 User unknown"), address_is_bad=True, rule="unknown")
POLICY = Rejected(Reply(Phase.FINAL_DOT, 554, "5.7.1 Spam"), rule="spam")
TAKEN = Accepted(Reply(Phase.LOCAL, 250, "kept"))
in_a_database = pytest.mark.django_db(transaction=True)


def refusals(places, likeness="unknown"):
    return [(place, likeness) for place in places]


# ---------------------------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("found", "burst"),
    [
        ([], None),
        (refusals(range(9)), None),
        (refusals(range(10)), Burst("unknown", 10, 10)),
        (refusals(range(500, 510)), Burst("unknown", 10, 10)),
        # One letter was accepted in the middle.
        (refusals([*range(5), *range(6, 11)]), None),
        # Ten in a row, of two kinds.
        (refusals(range(5)) + refusals(range(5, 10), "spam"), None),
        # One in twenty, ten of two hundred: just five per cent.
        (refusals(range(0, 200, 20)), None),
        (refusals([*range(0, 200, 20), 195]), Burst("unknown", 11, 200)),
        # Eleven, but over six hundred letters.
        (refusals(range(0, 660, 60)), None),
        # Of each kind too few.
        (refusals(range(0, 200, 25)) + refusals(range(1, 200, 25), "spam"), None),
    ],
)
def test_ten_in_a_row_or_more_than_a_share_of_the_last_letters_is_a_burst(found, burst):
    assert find_burst(found, RAILS) == burst
    assert find_burst(found[::-1], RAILS) == burst


def test_a_breaker_that_is_switched_off_finds_no_burst():
    assert find_burst(refusals(range(100)), GuardRails(alike=None, in_a_row=None)) is None
    assert find_burst(refusals(range(10)), GuardRails(in_a_row=None)) is None
    assert find_burst(refusals(range(11)), GuardRails(in_a_row=None)) == Burst("unknown", 11, 200)


def totals(**counts):
    return dict.fromkeys(CampaignTotals.COUNTS, 0) | counts


def test_no_rate_is_judged_on_few_answers():
    assert rates_of(totals(sent=50, bounced=49), 0, at_least=100) == {}
    assert rates_of(totals(sent=50, bounced=50), 0, at_least=100)["bounced"] == (0.5, 50, 100)


def test_each_rate_has_its_own_whole():
    rates = rates_of(totals(sent=180, bounced=10, rejected=6, unconfirmed=4, deferred=50), 3, 100)
    assert rates["bounced"] == (16 / 200, 16, 200)
    assert rates["complained"] == (3 / 190, 3, 190)
    assert rates["deferred"] == (50 / 250, 50, 250)
    assert rates["unconfirmed"] == (4 / 200, 4, 200)


# ------------------------------------------------------------------------ the circuit breaker


def stopped_by_a_burst(mailing_list, clock):
    """A campaign to sixty readers whose first letters were all refused as to unknown readers."""
    make_readers(mailing_list, 60)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    MemoryProvider.answer = lambda message: GONE
    run_slice(clock)
    campaign.refresh_from_db()
    return campaign


def resumed_after_a_burst(mailing_list, clock):
    """The same, a minute after a person has resumed it; the relay still refuses."""
    campaign = stopped_by_a_burst(mailing_list, clock)
    campaign.resume()
    CampaignEvent.objects.filter(action="resumed").update(at=clock.advance(minutes=5))
    clock.advance(minutes=1)
    coordinate(clock)
    return campaign


@in_a_database
def test_a_relay_that_refuses_everybody_stops_the_campaign_and_suppresses_nobody(
    mailing_list, clock
):
    campaign = stopped_by_a_burst(mailing_list, clock)
    assert campaign.status == "paused"
    assert statuses(campaign) == {"rejected": 10, "queued": 50}
    event = CampaignEvent.objects.get(action="paused")
    assert "circuit breaker" in event.note and "unknown" in event.note
    assert event.by is None
    for _minute in range(5):
        clock.advance(minutes=1)
        coordinate(clock)
    assert not Suppression.objects.exists()
    assert guard_rails.held_back(campaign.pk).count() == 10
    alert = Alert.objects.get()
    assert (alert.kind, alert.campaign, alert.resolved_at) == ("breaker", campaign, None)
    assert "@" not in alert.title + alert.text, "no alert names a reader"


@in_a_database
def test_scattered_refusals_stop_nothing_and_suppress_once_they_are_no_burst(mailing_list, clock):
    make_readers(mailing_list, 300)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    in_order = Delivery.objects.order_by("id").values_list("rcpt_to", flat=True)
    first, second = in_order[7], in_order[90]
    bad = {first, second}
    MemoryProvider.answer = lambda message: GONE if message.envelope.rcpt_to in bad else TAKEN

    def send_until(answered):
        while sum(statuses(campaign).get(state, 0) for state in ("sent", "rejected")) < answered:
            campaign.pause()
            campaign.resume()
            take_one_batch(clock)

    send_until(100)
    coordinate(clock)
    assert not Suppression.objects.exists(), "it may still be the beginning of a burst"
    send_until(220)
    coordinate(clock)
    assert [s.address_key for s in Suppression.in_force()] == [first]
    run_slice(clock)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert {s.address_key for s in Suppression.in_force()} == bad
    assert set(Attempt.objects.values_list("suppression", flat=True)) == {"done"}
    assert not Alert.objects.exists()


def take_one_batch(clock):
    """A worker that is told to stop while its first letters are on their way."""
    worker = make_worker(clock)
    send = worker.provider.send

    async def send_and_stop(message):
        worker.stopping.set()
        return await send(message)

    worker.provider.send = send_and_stop
    asyncio.run(worker.run_slice())


@in_a_database
def test_more_than_five_per_cent_alike_stop_the_campaign_though_others_lie_between(
    mailing_list, clock
):
    make_readers(mailing_list, 400)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    number = iter(range(400))
    MemoryProvider.answer = lambda message: POLICY if next(number) % 12 == 0 else TAKEN
    run_slice(clock)
    campaign.refresh_from_db()
    assert campaign.status == "paused"
    counts = statuses(campaign)
    assert counts["rejected"] == 11
    assert 121 <= counts["sent"] + counts["rejected"] <= 130, "within one wave of the eleventh"
    assert not Suppression.objects.exists()
    assert not guard_rails.held_back(campaign.pk).exists(), "spam condemns no address"


@in_a_database
def test_after_a_person_resumed_only_what_comes_then_counts(mailing_list, clock):
    campaign = resumed_after_a_burst(mailing_list, clock)
    assert Alert.objects.get().resolved_at is not None, "it is over when somebody resumes"
    answers = iter([GONE] * 9 + [TAKEN] * 100)
    MemoryProvider.answer = lambda message: next(answers)
    run_slice(clock)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert statuses(campaign) == {"rejected": 19, "sent": 41}
    # The nine were no burst; the ten before them still wait for a decision.
    assert Suppression.in_force().count() == 9
    assert guard_rails.held_back(campaign.pk).count() == 10


@in_a_database
def test_the_breaker_trips_again_when_the_trouble_goes_on(mailing_list, clock):
    campaign = resumed_after_a_burst(mailing_list, clock)
    run_slice(clock)
    campaign.refresh_from_db()
    assert campaign.status == "paused"
    assert 20 <= statuses(campaign)["rejected"] < 25, "within one wave of the twentieth"
    assert [alert.resolved_at is None for alert in Alert.objects.all()] == [True, False]
    assert not Suppression.objects.exists()


@in_a_database
def test_a_person_decides_about_what_was_held_back(mailing_list, clock):
    make_readers(mailing_list, 60)
    campaigns = [make_campaign(mailing_list, clock(), name=name) for name in ("May", "June")]
    for _campaign in campaigns:
        coordinate(clock)
        MemoryProvider.answer = lambda message: GONE
        run_slice(clock)
    may, june = campaigns
    assert guard_rails.drop_held(may.pk) == 10
    assert not Suppression.objects.exists()
    assert guard_rails.drop_held(may.pk) == 0
    held = guard_rails.held_back(june.pk).count()
    assert guard_rails.suppress_held(june.pk) == held == 10
    assert Suppression.in_force().count() == 10
    assert not guard_rails.held_back(june.pk).exists()


@in_a_database
def test_one_campaigns_burst_stops_no_other(mailing_list, clock):
    make_readers(mailing_list, 20)
    bad = make_campaign(mailing_list, clock(), name="Bad")
    good = make_campaign(mailing_list, clock(), name="Good")
    coordinate(clock)
    of_bad = set(Delivery.objects.filter(campaign=bad).values_list("pk", flat=True))
    MemoryProvider.answer = lambda message: GONE if message.reference in of_bad else TAKEN
    run_slice(clock)
    bad.refresh_from_db()
    good.refresh_from_db()
    assert bad.status == "paused"
    assert statuses(good) == {"sent": 20}


@in_a_database
def test_refused_test_letters_trip_nothing(mailing_list, campaign, clock):
    addresses = [(f"t{n}@example.org", f"t{n}@example.org") for n in range(15)]
    campaign.pause()
    filling.queue_tests(campaign, campaign.edition_id, addresses, None, clock())
    MemoryProvider.answer = lambda message: GONE
    run_slice(clock)
    assert Delivery.objects.filter(is_test=True, status="rejected").count() == 15
    assert not Alert.objects.exists()
    assert not Attempt.objects.exclude(suppression="").exists()


# ---------------------------------------------------------------------------------- the rates


def with_totals(campaign, **counts):
    CampaignTotals.objects.filter(campaign=campaign).delete()
    CampaignTotals.objects.create(campaign=campaign, eligible=sum(counts.values()), **counts)


@in_a_database
@pytest.mark.parametrize(
    ("counts", "complaints", "rail"),
    [
        ({"sent": 94, "bounced": 3, "rejected": 3, "queued": 5}, 0, "bounced"),
        ({"sent": 400, "queued": 5}, 2, "complained"),
        ({"sent": 100, "deferred": 101}, 0, "deferred"),
        ({"sent": 195, "unconfirmed": 2, "queued": 5}, 0, "unconfirmed"),
    ],
)
def test_a_rate_that_was_passed_pauses_the_campaign_and_tells(
    campaign, clock, counts, complaints, rail, monkeypatch
):
    monkeypatch.setattr(guard_rails, "complaints_of", lambda campaign_id: complaints)
    with_totals(campaign, **counts)
    assert guard_rails.check_rates(RAILS, clock()) == [campaign.pk]
    campaign.refresh_from_db()
    assert campaign.status == "paused"
    alert = Alert.objects.get()
    assert (alert.kind, alert.campaign) == ("rail", campaign)
    assert rail in alert.cause
    assert "guard rail" in CampaignEvent.objects.get(action="paused").note


@in_a_database
@pytest.mark.parametrize(
    ("counts", "complaints"),
    [
        ({"sent": 95, "bounced": 5, "queued": 5}, 0),
        ({"sent": 1000, "queued": 5}, 3),
        ({"sent": 100, "deferred": 100}, 0),
        ({"sent": 198, "unconfirmed": 2, "queued": 5}, 0),
        ({"sent": 10, "bounced": 10, "queued": 5}, 0),
    ],
)
def test_a_rate_that_is_just_kept_pauses_nothing(campaign, clock, counts, complaints, monkeypatch):
    monkeypatch.setattr(guard_rails, "complaints_of", lambda campaign_id: complaints)
    with_totals(campaign, **counts)
    assert guard_rails.check_rates(RAILS, clock()) == []
    assert not Alert.objects.exists()


@in_a_database
def test_a_person_who_resumes_is_not_overruled_by_the_same_rail(campaign, clock):
    with_totals(campaign, sent=100, bounced=20, queued=5)
    assert guard_rails.check_rates(RAILS, clock()) == [campaign.pk]
    campaign.refresh_from_db()
    campaign.resume()
    assert guard_rails.check_rates(RAILS, clock()) == []
    with_totals(campaign, sent=100, bounced=20, unconfirmed=20, queued=5)
    assert guard_rails.check_rates(RAILS, clock()) == [campaign.pk], "another rail is another cause"


@in_a_database
def test_a_rail_that_is_switched_off_pauses_nothing(campaign, clock):
    with_totals(campaign, sent=100, bounced=90, queued=5)
    assert guard_rails.check_rates(GuardRails(bounced=None), clock()) == []


@in_a_database
def test_bounces_after_the_last_letter_are_told_though_nothing_can_be_paused(campaign, clock):
    with_totals(campaign, sent=100, bounced=20)
    Campaign.objects.filter(pk=campaign.pk).update(status="finished", finished_at=clock())
    clock.advance(days=1)
    assert guard_rails.check_rates(RAILS, clock()) == [campaign.pk]
    assert "passed a limit" in Alert.objects.get().title
    assert guard_rails.check_rates(RAILS, clock()) == [], "told once"


@in_a_database
def test_the_coordinator_looks_at_the_rates_in_each_round(campaign, clock):
    with_totals(campaign, sent=100, bounced=20, queued=5)
    assert coordinate(clock) == {}, "no worker is started for a campaign that was just stopped"
    campaign.refresh_from_db()
    assert campaign.status == "paused"
