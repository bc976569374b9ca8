"""A mailbox that several use: nobody speaks into its silence, and all share what Microsoft allows.

Scenario 7 as the whole engine lives it; what the provider alone does is in test_graph_provider.
"""
# ruff: noqa: F811 (fixtures that are imported)

import asyncio
from datetime import timedelta

import httpx
import pytest

from delivery import limits, mailboxes, setup_test
from delivery.bridge import Bridge
from delivery.conf import delivery_settings
from delivery.mailboxes import MailboxRestsError, ask, done, request, resting_until
from delivery.models import Alert, MailboxRequest, ProviderState, QuotaWindow
from delivery.outcomes import Accepted, Phase, Reply, Unavailable
from delivery.providers.base import Allowance, Rest, Turn
from delivery.providers.graph_http import ALLOWANCE
from delivery.providers.smtp import SMTPProvider
from tests.delivery.conftest import coordinate, make_campaign, make_readers, statuses
from tests.delivery.graph_world import (
    letter,
    world,  # noqa: F401
)
from tests.delivery.test_resolution import FROM, graph_world, rest_and_work, work  # noqa: F401
from tests.emulators.graph import Answer, Fault

pytestmark = pytest.mark.django_db(transaction=True)

MINUTES_35 = timedelta(minutes=35)
IDENTITY = {"tenant_id": "t", "client_id": "a", "client_secret": "right"}
SILENCE = Answer.error(429, "ErrorTooManyObjectsOpened", "Too many concurrent connections opened.")
SMALL = Allowance("graph", 2, 5, timedelta(minutes=10), 1000, timedelta(minutes=5))


@pytest.fixture(autouse=True)
def providers(settings):
    """One mailbox as three providers, and another one."""
    graph = {
        "BACKEND": "delivery.providers.graph.GraphProvider",
        "OPTIONS": {"mailbox": FROM.title(), "identity": IDENTITY},
        "WORKERS": 1,
    }
    smtp = {
        "BACKEND": "delivery.providers.smtp.SMTPProvider",
        "OPTIONS": {"host": "127.0.0.1", "port": 9, "username": FROM, "identity": IDENTITY},
    }
    elsewhere = graph | {"OPTIONS": graph["OPTIONS"] | {"mailbox": "other@example.org"}}
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": settings.DELIVERY["PROVIDERS"]
        | {"graph": graph, "again": graph, "smtp": smtp, "elsewhere": elsewhere}
    }


def campaign_through(alias, mailing_list, clock, readers=3):
    make_readers(mailing_list, readers)
    campaign = make_campaign(mailing_list, clock(), provider=alias)
    coordinate(clock)
    return campaign


def fall_silent(clock, mailbox=FROM):
    turn = ask(mailbox, ALLOWANCE, clock())
    done(mailbox, turn, clock(), "429 ErrorTooManyObjectsOpened")


# ------------------------------------------------------------------ silence


def test_07_one_users_silence_is_everybodys_and_lasts_across_restarts(
    graph_world, mailing_list, clock
):
    """Workers are new objects here for each slice: only the database remembers."""
    campaign = campaign_through("graph", mailing_list, clock)
    graph_world.emulator.faults = [Fault("sendMail", SILENCE, skip=1)]
    work(graph_world, clock)
    until = resting_until(FROM, clock())
    assert until == clock() + MINUTES_35
    before = len(graph_world.emulator.journal)
    again = make_campaign(mailing_list, clock(), name="June", provider="again")
    while clock() < until - timedelta(minutes=7):
        clock.advance(minutes=7)
        assert not coordinate(clock).keys() & {"graph", "again", "smtp"}
        work(graph_world, clock)
        report = setup_test.run(
            delivery_settings().providers["again"], FROM, FROM, clock,
            provider=graph_world.provider(mailbox=FROM),
        )  # fmt: skip
        assert "Resting until" in report.warnings[0]
        with pytest.raises(MailboxRestsError) as caught, request(FROM, ALLOWANCE, clock):
            raise AssertionError("a reader of bounces may not read")
        assert caught.value.until == until
    assert len(graph_world.emulator.journal) == before
    clock.advance(minutes=6)
    rest_and_work(graph_world, clock, 3)
    assert statuses(campaign) == {"sent": 3}
    assert statuses(again)["queued"] == 3
    assert graph_world.emulator.silence_broken == 0


def test_07_a_worker_that_holds_a_letter_when_the_silence_begins_asks_nothing(
    graph_world, mailing_list, clock
):
    campaign = campaign_through("again", mailing_list, clock)
    fall_silent(clock)
    # As if this slice had looked at the provider's state a moment before.
    ProviderState.objects.update(paused_until=None)
    work(graph_world, clock, alias="again")
    assert graph_world.emulator.journal == []
    assert statuses(campaign) == {"queued": 3}
    assert limits.state_of("again").paused_until == resting_until(FROM, clock())


