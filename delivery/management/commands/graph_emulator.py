"""manage.py graph_emulator: Microsoft Graph and Entra on this machine, to try without a tenant."""

from __future__ import annotations

import threading
from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone


class Command(BaseCommand):
    help = "Starts an emulator of Microsoft Graph for trying the provider without a tenant."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8365)
        parser.add_argument(
            "--mailbox", action="append", help="an address that exists; may be given repeatedly"
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
        try:
            with server.EmulatorServer(emulator, options["port"]) as running:
                self.stdout.write(
                    f"Microsoft Graph and Entra are emulated at {running.url} for"
                    f" {', '.join(mailboxes)}; the client secret is {emulator.secret!r}.\n"
                    f'Put "emulator": "{running.url}" into the OPTIONS of the provider.'
                    " Ctrl-C ends it."
                )
                self.stdout.flush()
                threading.Event().wait()
        except OSError as error:
            raise CommandError(f"Port {options['port']} cannot be used: {error}") from None
        except KeyboardInterrupt:
            self.stdout.write(f"{len(emulator.delivered)} letters were taken.")
