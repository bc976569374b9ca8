"""How many permits a second one hot limit gives, and what the limits cost a worker.

    python -m benchmarks.permits                      # SQLite
    python -m tests.postgresql python -m benchmarks.permits

A new database of its own in either case. Rows: askers at once, permits a grant.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta

import django

SECONDS = 3.0


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from django.db import connection, connections
    from django.test.runner import DiscoverRunner

    from delivery import limits
    from delivery.clocks import database_now
    from delivery.models import QuotaWindow
    from delivery.rates import Limit, LimitKind

    runner = DiscoverRunner(verbosity=0, interactive=False)
    databases = runner.setup_databases()
    try:
        print(f"{connection.vendor}: grants and permits of one limit, each granted and settled")
        day = timedelta(days=1)
        for askers, wanted in ((1, 1), (1, 10), (1, 50), (8, 10), (32, 10)):
            limit = (Limit(LimitKind.CAP, 100_000_000, day, f"{askers}/{wanted}"),)
            granted = [0] * askers
            end = time.monotonic() + SECONDS

            def ask(
                number: int, limit: tuple[Limit, ...], wanted: int, end: float, granted: list[int]
            ) -> None:
                while time.monotonic() < end:
                    grant = limits.take(limit, wanted, number + 1, database_now)
                    limits.settle(grant, [time.monotonic()] * len(grant.not_before))
                    granted[number] += len(grant.not_before)
                connections.close_all()

            threads = [
                threading.Thread(target=ask, args=(number, limit, wanted, end, granted))
                for number in range(askers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            total, rows = sum(granted), QuotaWindow.objects.filter(key=limit[0].key).count()
            print(
                f"  {askers:3} askers, {wanted:3} a grant: "
                f"{total / wanted / SECONDS:6.0f} grants/s, {total / SECONDS:7.0f} permits/s, "
                f"least {min(granted)}, log rows {rows}"
            )
    finally:
        runner.teardown_databases(databases)


if __name__ == "__main__":
    main()
