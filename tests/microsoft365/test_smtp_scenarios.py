"""What Exchange does to a sender through SMTP AUTH: scenarios 19, 20 and 22, and the block that
continuous errors bring.

As in test_scenarios.py everything of Pennypost is real and the clock is everybody's; the letters
go by the profile microsoft365-smtp to a server on this host, whose tokens the emulator makes.
After each test the promises are asserted (SMTPSite.assert_promises).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from email import message_from_bytes
from typing import Any

import pytest

from campaigns.models import Campaign
from delivery import limits, slots
from delivery.composing import message_id_of
from delivery.conf import delivery_settings
from delivery.models import Alert, AssignedMessageId, ConnectionSlot, Delivery
from delivery.outcomes import Outcome
from delivery.providers import graph, smtp
from delivery.rates import Connections
from tests.bounces.conftest import group, report
from tests.delivery.conftest import Clock, delivery_to, statuses
from tests.delivery.graph_world import letter
from tests.delivery.test_smtp_xoauth2 import Exchange
from tests.microsoft365.site import BOUNCES, IDENTITY, MAILBOX, Site, campaign_of, settings_for
from tests.smtp_server import At, Drop, Rule, Session, SMTPServer

# Connections, limits and doubts have tests of their own on both (tests/delivery).
pytestmark = pytest.mark.one_database

MINUTES, HOURS = timedelta(minutes=1), timedelta(hours=1)

HOST = "[Hostname=AM0PR10MB1234.eurprd10.prod.outlook.com]"
CONCURRENT = (
    "432 4.3.2 Concurrent connections limit exceeded. Visit "
    f"https://aka.ms/concurrent_sending for more information. {HOST}"
)
THREADS = f"432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded {HOST}"
QUOTA = (
    "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process "
    "message due to a permanent exception with message: the sender's submission quota was exceeded"
)
DENIED = (
    "554 5.2.252 SendAsDenied; news@example.org not allowed to send as other@example.org; "
    "STOREDRV.Submission.Exception:SendAsDeniedException.MapiExceptionSendAsDenied"
)
FULL = (
    "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:"
    "QuotaExceededException.MapiExceptionShutoffQuotaExceeded"
)
BUSY = "Temporary server error. Please try again later"


class Judgement:
    """What Exchange holds against a mailbox: after ERRORS refusals it is blocked, and each try
    begins the block anew. Microsoft publishes neither the number nor the time.

    ``is_wrong``: whether the cause of the refusals is there. ``tries``: of the blocked mailbox.
    """

    ERRORS = 10
    BLOCK = timedelta(hours=24)

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.block = "550 5.2.252 Sender throttled due to continuous send as denied errors."
        self.is_wrong = False
        self.errors = self.tries = 0
        self.blocked_until: datetime | None = None

    def rules(self, refusal: str = DENIED, at: At = At.FINAL_DOT) -> list[Rule]:
        """For the server; it says ``at`` which command that the mailbox is blocked."""
        return [
            Rule(at, self.block, when=lambda session: self.is_blocked()),
            Rule(At.FINAL_DOT, refusal, when=lambda session: self.refuses()),
        ]

    def is_blocked(self) -> bool:
        """Asked with each try."""
        if self.blocked_until is None or self.clock() >= self.blocked_until:
            return False
        self.tries += 1
        self.blocked_until = self.clock() + self.BLOCK
        return True

    def refuses(self) -> bool:
        """Asked with each letter."""
        self.errors += self.is_wrong
        if self.is_wrong and self.errors >= self.ERRORS:
            self.blocked_until = self.clock() + self.BLOCK
        return self.is_wrong


class SMTPSite(Site):
    """The site whose letters go to this server."""

    alias = "smtp"

    def __init__(self, clock: Clock, server: SMTPServer) -> None:
        super().__init__(clock)
        self.server = server
        self.judgement = Judgement(clock)

    def new_provider(self, alias: str) -> Any:
        return delivery_settings().providers[alias].make()

    def seen(self) -> tuple[int, int]:
        """All that the server ever saw of us."""
        return len(self.server.connections), len(self.server.commands)

    def taken(self) -> Counter[str]:
        return Counter(
            str(message_from_bytes(one.content)["Message-ID"]) for one in self.server.accepted
        )

    def assert_promises(self, *, doubled: int = 0) -> None:
        super().assert_promises(doubled=doubled)
        assert set(self.taken().values()) <= {1}, "a letter left twice"
        assert self.server.faults == []
        assert self.server.most_connections <= 3
        assert all(connection.tls for connection in self.server.connections)
        assert not ConnectionSlot.objects.filter(claim_key__isnull=False).exists()
        # Neither did a sender of ours ever ask for what belongs to Graph.
        assert self.emulator.requests("sendMail") == []


@pytest.fixture
def site(
    settings: Any, clock: Clock, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SMTPSite]:
    settings.BASE_URL = "https://news.example.org"
    with SMTPServer(security="starttls", users={MAILBOX: ""}, mechanisms=["XOAUTH2"]) as server:
        site = SMTPSite(clock, server)
        server.judge_token = Exchange(site.emulator)
        options = {
            "mailbox": MAILBOX,
            "identity": IDENTITY,
            "host": server.host,
            "port": server.port,
            "ca_file": str(server.certificate),
        }
        entry = {"PROFILE": "microsoft365-smtp", "OPTIONS": options}
        shared = settings_for()
        settings.DELIVERY = shared | {"PROVIDERS": shared["PROVIDERS"] | {"smtp": entry}}
        settings.BOUNCES = settings.BOUNCES | BOUNCES
        monkeypatch.setattr(smtp, "shared_identity", lambda options: site.identity_of("smtp"))
        monkeypatch.setattr("bounces.conf.MailboxSettings.make", lambda self: site.new_reader())
        yield site
    site.assert_promises()
    graph._mailboxes.clear()


@pytest.fixture
def campaign(site: SMTPSite, clock: Clock, mailing_list: Any) -> Campaign:
    return campaign_of(clock, mailing_list, 6, provider="smtp")


def attempts_used() -> set[int]:
    return set(Delivery.objects.values_list("attempts", flat=True))


def message_id_to(site: SMTPSite, address: str) -> str:
    """Ours, in the letter that the server took."""
    (taken,) = (one for one in site.server.accepted if one.rcpt_to == [address])
    return str(message_from_bytes(taken.content)["Message-ID"])


# ------------------------------------------------------------------ 19


@pytest.fixture
def unpaced(site: SMTPSite, settings: Any) -> Connections:
    """Without the profile's pace, which needs one connection: as many letters as three take."""
    three = Connections(3, f"smtp:{MAILBOX}")
    settings.DELIVERY["PROVIDERS"]["smtp"]["LIMITS"] = [
        {"connections": three.most, "scope": three.scope}
    ]
    settings.DELIVERY = {**settings.DELIVERY}
    return three


