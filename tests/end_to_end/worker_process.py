"""A worker of its own process, for tests that kill it:

    python -m tests.end_to_end.worker_process ALIAS SLICES

Runs slices as django-q2 would, with the settings in the environment; the database is the one that
DATABASE_URL or SQLITE_PATH names.
"""

from __future__ import annotations

import asyncio
import os
import sys
from random import Random


def main(alias: str, slices: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from django.utils import timezone

    from delivery.conf import delivery_settings
    from delivery.worker import Worker

    settings = delivery_settings()
    provider_settings = settings.providers[alias]
    for _ in range(slices):
        worker = Worker(
            settings,
            provider_settings,
            provider_settings.make(),
            clock=timezone.now,
            dice=Random(),
            recorders=settings.recorders,
        )
        done = asyncio.run(worker.run_slice())
        if done.wait_until is None:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
