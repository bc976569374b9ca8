"""A large campaign from an empty queue to its last letter: rates, memory, weight of the tables.

    python benchmarks/scale.py [--readers 1000000] [--campaigns 1] [--workers 4] [--sqlite]

Fills the queue by the coordinator and sends through workers and SMTP to the sink, which names every
letter. For each campaign: the rate of filling, of sending in all, and of the first and the last
tenth (they should not differ); the peak memory of the coordinator and of each worker; the size of
the deliveries' table and its indexes, its dead rows, and how often autovacuum came. Several
campaigns in a row show whether anything grows that should not. PostgreSQL is DATABASE_URL's or a
throw-away server; ``--sqlite`` uses a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness, throughput


def fill(answer: Any) -> None:
    """The coordinator, in a process of its own; seconds and peak MB."""
    began = time.perf_counter()
    throughput.coordinate()
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    answer.send((time.perf_counter() - began, size))


def in_a_process() -> tuple[float, int]:
    from django.db import connections

    connections.close_all()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=fill, args=(there,))
    process.start()
    seconds, size = here.recv()
    process.join()
    return seconds, size


def resident(pids: Sequence[int]) -> int:
    """MB of the largest of these processes now."""
    import psutil

    sizes = [psutil.Process(pid).memory_info().rss for pid in pids if psutil.pid_exists(pid)]
    return max(sizes, default=0) // 1_000_000


def send(
    campaign_id: int, readers: int, processes: Sequence[subprocess.Popen[str]]
) -> dict[str, float]:
    """Sends a filled campaign; when a tenth, half, nine tenths and all were sent."""
    from campaigns.models import CampaignTotals

    marks: dict[float, float] = {}
    memory = {"worker_mb_at_a_tenth": 0, "worker_mb": 0}
    pids = [process.pid for process in processes]
    began = time.perf_counter()
    throughput.tell(processes)
    while 1.0 not in marks:
        sent = CampaignTotals.of([campaign_id])[campaign_id]["sent"]
        moment = time.perf_counter() - began
        for share in (0.1, 0.5, 0.9, 1.0):
            if share not in marks and sent >= share * readers:
                marks[share] = moment
                if share == 0.1:
                    memory["worker_mb_at_a_tenth"] = resident(pids)
        memory["worker_mb"] = max(memory["worker_mb"], resident(pids))
        if moment > throughput.PATIENCE_SECONDS:
            sys.exit("gave up")
        time.sleep(0.05 if readers < 100_000 else 0.2)
    for process in processes:
        process.communicate(timeout=120)
    first, last = marks[0.1], marks[1.0] - marks[0.9]
    return {
        "send_rate": readers / marks[1.0],
        "first_tenth_rate": readers / 10 / first,
        "last_tenth_rate": readers / 10 / last,
        "last_to_first": first / last,
        **memory,
    }


def campaign(list_id: int, readers: int, sink: harness.Sink) -> dict[str, float]:
    from campaigns.models import Campaign
    from delivery.conf import delivery_settings

    sink.forget()
    campaign_id = throughput.make_campaign(list_id)
    # Before there is anything to send, for each begins with a round.
    with throughput.waiting_workers(delivery_settings().workers) as processes:
        seconds, size = in_a_process()
        result = {"fill_rate": readers / seconds, "coordinator_mb": size}
        result |= send(campaign_id, readers, processes)
    throughput.coordinate()
    named = sink.named()
    if Campaign.objects.get(pk=campaign_id).status != "finished":
        sys.exit("its ledger does not balance")
    return result | {
        "lost": readers - len(named),
        "doubled": sum(named.values()) - len(named),
        "unrecorded": readers - throughput.recorded(campaign_id),
        **harness.sizes(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", type=int, default=None, help="1,000,000; on SQLite 100,000")
    parser.add_argument("--campaigns", type=int, default=1)
    parser.add_argument("--workers", type=int, default=None, help="4; on SQLite 1")
    parser.add_argument("--connections", type=int, default=10)
    parser.add_argument("--send-batch-size", type=int, default=100)
    parser.add_argument("--sqlite", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    args = parser.parse_args()
    readers = args.readers or (100_000 if args.sqlite else 1_000_000)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pennypost-scale-")))
        if args.sqlite:
            os.environ["DATABASE_URL"] = f"sqlite:///{folder}/pennypost.sqlite3"
        else:
            stack.enter_context(harness.database())
        sink = stack.enter_context(harness.sink(folder))
        run = Namespace(
            smtp=sink.address,
            workers=args.workers or (1 if args.sqlite else 4),
            connections=args.connections,
            send_batch_size=args.send_batch_size,
            claim_size=None,
        )
        os.environ.update(throughput.environment(run, folder))
        harness.django_up(folder)
        began = time.perf_counter()
        list_id = harness.subscribers(readers)
        print(f"{readers:,} readers in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        results = []
        for number in range(1, args.campaigns + 1):
            results.append(campaign(list_id, readers, sink))
            print(f"campaign {number}:", file=sys.stderr)
            for name, value in results[-1].items():
                print(f"  {name:22} {value:14,.2f}".rstrip("0").rstrip("."), file=sys.stderr)
    if args.json:
        print(json.dumps(results))
    wrong = ("lost", "doubled", "unrecorded")
    return int(any(result[name] for result in results for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