@pytest.mark.parametrize("text", [CONCURRENT, THREADS], ids=["today's", "older"])
@pytest.mark.parametrize("left", [2, 1])
def test_19_a_connection_too_many_is_given_up_and_no_reader_is_charged(
    site, unpaced, clock, mailing_list, text, left
):
    """Another program has the rest of the mailbox's three; ours connect and log in all the same."""
    campaign = campaign_of(clock, mailing_list, 20, provider="smtp")
    site.server.rules += [
        Rule(At.FINAL_DOT, text, when=lambda session: session.place > left),
        Rule(At.FINAL_DOT, delay=0.02),
    ]
    site.live(10 * MINUTES)
    assert statuses(campaign) == {"sent": 20}
    assert attempts_used() == {1}
    assert site.server.most_connections > left
    assert left <= slots.limit_of(unpaced) < 3
    assert not limits.state_of("smtp").stopped
    site.assert_only_these_are_marked()


def test_19_a_reader_whose_mailbox_has_no_thread_free_takes_no_connection_from_us(
    site, unpaced, campaign, clock
):
    site.live(5 * MINUTES)
    address = "reader3@example.org"
    busy = "smtp;432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded"
    for action in ("delayed", "failed"):
        told = group(address, action=action, status="4.3.2", diagnostic=busy)
        raw = report(told, returned=message_id_to(site, address))
        site.emulator.receive(MAILBOX, raw)
    assert site.read().taken == 2
    assert slots.limit_of(unpaced) == 3
    assert limits.closed_until(limits.state_of("smtp"), clock()) is None
    site.assert_only_these_are_marked()


