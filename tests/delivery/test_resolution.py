"""Doubts at Microsoft are resolved by Sent Items: when it is looked, and what follows."""
# ruff: noqa: F811 (a fixture that is imported)

import asyncio
from datetime import timedelta
from random import Random

import httpx
import pytest

from campaigns.models import Suppression
from delivery import limits
from delivery.composing import message_id_of
from delivery.conf import delivery_settings
from delivery.message_ids import deliveries_of
from delivery.models import Delivery, Resolution
from delivery.outcomes import Phase, Reply, Unavailable, Unconfirmed
from delivery.resolution import (
    CANNOT_LOOK,
    LOOKS,
    NOTHING_FOUND,
    STILL_THERE,
    after_a_look,
    may_be_sent_again,
    next_look,
)
from delivery.worker import PATIENCE
from tests.delivery.conftest import (
    coordinate,
    make_campaign,
    make_readers,
    make_worker,
    statuses,
)
from tests.delivery.graph_world import World, world  # noqa: F401
from tests.emulators.graph import Answer, Fault, parsed

REPLY = Reply(Phase.HTTP, None, "?")
FROM = "news@example.org"


# ------------------------------------------------------------------ the schedule, pure


def test_looks_are_frequent_at_first_and_end_after_ten_minutes(now):
    moments, moment = [], now
    while (moment := next_look(now, moment)) is not None:
        moments.append((moment - now).total_seconds())
    assert moments == [1, 2, 4, 8, 30, 120, 300, 600]


def test_a_look_that_came_late_does_not_catch_up(now):
    assert next_look(now, now + timedelta(seconds=50)) == now + timedelta(seconds=120)


@pytest.mark.parametrize(
    ("found", "early", "late"),
    [
        (None, LOOKS[1], NOTHING_FOUND),
        (Unconfirmed(REPLY, "in drafts"), LOOKS[1], STILL_THERE),
        (Unavailable(REPLY, needs_a_person=True, rule="cannot look"), CANNOT_LOOK, CANNOT_LOOK),
        (Unavailable(REPLY), None, None),
        (Unavailable(REPLY, needs_a_person=True, rule="access denied"), None, None),
    ],
)
def test_what_a_look_leads_to(now, found, early, late):
    first = after_a_look(now, found, now + LOOKS[0])
    assert first == (now + early if isinstance(early, timedelta) else early)
    assert after_a_look(now, found, now + LOOKS[-1]) == late


# ------------------------------------------------------------------ with worker and coordinator


@pytest.fixture
def graph_world(world, clock):
    """The mailbox that the campaigns of these tests send from, on the tests' clock."""
    mine = World(clock, mailboxes=[FROM])
    yield mine
    mine.emulator.assert_promises(doubled=mine.doubled)


@pytest.fixture
def campaign(graph_world, mailing_list, clock, settings):
    graph = {
        "BACKEND": "delivery.providers.graph.GraphProvider",
        "OPTIONS": {
            "mailbox": FROM,
            "identity": {"tenant_id": "t", "client_id": "a", "client_secret": "right"},
        },
        "WORKERS": 1,
    }
    memory = {"BACKEND": "delivery.providers.memory.MemoryProvider"}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": {"default": memory, "graph": graph}}
    make_readers(mailing_list, 5)
    campaign = make_campaign(mailing_list, clock(), provider="graph")
    coordinate(clock)
    campaign.refresh_from_db()
    return campaign


def work(graph_world, clock, *, provider=None, alias="graph", **options):
    """A slice in emulated time: where the worker would wait, the clock goes on."""
    provider = provider or graph_world.provider(mailbox=FROM, **options)
    worker = make_worker(clock, provider, alias)

    async def wait_for(moment, end):
        if moment is None or moment > end or moment - clock() > PATIENCE:
            return False
        clock.now = max(clock(), moment)
        return True

    worker._wait_for = wait_for
    return asyncio.run(worker.run_slice())


