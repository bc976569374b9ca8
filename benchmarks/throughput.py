"""How many letters a second leave, with every guarantee switched on.

    DATABASE_URL=postgres://... python benchmarks/throughput.py --recipients 20000 --workers 4 \\
        [--connections 10] [--send-batch-size 100] [--claim-size 500] --smtp HOST:PORT [--json]

Imports readers from a CSV file, writes a campaign with a letter of 10 KB, fills the queue with the
real coordinator, and sends it with ``--workers`` processes that run the task which django-q2 runs
(delivery.tasks.run_worker: lease, claim, limits, suppression, write-ahead note, SMTP, outcomes),
slice after slice, with the flight recorder. Not a whole django-q2 cluster: its broker looks for
tasks every half a second, which is nothing in a campaign of minutes and much in one of two
seconds. ``--cluster`` uses one all the same.

The processes are started first, make a round with nothing to do and wait, then the clock runs: in
an installation they have run for hours. As there, the coordinator wakes the workers before it fills
the first page of the queue, and fills the others while they send. The last line is
``{"enqueue_s", "send_s", "recorded"}``: seconds until the workers are woken, seconds from there to
the last outcome stored (together the whole), deliveries whose final outcome is stored. Run it on a
database of its own: it migrates it and leaves its readers there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delivery.coordinator import Start

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

PATIENCE_SECONDS = 3600
NEAR_THE_END = 2_000  # letters: a tenth of a second


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipients", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--connections", type=int, default=None, help="of each worker")
    parser.add_argument("--send-batch-size", type=int, default=None)
    parser.add_argument("--claim-size", type=int, default=None, help="CYCLE_BATCH_SIZE")
    parser.add_argument("--smtp", default="", metavar="HOST:PORT")
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--all", action="store_true", help="memory and CPU in the last line, too")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(line)
    if not args.smtp and not args.as_worker:
        parser.error("--smtp HOST:PORT is needed (benchmarks/sink.py is one)")
    return args


def environment(args: argparse.Namespace, var: Path) -> dict[str, str]:
    """The settings of the run, as an installation would say them; None leaves the default."""
    host, _, port = args.smtp.rpartition(":")
    chosen: dict[str, object] = {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PENNYPOST_VAR": var,
        "SMTP_HOST": host,
        "SMTP_PORT": port,
        "SMTP_SECURITY": "none",
        "SMTP_RATES": "",
        "BASE_URL": "https://news.example.org",
        "LOG_LEVEL": "ERROR",
        "DELIVERY_WORKERS": args.workers,
        "SMTP_CONNECTIONS": args.connections,
        "DELIVERY_SEND_BATCH_SIZE": args.send_batch_size,
        # A claim may hold several waves; more than a second's work would only wait.
        "DELIVERY_CYCLE_BATCH_SIZE": args.claim_size
        or (max(100, min(500, 5 * args.send_batch_size)) if args.send_batch_size else None),
    }
    return {name: str(value) for name, value in chosen.items() if value is not None}


# ---------------------------------------------------------------------------------- a worker


def as_worker() -> None:
    """Runs slices as a django-q2 worker process does, until standard input is closed."""
    import resource
    import threading

    import django

    django.setup()
    from delivery.tasks import run_worker

    run_worker("default")  # as it did many times before in an installation
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.process_time()
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    while not over.is_set():
        if run_worker("default") in {"0 letters", "no place was free"}:
            over.wait(0.02)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(usage.ru_maxrss // 1024, usage.ru_utime + usage.ru_stime - started, flush=True)


@contextlib.contextmanager
def waiting_workers(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that have started up, made a round and wait for a line. To be started before there
    is anything to send."""
    command = [sys.executable, str(Path(__file__).resolve()), "--as-worker"]
    if profile := os.environ.get("PROFILE"):  # py-spy's raw samples, for one worker
        options = ["-r", "250", "--nonblocking", "-f", "raw", "-o", profile]
        command = ["py-spy", "record", *options, "--", *command]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            while (line := process.stdout.readline().strip()) != "ready":
                if not line and process.poll() is not None:
                    sys.exit("a worker died while it started")
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait(60)


