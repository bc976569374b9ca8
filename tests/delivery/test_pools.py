"""A campaign over several providers: who sends what, and what moves when one of them fails."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from campaigns.signals import waiting_asked
from delivery import claiming, filling, limits
from delivery.conf import delivery_settings
from delivery.models import Attempt, Delivery
from delivery.outcomes import Accepted, Outcome, Phase, Reply, Unavailable
from delivery.providers.memory import MemoryProvider
from tests.delivery.conftest import (
    coordinate,
    letters_to,
    make_campaign,
    make_readers,
    make_worker,
    run_slice,
    statuses,
)
from tests.smtp_server import At, Drop, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)
MEMORY = "delivery.providers.memory.MemoryProvider"


class LookingProvider(MemoryProvider):
    """It looks for letters in doubt, and says which."""

    looked_for: list[int] = []

    async def confirm(self, message) -> Outcome:
        self.looked_for.append(message.reference)
        return Accepted(Reply(Phase.HTTP, 200, "in Sent Items"))


def smtp(server: SMTPServer) -> dict:
    options = {"host": server.host, "port": server.port, "security": "none", "connections": 2}
    return {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": options}


@pytest.fixture
def pool(settings):
    """Makes the pool "team" of these entries, called a, b ..."""

    def make(*entries: dict) -> None:
        named = dict(zip("abc", entries, strict=False))
        settings.DELIVERY = settings.DELIVERY | {
            "PROVIDERS": {"default": {"BACKEND": MEMORY}, **named, "team": {"POOL": list(named)}}
        }

    return make


@pytest.fixture
def team(mailing_list, readers, clock, pool):
    """A campaign to twelve readers through a pool of two."""
    pool({"BACKEND": MEMORY}, {"BACKEND": MEMORY})
    campaign = make_campaign(mailing_list, clock(), provider="team")
    coordinate(clock)
    return campaign


def by_provider(campaign) -> dict[str, int]:
    """How many letters each provider sent."""
    sent = Delivery.objects.filter(campaign=campaign, status="sent")
    aliases = list(sent.values_list("provider", flat=True))
    return {alias: aliases.count(alias) for alias in set(aliases)}


def test_all_members_of_a_pool_are_started_for_its_campaign_and_nobody_else(team, clock):
    assert coordinate(clock) == {"a": 3, "b": 3}
    assert run_slice(clock).sent == 0
    assert run_slice(clock, alias="b").sent == 12


def test_a_member_also_sends_what_names_it_alone(mailing_list, team, clock):
    own = make_campaign(mailing_list, clock(), name="June", provider="a")
    coordinate(clock)
    run_slice(clock, alias="b")
    assert (statuses(team), statuses(own)) == ({"sent": 12}, {"queued": 12})
    run_slice(clock, alias="a")
    assert by_provider(own) == {"a": 12}


def test_letters_spread_by_the_quota_that_is_free(mailing_list, team, clock, pool):
    pool(
        {"BACKEND": MEMORY, "LIMITS": [{"cap": "4/hour"}]},
        {"BACKEND": MEMORY, "LIMITS": [{"cap": "6/hour"}]},
    )
    for alias in ("a", "b", "a", "b"):
        run_slice(clock, alias=alias)
    assert by_provider(team) == {"a": 4, "b": 6}
    clock.advance(hours=1, seconds=13)
    run_slice(clock, alias="a")
    assert by_provider(team) == {"a": 6, "b": 6}
    assert len({letter.envelope.rcpt_to for letter in MemoryProvider.outbox}) == 12


def test_what_a_failing_provider_did_not_take_goes_through_another(
    mailing_list, readers, clock, pool
):
    refuse = [Rule(At.MAIL, "451 4.3.0 Try again later")]
    with SMTPServer(rules=refuse) as failing, SMTPServer() as working:
        pool(smtp(failing), smtp(working))
        campaign = make_campaign(mailing_list, clock(), provider="team")
        coordinate(clock)
        run_slice(clock, alias="a")
        assert statuses(campaign) == {"queued": 12}
        assert set(Attempt.objects.values_list("provider", flat=True)) == {"a"}
        # The pause is of one member.
        assert coordinate(clock) == {"b": 3}
        run_slice(clock, alias="b")
        assert (len(failing.accepted), len(working.accepted)) == (0, 12)
    assert by_provider(campaign) == {"b": 12}
    assert set(Delivery.objects.values_list("attempts", flat=True)) == {1}


def test_what_a_reader_deferred_may_go_through_another(mailing_list, readers, clock, pool):
    grey = [Rule(At.RCPT, "450 4.2.0 Greylisted", address="reader3@*")]
    with SMTPServer(rules=grey) as first, SMTPServer() as second:
        pool(smtp(first), smtp(second))
        campaign = make_campaign(mailing_list, clock(), provider="team")
        coordinate(clock)
        run_slice(clock, alias="a")
        assert statuses(campaign) == {"sent": 11, "deferred": 1}
        clock.advance(minutes=6)
        run_slice(clock, alias="b")
        assert [letter.rcpt_to for letter in second.accepted] == [["reader3@example.org"]]
    assert by_provider(campaign) == {"a": 11, "b": 1}


def test_a_letter_in_doubt_never_moves_and_only_who_had_it_is_asked(
    mailing_list, readers, clock, pool
):
    LookingProvider.looked_for.clear()
    lost = [Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, skip=4, times=1)]
    looking = {"BACKEND": "tests.delivery.test_pools.LookingProvider"}
    with SMTPServer(rules=lost) as server:
        pool(smtp(server), looking)
        campaign = make_campaign(mailing_list, clock(), provider="team")
        coordinate(clock)
        run_slice(clock, alias="a")
        assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
        for _ in range(4):
            clock.advance(minutes=3)
            coordinate(clock)
            run_slice(clock, alias="b")
        # The server had taken it; nobody has sent it again, and b does not know it.
        assert len(server.accepted) == 12
    assert statuses(campaign) == {"sent": 11, "unconfirmed": 1}
    assert MemoryProvider.outbox == [] == LookingProvider.looked_for

    Delivery.objects.filter(status="unconfirmed").update(provider="b", due_at=clock())
    run_slice(clock, alias="b")
    assert len(LookingProvider.looked_for) == 1
    assert statuses(campaign) == {"sent": 12}


def test_a_pool_waits_only_when_all_of_it_is_closed(team, clock):
    def why():
        return waiting_asked.send(type(team), campaign=team)[0][1]

    trouble = Unavailable(Reply(Phase.MAIL, 451, "4.3.0 Busy"), timedelta(minutes=5))
    soon = Unavailable(Reply(Phase.MAIL, 451, "4.3.1 Disk full"), timedelta(minutes=2))
    team.refresh_from_db()
    limits.pause("a", trouble, timezone.now())
    assert why() is None
    limits.pause("b", soon, timezone.now())
    assert "4.3.1 Disk full" in why()


def test_a_test_letter_leaves_through_whichever_member_works(mailing_list, readers, team, clock):
    draft = make_campaign(mailing_list, clock(), name="Draft", provider="team")
    draft.unschedule()
    filling.queue_tests(
        draft, draft.editions.get().pk, [("me@example.org", "me@example.org")], None, clock()
    )
    trouble = Unavailable(Reply(Phase.MAIL, 451, "4.3.0 Busy"), timedelta(minutes=5))
    limits.pause("a", trouble, clock())
    assert run_slice(clock, alias="a").sent == 0
    run_slice(clock, alias="b")
    # Before all others.
    assert letters_to("me@example.org") == MemoryProvider.outbox[:1]


def test_a_paused_member_waits_for_its_own_end_only(team, clock):
    trouble = Unavailable(Reply(Phase.MAIL, 451, "4.3.0 Busy"), timedelta(minutes=5))
    limits.pause("a", trouble, clock())
    assert run_slice(clock, alias="a").wait_until == clock() + timedelta(minutes=5)
    assert coordinate(clock) == {"b": 3}


def test_a_name_is_resolved_to_its_members(pool):
    pool({"BACKEND": MEMORY}, {"BACKEND": MEMORY}, {"BACKEND": MEMORY})
    settings = delivery_settings()
    assert settings.members_of("team") == ("a", "b", "c")
    assert settings.members_of("a") == ("a",)
    assert settings.members_of("gone") == ()
    assert settings.names_of("a") == ("a", "team")
    assert settings.names_of("default") == ("default",)


def test_a_members_page_names_its_pools(admin_client, pool):
    pool({"BACKEND": MEMORY}, {"BACKEND": MEMORY})
    page = reverse("admin:delivery_providerstate_change", args=[limits.state_of("b").pk])
    assert "a member of team" in admin_client.get(page).content.decode()


def test_fair_shares_priority_and_the_lane_of_test_letters_hold_in_a_pool(
    mailing_list, readers, team, clock
):
    make_readers(mailing_list, 8, prefix="more")
    urgent = make_campaign(mailing_list, clock(), name="Urgent", provider="a")
    urgent.priority = 10
    urgent.save(update_fields=["priority"])
    equal = make_campaign(mailing_list, clock(), name="Equal", provider="a")
    coordinate(clock)
    worker = make_worker(clock, alias="a")
    assert worker.place.take()
    filling.queue_tests(
        equal, equal.editions.get().pk, [("me@example.org", "me@example.org")], None, clock()
    )

    def claimed(wanted):
        ids = claiming.open_campaigns(worker.names)
        claims = claiming.claim(worker.place.lease, ids, wanted, clock(), worker.names)
        return [(claim.campaign_id, claim.is_test) for claim in claims]

    first = claimed(21)
    assert first[0] == (equal.pk, True)
    assert first[1:] == [(urgent.pk, False)] * 20
    shares = claimed(10)
    assert shares.count((team.pk, False)) == shares.count((equal.pk, False)) == 5