# ------------------------------------------------------------------ 20


def test_20_a_spent_quota_is_waited_for_a_day_in_silence_and_the_letters_are_kept(
    site, campaign, clock
):
    site.server.rules.append(Rule(At.FINAL_DOT, QUOTA, skip=2))
    began = clock()
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 2, "queued": 4}
    assert not limits.state_of("smtp").stopped
    before = site.seen()
    site.live(began + 23 * HOURS - clock(), step=HOURS, reads_every=6 * HOURS)
    assert site.seen() == before
    site.server.rules.clear()
    site.live(2 * HOURS, step=20 * MINUTES)
    assert statuses(campaign) == {"sent": 6}
    assert attempts_used() == {1}
    site.assert_only_these_are_marked()


def assert_it_waits_for_a_person(site: SMTPSite, campaign: Campaign, text: str) -> None:
    """The provider is stopped, with an alert that says why; for more than a day nobody knocks,
    and no reader is touched."""
    before = site.seen()
    site.live(26 * HOURS, step=2 * HOURS, reads_every=12 * HOURS)
    assert site.seen() == before
    assert statuses(campaign) == {"queued": 6}
    assert attempts_used() == {0}
    state = limits.state_of("smtp")
    assert state.stopped
    assert text in state.because
    assert Alert.objects.filter(kind=Alert.Kind.PROVIDER, resolved_at=None).exists()
    site.assert_only_these_are_marked()


@pytest.mark.parametrize("refusal", [DENIED, FULL], ids=["send as denied", "our mailbox is full"])
def test_20_an_error_of_ours_stops_at_the_first_so_that_no_block_begins(
    site, campaign, clock, refusal
):
    judgement = site.judgement
    judgement.is_wrong = True
    site.server.rules += judgement.rules(refusal)
    site.live(5 * MINUTES)
    assert_it_waits_for_a_person(site, campaign, refusal)
    assert (judgement.errors, judgement.blocked_until) == (1, None)
    judgement.is_wrong = False
    limits.resume("smtp", clock())
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 6}


def test_20_whoever_tries_on_is_blocked_and_each_try_begins_the_block_anew(site, clock):
    """What the tests beside this one are spared: a client that takes no refusal for an answer."""
    judgement = site.judgement
    judgement.is_wrong = True
    site.server.rules += judgement.rules()
    outcomes = send_on_and_on(site, letters=12)
    assert [str(outcome.reply) for outcome in outcomes] == [DENIED] * 10 + [judgement.block] * 2
    judgement.is_wrong = False
    clock.advance(hours=23)
    (outcome,) = send_on_and_on(site, letters=1)
    assert str(outcome.reply) == judgement.block
    assert judgement.blocked_until == clock() + judgement.BLOCK


def send_on_and_on(site: SMTPSite, letters: int) -> list[Outcome]:
    """Through the provider alone, without the worker that would stop."""

    async def run() -> list[Outcome]:
        provider = site.new_provider("smtp")
        await provider.open()
        try:
            return [await provider.send(letter(number)) for number in range(letters)]
        finally:
            await provider.close()

    return asyncio.run(run())


# ------------------------------------------------------------------ 5.2.251 to 5.2.255


@pytest.mark.parametrize(
    ("code", "cause", "at"),
    [
        ("5.2.251", "mailbox full", At.FINAL_DOT),
        ("5.2.252", "send as denied", At.MAIL),
        ("5.2.253", "invalid license", At.AUTH),
        ("5.2.254", "too many recipients", At.RCPT),
        ("5.2.255", "invalid recipients", At.FINAL_DOT),
    ],
)
def test_a_mailbox_that_is_blocked_for_continuous_errors_is_not_tried_before_a_person_says_so(
    site, campaign, clock, code, cause, at
):
    """Somebody else's program was at fault. Microsoft does not say at which command it tells."""
    judgement = site.judgement
    judgement.block = f"550 {code} Sender throttled due to continuous {cause} errors."
    judgement.blocked_until = clock() + judgement.BLOCK
    site.server.rules += judgement.rules(at=at)
    site.live(5 * MINUTES)
    assert_it_waits_for_a_person(site, campaign, judgement.block)
    assert judgement.tries == 1
    limits.resume("smtp", clock())
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 6}


