"""A real poller, killed with SIGKILL at a random moment: nothing lost, nothing counted twice.

A seed of each kind of mailbox in the suite; twenty of each with PENNYPOST_SOAK=1 (make pollers).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.utils import timezone

from bounces.models import Bounce, MailboxState, ReceivedMail, Verdict
from campaigns.models import Suppression
from delivery.models import Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_dovecot import deliver_to
from tests.bounces.test_dovecot import server as server
from tests.bounces.test_intake import totals
from tests.bounces.test_maildir import put
from tests.database_url import database_url
from tests.delivery.graph_world import MAILBOX
from tests.dovecot import PASSWORD, Dovecot
from tests.emulators.graph import GraphEmulator
from tests.emulators.server import EmulatorServer

pytestmark = pytest.mark.django_db(transaction=True)

SOAK = bool(os.environ.get("PENNYPOST_SOAK"))
SEEDS = {"maildir": 1, "imap": 1, "pop3": 1, "graph": 1}
MAILS, KILLS = 100, 2
CASES = [(kind, seed) for kind, few in SEEDS.items() for seed in range(20 if SOAK else few)]


@dataclass
class FarSide:
    """A mailbox for a poller of its own process: how mail gets there, and its entry in BOUNCES.
    ``kept``: how many mails lie there."""

    deliver: Callable[[bytes], object]
    entry: dict[str, Any]
    kept: Callable[[], int]


@contextmanager
def far_side(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[FarSide]:
    maildir = folder / "maildir"
    if kind == "maildir":
        backend = "bounces.mailboxes.maildir.MaildirMailbox"
        entry = {"BACKEND": backend, "OPTIONS": {"path": str(maildir)}}
        yield FarSide(
            lambda raw: put(maildir, raw), entry, lambda: len(list((maildir / "cur").iterdir()))
        )
    elif kind == "graph":
        emulator = GraphEmulator(timezone.now, [MAILBOX])
        with EmulatorServer(emulator) as running:
            identity = {"tenant_id": "t.example", "client_id": "a", "client_secret": "right"}
            options = {"mailbox": MAILBOX, "identity": identity, "emulator": running.url}
            entry = {"BACKEND": "bounces.mailboxes.graph.GraphMailbox", "OPTIONS": options}
            items = emulator.mailboxes[MAILBOX].items
            yield FarSide(lambda raw: emulator.receive(MAILBOX, raw), entry, lambda: len(items))
        emulator.assert_promises()
    else:
        dovecot: Dovecot = request.getfixturevalue("server")
        user = f"killed{folder.name}"
        backend, port = {
            "imap": ("imap.IMAPMailbox", dovecot.imap),
            "pop3": ("pop3.POP3Mailbox", dovecot.pop3),
        }[kind]
        login = {"host": "127.0.0.1", "port": port, "username": user, "password": PASSWORD}
        entry = {"BACKEND": f"bounces.mailboxes.{backend}", "OPTIONS": login | {"security": "none"}}
        inbox = dovecot.maildir(user)
        yield FarSide(
            lambda raw: deliver_to(dovecot, user, raw),
            entry,
            lambda: sum(len(list((inbox / name).iterdir())) for name in ("new", "cur")),
        )


class Pollers:
    """Starts one poller after the other (poller_process.py)."""

    def __init__(self, entry: dict[str, Any], var: Path) -> None:
        env = os.environ | {
            "DATABASE_URL": database_url(),
            # The demo's settings take a mailbox of any kind.
            "DJANGO_SETTINGS_MODULE": "config.demo.settings",
            "DEMO_MAILBOX": json.dumps(entry),
            "PENNYPOST_VAR": str(var),
            "SECRET_KEY": "of the killed pollers, and of nobody else",
            "TOKEN_KEYS": "1:a secret for the tests",
            "LOG_LEVEL": "CRITICAL",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bounces.poller_process"],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Pollers:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def _say(self, command: str) -> list[int]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return [int(word) for word in self._process.stdout.readline().split()]

    def start(self) -> int:
        """Its process id; as if a dead predecessor's lease had run out."""
        MailboxState.objects.update(leased_until=None, lease_key="")
        return self._say("poll")[0]

    def wait(self, pid: int) -> int:
        """Its status at the end, as os.waitpid gives it."""
        return self.wait_and_weigh(pid)[0]

    def wait_and_weigh(self, pid: int) -> tuple[int, int]:
        """Its status, and the most octets that it or its children held."""
        status, octets = self._say(f"wait {pid}")
        return status, octets


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_a_killed_poller_loses_and_doubles_nothing(
    kind: str, seed: int, deliver: Deliver, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dice = Random(seed)
    letters = [deliver(f"r{number}@example.net") for number in range(MAILS)]
    Delivery.objects.update(handed_over_at=timezone.now())
    with far_side(kind, tmp_path, request) as mailbox:
        for letter in letters:
            mailbox.deliver(report(group(letter.rcpt_to), delivered_to=return_path(letter)))
        with Pollers(mailbox.entry, tmp_path) as pollers:
            for _ in range(KILLS):
                before = ReceivedMail.objects.count()
                pid, began = pollers.start(), time.monotonic()
                # Until its first batch is stored, or there is nothing more to be stored.
                while ReceivedMail.objects.count() == before < MAILS:
                    assert time.monotonic() - began < 60
                    time.sleep(0.002)
                time.sleep(dice.uniform(0, 0.25))
                os.kill(pid, signal.SIGKILL)
                pollers.wait(pid)
            # The last ones may live: what is open is examined, what is left is fetched.
            for _ in range(2):
                assert pollers.wait(pollers.start()) == 0
        assert mailbox.kept() == MAILS

    assert ReceivedMail.objects.count() == MAILS
    assert not ReceivedMail.objects.exclude(verdict=Verdict.BOUNCE).exists()
    assert Bounce.objects.count() == Bounce.objects.filter(counted=True).count() == MAILS
    assert Bounce.objects.filter(suppressed=True).count() == MAILS
    assert Suppression.objects.count() == MAILS
    assert Delivery.objects.filter(status=DeliveryStatus.BOUNCED).count() == MAILS
    assert totals(letters[0]) == {"eligible": MAILS, "bounced": MAILS}
