"""How many letters a second the queue can move, without composing and without a wire.

    python benchmarks/claim.py [--letters 20000] [--rounds 3] [--fillfactors 100 70 50] [--json]

Fills a campaign by the real fill, and lets 1 and 4 processes claim, note and settle its letters by
the worker's own statements, every outcome an acceptance: three moves a letter, each guarded, the
outcomes durable. By wave (SEND_BATCH_SIZE, half of it with each commit), by number of processes
and, on PostgreSQL, by fillfactor of the table; prints the medians of interleaved rounds and how
large the table and its indexes were at the end of a run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness


def move(campaign_id: int, slot: int, wave: int, claim_size: int) -> None:
    """A worker's statements until nothing is waiting."""
    import random

    from django.utils import timezone

    from delivery import claiming, queue
    from delivery.leases import Lease
    from delivery.outcomes import Accepted, Phase, Reply

    lease = Lease("default", slot, random.getrandbits(60) + 1, "benchmark")
    outcome = Accepted(Reply.of(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 4bXyZ1234567"))
    while claimed := claiming.claim(lease, [campaign_id], claim_size, timezone.now()):
        answered: list[queue.Answered] = []
        for start in range(0, len(claimed), wave):
            letters = claimed[start : start + wave]
            queue.exchange(queue.Exchange(lease, answered, letters, timezone.now(), None))
            answered = [(one, outcome) for one in letters]
        queue.exchange(queue.Exchange(lease, answered, [], timezone.now(), None))


def run(list_id: int, processes: int, wave: int) -> dict[str, float]:
    """Fills a campaign and moves it; rates and sizes."""
    from django.db import connections
    from django.utils import timezone

    from benchmarks.throughput import make_campaign
    from campaigns.models import Campaign
    from delivery import filling
    from delivery.models import Delivery

    campaign = Campaign.objects.get(pk=make_campaign(list_id))
    now = timezone.now()
    assert campaign.start(now)
    began = time.perf_counter()
    while filling.fill_page(campaign, 10_000, now) is not None:
        pass
    filled = time.perf_counter()
    letters = Delivery.objects.filter(campaign=campaign).count()
    harness.analyse()
    connections.close_all()
    started = [
        multiprocessing.get_context("fork").Process(
            target=move, args=(campaign.pk, slot, max(1, wave), max(100, 5 * wave))
        )
        for slot in range(processes)
    ]
    start = time.perf_counter()
    for process in started:
        process.start()
    for process in started:
        process.join()
    seconds = time.perf_counter() - start
    if Delivery.objects.filter(campaign=campaign, status="sent").count() != letters:
        sys.exit("not every letter was moved")
    rates = {"fill": letters / (filled - began), "moved": letters / seconds}
    return rates | harness.sizes()


def emptied(fillfactor: int | None) -> None:
    """The deliveries' table as new, with this fillfactor."""
    from django.db import connection

    from delivery.models import Delivery

    if connection.vendor != "postgresql":
        Delivery.objects.all().delete()
        return
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE delivery_delivery CASCADE")
        if fillfactor is not None:
            cursor.execute(f"ALTER TABLE delivery_delivery SET (fillfactor = {fillfactor})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--letters", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, nargs="+", default=[1, 10, 50, 100])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--fillfactors", type=int, nargs="+", default=[0], help="0: as it is")
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    args = parser.parse_args()
    ways = [
        (fillfactor, processes, wave)
        for fillfactor in args.fillfactors
        for processes in args.processes
        for wave in args.waves
    ]
    taken: dict[tuple[int, int, int], list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="pennypost-claim-") as folder, harness.database():
        harness.django_up(Path(folder))
        list_id = harness.subscribers(args.letters)
        for _round in range(args.rounds):
            for way in ways:
                fillfactor, processes, wave = way
                emptied(fillfactor or None)
                taken[way].append(run(list_id, processes, wave))
    rows = []
    print(f"Medians of {args.rounds} interleaved rounds, {args.letters:,} letters")
    for (fillfactor, processes, wave), results in taken.items():
        row = {name: statistics.median(r[name] for r in results) for name in results[0]}
        row |= {"fillfactor": fillfactor, "processes": processes, "wave": wave}
        rows.append(row)
        print(
            f"fillfactor {fillfactor or '-':>3} {processes} processes, {wave:4} a commit: "
            f"{row['moved']:9,.0f} letters/s, filled at {row['fill']:9,.0f}/s"
            f"  {row.get('table_mb', 0):6.1f} MB + {row.get('index_mb', 0):6.1f} MB of indexes"
        )
    if args.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
