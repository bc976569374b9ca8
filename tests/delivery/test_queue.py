"""Every move of a delivery: guarded by the state it leaves and the claim it belongs to."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.db.models import Count

from campaigns.models import Campaign, CampaignTotals, Subscriber, Subscription, Suppression
from campaigns.states import CampaignStatus
from delivery import claiming, filling, leases, queue, queue_pages, statements
from delivery.models import Attempt, Claim, Delivery
from delivery.outcomes import Accepted, Deferred, Phase, Rejected, Reply
from delivery.settlement import Settlement
from delivery.sql import among
from delivery.states import DeliveryStatus
from tests.delivery.conftest import (
    coordinate,
    exchange,
    hand_over,
    make_campaign,
    make_readers,
    make_unfilled,
    statuses,
)

pytestmark = pytest.mark.django_db

OK = Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 1A2B")
S = DeliveryStatus


@pytest.fixture
def other_lease(now, lease):
    return leases.take("default", 3, "host:2", now, timedelta(seconds=60))


def claim(lease, campaign, wanted, now):
    return claiming.claim(lease, [campaign.pk], wanted, now)


# ---------------------------------------------------------------------------------- filling


def test_every_subscribed_reader_is_queued_once(campaign, readers):
    assert statuses(campaign) == {"queued": 12}
    assert set(Delivery.objects.values_list("rcpt_to", flat=True)) == {r.email for r in readers}


@pytest.mark.parametrize("is_refused", [False, True])
def test_who_joins_while_a_page_is_filled_pushes_nobody_out_of_it(mailing_list, now, is_refused):
    """A page that was refused as a whole ends where its last reader stood when it was looked at."""
    campaign = make_unfilled(mailing_list, now, 20)
    readers = list(Subscriber.objects.order_by("pk"))
    if is_refused:
        assert filling.fill_page(campaign, 1, now) == 1
        Campaign.objects.filter(pk=campaign.pk).update(filled_up_to=0)
    third = Subscription.objects.filter(subscriber=readers[2])
    third.update(status="unsubscribed")

    def join(execute, sql, parameters, many, context):
        is_it = sql.lstrip().startswith("INSERT INTO delivery_delivery")
        if is_it and is_refused == ("ON CONFLICT" in sql):
            third.update(status="subscribed")
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(join):
        assert filling.fill_page(campaign, 10, now) == 10
    assert filling.fill_page(campaign, 20, now) == (9 if is_refused else 10)
    assert set(Delivery.objects.values_list("subscriber_id", flat=True)) == {r.pk for r in readers}


def test_filling_goes_on_from_its_checkpoint(mailing_list, now):
    campaign = make_unfilled(mailing_list, now, 25)
    assert filling.fill_page(campaign, 10, now) == 10
    first = set(Delivery.objects.values_list("pk", flat=True))
    assert filling.fill_page(campaign, 10, now) == 10
    assert filling.fill_page(campaign, 10, now) == 5
    assert filling.fill_page(campaign, 10, now) is None
    campaign.refresh_from_db()
    assert campaign.filled_at == now
    assert first < set(Delivery.objects.values_list("pk", flat=True))
    assert statuses(campaign) == {"queued": 25}


def test_a_page_that_is_filled_again_doubles_nobody(campaign, now):
    Campaign.objects.filter(pk=campaign.pk).update(filled_up_to=0, filled_at=None)
    assert filling.fill_page(campaign, 100, now) == 0
    assert statuses(campaign) == {"queued": 12}


def test_a_page_of_which_some_are_queued_already_brings_the_others(mailing_list, now):
    """Written plainly it would be refused as a whole."""
    campaign = make_unfilled(mailing_list, now, 20)
    assert filling.fill_page(campaign, 7, now) == 7
    Campaign.objects.filter(pk=campaign.pk).update(filled_up_to=0)
    assert filling.fill_page(campaign, 15, now) == 8
    assert filling.fill_page(campaign, 15, now) == 5
    assert CampaignTotals.of([campaign.pk])[campaign.pk]["queued"] == 20
    assert len(set(Delivery.objects.values_list("subscriber_id", flat=True))) == 20


def test_a_paused_campaign_is_not_filled(mailing_list, readers, now):
    campaign = make_campaign(mailing_list, now)
    campaign.start(now)
    campaign.pause()
    assert filling.fill_page(campaign, 100, now) is None
    assert Delivery.objects.count() == 0


# ---------------------------------------------------------------------------------- claiming


def test_a_claim_takes_at_most_what_was_wanted(campaign, lease, now):
    claims = claim(lease, campaign, 5, now)
    assert len(claims) == 5
    assert statuses(campaign) == {"queued": 7, "claimed": 5}
    assert claims[0].name.startswith("Reader")
    assert claims[0].list_label == "weekly"


def test_two_workers_never_claim_the_same_letter(campaign, lease, other_lease, now):
    mine = claim(lease, campaign, 8, now)
    theirs = claim(other_lease, campaign, 8, now)
    assert len(mine) == 8
    assert len(theirs) == 4
    assert not {c.id for c in mine} & {c.id for c in theirs}


@pytest.mark.django_db(transaction=True)
def test_many_claimers_at_once_share_the_queue_without_overlap(mailing_list, clock):
    make_readers(mailing_list, 300)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    leases.make_places("default", 8)
    held = [leases.take("default", 8, f"h:{n}", clock(), timedelta(minutes=1)) for n in range(8)]

    def work(lease):
        try:
            taken = []
            while claims := claiming.claim(lease, [campaign.pk], 7, clock()):
                taken += [claimed.id for claimed in claims]
            return taken
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        taken = [pk for some in pool.map(work, held) for pk in some]
    assert len(taken) == len(set(taken)) == 300
    assert statuses(campaign) == {"claimed": 300}


def test_a_deferred_letter_is_not_claimed_before_it_is_due(campaign, lease, now):
    with transaction.atomic():
        queue_pages.spread(campaign.pk, 12)
    Delivery.objects.update(due_at=now + timedelta(minutes=5))
    assert claim(lease, campaign, 5, now) == []
    assert claiming.next_due([campaign.pk], ["default"]) == now + timedelta(minutes=5)
    assert len(claim(lease, campaign, 5, now + timedelta(minutes=5))) == 5


def test_a_reader_who_unsubscribed_meanwhile_gets_nothing_more(campaign, lease, readers, now):
    readers[0].subscriptions.get().move("unsubscribed", source="test")
    claims = claim(lease, campaign, 12, now)
    assert readers[0].email not in {c.rcpt_to for c in claims}
    assert statuses(campaign) == {"claimed": 11, "suppressed": 1}


def test_a_reader_who_was_suppressed_meanwhile_gets_nothing_more(campaign, lease, readers, now):
    Suppression.add(readers[3].email.upper(), "complaint", source="test")
    claims = claim(lease, campaign, 12, now)
    assert readers[3].email not in {c.rcpt_to for c in claims}
    assert statuses(campaign) == {"claimed": 11, "suppressed": 1}


def test_a_lifted_suppression_suppresses_nobody(campaign, lease, readers, now):
    Suppression.add(readers[3].email, "manual", source="test")
    Suppression.objects.get().lift(now=now)
    assert len(claim(lease, campaign, 12, now)) == 12


@pytest.mark.postgresql
def test_a_claim_looks_at_the_subscriptions_of_its_own_readers_only(mailing_list, campaign, now):
    make_readers(mailing_list, 3000, prefix="other")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        for sql, values in (
            (
                statements.DUE_ALONE,
                [campaign.pk, campaign.pk, datetime.min.replace(tzinfo=UTC), now, 500],
            ),
            (statements.OF_A_PAGE, [campaign.pk, 1, 1_000, campaign.pk, 500]),
        ):
            cursor.execute(f"EXPLAIN {sql}", values)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "Seq Scan on campaigns_subscription " not in plan


@pytest.mark.postgresql
def test_a_wave_is_found_by_its_ids_however_much_the_worker_holds(campaign, lease, now):
    claimed = claim(lease, campaign, 12, now)
    ids = [one.id for one in claimed]
    sql = statements.EXCHANGE.format(sent=among("d.id", ids[:3]), wave=among("id", ids[3:6]))
    values = {"outcomes": "[]", "now": now, "key": 1, "provider": "default", "shard": 1}
    values["groups_held"] = 0
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan TO off")
        cursor.execute(f"EXPLAIN {sql}", values)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "delivery_alone" not in plan
    assert plan.count("delivery_delivery_pkey") == 2
    assert plan.count("Index Cond: (id = ANY") + plan.count("Index Cond: (d.id = ANY") == 2


def test_two_campaigns_get_a_fair_share(mailing_list, campaign, lease, clock):
    other = make_campaign(mailing_list, clock(), name="June")
    coordinate(clock)
    claims = claiming.claim(lease, [campaign.pk, other.pk], 10, clock())
    assert Counter(c.campaign_id for c in claims) == {campaign.pk: 5, other.pk: 5}


def test_a_higher_priority_goes_first_and_equals_share(mailing_list, campaign, clock, lease):
    urgent = make_campaign(mailing_list, clock(), name="Urgent")
    equal = make_campaign(mailing_list, clock(), name="Equal")
    Campaign.objects.filter(pk__in=[urgent.pk, equal.pk]).update(priority=10)
    coordinate(clock)
    claims = claiming.claim(lease, claiming.open_campaigns(["default"]), 8, clock())
    assert sorted({claimed.campaign_id for claimed in claims}) == [urgent.pk, equal.pk]
    assert [c.campaign_id for c in claims].count(urgent.pk) == 4
    rest = claiming.claim(lease, claiming.open_campaigns(["default"]), 30, clock())
    assert [c.campaign_id for c in rest].count(campaign.pk) == 12


def test_what_one_campaign_cannot_use_the_other_gets(mailing_list, campaign, lease, clock):
    Delivery.objects.filter(pk__gt=Delivery.objects.order_by("pk")[1].pk).delete()
    other = make_campaign(mailing_list, clock(), name="June")
    coordinate(clock)
    claims = claiming.claim(lease, [campaign.pk, other.pk], 10, clock())
    assert Counter(c.campaign_id for c in claims) == {campaign.pk: 2, other.pk: 8}


def test_test_letters_go_first_even_from_a_draft(mailing_list, campaign, lease, now):
    draft = make_campaign(mailing_list, now, name="Draft")
    draft.unschedule()
    edition = draft.editions.get()
    filling.queue_tests(draft, edition.pk, [("me@example.org", "me@example.org")], None, now)
    claims = claim(lease, campaign, 3, now)
    assert [c.is_test for c in claims] == [True, False, False]
    assert CampaignTotals.of([draft.pk])[draft.pk]["claimed"] == 0


# ------------------------------------------------------------------------------ a worker's moves


def settled(claims, settlement, outcome=None):
    return [(claimed, outcome or Accepted(settlement.reply), settlement) for claimed in claims]


def test_a_letter_is_sending_only_after_the_note(campaign, lease, now):
    claims = claim(lease, campaign, 3, now)
    ids = [c.id for c in claims]
    assert sorted(hand_over(lease, ids, now)) == sorted(ids)
    assert statuses(campaign) == {"queued": 9, "sending": 3}
    row = Delivery.objects.get(pk=ids[0])
    assert (row.handed_over_at, row.provider) == (now, "default")


def test_an_accepted_letter_keeps_the_servers_words(campaign, lease, now):
    claims = claim(lease, campaign, 2, now)
    hand_over(lease, [c.id for c in claims], now)
    queue.settle(lease, settled(claims, Settlement(S.SENT, OK)), now)
    row = Delivery.objects.get(pk=claims[0].id)
    assert (row.status, row.code, row.reply) == ("sent", 250, OK.text)
    assert (row.attempts, row.claim_key, row.settled_at) == (1, None, now)
    assert not Attempt.objects.exists()
    assert statuses(campaign) == {"queued": 10, "sent": 2}


def test_a_refused_letter_has_its_attempt_and_a_bad_address_is_due_to_be_suppressed(
    campaign, lease, now
):
    (claimed,) = claim(lease, campaign, 1, now)
    hand_over(lease, [claimed.id], now)
    reply = Reply(Phase.RCPT, 550, "5.1.1 User unknown")
    settlement = Settlement(S.REJECTED, reply, suppress=True, rule="no such mailbox")
    queue.settle(lease, settled([claimed], settlement, Rejected(reply, True)), now)
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.phase, attempt.code) == ("rejected", "rcpt", 550)
    assert attempt.reply == "5.1.1 User unknown"
    # Not suppressed yet: it may be one of a burst (tests/delivery/test_guard_rails.py).
    assert (attempt.suppression, attempt.answered_before) == ("due", 0)
    assert not Suppression.objects.exists()


def test_outcomes_of_one_wave_differ_and_are_written_together(campaign, lease, now):
    claims = claim(lease, campaign, 3, now)
    hand_over(lease, [c.id for c in claims], now)
    grey = Reply(Phase.RCPT, 450, "4.2.0 Greylisted")
    due = now + timedelta(minutes=5)
    queue.settle(
        lease,
        settled(claims[:1], Settlement(S.SENT, OK))
        + settled(claims[1:2], Settlement(S.DEFERRED, grey, due), Deferred(grey))
        + settled(
            claims[2:],
            Settlement(S.UNCONFIRMED, Reply(Phase.FINAL_DOT, None, "lost")),
            Deferred(grey),
        ),
        now,
    )
    assert statuses(campaign) == {"queued": 9, "sent": 1, "deferred": 1, "unconfirmed": 1}
    row = Delivery.objects.get(pk=claims[1].id)
    assert (row.due_at, row.attempts) == (due, 1)
    assert Delivery.objects.get(pk=claims[2].id).code is None


def test_a_worker_whose_lease_ran_out_cannot_overwrite_the_new_owner(
    campaign, lease, other_lease, now
):
    claims = claim(lease, campaign, 2, now)
    ids = [c.id for c in claims]
    hand_over(lease, ids[:1], now)
    assert (queue.release(lease), queue.doubt(lease, now)) == (1, 1)
    deferral = Settlement(S.DEFERRED, Reply(Phase.RCPT, 450, "later"), now)
    assert queue.settle(lease, settled(claims[:1], deferral), now) == []
    assert hand_over(lease, ids[1:], now) == []
    again = claim(other_lease, campaign, 12, now)
    assert ids[1] in {c.id for c in again}
    assert hand_over(lease, ids[1:], now) == []
    assert statuses(campaign) == {"claimed": 11, "unconfirmed": 1}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("way", ["usual", "pooled", "general"])
def test_an_exchange_that_is_not_whole_writes_what_it_can(
    mailing_list, campaign, lease, clock, way, request
):
    """One letter of each half is not as it was: called unconfirmed, and of a campaign that was
    paused."""
    other = make_campaign(mailing_list, clock(), name="June")
    coordinate(clock)
    claims = claiming.claim(lease, [campaign.pk, other.pk], 12, clock())
    mine = [one for one in claims if one.campaign_id == campaign.pk]
    theirs = [one for one in claims if one.campaign_id == other.pk]
    hand_over(lease, [mine[0].id], clock())
    queue.doubt(lease, clock())
    hand_over(lease, [one.id for one in mine[1:3]], clock())
    other.pause()
    wave = [*mine[3:5], *theirs[:1]]
    accepted = settled(mine[:3], Settlement(S.SENT, OK))
    if way == "pooled":
        request.getfixturevalue("pooled")
    may_leave = None
    if way != "general":
        answered = [(claimed, outcome) for claimed, outcome, _settlement in accepted]
        may_leave = exchange(queue.Exchange(lease, answered, wave, clock(), 0))
        # SQLite writes it whole or not at all.
        assert (may_leave is None) == (connection.vendor == "sqlite")
    if may_leave is None:
        ids = [one.id for one in wave]
        may_leave = queue.record_and_hand_over(lease, accepted, [], ids, clock(), 0)
    assert sorted(may_leave) == sorted(one.id for one in mine[3:5])
    assert statuses(campaign) == {"queued": 6, "claimed": 1, "sending": 2, "sent": 3}
    assert statuses(other) == {"queued": 7, "claimed": 5}
    for one in (campaign, other):
        totals = CampaignTotals.of([one.pk])[one.pk]
        assert {name: totals[name] for name in statuses(one)} == statuses(one)


@pytest.mark.django_db(transaction=True)
def test_an_exchange_counts_each_campaigns_letters_and_no_test_letter(
    mailing_list, campaign, lease, clock
):
    other = make_campaign(mailing_list, clock(), name="June")
    coordinate(clock)
    filling.queue_tests(campaign, campaign.edition_id, [("me@example.com",) * 2], None, clock())
    claims = claiming.claim(lease, [campaign.pk, other.pk], 12, clock())
    assert claims[0].is_test
    for answered, wave in (([], claims[:9]), (claims[:9], claims[9:])):
        accepted = [(one, Accepted(OK)) for one in answered]
        exchanged = exchange(queue.Exchange(lease, accepted, wave, clock(), 0))
        assert sorted(exchanged or ()) == sorted(one.id for one in wave)
    for one in (campaign, other):
        rows = Delivery.objects.filter(campaign=one, is_test=False).order_by()
        counted = dict(rows.values_list("status").annotate(Count("pk")))
        totals = CampaignTotals.of([one.pk])[one.pk]
        assert {name: totals[name] for name in counted} == counted
        assert totals["claimed"] == 0 < totals["sent"]


def test_a_paused_campaigns_claims_are_released_and_not_handed_over(campaign, lease, now):
    claims = claim(lease, campaign, 4, now)
    campaign.pause()
    assert hand_over(lease, [c.id for c in claims], now) == []
    assert statuses(campaign) == {"queued": 12}


def test_a_release_gives_back_only_what_was_not_handed_over(campaign, lease, now):
    claims = claim(lease, campaign, 4, now)
    hand_over(lease, [claims[0].id], now)
    assert queue.release(lease) == 3
    assert queue.holds(lease.claim_key)
    assert statuses(campaign) == {"queued": 11, "sending": 1}


# ---------------------------------------------------------------------------------- after a crash


def test_a_dead_workers_claims_return_and_its_handed_over_letters_are_in_doubt(
    campaign, lease, now
):
    claims = claim(lease, campaign, 5, now)
    hand_over(lease, [c.id for c in claims[:2]], now)
    assert (queue.release(lease), queue.doubt(lease, now)) == (3, 2)
    assert statuses(campaign) == {"queued": 10, "unconfirmed": 2}
    assert {a.rule for a in Attempt.objects.all()} == {"worker lost"}
    assert (queue.release(lease), queue.doubt(lease, now)) == (0, 0)


def test_a_worker_taken_for_dead_still_brings_the_evidence_that_it_has(campaign, lease, now):
    (claimed,) = claim(lease, campaign, 1, now)
    hand_over(lease, [claimed.id], now)
    queue.doubt(lease, now)
    assert queue.settle(lease, settled([claimed], Settlement(S.SENT, OK)), now) == [claimed.id]
    assert statuses(campaign) == {"queued": 11, "sent": 1}


def test_a_noted_letter_that_never_left_returns_to_the_queue(campaign, lease, other_lease, now):
    claims = claim(lease, campaign, 3, now)
    ids = [c.id for c in claims]
    hand_over(lease, ids[:2], now)
    assert queue.return_unsent(other_lease, ids) == 0
    assert queue.return_unsent(lease, ids) == 2
    assert statuses(campaign) == {"queued": 11, "claimed": 1}


# ------------------------------------------------------------------------------ the others' moves


def test_cancelling_ends_what_waits_and_nothing_else(campaign, lease, now):
    claims = claim(lease, campaign, 2, now)
    hand_over(lease, [claims[0].id], now)
    campaign.cancel(now)
    assert queue.cancel_waiting(campaign.pk, 7, now) == 7
    assert queue.cancel_waiting(campaign.pk, 7, now) == 3
    assert statuses(campaign) == {"cancelled": 10, "claimed": 1, "sending": 1}


@pytest.mark.parametrize("state", ["sent", "unconfirmed"])
def test_a_bounce_moves_a_sent_letter_once(campaign, now, state):
    row = Delivery.objects.first()
    Delivery.objects.filter(pk=row.pk).update(**Delivery.of_state(S(state)))
    CampaignTotals.add(campaign.pk, 0, {"queued": -1, state: 1})
    assert queue.mark_all_bounced([row.pk])
    assert not queue.mark_all_bounced([row.pk])
    assert statuses(campaign) == {"queued": 11, "bounced": 1}


@pytest.mark.parametrize("state", sorted(set(S) - {S.SENT, S.UNCONFIRMED}))
def test_a_bounce_cannot_move_what_was_not_sent(campaign, now, state):
    row = Delivery.objects.first()
    Delivery.objects.filter(pk=row.pk).update(status=state)
    assert not queue.mark_all_bounced([row.pk])
    row.refresh_from_db()
    assert row.status == state


def test_a_claim_is_a_handful_of_statements_whatever_its_size(
    campaign, lease, now, django_assert_num_queries
):
    assert campaign.status == CampaignStatus.SENDING
    claim(lease, campaign, 1, now)  # makes the shard's totals row
    # Savepoint, tests, the first page, letters that wait alone, those of the page, its mark, move,
    # claims that are over, this claim, totals, savepoint; and PostgreSQL is told to read the
    # letters that wait alone in the order of an index, and nothing else.
    with django_assert_num_queries(13 if connection.vendor == "postgresql" else 11):
        claim(lease, campaign, 5, now)


@pytest.mark.postgresql
def test_no_move_of_a_usual_letter_writes_to_indexes(campaign, lease, now):
    """All are HOT updates: an index on the status, or a partial index that looks at it, would make
    an entry for each move of each letter into every index of the table."""

    def hot_updates() -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)"
                " FROM CAST('delivery_delivery' AS regclass) AS c"
            )
            return list(cursor.fetchone())

    before = hot_updates()
    # A few, for whose versions a page of the table has room within one transaction.
    claimed = claim(lease, campaign, 3, now)
    ids = [one.id for one in claimed]
    assert len(hand_over(lease, ids, now)) == 3
    queue.settle(lease, settled(claimed, Settlement(S.SENT, OK)), now)
    after = hot_updates()
    assert [b - a for a, b in zip(before, after, strict=True)] == [9, 9]


def test_a_claim_of_which_nothing_is_in_hand_is_forgotten_with_the_next_one(campaign, lease, now):
    first = claim(lease, campaign, 3, now)
    ids = [one.id for one in first]
    hand_over(lease, ids, now)
    queue.settle(lease, settled(first[:2], Settlement(S.SENT, OK)), now)
    claim(lease, campaign, 3, now)
    assert Claim.objects.count() == 2
    queue.settle(lease, settled(first[2:], Settlement(S.SENT, OK)), now)
    claim(lease, campaign, 3, now)
    assert Claim.objects.filter(delivery_ids=json.dumps(ids[::-1])).count() == 0
    assert Claim.objects.count() == 2
    assert queue.release(lease) == 6
    assert not queue.holds(lease.claim_key)
    assert not Claim.objects.exists()
