"""Groups of receiving domains: one that wants to be left alone holds up nobody else."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from campaigns.addresses import address_key
from campaigns.models import Subscriber, Subscription
from campaigns.signals import waiting_asked
from delivery import alerts, claiming, filling, groups, limits, queue
from delivery.models import Alert, Delivery, GroupState, ProviderState, ReceivingDomain
from delivery.outcomes import (
    Accepted,
    Deferred,
    Phase,
    Reply,
    Speaker,
    Throttle,
    Unavailable,
)
from delivery.providers.memory import MemoryProvider
from delivery.receiving import domain_of
from delivery.worker import Worker
from tests.delivery.conftest import (
    coordinate,
    letters_to,
    make_campaign,
    make_worker,
    run_slice,
    statuses,
)
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)
MEMORY = "delivery.providers.memory.MemoryProvider"

UNUSUAL = Reply(Phase.FINAL_DOT, 421, "4.7.28 unusual rate of mail", Speaker.READER)
PAUSE = Deferred(UNUSUAL, timedelta(minutes=30), "gmail: unusual rate", Throttle.PAUSE)
SLOW = Deferred(
    Reply(Phase.RCPT, 451, "4.7.500 Server busy", Speaker.READER),
    timedelta(minutes=15),
    "microsoft: busy",
    Throttle.SLOW,
)
KEPT = Accepted(Reply(Phase.LOCAL, 250, "kept"))


def readers_at(mailing_list, **counts: int) -> None:
    """So many readers at each domain; "gmail_com" is gmail.com."""
    for name, count in counts.items():
        domain = name.replace("_", ".")
        new = Subscriber.objects.bulk_create(
            Subscriber(email=f"r{n}@{domain}", address_key=address_key(f"r{n}@{domain}"))
            for n in range(count)
        )
        Subscription.objects.bulk_create(
            Subscription(subscriber=reader, mailing_list=mailing_list) for reader in new
        )


@pytest.fixture
def start(mailing_list, clock):
    """A sending campaign to so many readers of each domain."""

    def start(name="May", provider="default", **counts):
        readers_at(mailing_list, **counts)
        campaign = make_campaign(mailing_list, clock(), name=name, provider=provider)
        coordinate(clock)
        return campaign

    return start


def refuse(domain: str, outcome: Deferred):
    """All letters to a domain have this outcome, all others are taken."""
    MemoryProvider.answer = lambda message: (
        outcome if domain_of(message.envelope.rcpt_to) == domain else KEPT
    )


def at(domain: str, **conditions) -> int:
    return Delivery.objects.filter(rcpt_to__endswith=f"@{domain}", **conditions).count()


def taken() -> list[str]:
    """The domains of the letters that were taken, in their order."""
    return [domain_of(letter.envelope.rcpt_to) for letter in MemoryProvider.outbox]


def the_group(name: str = "google", provider: str = "default") -> GroupState:
    return GroupState.objects.get(provider=provider, group=name)


# ---------------------------------------------------------------------------------- the order


def test_the_queue_interleaves_domains_that_were_imported_one_after_the_other(start):
    start(gmail_com=120, yahoo_com=60, a_example=20)
    letters = Delivery.objects.order_by("campaign_id", "due_at", "id")
    domains = [domain_of(address) for address in letters.values_list("rcpt_to", flat=True)]
    for begin in range(0, 200, 20):
        stretch = Counter(domains[begin : begin + 20])
        assert 9 <= stretch["gmail.com"] <= 15
        assert 3 <= stretch["yahoo.com"] <= 9
        assert 0 <= stretch["a.example"] <= 4
    assert len(set(letters.values_list("rcpt_to", flat=True))) == 200


# ---------------------------------------------------------------------------------- pausing


def test_a_group_that_wants_a_pause_gets_it_and_the_others_flow(start, clock):
    campaign = start(gmail_com=30, googlemail_com=5, other_example=30)
    refuse("gmail.com", PAUSE)
    done = run_slice(clock)
    assert at("other.example", status="sent") == 30
    tried = at("gmail.com", status="deferred")
    # What was on the wire beside it; the letters that were claimed came back.
    assert 1 <= tried <= 5
    assert at("gmail.com", status="queued") == 30 - tried
    assert at("googlemail.com", status="sent") < 5
    state = the_group()
    assert abs(state.paused_until - clock() - timedelta(minutes=30)) < timedelta(seconds=1)
    assert (state.because, state.rule) == (str(UNUSUAL), "gmail: unusual rate")
    assert limits.closed_until(limits.state_of("default"), clock()) is None
    # Nothing is looked at before the end of the pause.
    waiting = Delivery.objects.filter(status="queued")
    assert set(waiting.values_list("due_at", flat=True)) == {state.paused_until}
    assert done.wait_until > clock() + timedelta(minutes=4)
    assert coordinate(clock) == {}
    assert statuses(campaign)["queued"] == waiting.count()

    MemoryProvider.answer = None
    clock.advance(minutes=40)
    run_slice(clock)
    assert statuses(campaign) == {"sent": 65}


def test_a_letter_that_was_claimed_before_the_pause_does_not_leave(start, clock):
    start(gmail_com=12)
    worker = make_worker(clock)
    assert worker.place.take()
    batch = worker.batches.claim()
    ids = [claimed.id for claimed in batch.claims]
    assert len(ids) == 10
    groups.hold("default", [("else@gmail.com", PAUSE)], clock())
    held = batch.groups_held
    assert queue.record_and_hand_over(worker.place.lease, [], [], ids, clock(), held) == []
    assert at("gmail.com", status="queued") == 12
    assert worker.batches.claim().claims == []
    # Whoever claims after that is told nothing of the past.
    clock.advance(minutes=31)
    batch = worker.batches.claim()
    ids = [claimed.id for claimed in batch.claims]
    assert queue.record_and_hand_over(worker.place.lease, [], [], ids, clock(), batch.groups_held)


def test_another_workers_pause_is_obeyed_within_a_wave(start, clock):
    start(gmail_com=40)

    def hold_at_the_third(message):
        if len(MemoryProvider.outbox) == 2:
            thread = threading.Thread(
                target=groups.hold, args=("default", [("x@gmail.com", PAUSE)], clock())
            )
            thread.start()
            thread.join()
        return KEPT

    MemoryProvider.answer = hold_at_the_third
    asyncio.run(make_worker(clock).run_slice())
    assert len(MemoryProvider.outbox) <= 5
    assert at("gmail.com", status="queued") >= 35


def claim_all(clock) -> Worker:
    """A worker that has claimed, and holds, all that is due."""
    worker = make_worker(clock)
    assert worker.place.take()
    while worker.batches.claim().claims:
        pass
    return worker


def test_each_letter_is_moved_once_in_a_pause(start, clock):
    start(gmail_com=40, other_example=40)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    with CaptureQueriesContext(connection) as queries:
        claim_all(clock)
    assert at("other.example", status="claimed") == 40
    assert at("gmail.com", due_at=the_group().paused_until) == 40
    moves = [q["sql"] for q in queries if 'SET "due_at"' in q["sql"]]
    ids = [pk for sql in moves for pk in re.findall(r"\d+", sql.partition("IN (")[2])]
    assert len(ids) == len(set(ids)) == 40


def test_a_longer_pause_that_holds_is_kept(start, clock):
    start(gmail_com=2)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    until = the_group().paused_until
    short = Deferred(UNUSUAL, timedelta(minutes=1), "other", Throttle.PAUSE)
    groups.hold("default", [("x@gmail.com", short)], clock())
    assert (the_group().paused_until, the_group().rule) == (until, "gmail: unusual rate")


def test_a_group_that_refuses_us_is_told_to_a_person_once(start, clock):
    start(gmail_com=2)
    blocked = Deferred(
        Reply(Phase.RCPT, 550, "5.7.26 <script>", Speaker.READER),
        timedelta(hours=1),
        "authentication there",
        Throttle.PAUSE,
        needs_a_person=True,
    )
    for _ in range(2):
        groups.hold("default", [("x@gmail.com", blocked)], clock())
        clock.advance(seconds=1)
    alert = Alert.objects.get()
    assert (alert.kind, alert.resolved_at) == ("group", None)
    assert "5.7.26 <script>" in alert.text
    assert "gmail" not in alert.text
    alerts.resolve_what_is_over(clock())
    assert Alert.objects.get().resolved_at is None
    clock.advance(hours=2)
    alerts.resolve_what_is_over(clock())
    assert Alert.objects.get().resolved_at == clock()


def test_a_real_servers_words_hold_the_group_of_its_reader(mailing_list, clock, settings, start):
    rule = Rule(At.RCPT, "451 4.7.500 Server busy. Please try again later", address="*@hotmail.com")
    with SMTPServer(rules=[rule]) as server:
        options = {
            "host": server.host,
            "port": server.port,
            "security": "none",
            "connections": 1,
            "speaker": "reader",
        }
        default = {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": options}
        settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": {"default": default}}
        start(hotmail_com=20, outlook_com=20, other_example=20)
        run_slice(clock)
        state = the_group("microsoft")
        assert state.slow_until > clock()
        assert "4.7.500 Server busy" in state.because
        domains = Counter(domain_of(letter.rcpt_to[0]) for letter in server.accepted)
        assert domains["other.example"] == 20
        assert domains["outlook.com"] < 20


def test_a_campaigns_page_says_for_which_groups_it_waits(start, clock):
    clock.now = timezone.now()  # the page's
    campaign = start(gmail_com=5)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    run_slice(clock)
    campaign.refresh_from_db()
    said = waiting_asked.send(type(campaign), campaign=campaign)[0][1]
    assert said.startswith("What is left waits for google; the next letter is due at ")


# ---------------------------------------------------------------------------------- on pages


def staff_with(*permissions: str) -> Client:
    user = User.objects.create_user("clerk", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def hostile(db) -> GroupState:
    """Google, paused with words that would be a script."""
    reply = Reply(Phase.RCPT, 421, "4.7.28 <script>alert(1)</script>", Speaker.READER)
    pause = Deferred(reply, timedelta(hours=1), "gmail: unusual rate", Throttle.PAUSE)
    groups.hold("default", [("x@gmail.com", pause)], timezone.now())
    ReceivingDomain.objects.create(
        name="contoso.com", group="google", exchange="aspmx.l.google.com", look_up_at=timezone.now()
    )
    return the_group()


def test_the_pages_show_until_when_and_why_verbatim(admin_client, hostile):
    rows = admin_client.get(reverse("admin:delivery_groupstate_changelist")).content.decode()
    page = admin_client.get(reverse("admin:delivery_groupstate_change", args=[hostile.pk]))
    html = page.content.decode()
    for text in (rows, html):
        assert "421 4.7.28 &lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "<script>alert(1)" not in text
        assert "gmail: unusual rate" in text
    assert "contoso.com" in html
    assert "aspmx.l.google.com" in html
    assert page.context["until"] == hostile.paused_until


def test_a_group_is_opened_by_a_post_with_permission_and_that_is_recorded(hostile):
    resume = reverse("admin:delivery_groupstate_resume", args=[hostile.pk])
    reader = staff_with("view_groupstate")
    assert reader.post(resume).status_code == 403
    assert (
        "Open again"
        not in reader.get(
            reverse("admin:delivery_groupstate_change", args=[hostile.pk])
        ).content.decode()
    )
    User.objects.all().delete()

    operator = staff_with("view_groupstate", "resume_group")
    assert operator.get(resume).status_code == 405
    assert the_group().paused_until is not None
    assert operator.post(resume, follow=True).status_code == 200
    assert the_group().paused_until is None
    assert LogEntry.objects.get().object_id == str(hostile.pk)
    assert "open already" in operator.post(resume, follow=True).content.decode()


def test_many_groups_are_opened_by_the_lists_action(hostile):
    operator = staff_with("view_groupstate", "resume_group")
    answer = operator.post(
        reverse("admin:delivery_groupstate_changelist"),
        {"action": "open_again", "_selected_action": [hostile.pk]},
        follow=True,
    )
    assert "Opened again: google." in answer.content.decode()
    assert groups.held_now(["default"], timezone.now()) == []


def test_a_look_for_free_letters_walks_along_the_index_of_waiting_letters(start, clock):
    campaign = start(gmail_com=300)
    with CaptureQueriesContext(connection) as queries:
        groups._due(campaign.pk, 20, clock())
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan TO off")
        prefix = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
        (look,) = [query["sql"] for query in queries if query["sql"].startswith("SELECT")]
        cursor.execute(f"{prefix} {look}")
        plan = " ".join(str(column) for row in cursor.fetchall() for column in row)
    assert "delivery_alone" in plan
    assert "TEMP B-TREE" not in plan


# ---------------------------------------------------------------------------------- slowing


def test_a_slow_group_gets_a_letter_a_minute_and_the_others_flow(start, clock):
    start(gmail_com=40, other_example=40)
    groups.hold("default", [("x@gmail.com", SLOW)], clock())
    run_slice(clock)
    assert Counter(taken()) == {"other.example": 40, "gmail.com": 1}
    for minute in range(2, 6):
        clock.advance(minutes=1)
        run_slice(clock)
        run_slice(clock)
        assert Counter(taken())["gmail.com"] == minute
    # What waits has a moment of its own, and looks are few: no turn is looked for twice.
    waiting = Delivery.objects.filter(status="queued", due_at__gt=clock())
    moments = Counter(waiting.values_list("due_at", flat=True))
    end = the_group().slow_until
    assert {moment: n for moment, n in moments.items() if moment < end and n > 1} == {}

    clock.advance(minutes=15)
    run_slice(clock)
    assert Counter(taken()) == {"other.example": 40, "gmail.com": 40}


def test_several_workers_share_the_turns_of_a_slow_group(start, clock):
    start(gmail_com=30)
    groups.hold("default", [("x@gmail.com", SLOW)], clock())
    for _ in range(3):
        run_slice(clock)
    assert taken() == ["gmail.com"]


# ---------------------------------------------------------------------------------- resuming


def test_a_person_opens_a_group_and_its_letters_come_behind_those_that_wait(start, clock):
    campaign = start(gmail_com=20, other_example=20)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    worker = claim_all(clock)
    worker.place.release()
    assert at("gmail.com", due_at__gt=clock()) == 20
    clock.advance(minutes=1)
    assert groups.resume(the_group(), clock())
    assert not groups.resume(the_group(), clock())
    coordinate(clock)
    assert at("gmail.com", due_at=clock()) == 20
    assert the_group().call_back is None
    worker.place.leave()
    run_slice(clock)
    assert taken() == ["other.example"] * 20 + ["gmail.com"] * 20
    assert statuses(campaign) == {"sent": 40}


def test_calling_back_goes_on_where_time_ran_out(start, clock, monkeypatch):
    start(gmail_com=9)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    Delivery.objects.update(due_at=the_group().paused_until, waits_alone=True)
    groups.resume(the_group(), clock())
    monkeypatch.setattr(groups, "AT_ONCE", 4)
    names_of = lambda alias: (alias,)  # noqa: E731
    assert groups.call_back(names_of, clock, clock()) is True
    assert at("gmail.com", due_at=clock()) == 4
    assert groups.call_back(names_of, clock, clock() + timedelta(seconds=1)) is False
    assert at("gmail.com", due_at=clock()) == 9


def test_a_group_that_is_free_again_is_sent_no_faster_than_the_limit(start, clock, settings):
    limited = {"BACKEND": MEMORY, "LIMITS": [{"cap": "6/hour"}]}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": {"default": limited}}
    start(gmail_com=30)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    run_slice(clock)
    assert taken() == []
    clock.advance(hours=5)
    for _ in range(3):
        run_slice(clock)
    assert len(taken()) == 6


# ---------------------------------------------------------------------------------- independence


def test_a_group_is_held_at_one_provider_and_not_at_another(start, clock):
    start(gmail_com=5)
    other = start(name="June", provider="other", gmail_com=0)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    assert run_slice(clock).sent == 0
    assert run_slice(clock, alias="other").sent == 5
    assert statuses(other) == {"sent": 5}


def test_the_pauses_of_a_provider_a_group_and_a_campaign_are_independent(start, clock):
    may = start(gmail_com=3, other_example=3)
    june = start(name="June")
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    may.refresh_from_db()
    may.pause()
    trouble = Unavailable(Reply(Phase.MAIL, 451, "4.3.0 Busy"), timedelta(minutes=5))
    limits.pause("default", trouble, clock())
    run_slice(clock)
    assert taken() == []

    # The provider is open again: the group still waits, and so does the campaign.
    limits.resume("default", clock())
    run_slice(clock)
    assert taken() == ["other.example"] * 3
    assert statuses(may) == {"queued": 6}

    # So does the campaign when it goes on; and when the group is free, all leave.
    may.refresh_from_db()
    may.resume()
    run_slice(clock)
    assert (statuses(may), statuses(june)) == ({"sent": 3, "queued": 3},) * 2
    clock.advance(minutes=31)
    run_slice(clock)
    assert (statuses(may), statuses(june)) == ({"sent": 6},) * 2


def test_shares_and_priorities_hold_among_the_letters_that_may_leave(start, clock):
    may = start(gmail_com=20, other_example=20)
    june = start(name="June")
    urgent = start(name="Urgent")
    urgent.priority = 10
    urgent.save(update_fields=["priority"])
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    filling.queue_tests(
        june, june.editions.get().pk, [("me@gmail.com", "me@gmail.com")], None, clock()
    )
    worker = make_worker(clock)
    assert worker.place.take()
    held = groups.Held.of(ProviderState.objects.get(alias="default"), lambda name: (name,), clock())
    ids = claiming.open_campaigns(worker.names)
    first = claiming.claim(worker.place.lease, ids, 21, clock(), worker.names, held)
    # Somebody who asks for a test letter wants to see whether it is taken.
    assert [(c.rcpt_to, c.is_test) for c in first[:1]] == [("me@gmail.com", True)]
    assert {c.campaign_id for c in first[1:]} == {urgent.pk}
    second = claiming.claim(worker.place.lease, ids, 10, clock(), worker.names, held)
    assert Counter(c.campaign_id for c in second) == {may.pk: 5, june.pk: 5}
    assert {domain_of(c.rcpt_to) for c in second} == {"other.example"}


# ---------------------------------------------------------------------------------- in a pool


@pytest.fixture
def team(settings):
    entry = {"BACKEND": MEMORY}
    providers = {"default": entry, "a": entry, "b": entry, "team": {"POOL": ["a", "b"]}}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": providers}


def test_another_member_of_a_pool_takes_the_letters_of_a_group_that_one_holds(team, start, clock):
    campaign = start(provider="team", gmail_com=20, other_example=5)
    groups.hold("a", [("x@gmail.com", PAUSE)], clock())
    worker = make_worker(clock, alias="a")
    assert worker.place.take()
    claims = worker.batches.claim().claims
    assert [domain_of(c.rcpt_to) for c in claims] == ["other.example"] * 5
    # The rest stays where it is, and is asked for again soon but not at once.
    assert worker.batches.claim().retry_at == clock() + groups.PATIENCE
    assert at("gmail.com", due_at__gt=clock()) == 0
    worker.place.leave()
    run_slice(clock, alias="b")
    assert statuses(campaign) == {"sent": 25}


def test_when_all_members_hold_a_group_its_letters_wait(team, start, clock):
    start(provider="team", gmail_com=20)
    for alias in ("a", "b"):
        groups.hold(alias, [("x@gmail.com", PAUSE)], clock())
    assert run_slice(clock, alias="a").sent == 0
    assert at("gmail.com", due_at__gt=clock()) == 20
    assert coordinate(clock) == {}


# ---------------------------------------------------------------------------------- the coordinator


def test_the_coordinator_starts_workers_when_the_first_pause_is_over(start, clock):
    start(gmail_com=3)
    groups.hold("default", [("x@gmail.com", PAUSE)], clock())
    run_slice(clock)
    assert coordinate(clock) == {}
    clock.advance(minutes=31)
    assert coordinate(clock) == {"default": 3}
    run_slice(clock)
    coordinate(clock)
    assert len(letters_to("r0@gmail.com")) == 1