def tell(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Lets waiting processes go, slice after slice."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "manage.py"), "qcluster"], stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(4)
        yield
    finally:
        process.terminate()
        process.wait(120)


# ---------------------------------------------------------------------------------- the run


def import_readers(count: int, folder: Path) -> int:
    """Through the real importer; the list's id."""
    from django.utils import timezone

    from campaigns import imports
    from campaigns.models import MailingList

    moment = timezone.now()
    mailing_list = MailingList.objects.create(
        name=f"Benchmark {moment:%H:%M:%S.%f}", label=f"bench-{moment:%H%M%S%f}"
    )
    path = folder / "readers.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["email", "name", "first_name"])
        writer.writerows(
            (f"reader{n}@example.org", f"Ada Lovelace {n}", f"Ada{n}") for n in range(count)
        )
    job = imports.new_job(mailing_list, path)
    assert imports.enqueue(job, now=timezone.now())
    assert imports.carry_on(job.pk)
    job.refresh_from_db()
    if job.status != "finished" or job.refused:
        sys.exit(f"the import ended as {job.status}: {job.failure} ({job.refused} refused)")
    return mailing_list.pk


def make_campaign(list_id: int) -> int:
    """A scheduled campaign to the list; its id."""
    from django.utils import timezone

    from benchmarks import newsletter
    from campaigns.editions import freeze
    from campaigns.models import Campaign

    campaign = Campaign.objects.create(
        name=f"Benchmark of list {list_id}",
        from_name=newsletter.FROM_NAME,
        from_email=newsletter.FROM_EMAIL,
        subject=newsletter.SUBJECT,
        html=newsletter.HTML,
        text=newsletter.TEXT,
    )
    campaign.include_lists.add(list_id)
    assert campaign.schedule(timezone.now(), edition=freeze(campaign))
    return campaign.pk


def coordinate(start: Start = lambda alias, count: None) -> None:
    """The coordinator's rounds until nothing is left to fill; ``start`` wakes workers of ours."""
    from datetime import timedelta
    from random import Random

    from django.utils import timezone

    from delivery import coordinator
    from delivery.conf import delivery_settings

    settings = delivery_settings()
    while coordinator.coordinate(
        settings,
        timezone.now,
        start,
        timedelta(seconds=60),
        dice=Random(),
        recorders=settings.recorders,
    ):
        pass


def timed_campaign(campaign_id: int, start: Start) -> tuple[float, float, float]:
    """Fills and sends it: seconds until the workers were woken, until all was filled, and until the
    last outcome was stored."""
    woken: list[float] = []

    def wake(alias: str, count: int) -> None:
        if not woken:
            woken.append(time.perf_counter())
            start(alias, count)

    began = time.perf_counter()
    coordinate(wake)
    filled = time.perf_counter()
    wait_until_sent(campaign_id)
    return woken[0] - began, filled - began, time.perf_counter() - began


def wait_until_sent(campaign_id: int) -> None:
    from campaigns.models import CampaignTotals

    give_up = time.monotonic() + PATIENCE_SECONDS
    waiting = ("queued", "claimed", "sending", "deferred")
    while True:
        totals = CampaignTotals.of([campaign_id])[campaign_id]
        if totals["eligible"] and not any(totals[state] for state in waiting):
            return
        if time.monotonic() > give_up:
            sys.exit(f"gave up: {totals}")
        # Often when the end is near: the clock stops with what this sees.
        is_near = totals["eligible"] - totals["sent"] < NEAR_THE_END
        time.sleep(0.002 if is_near else 0.02)


def recorded(campaign_id: int) -> int:
    """Deliveries with a final outcome, counted row by row."""
    from delivery.models import Delivery
    from delivery.states import FINAL

    return Delivery.objects.filter(campaign_id=campaign_id, status__in=FINAL).count()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One run; the environment is set and Django is up."""
    from django.core.management import call_command
    from django.db import connection
    from django.utils import timezone

    from campaigns.models import Campaign
    from delivery.conf import delivery_settings
    from delivery.installation import adopt

    call_command("migrate", verbosity=0)
    # A database that another run left, which this one's folder does not know.
    adopt(delivery_settings(), timezone.now())
    with tempfile.TemporaryDirectory(prefix="pennypost-csv-") as folder:
        list_id = import_readers(args.recipients, Path(folder))
    coordinate()  # as every minute in an installation
    campaign_id = make_campaign(list_id)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # What autovacuum does within a minute of an import; a benchmark has no minute.
            cursor.execute("ANALYZE")
    memory: list[int] = []
    cpu = 0.0
    if args.cluster:
        from delivery.tasks import wake_workers

        with cluster():
            woken, filled, ended = timed_campaign(campaign_id, wake_workers)
    else:
        with waiting_workers(delivery_settings().workers) as processes:
            woken, filled, ended = timed_campaign(
                campaign_id, lambda _alias, _count: tell(processes)
            )
            for process in processes:
                out, _ = process.communicate(timeout=120)
                line = next(line for line in reversed(out.splitlines()) if line[:1].isdigit())
                size, seconds = line.split()
                memory.append(int(size))
                cpu += float(seconds)
    coordinate()
    status = Campaign.objects.get(pk=campaign_id).status
    if status != "finished":
        sys.exit(f"the campaign is {status}: its ledger does not balance")
    return {
        "enqueue_s": round(woken, 3),
        "send_s": round(ended - woken, 3),
        "recorded": recorded(campaign_id),
        "filled_s": round(filled, 3),
        "worker_mb": memory,
        "worker_us": round(cpu * 1e6 / args.recipients),
    }


def main() -> None:
    args = arguments()
    if args.as_worker:
        as_worker()
        return
    with tempfile.TemporaryDirectory(prefix="pennypost-var-") as var:
        os.environ.update(environment(args, Path(var)))
        import django

        django.setup()
        result = run(args)
    memory, cpu = result["worker_mb"], result["worker_us"]
    if not args.all:
        for name in ("filled_s", "worker_mb", "worker_us"):
            del result[name]
    if not args.json:
        seconds = result["enqueue_s"] + result["send_s"]
        print(f"{result['recorded'] / seconds:,.0f} letters/s, filling included")
        print(f"peak memory of each worker: {memory} MB; CPU of the workers: {cpu} µs a letter")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