def test_a_provider_that_is_opened_before_its_block_is_over_tries_once_and_stops_again(
    site, campaign, clock
):
    judgement = site.judgement
    judgement.blocked_until = clock() + judgement.BLOCK
    site.server.rules += judgement.rules()
    site.live(5 * MINUTES)
    clock.advance(hours=1)
    limits.resume("smtp", clock())
    site.live(5 * MINUTES)
    assert judgement.tries == 2
    assert_it_waits_for_a_person(site, campaign, judgement.block)


# ------------------------------------------------------------------ 22


@pytest.mark.parametrize(
    "rule",
    [
        Rule(At.MAIL, "421 4.4.2 Dropped", drop=Drop.AFTER_REPLY, skip=2, times=1),
        Rule(At.DATA, drop=Drop.BEFORE_REPLY, skip=2, times=1),
        Rule(At.MAIL, f"451 4.7.0 {BUSY}", skip=2, times=1),
        Rule(At.FINAL_DOT, f"451 4.7.0 {BUSY}", skip=2, times=1),
    ],
    ids=["a 421 at MAIL", "b closed before 354", "e 451 at MAIL", "e 451 after the dot"],
)
def test_22_a_letter_that_was_surely_not_taken_is_sent_again(site, campaign, rule):
    site.server.rules.append(rule)
    site.live(2 * HOURS, step=10 * MINUTES)
    assert statuses(campaign) == {"sent": 6}
    assert len(site.server.accepted) == 6
    assert not limits.state_of("smtp").stopped
    site.assert_only_these_are_marked()


@pytest.mark.parametrize(
    ("at", "was_taken"),
    [(At.BODY, False), (At.FINAL_DOT, True), (At.FINAL_DOT, False)],
    ids=["b closed after 354", "c1 taken", "c2 not taken"],
)
def test_22_a_connection_that_breaks_after_354_leaves_a_doubt_and_nothing_is_sent_again(
    site, campaign, at, was_taken
):
    """A letter leaves in one piece with its dot: whether the server had read that, nobody knows."""
    broken = Rule(at, drop=Drop.BEFORE_REPLY, keeps_letter=was_taken, skip=2, times=1)
    site.server.rules.append(broken)
    site.live(26 * HOURS, step=2 * HOURS)
    assert statuses(campaign) == {"sent": 5, "unconfirmed": 1}
    assert len(site.server.accepted) == 5 + was_taken
    assert site.server.verbs().count("DATA") == 6
    site.assert_only_these_are_marked()


def test_22_an_answer_that_takes_ninety_seconds_is_waited_for(site, campaign, clock):
    def takes_long(session: Session) -> bool:
        clock.advance(seconds=90)
        return True

    site.server.rules.append(Rule(At.FINAL_DOT, delay=0.1, when=takes_long, times=1))
    site.live(15 * MINUTES)
    assert statuses(campaign) == {"sent": 6}
    assert len(site.server.accepted) == 6
    assert attempts_used() == {1}
    assert site.new_provider("smtp").timeouts.letter > 90


def test_22_a_report_that_names_the_id_that_exchange_gave_finds_its_reader(site, campaign):
    given = "<AM0PR10MB1234@AM0PR10MB1234.eurprd10.prod.outlook.com>"
    taken = Rule(At.FINAL_DOT, f"250 2.0.0 OK {given} {HOST}", address="reader3@*")
    site.server.rules.append(taken)
    site.live(5 * MINUTES)
    reader = delivery_to("reader3@example.org")
    assert message_id_to(site, reader.rcpt_to) == message_id_of(reader.pk, reader.campaign_id)
    assert list(AssignedMessageId.objects.values_list("delivery", "message_id")) == [
        (reader.pk, given)
    ]
    gone = "smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address"
    told = group(reader.rcpt_to, status="5.1.10", diagnostic=gone)
    site.emulator.receive(MAILBOX, report(told, returned=given))
    site.read()
    assert statuses(campaign) == {"sent": 5, "bounced": 1}
    assert delivery_to(reader.rcpt_to).status == "bounced"
    site.assert_only_these_are_marked(reader.rcpt_to)
