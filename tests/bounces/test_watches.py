"""Calls of Microsoft Graph bring a poll forward, and that is all they do."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from django.test import Client
from django.utils import timezone
from django_q.models import OrmQ

from bounces import watches
from bounces.mailboxes.graph import GraphMailbox
from bounces.models import Bounce, MailboxState, ReceivedMail, Watch
from bounces.poller import poll
from bounces.tasks import keep_watching
from bounces.watches import GATHER, LIFE, keep
from delivery import mailboxes
from delivery.providers.graph_http import ALLOWANCE
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_graph_mailbox import mailbox_of
from tests.bounces.test_graph_mailbox import polled as polled
from tests.delivery.conftest import Clock
from tests.delivery.graph_world import MAILBOX, World
from tests.emulators.graph_subscriptions import CHALLENGE, Heard

pytestmark = pytest.mark.django_db

URL = "/bounces/notifications"
SITE = "https://news.example.org"


@pytest.fixture
def world(settings) -> World:
    """Not the fixed moment of other tests: a view knows the present only."""
    settings.BOUNCES = settings.BOUNCES | {"NOTIFICATION_URL": SITE}
    return World(Clock(timezone.now()))


@pytest.fixture
def watched(polled: World, client: Client) -> World:
    """The emulator calls our endpoint, and watches both folders."""
    polled.heard = []

    def tell(url: str, body: bytes) -> Heard:
        assert url.startswith(SITE + URL)
        answer = client.post(url.removeprefix(SITE), body, content_type="application/json")
        heard = Heard(answer.status_code, answer["Content-Type"], answer.content)
        polled.heard.append(heard)
        return heard

    polled.emulator.subscriptions.tell = tell
    assert keep("default", polled.clock()) == "default: 2 made, 0 renewed"
    drop_tasks()
    return polled


def drop_tasks() -> None:
    OrmQ.objects.all().delete()
    MailboxState.objects.update(wanted_at=None)


def subscription(world: World, place: str = "inbox") -> dict:
    key = Watch.objects.get(place=place).key
    return world.emulator.subscriptions.by_id[key]


def call(client: Client, body: bytes) -> int:
    return client.post(URL, body, content_type="application/json").status_code


def arrive(world: World, *letters) -> None:
    for letter in letters:
        raw = report(group(letter.rcpt_to), delivered_to=return_path(letter))
        world.emulator.receive(MAILBOX, raw)


# ---------------------------------------------------------------------------------- the endpoint


def test_the_handshake_answers_with_the_decoded_challenge_as_plain_text(client, db) -> None:
    answer = client.post(f"{URL}?validationToken=Validation%3a+Testing%20%3Cscript%3E")
    assert (answer.status_code, answer.content) == (200, b"Validation: Testing <script>")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"


def test_a_challenge_of_any_length_is_answered_with_a_kilobyte_of_it(client, db) -> None:
    assert len(client.post(f"{URL}?validationToken={'x' * 5000}").content) == 1024


def test_a_challenge_is_answered_to_a_post_only(client, db) -> None:
    assert client.get(f"{URL}?validationToken=x").status_code == 405


def test_a_genuine_call_queues_one_poll_in_some_seconds(watched: World, deliver, client) -> None:
    before = timezone.now()
    arrive(watched, deliver())
    assert [heard.status for heard in watched.heard[-1:]] == [202]
    (task,) = OrmQ.objects.all()
    assert task.func() == "bounces.tasks.poll_mailbox"
    # The broker hands a task out when its lock is over.
    assert task.lock > before + timedelta(seconds=GATHER.total_seconds() - 1)


def test_a_burst_of_calls_queues_one_poll(watched: World, client, django_assert_max_num_queries):
    body = watched.emulator.subscriptions.notification(subscription(watched))
    many = json.dumps({"value": json.loads(body)["value"] * 200}).encode()
    with django_assert_max_num_queries(12):
        assert call(client, many) == 202
    for _ in range(20):
        call(client, body)
    assert OrmQ.objects.count() == 1


def test_when_the_gathering_is_over_the_next_call_queues_another_poll(watched: World, client):
    body = watched.emulator.subscriptions.notification(subscription(watched))
    call(client, body)
    MailboxState.objects.update(wanted_at=timezone.now() - timedelta(seconds=1))
    call(client, body)
    assert OrmQ.objects.count() == 2


@pytest.mark.parametrize("changes", [{"clientState": "wrong"}, {"clientState": ""},
    {"clientState": None}, {"clientState": "\ud800"}, {"subscriptionId": "unknown"},
    {"subscriptionId": 7}, {"subscriptionId": "\0"}, {"subscriptionId": "\ud800"}])  # fmt: skip
def test_a_call_without_the_secret_does_nothing_and_learns_nothing(
    watched: World, client, changes: dict
) -> None:
    before = list(Watch.objects.values())
    one = subscription(watched)
    for event in ("", "missed", "subscriptionRemoved", "reauthorizationRequired"):
        body = watched.emulator.subscriptions.notification(one, **changes, lifecycleEvent=event)
        assert call(client, body) == 202, event
        assert OrmQ.objects.count() == 0, event
        assert list(Watch.objects.values()) == before, event


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"value": 7}', b'{"value": [7, {}]}',
    b"[" * 100_000, b"\xff\xfe", b'{"value": []}' + b" " * 2_000_000])  # fmt: skip
def test_nonsense_is_answered_like_everything_else(watched: World, client, body: bytes) -> None:
    assert call(client, body) == 202
    assert OrmQ.objects.count() == 0


def test_the_secret_is_nowhere_in_the_database(watched: World) -> None:
    secret = subscription(watched)["clientState"]
    assert len(secret) >= 32
    assert secret not in str(list(Watch.objects.values()))


def test_what_a_call_says_of_mails_is_not_believed(watched: World, client, now) -> None:
    """Only its secret counts: the resource is neither asked for nor stored."""
    one = subscription(watched)
    forged = {"resource": "https://evil.example/x", "resourceData": {"id": "../../evil"}}
    call(client, watched.emulator.subscriptions.notification(one, **forged))
    poll("default", timezone.now())
    assert not watched.emulator.requests("evil")


# ---------------------------------------------------------------------------------- loss


def test_lost_notifications_lose_nothing(watched: World, deliver: Deliver) -> None:
    """A fiftieth is always lost, and for hours all are: the poll of each minute finds the mails."""
    dice, tell = Random(1), watched.emulator.subscriptions.tell
    lost: list[int] = []

    def tell_some(url: str, body: bytes) -> Heard | None:
        outage = 10 <= len(ReceivedMail.objects.values("pk")) < 30
        if outage or dice.random() < 0.02:
            lost.append(1)
            return None
        return tell(url, body)

    watched.emulator.subscriptions.tell = tell_some
    letters = [deliver(f"r{number}@example.net") for number in range(60)]
    now = timezone.now()
    for minute in range(12):
        arrive(watched, *letters[minute * 5 : minute * 5 + 5])
        poll("default", now + timedelta(minutes=minute))
    assert len(lost) >= 20
    assert Bounce.objects.filter(counted=True).count() == 60
    assert ReceivedMail.objects.count() == 60


def test_missed_calls_are_made_up_for_by_a_poll(watched: World) -> None:
    watched.emulator.subscriptions.lifecycle("missed")
    assert OrmQ.objects.count() == 1


def test_a_removed_subscription_is_made_again_and_followed_by_a_poll(watched: World) -> None:
    watched.emulator.subscriptions.lifecycle("subscriptionRemoved")
    assert (Watch.objects.count(), OrmQ.objects.count()) == (0, 1)
    drop_tasks()
    assert keep("default", watched.clock()) == "default: 2 made, 0 renewed"
    assert OrmQ.objects.count() == 1
    assert len(watched.emulator.subscriptions.by_id) == 2


def test_an_authorisation_that_ends_is_renewed_by_the_next_round(watched: World) -> None:
    assert keep("default", watched.clock()) == "default: watched"
    watched.emulator.subscriptions.lifecycle("reauthorizationRequired")
    assert OrmQ.objects.count() == 0
    assert keep("default", timezone.now()) == "default: 0 made, 2 renewed"
    assert len(watched.emulator.requests("PATCH")) == 2


# ---------------------------------------------------------------------------------- renewal


def test_watches_are_renewed_at_half_their_life_and_not_before(watched: World) -> None:
    now = watched.clock()
    assert keep("default", now + LIFE / 2 - timedelta(minutes=1)) == "default: watched"
    watched.clock.now = now + LIFE / 2
    assert keep("default", watched.clock()) == "default: 0 made, 2 renewed"
    ends = {one["expirationDateTime"] for one in watched.emulator.subscriptions.by_id.values()}
    assert min(map(datetime.fromisoformat, ends)) > now + LIFE
    assert keep("default", watched.clock()) == "default: watched"


def test_a_watch_that_is_gone_over_there_is_made_anew(watched: World) -> None:
    watched.emulator.subscriptions.by_id.clear()
    watched.clock.now += LIFE / 2
    assert keep("default", watched.clock()) == "default: 2 made, 0 renewed"
    assert Watch.objects.count() == len(watched.emulator.subscriptions.by_id) == 2
    assert OrmQ.objects.count() == 1


def test_a_watch_that_has_ended_is_made_anew(watched: World) -> None:
    watched.clock.now += LIFE + timedelta(days=1)
    assert keep("default", watched.clock()) == "default: 2 made, 0 renewed"


def test_an_address_that_cannot_be_reached_leaves_the_polls_as_they_are(polled, deliver) -> None:
    polled.emulator.subscriptions.tell = lambda url, body: Heard(502, "text/html", b"Bad gateway")
    assert "not watched" in keep("default", polled.clock())
    assert Watch.objects.count() == 0
    arrive(polled, deliver())
    assert poll("default", timezone.now()).verdicts == {"bounce": 1}


def test_the_silence_of_the_mailbox_holds_for_its_watches_too(polled: World) -> None:
    turn = mailboxes.ask(MAILBOX, ALLOWANCE, polled.clock())
    mailboxes.done(MAILBOX, turn, polled.clock(), "429 ErrorTooManyObjectsOpened")
    assert "left alone" in keep("default", polled.clock())
    assert not polled.emulator.requests("subscriptions")


def test_without_an_address_nobody_is_asked_to_call(settings, polled: World) -> None:
    settings.BOUNCES = settings.BOUNCES | {"NOTIFICATION_URL": ""}
    assert keep_watching() == "no NOTIFICATION_URL in the settings"
    assert not polled.emulator.requests("subscriptions")


def test_a_mailbox_that_cannot_call_is_polled_as_ever(settings, tmp_path: Path, world) -> None:
    assert keep("default", timezone.now()) == "default: cannot call"


def test_a_folder_that_is_read_no_more_is_watched_no_more(watched, monkeypatch) -> None:
    def inbox_only(self: object) -> GraphMailbox:
        return mailbox_of(watched, folders=["inbox"])

    monkeypatch.setattr("bounces.conf.MailboxSettings.make", inbox_only)
    assert keep("default", watched.clock()) == "default: watched"
    assert [watch.place for watch in Watch.objects.all()] == ["inbox"]


def test_the_challenge_of_a_new_watch_passes_through_our_endpoint(watched: World) -> None:
    handshakes = [heard for heard in watched.heard if heard.status == 200]
    assert {heard.body.decode() for heard in handshakes} == {CHALLENGE}
    assert len(handshakes) == 4
    assert timedelta(minutes=10_080) >= watches.LIFE


def test_24_whatever_becomes_of_the_calls_each_report_is_found_once(watched, deliver, client):
    """Wrong secret, twice, two hundred at once, none for hours, no watch left: in one story."""
    one = subscription(watched)
    letters = [deliver(f"r{number}@example.net") for number in range(12)]
    body = watched.emulator.subscriptions.notification(one)
    burst = json.dumps({"value": json.loads(body)["value"] * 200}).encode()
    forged = watched.emulator.subscriptions.notification(one, clientState="wrong")
    arrive(watched, *letters[:4])
    for told in (forged, body, body, burst):
        assert call(client, told) == 202
    assert OrmQ.objects.count() == 1
    now = timezone.now()
    assert poll("default", now).verdicts == {"bounce": 4}
    drop_tasks()

    watched.emulator.subscriptions.tell = lambda url, body: None
    for hour in range(1, 4):
        arrive(watched, letters[3 + hour])
        assert poll("default", now + timedelta(hours=hour)).verdicts == {"bounce": 1}
    assert OrmQ.objects.count() == 0
    assert Bounce.objects.filter(counted=True).count() == ReceivedMail.objects.count() == 7


def test_24_a_call_into_the_silence_of_the_mailbox_is_answered_and_only_remembered(
    watched, deliver, client
):
    now = watched.clock()
    turn = mailboxes.ask(MAILBOX, ALLOWANCE, now)
    mailboxes.done(MAILBOX, turn, now, "429 ErrorTooManyObjectsOpened")
    watched.emulator.journal.clear()
    arrive(watched, deliver())
    assert watched.heard[-1].status == 202
    assert poll("default", timezone.now(), at_once=True).rest
    assert not watched.emulator.journal
    watched.clock.advance(minutes=36)
    assert poll("default", now + timedelta(minutes=36)).verdicts == {"bounce": 1}
