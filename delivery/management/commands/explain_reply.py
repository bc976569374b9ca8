"""Which rule decides about a reply, and what follows from it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from delivery.conf import delivery_settings
from delivery.outcomes import Deferred, Phase, Reply, Speaker, Unavailable
from delivery.replies import classify, rule_for


class Command(BaseCommand):
    help = "Says which rule decides about a reply, with the rules of the settings in force."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("reply", help='As the server gave it: "550 5.7.1 Not here"')
        parser.add_argument("--phase", default="rcpt", choices=[phase.value for phase in Phase])
        parser.add_argument(
            "--speaker", default="submission", choices=[speaker.value for speaker in Speaker]
        )

        parser.add_argument("--rcpt-to", default="", help="The reader's address")

    def handle(self, *args: Any, **options: Any) -> None:
        code, _space, text = options["reply"].strip().partition(" ")
        if not (code.isdecimal() and len(code) == 3):
            raise CommandError('A reply begins with its code: "550 5.7.1 Not here".')
        delivery_settings()
        reply = Reply.of(Phase(options["phase"]), int(code), text, Speaker(options["speaker"]))
        to = options["rcpt_to"]
        rule, outcome = rule_for(reply, to), classify(reply, to)
        wait = "none, it is final"
        if isinstance(outcome, Deferred | Unavailable):
            wait = str(outcome.retry_after or "by the schedule")
        self.stdout.write(f"verdict  {rule.verdict}")
        self.stdout.write(f"rule     {rule.name}{' (unclassified)' if rule.is_default else ''}")
        self.stdout.write(f"source   {rule.source}")
        self.stdout.write(f"wait     {wait}")
