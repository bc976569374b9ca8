"""A mailbox behind Microsoft Graph: the contract, and what its delta queries do to a poller."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from random import Random
from typing import Any

import httpx
import pytest

from bounces.conf import bounce_settings
from bounces.mailboxes.base import Mailbox, MailboxRestsError, MailGoneError, Resuming
from bounces.mailboxes.graph import GraphMailbox, GraphMailboxError
from bounces.models import Bounce, MailboxState, ReceivedMail, Verdict
from bounces.poller import LEASE, poll
from campaigns.models import Suppression
from delivery import mailboxes
from delivery.limits import closed_until, state_of
from delivery.message import Envelope, OutgoingMessage
from delivery.models import Delivery
from delivery.outcomes import Accepted
from delivery.providers.graph_http import ALLOWANCE
from delivery.providers.http import ForeignHostError
from delivery.providers.microsoft_identity import IdentityError
from delivery.replies.graph import TOTAL_SILENCE
from tests.bounces.conftest import Deliver, group, message_id, report, return_path
from tests.bounces.test_dovecot import Remembered
from tests.contracts.mailbox import MailboxContract, mail
from tests.delivery.conftest import Clock
from tests.delivery.graph_world import MAILBOX, World
from tests.emulators.graph import (
    SILENCE,
    Answer,
    EmulatorWire,
    Fault,
    GraphEmulator,
    item_not_found,
)
from tests.emulators.server import EmulatorServer

DELTA = "/messages/delta"
FORGOTTEN = ["SyncStateNotFound", "syncStateNotFound", "resyncRequired", "SyncStateInvalid"]


@pytest.fixture
def world(now) -> Iterator[World]:
    world = World(Clock(now))
    yield world
    world.emulator.assert_promises()
    # What a reader may do there: look.
    spoken = {e.method for e in world.emulator.requests("/users/") if "sendMail" not in e.path}
    assert spoken <= {"GET"}


def mailbox_of(world: World, **options: Any) -> GraphMailbox:
    options = {
        "mailbox": MAILBOX,
        "token_source": options.pop("identity", None) or world.identity(),
        "transport": EmulatorWire(world.emulator),
        "clock": world.clock,
        "dice": Random(1),
    } | options
    return GraphMailbox(**options)


class TestGraphMailbox(MailboxContract):
    @pytest.fixture(autouse=True)
    def _far_side(self, world: World) -> None:
        self.world = world
        self.store = Remembered()

    def make(self) -> Mailbox:
        mailbox = mailbox_of(self.world)
        mailbox.remember_in(self.store)
        return mailbox

    def deliver(self, raw: bytes) -> None:
        self.world.emulator.receive(MAILBOX, raw)

    def kept(self) -> int:
        return len(self.world.emulator.mailboxes[MAILBOX].items)

    def unreachable(self) -> Mailbox:
        return mailbox_of(self.world, identity=self.world.identity(client_secret="wrong"))


class Reader:
    """Polls as the poller does, without a database: what is taken, and where it goes on."""

    def __init__(self, world: World, **options: Any) -> None:
        self.world, self.options = world, options
        self.store = Remembered()
        self.position = ""
        self.taken: list[bytes] = []

    def poll(self, most: int = 1000, *, commits: bool = True) -> list[bytes]:
        """The mails of one poll, at most ``most``; a poll that is killed does not commit."""
        mailbox = mailbox_of(self.world, **self.options)
        assert isinstance(mailbox, Resuming)
        mailbox.open()
        store = Remembered()
        store.uids = set(self.store.uids)
        mailbox.remember_in(store)
        mailbox.resume_at(self.position)
        uids, raws = [], []
        try:
            for uid in mailbox.uids():
                if len(uids) == most:
                    break
                try:
                    raws.append(mailbox.fetch(uid, 10_000))
                except MailGoneError:
                    continue
                uids.append(uid)
        finally:
            if commits:
                self.position = mailbox.position_after(uids)
                mailbox.done(uids)
                self.store.uids |= set(uids)
                self.taken += raws
            mailbox.close()
        return raws


def receive(world: World, *numbers: int, folder: str = "inbox") -> None:
    for number in numbers:
        world.emulator.receive(MAILBOX, mail(number), folder)


def mails(*numbers: int) -> list[bytes]:
    return [mail(number) for number in numbers]


def test_only_what_came_since_is_listed_the_next_time(world: World) -> None:
    reader = Reader(world)
    receive(world, 1, 2)
    assert reader.poll() == mails(1, 2)
    receive(world, 3)
    fetched = len(world.emulator.requests("$value"))
    assert reader.poll() == mails(3)
    assert len(world.emulator.requests("$value")) == fetched + 1
    assert reader.poll() == []


def test_junk_mail_is_read_too_and_one_folder_after_the_other(world: World) -> None:
    receive(world, 1)
    receive(world, 2, folder="junkemail")
    assert Reader(world).poll() == mails(1, 2)
    asked = [entry.path.split("/")[5] for entry in world.emulator.requests(DELTA)]
    assert asked == sorted(asked)
    assert world.emulator.mailboxes[MAILBOX].most_in_flight == 1


def test_a_mail_that_a_person_moves_between_the_folders_is_not_taken_twice(world: World) -> None:
    reader = Reader(world)
    item = world.emulator.receive(MAILBOX, mail(1), "junkemail")
    assert reader.poll() == mails(1)
    item.folder = "inbox"
    assert reader.poll() == []


def test_many_pages_with_empty_and_repeating_ones_give_each_mail_once(world: World) -> None:
    receive(world, *range(173))
    reader = Reader(world)
    assert sorted(reader.poll()) == sorted(mails(*range(173)))
    assert len(world.emulator.requests(DELTA)) == 7


def test_a_poll_that_runs_out_of_time_goes_on_at_its_page(world: World) -> None:
    receive(world, *range(120))
    reader = Reader(world)
    taken = reader.poll(70)
    world.emulator.journal.clear()
    taken += reader.poll()
    assert sorted(taken) == sorted(mails(*range(120)))
    # The page of which 20 mails were done is asked for again, the one before it is not.
    assert len(world.emulator.requests("inbox/messages/delta")) == 2


def test_a_poll_that_is_killed_before_its_commit_is_repeated(world: World) -> None:
    receive(world, 1, 2, 3)
    reader = Reader(world)
    reader.poll(commits=False)
    assert reader.poll() == mails(1, 2, 3)


@pytest.mark.parametrize("status", [400, 404, 410])
@pytest.mark.parametrize("code", FORGOTTEN)
def test_a_forgotten_link_loses_nothing_and_doubles_nothing(
    world: World, status: int, code: str
) -> None:
    reader = Reader(world)
    receive(world, 1, 2)
    reader.poll()
    receive(world, 3)
    world.emulator.faults.append(Fault(DELTA, Answer.error(status, code)))
    assert reader.poll() == mails(3)
    assert sorted(reader.taken) == mails(1, 2, 3)
    receive(world, 4)
    assert reader.poll() == mails(4)


def test_a_link_that_is_forgotten_in_the_middle_of_a_first_listing_loses_nothing(world) -> None:
    """The newest mail may be listed first: then "two days before the last seen" says nothing."""
    for number in range(7):
        receive(world, *range(number * 20, number * 20 + 20))
        world.clock.advance(hours=23)
    newest_first = dict(reversed(world.emulator.mailboxes[MAILBOX].items.items()))
    world.emulator.mailboxes[MAILBOX].items = newest_first
    reader = Reader(world)
    reader.poll(60)
    world.emulator.feed(MAILBOX, "inbox").forget()
    reader.poll()
    assert sorted(reader.taken) == sorted(mails(*range(140)))


def test_after_a_new_beginning_old_mail_is_not_fetched_again(world: World) -> None:
    reader = Reader(world, first_days=7)
    receive(world, 1)
    reader.poll()
    # Somebody forgot what was done, as the retention of the database may.
    reader.store.uids.clear()
    world.clock.advance(days=3)
    receive(world, 2)
    reader.poll()
    world.clock.advance(days=1)
    receive(world, 3)
    world.emulator.feed(MAILBOX, "inbox").forget()
    assert reader.poll() == mails(3)


def test_links_that_are_forgotten_at_once_are_left_to_the_next_poll(world: World) -> None:
    reader = Reader(world)
    receive(world, 1)
    world.emulator.faults.append(Fault(DELTA, Answer.error(410, "SyncStateNotFound"), times=3))
    with pytest.raises(GraphMailboxError):
        reader.poll()
    assert reader.poll() == mails(1)


def test_mail_from_before_the_first_days_is_left_alone(world: World) -> None:
    receive(world, 1)
    world.clock.advance(days=8)
    receive(world, 2)
    assert Reader(world).poll() == mails(2)


def test_a_mail_that_is_announced_too_early_is_asked_for_again(world: World) -> None:
    reader = Reader(world)
    item = world.emulator.receive(MAILBOX, mail(1))
    receive(world, 2)
    world.emulator.faults.append(Fault(f"{item.id}/$value", item_not_found(), times=2))
    assert reader.poll() == mails(2)
    assert reader.poll() == []
    assert reader.poll() == mails(1)
    assert reader.poll() == []
    assert "AAIn" not in reader.position


def test_a_mail_that_never_comes_is_given_up_after_three_days(world: World) -> None:
    reader = Reader(world)
    item = world.emulator.receive(MAILBOX, mail(1))
    world.emulator.faults.append(Fault(f"{item.id}/$value", item_not_found(), times=99))
    reader.poll()
    world.clock.advance(days=3)
    asked = len(world.emulator.requests("$value"))
    reader.poll()
    assert len(world.emulator.requests("$value")) == asked


def test_an_answer_with_nothing_in_it_is_no_mail_and_the_mail_is_asked_for_again(
    world: World,
) -> None:
    reader = Reader(world)
    item = world.emulator.receive(MAILBOX, mail(1))
    world.emulator.faults.append(Fault(f"{item.id}/$value", Answer(200)))
    with pytest.raises(GraphMailboxError):
        reader.poll()
    assert reader.poll() == mails(1)
    assert reader.poll() == []


def test_what_was_deleted_is_no_mail(world: World) -> None:
    page = {"value": [{"id": "AAgone=", "@removed": {"reason": "deleted"}}]}
    link = (
        f"https://graph.microsoft.com/v1.0/users/{MAILBOX}/mailFolders/inbox{DELTA}?$deltatoken=1"
    )
    world.emulator.faults.append(Fault(DELTA, Answer.of(200, page | {"@odata.deltaLink": link})))
    assert Reader(world, folders=["inbox"]).poll() == []
    assert not world.emulator.requests("$value")


def test_no_token_goes_to_a_link_of_another_host(world: World) -> None:
    for link in (
        "https://evil.example/x",
        "http://graph.microsoft.com/x",
        "https://u@graph.microsoft.com/",
    ):
        page = Answer.of(200, {"value": [], "@odata.nextLink": link})
        world.emulator.faults.append(Fault(DELTA, page))
        with pytest.raises(ForeignHostError):
            Reader(world).poll()


def test_a_page_that_leads_nowhere_is_an_error(world: World) -> None:
    world.emulator.faults.append(Fault(DELTA, Answer.of(200, {"value": []})))
    with pytest.raises(GraphMailboxError, match="neither"):
        Reader(world).poll()


def test_a_throttled_page_keeps_its_link(world: World) -> None:
    receive(world, *range(120))
    reader = Reader(world, folders=["inbox"])
    busy = Answer.error(429, "TooManyRequests", retry_after="3")
    world.emulator.faults.append(Fault(DELTA, busy, skip=2))
    with pytest.raises(MailboxRestsError) as rest:
        reader.poll()
    assert timedelta(seconds=3) <= rest.value.wait <= timedelta(seconds=3.6)
    world.emulator.journal.clear()
    reader.poll()
    assert sorted(reader.taken) == sorted(mails(*range(120)))


def test_an_expired_token_is_replaced_once(world: World) -> None:
    receive(world, 1, 2)
    reader = Reader(world)
    mailbox = mailbox_of(world)
    mailbox.remember_in(Remembered())
    mailbox.open()
    world.clock.advance(hours=2)
    assert len(list(mailbox.uids())) == 2
    world.emulator.revoked |= set(world.emulator.tokens)
    reader.poll()
    world.emulator.revoked |= set(world.emulator.tokens)
    world.emulator.faults.append(
        Fault("$value", Answer.error(401, "InvalidAuthenticationToken"), times=9)
    )
    receive(world, 3)
    with pytest.raises(GraphMailboxError):
        reader.poll()


def test_what_is_refused_tells_which_permission_is_missing(world: World) -> None:
    world.emulator.may_read = False
    with pytest.raises(GraphMailboxError, match=r"Mail\.Read"):
        Reader(world).poll()


def test_no_more_comes_over_the_wire_than_is_kept(now) -> None:
    """On a real socket: the connection is closed in the middle of a large mail."""
    emulator = GraphEmulator(lambda: now, [MAILBOX])
    item = emulator.receive(MAILBOX, mail(1) + b"x" * 30_000_000)
    with EmulatorServer(emulator) as server:
        mailbox = GraphMailbox(
            MAILBOX,
            {"tenant_id": "contoso.example", "client_id": "app", "client_secret": "right",
             "emulator": server.url},
            emulator=server.url,
        )  # fmt: skip
        mailbox.remember_in(Remembered())
        mailbox.open()
        read: list[int] = []
        mailbox._client.event_hooks = {"response": [lambda r: read.append(r)]}
        assert mailbox.fetch(item.id, 1000) == (mail(1) + b"x" * 1000)[:1000]
        assert read[0].num_bytes_downloaded < 1_000_000
        mailbox.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mailbox": "nobody"}, "no address"),
        ({"folders": "inbox"}, "folders"),
        ({"folders": []}, "folders"),
        ({"first_days": -1}, "first_days"),
        ({"identity": None}, "identity is missing"),
        ({"emulator": "https://evil.example"}, "on this machine"),
        ({"base_url": "http://graph.example"}, "https"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_opened(options, message) -> None:
    right = {
        "mailbox": MAILBOX,
        "identity": {"tenant_id": "t", "client_id": "a", "client_secret": "s"},
    }
    with pytest.raises(ValueError, match=message):
        GraphMailbox(**(right | options))


# ---------------------------------------------------------------------------------- the poller


@pytest.fixture
def polled(world: World, settings, monkeypatch) -> World:
    """The mailbox in the settings, beside a provider that sends as the same mailbox."""
    options = {
        "mailbox": MAILBOX,
        "identity": {"tenant_id": "t", "client_id": "a", "client_secret": "s"},
    }
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": settings.DELIVERY["PROVIDERS"]
        | {"graph": {"BACKEND": "delivery.providers.graph.GraphProvider", "OPTIONS": options}}
    }
    settings.BOUNCES = settings.BOUNCES | {
        "MAILBOXES": {
            "default": {"BACKEND": "bounces.mailboxes.graph.GraphMailbox", "OPTIONS": options}
        }
    }
    monkeypatch.setattr("bounces.conf.MailboxSettings.make", lambda self: mailbox_of(world))
    assert bounce_settings().mailboxes["default"].options == options
    return world


def arrive(world: World, *letters: Any) -> None:
    for letter in letters:
        raw = report(group(letter.rcpt_to), delivered_to=return_path(letter))
        world.emulator.receive(MAILBOX, raw)


@pytest.mark.django_db
def test_reports_are_taken_in_and_the_position_is_committed(polled, deliver: Deliver, now) -> None:
    letters = [deliver(f"r{number}@example.net") for number in range(3)]
    arrive(polled, *letters)
    assert poll("default", now).verdicts == {"bounce": 3}
    assert "$deltatoken=" in MailboxState.objects.get().position
    polled.emulator.journal.clear()
    assert poll("default", now).taken == 0
    assert not polled.emulator.requests("$value")


@pytest.mark.django_db
def test_a_letter_that_graph_takes_and_then_reports_back_is_marked_by_its_message_id(
    polled, deliver: Deliver, now
) -> None:
    """Graph sets the return path itself: the report comes to the mailbox that sends, and the token
    of our Message-ID in the returned headers is what says whose letter it was."""
    gone, alive = deliver("gone@example.net"), deliver("alive@example.net")
    polled.emulator.unreachable["gone@example.net"] = "550 5.1.10 RESOLVER.ADR.RecipientNotFound"
    for sent in (gone, alive):
        content = (
            f"From: <{MAILBOX}>\r\nTo: <{sent.rcpt_to}>\r\nMessage-ID: {message_id(sent)}\r\n"
            "Subject: Hello\r\n\r\nGood day.\r\n"
        ).encode()
        outgoing = OutgoingMessage(
            sent.pk, Envelope(MAILBOX, sent.rcpt_to), (content,), message_id(sent)
        )
        (outcome,) = polled.send(outgoing)
        assert isinstance(outcome, Accepted)
    assert poll("default", now).verdicts == {"bounce": 1}
    statuses = dict(Delivery.objects.values_list("rcpt_to", "status"))
    assert statuses == {"gone@example.net": "bounced", "alive@example.net": "sent"}
    assert Suppression.objects.get().address_key == "gone@example.net"


@pytest.mark.django_db
def test_the_position_moves_only_with_the_results(polled, deliver, now, monkeypatch) -> None:
    arrive(polled, deliver())
    seen: list[str] = []

    def breaks(*args: object) -> None:
        seen.append(MailboxState.objects.get().position)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bounces.intake._record", breaks)
        with pytest.raises(KeyboardInterrupt):
            poll("default", now)
    assert seen == [""]
    assert MailboxState.objects.get().position == ""
    assert poll("default", now + LEASE).verdicts == {"bounce": 1}
    assert ReceivedMail.objects.count() == Bounce.objects.count() == 1


@pytest.mark.django_db
def test_a_poller_that_lost_its_lease_moves_no_position(polled, deliver, now, monkeypatch) -> None:
    arrive(polled, deliver())
    fetch = GraphMailbox.fetch

    def overtaken(self: GraphMailbox, uid: str, largest: int) -> bytes:
        MailboxState.objects.update(lease_key="another", position="the other's")
        return fetch(self, uid, largest)

    monkeypatch.setattr(GraphMailbox, "fetch", overtaken)
    poll("default", now)
    assert MailboxState.objects.get().position == "the other's"


@pytest.mark.django_db
def test_after_all_links_are_forgotten_no_report_counts_twice(polled, deliver, now) -> None:
    letters = [deliver(f"r{number}@example.net") for number in range(4)]
    arrive(polled, *letters[:3])
    poll("default", now)
    arrive(polled, letters[3])
    polled.emulator.feed(MAILBOX, "inbox").forget()
    polled.emulator.feed(MAILBOX, "junkemail").forget()
    assert poll("default", now).verdicts == {"bounce": 1}
    assert Bounce.objects.filter(counted=True).count() == 4
    assert not ReceivedMail.objects.exclude(verdict=Verdict.BOUNCE).exists()


@pytest.mark.django_db
def test_the_reader_keeps_the_silence_that_the_sender_began(polled, deliver, now) -> None:
    arrive(polled, deliver())
    polled.emulator.mailboxes[MAILBOX].silent_until = now + SILENCE
    begin_silence_of_the_sender(now)
    for minute in range(0, 35, 5):
        result = poll("default", now + timedelta(minutes=minute), at_once=True)
        assert result.rest
        assert not polled.emulator.journal  # and no token was asked for
    polled.clock.advance(minutes=35)
    assert poll("default", now + TOTAL_SILENCE).verdicts == {"bounce": 1}


def begin_silence_of_the_sender(now) -> None:
    turn = mailboxes.ask(MAILBOX, ALLOWANCE, now)
    mailboxes.done(MAILBOX, turn, now, "500 ErrorMoveCopyFailed")


@pytest.mark.django_db
def test_a_silence_that_the_reader_meets_holds_for_the_sender_too(polled, deliver, now) -> None:
    arrive(polled, deliver())
    silence = Answer.error(429, "ErrorTooManyObjectsOpened", "Too many concurrent connections")
    polled.emulator.faults.append(Fault("$value", silence))
    result = poll("default", now)
    assert (result.error, result.taken) == ("", 0)
    assert closed_until(state_of("graph"), now) >= now + TOTAL_SILENCE
    assert poll("default", now + timedelta(minutes=34)).skipped
    polled.clock.advance(minutes=36)
    assert poll("default", now + timedelta(minutes=36)).verdicts == {"bounce": 1}


@pytest.mark.django_db
def test_a_throttled_mailbox_is_asked_again_when_it_wished_and_nobody_is_alarmed(
    polled, deliver, now
) -> None:
    first, second = deliver("a@example.net"), deliver("b@example.net")
    arrive(polled, first, second)
    polled.emulator.faults.append(
        Fault("$value", Answer.error(429, "TooManyRequests", retry_after="600"), skip=1)
    )
    # What was fetched before is taken in all the same.
    assert poll("default", now).verdicts == {"bounce": 1}
    state = MailboxState.objects.get()
    assert (state.failures, state.last_error[:3]) == (0, "429")
    assert poll("default", now + timedelta(minutes=9)).skipped
    assert poll("default", now + timedelta(minutes=13)).verdicts == {"bounce": 1}


@pytest.mark.django_db
def test_a_wrong_secret_is_a_failure_that_backs_off(polled, now, monkeypatch) -> None:
    wrong = mailbox_of(polled, identity=polled.identity(client_secret="wrong"))
    monkeypatch.setattr("bounces.conf.MailboxSettings.make", lambda self: wrong)
    assert "Invalid client secret provided" in poll("default", now).error
    assert MailboxState.objects.get().failures == 1
    with pytest.raises(IdentityError):
        wrong.open()


def test_a_lost_connection_is_raised_as_it_comes(world: World) -> None:
    receive(world, 1)
    world.emulator.faults.append(Fault(DELTA, drop=httpx.ReadError))
    with pytest.raises(httpx.ReadError):
        Reader(world).poll()


@pytest.mark.django_db
def test_23_pages_in_every_kind_of_trouble_give_each_report_exactly_once(
    polled, deliver: Deliver, now, monkeypatch
) -> None:
    monkeypatch.setattr(
        "bounces.conf.MailboxSettings.make", lambda self: mailbox_of(polled, folders=["inbox"])
    )
    arrive(polled, *(deliver(f"r{number}@example.net") for number in range(4)))
    a, b, c, _d = polled.emulator.feed(MAILBOX, "inbox").look().values()
    gone = {"id": "AAgone=", "@removed": {"reason": "deleted"}}
    folder = f"https://graph.microsoft.com/v1.0/users/{MAILBOX}/mailFolders/inbox{DELTA}"

    def page(link: str, token: str, *items: dict[str, Any]) -> Fault:
        return Fault(DELTA, Answer.of(200, {"value": items, link: f"{folder}?{token}"}))

    last = page("@odata.deltaLink", "$deltatoken=77", b, c, gone)
    polled.emulator.faults += [
        page("@odata.nextLink", "$skiptoken=771.0", a, b),
        page("@odata.nextLink", "$skiptoken=772.0"),
        Fault(DELTA, Answer.error(429, "TooManyRequests", retry_after="3")),
        last,
        page("@odata.deltaLink", "$deltatoken=77", b, c, gone),
        Fault(f"{a['id']}/$value", item_not_found()),
    ]
    # Announced before it can be read, and the third page has to wait.
    assert poll("default", now).verdicts == {"bounce": 1}
    assert "772.0" in MailboxState.objects.get().position

    def breaks(*args: object) -> None:
        raise KeyboardInterrupt

    now += timedelta(minutes=1)
    with monkeypatch.context() as patch:
        patch.setattr("bounces.intake._record", breaks)
        with pytest.raises(KeyboardInterrupt):
            poll("default", now)
    assert "772.0" in MailboxState.objects.get().position
    now += LEASE
    assert poll("default", now).verdicts == {"bounce": 2}
    # From the first page only once: what was left was the third one's.
    assert len(polled.emulator.requests(DELTA)) == 5

    forgotten = Answer.error(410, "SyncStateNotFound", location=f"{folder}?$deltatoken=")
    polled.emulator.faults.append(Fault(DELTA, forgotten))
    now += timedelta(minutes=1)
    assert poll("default", now).verdicts == {"bounce": 1}
    assert {fault.times for fault in polled.emulator.faults} == {0}
    assert Bounce.objects.filter(counted=True).count() == ReceivedMail.objects.count() == 4
