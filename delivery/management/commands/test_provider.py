"""manage.py test_provider ALIAS: is the provider set up well, and what does it keep of a letter?"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from delivery import setup_test
from delivery.conf import delivery_settings


class Command(BaseCommand):
    help = "Sends one letter to an address of your own through a provider, and reports."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("alias", help="a name of DELIVERY['PROVIDERS']")
        parser.add_argument("--from", dest="sender", help="the From address; a mailbox has its own")
        parser.add_argument("--to", help="an address of your own; the From address itself if none")

    def handle(self, *args: Any, alias: str, **options: Any) -> None:
        settings = delivery_settings().providers.get(alias)
        if settings is None:
            raise CommandError(f"DELIVERY['PROVIDERS'] has no working entry {alias!r}.")
        sender = options["sender"] or setup_test.sender_of(settings)
        if "@" not in sender:
            raise CommandError("Which From address? Give --from.")
        report = setup_test.run(settings, sender, options["to"] or sender, timezone.now)
        for finding in report.findings:
            self.stdout.write(f"  {finding}")
        for warning in report.warnings:
            self.stdout.write(self.style.WARNING(f"! {warning}"))
        if not report.ok:
            raise CommandError("The letter was not accepted.")
