"""A worker of its own process that stands still between a 202 and the commit of it:

    python -m tests.microsoft365.killed_sender LETTERS

After so many letters it says so on a line of its own and waits to be killed; with 0 it works on.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from random import Random


def main(letters: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.microsoft365.killed_settings")
    import django

    django.setup()
    from django.utils import timezone

    from delivery.conf import delivery_settings
    from delivery.message import OutgoingMessage
    from delivery.outcomes import Accepted, Outcome
    from delivery.providers.graph import GraphProvider
    from delivery.worker import Worker

    taken = 0

    class StandsStill(GraphProvider):
        async def send(self, message: OutgoingMessage) -> Outcome:
            nonlocal taken
            outcome = await super().send(message)
            taken += isinstance(outcome, Accepted)
            if letters and taken == letters:
                sys.stdout.write("taken\n")
                sys.stdout.flush()
                time.sleep(60)  # the whole process: not even its heartbeat goes on
            return outcome

    settings = delivery_settings()
    provider = settings.providers["graph"]
    while True:
        worker = Worker(
            settings,
            provider,
            StandsStill(**provider.options),
            clock=timezone.now,
            dice=Random(),
            recorders=settings.recorders,
        )
        done = asyncio.run(worker.run_slice())
        if done.wait_until is None:
            return
        time.sleep(min(max((done.wait_until - timezone.now()).total_seconds(), 0.05), 1.0))


if __name__ == "__main__":
    main(int(sys.argv[1]))
