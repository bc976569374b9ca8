"""How soon pause, resume and cancel take effect while a campaign is sent at full speed.

    python -m benchmarks.steering [--letters 30000] [--workers 4] [--rounds 5]
    python -m tests.postgresql python -m benchmarks.steering

Imports readers into a database of its own and sends to them with a real django-q2 cluster; the
tests' SMTP server notes each arrival. Printed for each round: letters a second before, then the
seconds from the commit of *pause* to the last letter that still arrived, how many did, and the
seconds from the commit of *resume* to the next one. At the end the same for *cancel*.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import django

from benchmarks import throughput
from tests.smtp_server import SMTPServer

# Nothing arrives for so long: the order has taken effect.
QUIET = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--letters", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pennypost-var-") as var, SMTPServer() as server:
        if not os.environ.get("DATABASE_URL"):
            os.environ["DATABASE_URL"] = f"sqlite:///{var}/steering.sqlite3"
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PENNYPOST_VAR": var,
            "SECRET_KEY": "of-a-benchmark-and-of-nothing-else-in-the-world",
            "DELIVERY_WORKERS": str(args.workers),
            "SMTP_HOST": server.host,
            "SMTP_PORT": str(server.port),
            "LOG_LEVEL": "ERROR",
        }
        django.setup()
        measure(args, server, Path(var))


def measure(args: argparse.Namespace, server: SMTPServer, var: Path) -> None:
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from campaigns.models import Campaign
    from delivery.tasks import coordinate

    call_command("migrate", verbosity=0)
    list_id = throughput.import_readers(args.letters, var)
    with throughput.cluster():
        campaign = Campaign.objects.get(pk=throughput.make_campaign(list_id))
        coordinate()
        campaign.refresh_from_db()
        print(f"{connection.vendor}, {args.workers} workers:")
        for _round in range(args.rounds):
            rate = speed(server)
            seconds, letters = stop(server, campaign.pause)
            began, before = time.monotonic(), len(server.accepted)
            campaign.resume()
            if not server.wait_until(lambda s, n=before: len(s.accepted) > n, timeout=60):
                raise SystemExit("it was not taken up again")
            again = server.accepted[before].at - began
            print(
                f"  {rate:6,.0f} letters/s; paused: the last of {letters} letters came"
                f" {seconds:.3f} s later; resumed: the first came {again:.3f} s later"
            )
        rate = speed(server)
        seconds, letters = stop(server, lambda: campaign.cancel(timezone.now()))
        print(
            f"  {rate:6,.0f} letters/s; cancelled: the last of {letters} letters came"
            f" {seconds:.3f} s later"
        )


def speed(server: SMTPServer) -> float:
    """Letters a second, while all workers are busy."""
    began = len(server.accepted)
    if not server.wait_until(lambda s: len(s.accepted) >= began + 500, timeout=120):
        raise SystemExit("there was nothing left to send: ask for more --letters")
    return 400 / (server.accepted[began + 499].at - server.accepted[began + 99].at)


def stop(server: SMTPServer, order: Callable[[], object]) -> tuple[float, int]:
    """(seconds from the commit to the last letter, how many arrived after it)."""
    order()
    committed, before = time.monotonic(), len(server.accepted)
    time.sleep(QUIET)
    after = server.accepted[before:]
    return max((letter.at - committed for letter in after), default=0.0), len(after)


if __name__ == "__main__":
    main()
