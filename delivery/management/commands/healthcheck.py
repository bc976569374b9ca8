"""Whether this machine's cluster works: manage.py healthcheck [--minutes N]. For a watchdog."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from delivery.conf import delivery_settings
from delivery.installation import last_check_in


class Command(BaseCommand):
    help = (
        "Exits 1 when no task of sending or coordinating has run on this machine for some minutes, "
        "or when sending is off here. For a watchdog, which then restarts the cluster. Asks no "
        "database."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--minutes", type=int, default=10, help="how long a silence may be (default: 10)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        settings = delivery_settings()
        if settings.installations is None:
            raise CommandError("DELIVERY['INSTALLATIONS'] is None: this machine remembers nothing.")
        last = last_check_in(settings)
        if last is None:
            raise CommandError("No cluster has ever worked here.")
        silence = timezone.now() - last
        if silence > timedelta(minutes=options["minutes"]):
            raise CommandError(
                f"Nothing has run here for {int(silence.total_seconds() // 60)} min."
            )
        self.stdout.write(f"The last task began here {int(silence.total_seconds())} s ago.")
