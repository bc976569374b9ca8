"""How many letters a second one process sends to a server that is far away.

    python benchmarks/latency.py [--latency 0.05] [--connections 100 200] [--json]

The sink answers each group of commands after ``--latency`` seconds. A letter needs two round trips
with PIPELINING (its commands; its text), and one when the next letter's commands stand behind its
text, as they do while letters are waiting; so the most that is possible is connections / (round
trips x latency). Printed are that bound for two round trips and for one, and what one worker
reached, through the real queue.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--connections", type=int, nargs="+", default=[10, 100, 200])
    parser.add_argument("--recipients", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    args = parser.parse_args()
    rates: dict[int, list[float]] = {connections: [] for connections in args.connections}
    wrong = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pennypost-far-")))
        stack.enter_context(harness.database())
        sink = stack.enter_context(harness.sink(folder, args.latency))
        for _round in range(args.rounds):
            for connections in args.connections:
                sink.forget()
                # A connection that is waiting should find its next letter noted already.
                letters = min(args.recipients, 100 * connections)
                result = harness.throughput(
                    letters,
                    sink.address,
                    workers=1,
                    connections=connections,
                    send_batch_size=6 * connections,
                    claim_size=12 * connections,
                )
                named = sink.named()
                wrong += letters - len(named) + sum(named.values()) - len(named)
                wrong += letters - result["recorded"]
                rates[connections].append(letters / result["send_s"])
    table = []
    for connections, taken in rates.items():
        rate, bound = statistics.median(taken), connections / args.latency
        row = {"connections": connections, "rate": rate, "of_one": rate / bound}
        row["of_two"] = 2 * row["of_one"]
        table.append(row)
        print(
            f"{connections:4} connections, {args.latency * 1000:.0f} ms: {rate:8,.0f} letters/s,"
            f" {row['of_two']:6.1%} of the bound for two round trips, {row['of_one']:6.1%} for one"
        )
    print(f"lost, doubled or unrecorded: {wrong}")
    if args.json:
        print(json.dumps(table))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
