"""manage.py graph_emulator: Microsoft Graph and Entra on this machine, to try without a tenant."""

from __future__ import annotations

import json
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

TAKE_IN_SECONDS = 0.2


def take_in(maildir: Path, receive: Callable[[bytes], object]) -> NoReturn:
    """Gives every mail of the Maildir to ``receive``, once; those that were taken lie in cur."""
    while True:
        for path in sorted((maildir / "new").glob("*")):
            receive(path.read_bytes())
            path.rename(maildir / "cur" / f"{path.name}:2,S")
        time.sleep(TAKE_IN_SECONDS)


def write_line(file: Path, returned: Sequence[Any], letter: Any) -> None:
    """Appends what became of a letter. Graph knows no envelope: the Message-ID names the letter."""
    events = ["accepted", "reported"] if letter in returned[-1:] else ["accepted"]
    named = {"mail_from": letter.own_message_id, "message_id": letter.own_message_id}
    with file.open("a", encoding="utf-8") as log:
        for event in events:
            line = {"event": event, "rcpt_to": letter.recipients[0]} | named
            log.write(json.dumps(line) + "\n")


class Command(BaseCommand):
    help = "Starts an emulator of Microsoft Graph for trying the provider without a tenant."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8365)
        parser.add_argument(
            "--mailbox", action="append", help="an address that exists; may be given repeatedly"
        )
        parser.add_argument(
            "--take-in", type=Path, metavar="MAILDIR",
            help="mail that arrives in this Maildir goes into the Inbox of the first mailbox",
        )  # fmt: skip
        parser.add_argument(
            "--gone", action="append", default=[], metavar="PREFIX",
            help="letters to addresses that begin with this come back; may be given repeatedly",
        )  # fmt: skip
        parser.add_argument(
            "--log", type=Path, help="a file that gets a line of JSON for each letter and report"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        # By name, for the product leans on nothing under tests/: an installation without the
        # source tree has no emulator.
        try:
            graph = import_module("tests.emulators.graph")
            server = import_module("tests.emulators.server")
        except ImportError as error:
            raise CommandError(f"The emulator is part of the source tree only: {error}") from None
        mailboxes = options["mailbox"] or ["news@contoso.example"]
        emulator = graph.GraphEmulator(timezone.now, mailboxes)
        emulator.gone = tuple(options["gone"])
        if options["log"]:
            emulator.on_delivered = partial(write_line, options["log"], emulator.returned)
        try:
            with server.EmulatorServer(emulator, options["port"]) as running:
                self.stdout.write(
                    f"Microsoft Graph and Entra are emulated at {running.url} for"
                    f" {', '.join(mailboxes)}; the client secret is {emulator.secret!r}.\n"
                    f'Put "emulator": "{running.url}" into the OPTIONS of the provider.'
                    " Ctrl-C ends it."
                )
                self.stdout.flush()
                if options["take_in"]:
                    take_in(options["take_in"], partial(emulator.receive, mailboxes[0]))
                threading.Event().wait()
        except OSError as error:
            raise CommandError(f"Port {options['port']} cannot be used: {error}") from None
        except KeyboardInterrupt:
            self.stdout.write(f"{len(emulator.delivered)} letters were taken.")