def rest_and_work(graph_world, clock, times=12, **options):
    """Minutes pass; the coordinator starts workers as they are needed."""
    for _ in range(times):
        clock.advance(minutes=1)
        if coordinate(clock).get("graph"):
            work(graph_world, clock, **options)


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("visible_after", [3, 90], ids=["soon visible", "late visible"])
def test_06_08_a_doubt_that_sent_items_knows_is_settled_as_sent(
    graph_world, campaign, clock, visible_after
):
    graph_world.emulator.visible_after = timedelta(seconds=visible_after)
    graph_world.emulator.faults = [
        Fault("sendMail", Answer.error(503, "CommandConcurrencyLimitReached"), done=True)
    ]
    work(graph_world, clock)
    assert statuses(campaign) == {"unconfirmed": 1, "queued": 4}
    rest_and_work(graph_world, clock)
    assert statuses(campaign) == {"sent": 5}
    assert len(graph_world.emulator.delivered) == 5
    (resolution,) = Resolution.objects.all()
    assert resolution.means == Resolution.Means.EVIDENCE
    assert "Sent Items" in resolution.because


def test_06_a_doubt_without_a_trace_is_held_after_ten_minutes_and_may_be_sent_again(
    graph_world, campaign, clock
):
    graph_world.emulator.faults = [Fault("sendMail", Answer.error(504, "UnknownError"))]
    work(graph_world, clock)
    (doubt,) = Delivery.objects.filter(status="unconfirmed")
    rest_and_work(graph_world, clock, 8)
    again = Delivery.objects.filter(may_be_sent_again(delivery_settings()))
    assert doubt not in again.filter(status="unconfirmed")
    rest_and_work(graph_world, clock, 4)
    assert statuses(campaign) == {"sent": 4, "unconfirmed": 1}
    assert list(again.filter(status="unconfirmed")) == [doubt]
    looked = len(graph_world.emulator.requests("GET"))
    rest_and_work(graph_world, clock, 5)
    assert len(graph_world.emulator.requests("GET")) == looked


def test_07_nobody_looks_for_a_doubt_in_total_silence(graph_world, campaign, clock):
    graph_world.emulator.faults = [
        Fault("sendMail", Answer.error(504, "UnknownError"), done=True),
        Fault("sendMail", Answer.error(429, "ErrorTooManyObjectsOpened")),
    ]
    work(graph_world, clock)
    clock.advance(seconds=31)
    work(graph_world, clock)
    state = limits.state_of("graph")
    assert state.rule == "total silence"
    assert state.paused_until == clock() + timedelta(minutes=35)
    before = len(graph_world.emulator.journal)
    for _ in range(6):
        clock.advance(minutes=5)
        assert "graph" not in coordinate(clock)
        work(graph_world, clock)
    assert len(graph_world.emulator.journal) == before
    clock.advance(minutes=4)
    rest_and_work(graph_world, clock, 3)
    assert statuses(campaign) == {"sent": 5}


def test_09_a_worker_that_died_between_202_and_commit_leaves_a_doubt_that_is_found(
    graph_world, campaign, clock
):
    class Killed(BaseException):
        """As SIGKILL: nothing of the worker runs any more."""

    real = graph_world.provider(mailbox=FROM)

    async def send(message):
        await type(real).send(real, message)
        raise Killed

    real.send = send
    with pytest.raises(BaseException) as caught:
        work(graph_world, clock, provider=real)
    assert "Killed" in repr(caught.value) or "Killed" in repr(caught.value.__dict__)
    assert len(graph_world.emulator.delivered) == 1
    clock.advance(minutes=2)
    coordinate(clock)
    rest_and_work(graph_world, clock, 14)
    counted = statuses(campaign)
    assert len(graph_world.emulator.delivered) == counted["sent"]
    assert counted["sent"] + counted.get("unconfirmed", 0) == 5
    assert Resolution.objects.filter(means="evidence").count() == 1


def test_09_where_nobody_may_look_the_doubt_stays_and_nothing_is_sent_again(
    graph_world, campaign, clock
):
    graph_world.emulator.may_read = False
    graph_world.emulator.faults = [Fault("sendMail", drop=httpx.ReadTimeout, done=True)]
    work(graph_world, clock)
    rest_and_work(graph_world, clock)
    assert statuses(campaign) == {"sent": 4, "unconfirmed": 1}
    (doubt,) = Delivery.objects.filter(status="unconfirmed")
    assert doubt.due_at == CANNOT_LOOK
    assert not limits.state_of("graph").stopped


def test_in_draft_mode_a_doubt_ends_sent_exactly_once_though_it_had_not_left(
    graph_world, campaign, clock
):
    graph_world.emulator.faults = [Fault("/send", Answer.error(504, "UnknownError"))]
    work(graph_world, clock, mode="draft")
    rest_and_work(graph_world, clock, mode="draft")
    assert statuses(campaign) == {"sent": 5}
    assert len(graph_world.emulator.delivered) == 5


