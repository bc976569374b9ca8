"""Turns sending on for this machine: manage.py adopt_installation."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from delivery.conf import delivery_settings
from delivery.installation import adopt, host


class Command(BaseCommand):
    help = (
        "Says that this machine may send from this database. For a machine that is new, and for a "
        "backup that was restored on purpose: first make sure that the original sends nothing "
        "more, and look at what has left since the backup."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--yes", action="store_true", help="do not ask; I know that no copy of it sends"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        settings = delivery_settings()
        if settings.installations is None and not settings.installation:
            raise CommandError("DELIVERY['INSTALLATIONS'] is None: every database is trusted.")
        if not options["yes"]:
            try:
                answer = input(f"Send from this database on {host()}? Type yes: ")
            except EOFError:  # no terminal: a script must say --yes
                answer = ""
            if answer.strip().lower() != "yes":
                raise CommandError("Nothing was changed.")
        identity = adopt(settings, timezone.now())
        self.stdout.write(
            self.style.SUCCESS(f"Sending is on for {host()}. Installation: {identity}")
        )