def test_07_smtp_as_the_same_mailbox_does_not_even_connect(clock):
    fall_silent(clock)
    provider = SMTPProvider("127.0.0.1", 9, username=FROM.upper(), identity=IDENTITY)
    assert provider.mailbox == FROM

    async def run():
        async with Bridge() as bridge:
            mailboxes.guard(provider, bridge, clock)
            await provider.open()
            return await provider.send(letter())

    outcome = asyncio.run(run())
    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after == MINUTES_35
    assert "resting until" in outcome.reply.text


def test_07_a_request_that_slips_into_the_silence_lets_it_begin_anew(clock):
    slow = ask(FROM, None, clock())
    fall_silent(clock)
    clock.advance(minutes=3)
    done(FROM, slow, clock())
    assert resting_until(FROM, clock()) == clock() + MINUTES_35
    assert limits.state_of("graph").paused_until == clock() + MINUTES_35


def test_07_several_refusals_of_one_moment_are_one_silence(clock):
    turns = [ask(FROM, ALLOWANCE, clock()) for _ in range(3)]
    for turn in turns:
        done(FROM, turn, clock(), "429")
    assert resting_until(FROM, clock()) == clock() + MINUTES_35
    assert not Alert.objects.exists()


def test_07_a_second_silence_within_a_day_lasts_twice_as_long_and_a_person_is_told(clock):
    fall_silent(clock)
    clock.advance(hours=2)
    fall_silent(clock)
    assert resting_until(FROM, clock()) == clock() + 2 * MINUTES_35
    coordinate(clock)
    alert = Alert.objects.get(resolved_at=None)
    assert FROM in alert.title
    clock.advance(minutes=71)
    coordinate(clock)
    assert not Alert.objects.filter(resolved_at=None).exists()
    clock.advance(days=2)
    fall_silent(clock)
    assert resting_until(FROM, clock()) == clock() + MINUTES_35


def test_07_no_person_can_end_a_silence_early(clock):
    fall_silent(clock)
    assert not limits.resume("graph", clock())
    assert limits.closed_until(limits.state_of("graph"), clock()) == clock() + MINUTES_35


def test_07_other_mailboxes_go_on(clock):
    fall_silent(clock)
    assert resting_until("other@example.org", clock()) is None
    assert limits.closed_until(limits.state_of("elsewhere"), clock()) is None
    assert isinstance(ask("other@example.org", ALLOWANCE, clock()), Turn)


def test_07_after_the_rest_comes_one_look_then_one_letter_and_then_as_ever(
    graph_world, mailing_list, clock
):
    campaign = campaign_through("graph", mailing_list, clock)
    fall_silent(clock)
    clock.advance(minutes=36)
    coordinate(clock)
    work(graph_world, clock)
    asked = [e.method for e in graph_world.emulator.requests("/users/")]
    assert asked == ["GET", "POST", "POST", "POST"]
    assert statuses(campaign) == {"sent": 3}


def test_07_while_the_first_request_after_the_rest_is_under_way_nobody_else_asks(clock):
    fall_silent(clock)
    clock.advance(minutes=36)
    first = ask(FROM, ALLOWANCE, clock())
    assert isinstance(first, Turn)
    assert first.is_first
    assert isinstance(ask(FROM, None, clock()), Rest)
    done(FROM, first, clock())
    second = ask(FROM, ALLOWANCE, clock())
    assert isinstance(second, Turn)
    assert not second.is_first
    assert isinstance(ask(FROM, ALLOWANCE, clock()), Rest)
    done(FROM, second, clock())
    assert all(isinstance(ask(FROM, ALLOWANCE, clock()), Turn) for _ in range(3))


def test_07_when_the_look_after_the_rest_meets_trouble_no_letter_leaves(
    graph_world, mailing_list, clock
):
    campaign = campaign_through("graph", mailing_list, clock)
    fall_silent(clock)
    clock.advance(minutes=36)
    graph_world.emulator.faults = [Fault("GET", drop=httpx.ReadTimeout)]
    work(graph_world, clock)
    assert graph_world.emulator.requests("sendMail") == []
    assert statuses(campaign) == {"queued": 3}
    assert not limits.state_of("graph").stopped


# ------------------------------------------------------------------ what all users share


def test_03_all_users_of_a_mailbox_together_stay_within_four_requests(clock):
    turns = [ask(FROM, ALLOWANCE, clock()) for _ in range(4)]
    assert all(isinstance(turn, Turn) for turn in turns)
    fifth = ask(FROM.upper(), ALLOWANCE, clock())
    assert isinstance(fifth, Rest)
    assert fifth.wait < timedelta(seconds=1)
    assert isinstance(ask("other@example.org", ALLOWANCE, clock()), Turn)
    done(FROM, turns[0], clock())
    assert isinstance(ask(FROM, ALLOWANCE, clock()), Turn)


