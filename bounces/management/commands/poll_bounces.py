"""manage.py poll_bounces [--mailbox NAME]"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from bounces.conf import bounce_settings
from bounces.poller import poll
from campaigns.hostile_text import visible


class Command(BaseCommand):
    help = "Takes in what lies in the bounce mailboxes, now, also where a failure asks to wait."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--mailbox", metavar="NAME", help="Only this one of the settings.")

    def handle(self, *args: Any, **options: Any) -> None:
        known = list(bounce_settings().mailboxes)
        wanted = [options["mailbox"]] if options["mailbox"] else known
        if not set(wanted) <= set(known):
            named = ", ".join(known) or "none"
            raise CommandError(f"No mailbox is called {wanted[0]!r}; the settings name {named}.")
        polls = [poll(name, timezone.now(), at_once=True) for name in wanted]
        for result in polls:
            self.stdout.write(visible(str(result)))
        failed = [result.mailbox for result in polls if result.error]
        if failed:
            raise CommandError(f"Failed: {', '.join(failed)}.")
