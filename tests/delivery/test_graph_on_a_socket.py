"""The Graph provider over real sockets: the emulator on this machine, and two processes at once."""

import asyncio
import json
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from delivery.outcomes import Accepted, Unavailable, Unconfirmed
from delivery.providers import graph
from delivery.providers.graph import GraphProvider
from delivery.providers.microsoft_identity import MicrosoftIdentity
from tests.delivery.graph_world import MAILBOX, letter
from tests.emulators.graph import Fault, GraphEmulator
from tests.emulators.server import EmulatorServer

ROOT = Path(__file__).parents[2]
IDENTITY = {"tenant_id": "contoso.example", "client_id": "app", "client_secret": "right"}


@pytest.fixture
def emulator():
    graph._mailboxes.clear()
    emulator = GraphEmulator(lambda: datetime.now(UTC), visible_after=timedelta(0))
    yield emulator
    emulator.assert_promises()
    graph._mailboxes.clear()


def send(url, *letters, confirm=None, identity=IDENTITY):
    async def run():
        provider = GraphProvider(MAILBOX, identity, emulator=url)
        await provider.open()
        try:
            outcomes = [await provider.send(one) for one in letters]
            if confirm is not None:
                provider._trouble = None
                outcomes.append(await provider.confirm(confirm))
            return outcomes
        finally:
            await provider.close()

    return asyncio.run(run())


def test_letters_and_tokens_go_over_real_sockets(emulator):
    with EmulatorServer(emulator) as server:
        outcomes = send(server.url, *(letter(n) for n in range(5)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert len(emulator.requests("POST /contoso.example/oauth2")) == 1
    assert len(emulator.delivered) == 5


@pytest.mark.parametrize("done", [True, False], ids=["taken", "not taken"])
def test_a_connection_that_breaks_after_the_request_is_a_doubt(emulator, done):
    emulator.faults = [Fault("sendMail", drop=httpx.ReadError, done=done)]
    with EmulatorServer(emulator) as server:
        doubt, found = send(server.url, letter(), confirm=letter())
    assert isinstance(doubt, Unconfirmed)
    assert isinstance(found, Accepted) if done else found is None


def test_a_server_that_is_gone_had_not_taken_the_letter(emulator):
    with EmulatorServer(emulator) as server:
        gone = server.url
        token = MicrosoftIdentity(**IDENTITY, emulator=gone)
        asyncio.run(token.token("https://graph.microsoft.com/.default"))
    (outcome,) = send(gone, letter(), identity=IDENTITY | {"client_id": "other"})
    assert isinstance(outcome, Unavailable)
    assert not outcome.needs_a_person


def test_two_processes_that_send_at_once_stay_within_four_requests(emulator):
    """Each begins with one request at a time, so that two of them cannot exceed the mailbox's."""
    emulator.latency = 0.005
    program = textwrap.dedent(
        """
        import asyncio, json, sys, django
        django.setup()
        from delivery.providers.graph import GraphProvider
        from tests.delivery.graph_world import MAILBOX, letter

        async def run(url, first, identity):
            provider = GraphProvider(MAILBOX, identity, emulator=url)
            await provider.open()
            letters = [letter(n) for n in range(first, first + 25)]
            outcomes = await asyncio.gather(*(provider.send(one) for one in letters))
            await provider.close()
            print(json.dumps([type(outcome).__name__ for outcome in outcomes]))

        asyncio.run(run(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
        """
    )
    with EmulatorServer(emulator) as server:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program, server.url, first, json.dumps(IDENTITY)],
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env={"DJANGO_SETTINGS_MODULE": "config.settings", "PYTHONPATH": str(ROOT)},
            )
            for first in ("0", "100")
        ]
        answers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert answers == [["Accepted"] * 25] * 2
    assert len(emulator.delivered) == 50


def test_the_command_starts_an_emulator_and_ends_on_an_interrupt():
    process = subprocess.Popen(
        [sys.executable, "manage.py", "graph_emulator", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = process.stdout.readline()
        url = line.partition(" at ")[2].partition(" for")[0]
        (outcome,) = send(url, letter())
        assert isinstance(outcome, Accepted)
    finally:
        process.send_signal(2)
        rest, _ = process.communicate(timeout=30)
    assert "1 letters were taken" in rest