def test_03_workers_and_a_reader_at_once_never_show_a_fifth_request(world):
    """Two providers that would each have three under way, and a reader, on the strict emulator."""
    world.emulator.latency = 0.01

    def sender():
        provider = world.provider()
        provider._mailbox.at_once = 3
        return provider

    async def run():
        async with Bridge() as one, Bridge() as other:
            outcomes = []
            for bridge, first in ((one, 0), (other, 100)):
                provider = sender()
                mailboxes.guard(provider, bridge, world.clock)
                await provider.open()
                outcomes += [provider.send(letter(first + n)) for n in range(8)]
            return await asyncio.gather(*outcomes)

    outcomes = asyncio.run(run())
    assert [type(outcome) for outcome in outcomes] == [Accepted] * 16
    assert world.emulator.requests("sendMail")
    assert all(entry.status == 202 for entry in world.emulator.requests("sendMail"))


def test_05_requests_of_all_kinds_count_until_a_window_after_their_answer(clock):
    for _ in range(5):
        turn = ask(FROM, SMALL, clock())
        clock.advance(seconds=10)
        done(FROM, turn, clock())
    rest = ask(FROM, SMALL, clock())
    assert isinstance(rest, Rest)
    assert rest.wait == timedelta(minutes=10) - timedelta(seconds=40)
    clock.now += rest.wait
    assert isinstance(ask(FROM, SMALL, clock()), Turn)


def test_05_a_large_letter_waits_until_there_is_room_for_its_octets(clock):
    done(FROM, ask(FROM, SMALL, clock(), 900), clock())
    assert isinstance(ask(FROM, SMALL, clock(), 200), Rest)
    small = ask(FROM, SMALL, clock(), 100)
    assert isinstance(small, Turn)
    done(FROM, small, clock())
    clock.advance(minutes=5)
    assert isinstance(ask(FROM, SMALL, clock(), 200), Turn)


def test_a_request_whose_process_was_killed_holds_its_place_for_five_minutes(clock):
    assert all(isinstance(ask(FROM, SMALL, clock()), Turn) for _ in range(2))
    assert isinstance(ask(FROM, SMALL, clock()), Rest)
    clock.advance(minutes=5)
    assert isinstance(ask(FROM, SMALL, clock()), Turn)


def test_requests_that_count_no_more_are_forgotten(clock):
    done(FROM, ask(FROM, SMALL, clock()), clock())
    clock.advance(minutes=30)
    ask(FROM, SMALL, clock())
    assert MailboxRequest.objects.count() == 1


def test_a_reader_says_which_answer_began_the_silence(clock):
    with request(FROM, ALLOWANCE, clock) as under_way:
        assert not under_way.is_first
        under_way.silence = "500 ErrorMoveCopyFailed"
    assert resting_until(FROM, clock()) == clock() + MINUTES_35


def test_a_reader_that_fails_gives_its_place_back(clock):
    with pytest.raises(OSError, match="gone"), request(FROM, ALLOWANCE, clock):
        raise OSError("gone")
    assert not MailboxRequest.objects.filter(ended_at=None).exists()


def test_an_smtp_server_that_is_not_microsofts_is_no_mailbox():
    assert SMTPProvider("mail.example.org", username="news", password="x").mailbox == ""
    assert SMTPProvider("smtp.office365.com", username=FROM, password="x").mailbox == FROM


def test_the_settings_know_which_providers_are_one_mailbox():
    known = delivery_settings().providers
    assert {known[alias].mailbox for alias in ("graph", "again", "smtp")} == {FROM}
    assert known["elsewhere"].mailbox == "other@example.org"
    assert known["default"].mailbox == ""


# ------------------------------------------------------------------ a day's quota


def test_16_a_days_quota_closes_all_providers_of_the_mailbox_until_our_log_knows_of_room(
    settings, clock
):
    cap = [{"cap": "10000/day", "scope": f"mailbox:{FROM}"}]
    providers = settings.DELIVERY["PROVIDERS"]
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": {
            alias: entry | ({"LIMITS": cap} if alias in {"graph", "smtp"} else {})
            for alias, entry in providers.items()
        }
    }
    (limit,) = delivery_settings().providers["graph"].limits
    QuotaWindow.objects.create(key=limit.key, at=clock() - timedelta(hours=18), permits=9000)
    reply = Reply(Phase.HTTP, 429, "ErrorSubmissionQuotaExceeded")
    limits.pause("smtp", Unavailable(reply, timedelta(days=1), rule="daily quota"), clock())
    until = clock() + timedelta(hours=6, minutes=5)
    for alias in ("graph", "smtp", "again"):
        assert limits.closed_until(limits.state_of(alias), clock()) == until
    assert limits.closed_until(limits.state_of("elsewhere"), clock()) is None
    # Reading goes on: it is no silence.
    assert resting_until(FROM, clock()) is None
