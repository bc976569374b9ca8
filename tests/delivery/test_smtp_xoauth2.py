"""SMTP with AUTH XOAUTH2 against a real server and the emulator's tokens: scenario 21."""
# ruff: noqa: F811 (a fixture that is imported)

import asyncio

import pytest

from delivery.outcomes import Accepted, Phase, Unavailable
from delivery.providers import smtp
from delivery.providers.smtp import SMTPProvider
from tests.delivery.graph_world import MAILBOX, letter, world  # noqa: F401
from tests.emulators.graph import Fault, GraphEmulator
from tests.smtp_server import SMTPServer

DISABLED = (
    "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox."
)


class Exchange:
    """Judges tokens as Exchange does: audience, end, user."""

    def __init__(self, emulator):
        self.emulator = emulator
        self.tries = 0
        self.verdict = ""

    def __call__(self, user, token):
        self.tries += 1
        if self.verdict:
            return self.verdict
        audience, until = self.emulator.tokens.get(token, ("", None))
        good = (
            audience == "https://outlook.office365.com"
            and until > self.emulator.clock()
            and token not in self.emulator.revoked
            and user.lower() in self.emulator.mailboxes
        )
        return (
            "235 2.7.0 Authentication successful"
            if good
            else "535 5.7.3 Authentication unsuccessful"
        )


@pytest.fixture
def exchange(world):
    judge = Exchange(world.emulator)
    with SMTPServer(
        security="starttls", users={MAILBOX: ""}, mechanisms=["XOAUTH2"], judge_token=judge
    ) as server:
        judge.server = server
        yield judge


def send(exchange, world, monkeypatch, *letters, identity=None, username=MAILBOX):
    identity = identity or world.identity()
    monkeypatch.setattr(smtp, "shared_identity", lambda options: identity)
    server = exchange.server
    provider = SMTPProvider(
        server.host, server.port, username=username, identity={"client_id": "app"},
        ca_file=str(server.certificate), connections=1,
    )  # fmt: skip

    async def run():
        await provider.open()
        try:
            return [await provider.send(one) for one in letters]
        finally:
            await provider.close()

    return asyncio.run(run())


def test_21_a_token_for_smtp_logs_in_as_the_mailbox(exchange, world, monkeypatch):
    outcomes = send(exchange, world, monkeypatch, letter(1), letter(2))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert exchange.tries == 1
    assert exchange.server.connections[0].username == MAILBOX


def test_21_a_revoked_token_is_replaced_once(exchange, world, monkeypatch):
    identity = world.identity()
    send(exchange, world, monkeypatch, letter(1), identity=identity)
    world.emulator.revoked = set(world.emulator.tokens)
    (outcome,) = send(exchange, world, monkeypatch, letter(2), identity=identity)
    assert isinstance(outcome, Accepted)
    assert exchange.tries == 3


def test_21_two_refusals_stop_and_there_is_no_third_try(exchange, world, monkeypatch):
    (outcome,) = send(exchange, world, monkeypatch, letter(), username="else@contoso.example")
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert exchange.tries == 2
    assert exchange.server.accepted == []


@pytest.mark.parametrize(
    "verdict",
    [
        DISABLED,
        "535 5.7.139 Authentication unsuccessful, the request did not meet the criteria to be"
        " authenticated successfully.",
        "550 5.7.30 Basic authentication is not supported for Client Submission.",
    ],
)
def test_21_what_only_a_person_can_mend_is_tried_once(exchange, world, monkeypatch, verdict):
    exchange.verdict = verdict
    (outcome,) = send(exchange, world, monkeypatch, letter())
    assert isinstance(outcome, Unavailable)
    assert outcome.needs_a_person
    assert outcome.reply.phase is Phase.AUTH
    assert exchange.tries == 1


def test_21_a_server_that_does_not_offer_xoauth2_gets_no_token(exchange, world, monkeypatch):
    exchange.server.mechanisms[:] = ["PLAIN"]
    (outcome,) = send(exchange, world, monkeypatch, letter())
    assert outcome.needs_a_person
    assert exchange.tries == 0


def test_21_a_token_endpoint_in_trouble_pauses_and_a_wrong_secret_stops(
    exchange, world, monkeypatch
):
    world.emulator.faults = [Fault("oauth2", GraphEmulator.refused_token(503, "x", 1, ""), times=9)]
    (paused,) = send(exchange, world, monkeypatch, letter())
    assert isinstance(paused, Unavailable)
    assert not paused.needs_a_person
    world.emulator.faults = []
    wrong = world.identity(client_secret="wrong")
    (stopped,) = send(exchange, world, monkeypatch, letter(), identity=wrong)
    assert stopped.needs_a_person
    assert exchange.tries == 0


@pytest.mark.parametrize(
    "options",
    [
        {"password": "word", "username": "a"},
        {},
        {"username": "a", "security": "none"},
    ],
)
def test_an_identity_needs_a_username_and_encryption_and_no_password(options):
    identity = {"tenant_id": "t", "client_id": "a", "client_secret": "s"}
    with pytest.raises(ValueError, match="identity needs"):
        SMTPProvider("smtp.example.org", identity=identity, **options)