def test_22_a_doubt_whose_message_id_was_replaced_is_looked_for_by_the_new_one(
    graph_world, campaign, clock
):
    graph_world.emulator.keeps_message_id = False
    graph_world.emulator.faults = [
        Fault("/send", Answer.error(504, "UnknownError"), done=True),
        Fault("/send", Answer.error(504, "UnknownError"), skip=1),
    ]
    work(graph_world, clock, mode="draft")
    rest_and_work(graph_world, clock, mode="draft")
    assert statuses(campaign) == {"sent": 5}
    assert len(graph_world.emulator.delivered) == 5
    given = {letter.message_id for letter in graph_world.emulator.delivered}
    assert set(deliveries_of(given)) == given


def test_one_bad_minute_makes_one_doubt_and_not_a_wave_of_them(graph_world, campaign, clock):
    graph_world.emulator.faults = [Fault("sendMail", Answer.error(503, "X"), times=99)]
    work(graph_world, clock)
    assert statuses(campaign) == {"unconfirmed": 1, "queued": 4}
    state = limits.state_of("graph")
    assert state.paused_until > clock()
    assert not state.stopped


def test_a_look_that_nobody_answers_proves_nothing_and_is_made_again(graph_world, campaign, clock):
    graph_world.emulator.faults = [
        Fault("sendMail", Answer.error(504, "UnknownError"), done=True),
        Fault("sentitems", drop=httpx.ReadTimeout, times=2),
        Fault("sentitems", Answer.error(429, "TooManyRequests", "", retry_after="90")),
    ]
    work(graph_world, clock)
    rest_and_work(graph_world, clock, 15)
    assert statuses(campaign) == {"sent": 5}


FAULTS = [
    lambda done: {"answer": Answer.error(503, "CommandConcurrencyLimitReached"), "done": done},
    lambda done: {"answer": Answer.error(504, "UnknownError"), "done": done},
    lambda done: {"answer": Answer.error(500, "ErrorInternalServerError"), "done": done},
    lambda done: {"drop": httpx.ReadTimeout, "done": done},
    lambda done: {"drop": httpx.RemoteProtocolError, "done": done},
    lambda done: {"drop": httpx.ConnectError},
    lambda done: {"answer": Answer.error(429, "TooManyRequests", "", retry_after="7")},
    lambda done: {"answer": Answer.error(404, "ErrorNonExistentMailbox")},
    lambda done: {"answer": Answer.error(429, "ErrorTooManyObjectsOpened")},
    lambda done: {"answer": Answer(200), "done": done},
]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_random_faults_of_all_kinds_each_letter_leaves_once_or_is_listed_as_in_doubt(
    graph_world, campaign, mailing_list, clock, seed
):
    dice = Random(seed)
    graph_world.emulator.visible_after = timedelta(seconds=dice.choice([0, 20, 200]))
    make_readers(mailing_list, 80, "more")
    larger = make_campaign(mailing_list, clock(), name="Large", provider="graph")
    coordinate(clock)
    emulator = graph_world.emulator
    for _ in range(600):
        if dice.random() < 0.3:
            fault = dice.choice(FAULTS)(dice.random() < 0.5)
            emulator.faults = [Fault("sendMail", skip=dice.randrange(3), **fault)]
        rest_and_work(graph_world, clock, 1)
        left = Delivery.objects.filter(status__in=["queued", "claimed", "sending", "deferred"])
        if not left.exists():
            break
    emulator.faults = []
    rest_and_work(graph_world, clock, 50)
    counted = statuses(larger)
    assert set(counted) <= {"sent", "unconfirmed"}
    assert sum(counted.values()) == 85
    sent = set(Delivery.objects.filter(status="sent").values_list("campaign_id", "rcpt_to"))
    left = [(parsed(one.content)["Message-ID"], one.recipients[0]) for one in emulator.delivered]
    assert len(set(left)) == len(left) == len(sent)
    assert {address for _id, address in left} == {address for _campaign, address in sent}
    # Nobody who got the letter is listed as in doubt, and nobody's address was marked.
    for doubt in Delivery.objects.filter(status="unconfirmed"):
        assert message_id_of(doubt.id, doubt.campaign_id) not in {own for own, _ in left}
    assert not Suppression.objects.exists()
