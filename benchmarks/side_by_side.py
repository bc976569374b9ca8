"""Pennypost, its peers and the wire's own limit, in one run, against one sink.

    python benchmarks/side_by_side.py [--rounds 5] [--recipients 20000] [--only NAME ...] [--json]

Every round asks each contender once, so that a busy moment of the machine meets all of them; what
counts are the ratios of the medians, printed first: to the wire, to the best peer, and to the best
peer's rate of sending alone. The sink (benchmarks/sink.py) names every
letter that it took: lost and doubled are counted against it, and ``unrecorded`` against what the
contender stored. A rate is letters by the whole time, filling the queue included; ``sending`` is
without it.

PostgreSQL is the server of DATABASE_URL, or a throw-away one. The peers are installed into a
virtualenv of their own (requirements-peers.txt; ``--peers`` names a ready one). The wire's limit is
Postfix's smtp-source (Debian: `apt-get install --no-install-recommends postfix`, or unpack it with
`dpkg -x` and name it by ``--smtp-source``); without it the ratios to the wire are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import harness  # noqa: E402

WIRE = "smtp-source"


@dataclass(frozen=True, slots=True)
class Run:
    """What one contender did in one round. ``recorded``: None for one that stores nothing."""

    letters: int
    rate: float
    sending: float
    lost: int
    doubled: int
    unrecorded: int | None
    mb: int | None = None
    worker_us: int | None = None


Contender = Callable[[harness.Sink], dict[str, Any]]


def smtp_source(program: str, letters: int, sessions: int, sink: harness.Sink) -> dict[str, Any]:
    """-N numbers the recipients, so that each can be counted; -d keeps the connections."""
    libraries = Path(program).resolve().parent.parent / "lib" / "postfix"
    command = [program, "-d", "-N", "-s", str(sessions), "-m", str(letters), "-l", "10240"]
    command += ["-f", "news@example.com", "-t", "reader@example.org", sink.address]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | {"LD_LIBRARY_PATH": str(libraries)}, check=True)
    return {"letters": letters, "enqueue_s": 0.0, "send_s": time.perf_counter() - began}


def pennypost(letters: int, options: dict[str, int | None], sink: harness.Sink) -> dict[str, Any]:
    result = harness.throughput(letters, sink.address, **options)
    return result | {"letters": letters, "mb": max(result["worker_mb"], default=None)}


def on_sqlite(run: Contender, sink: harness.Sink) -> dict[str, Any]:
    """The same on a SQLite file of its own."""
    before = os.environ["DATABASE_URL"]
    with tempfile.TemporaryDirectory(prefix="pennypost-sqlite-") as folder:
        os.environ["DATABASE_URL"] = f"sqlite:///{folder}/pennypost.sqlite3"
        try:
            return run(sink)
        finally:
            os.environ["DATABASE_URL"] = before


def peer(
    python: Path, url: str, name: str, processes: int, letters: int, sink: harness.Sink
) -> dict[str, Any]:
    command = [str(python), str(HERE / "peers.py"), name, "--processes", str(processes)]
    command += ["--recipients", str(letters), "--smtp", sink.address]
    return harness.json_of(command, {"DATABASE_URL": url}) | {"letters": letters}


def contenders(args: argparse.Namespace, url_of_peers: str) -> dict[str, Contender]:
    """By name, in the order in which a round asks them."""
    fast = {"connections": 10, "send_batch_size": 100}
    settings: dict[str, dict[str, int | None]] = {
        "pennypost, 4 workers": {"workers": 4, **fast},
        "pennypost, 1 worker": {"workers": 1, **fast},
        "pennypost, default settings": {},
        "pennypost, send batch 1": {"workers": 4, "send_batch_size": 1},
        # As many processes as the best peer: each of its commits waits for the disk.
        "pennypost, send batch 1, 8 workers": {"workers": 8, "send_batch_size": 1},
    }
    all_of_them: dict[str, Contender] = {}
    if args.smtp_source:
        all_of_them[WIRE] = partial(smtp_source, args.smtp_source, args.recipients, 10)
    for name, options in settings.items():
        all_of_them[name] = partial(pennypost, args.recipients, options)
    all_of_them["pennypost, 1 worker, SQLite"] = partial(
        on_sqlite, partial(pennypost, args.recipients, {"workers": 1, **fast})
    )
    for name, processes in (
        ("post_office", 4),
        ("post_office", 8),
        ("mailer", 4),
        ("send_mass_mail", 4),
    ):
        all_of_them[f"{name}, {processes} processes"] = partial(
            peer, args.peers, url_of_peers, name, processes, args.peer_recipients
        )
    if args.only:
        wanted = [name for name in all_of_them if any(part in name for part in args.only)]
        return {name: all_of_them[name] for name in wanted}
    return all_of_them


def measured(contender: Contender, sink: harness.Sink) -> Run:
    sink.forget()
    result = contender(sink)
    named: Counter[str] = sink.named()
    letters = result["letters"]
    seconds = result["enqueue_s"] + result["send_s"]
    recorded = result.get("recorded")
    return Run(
        letters,
        rate=letters / seconds,
        sending=letters / result["send_s"],
        lost=letters - len(named),
        doubled=sum(named.values()) - len(named),
        unrecorded=None if recorded is None else letters - recorded,
        mb=result.get("mb"),
        worker_us=result.get("worker_us"),
    )


def report(runs: dict[str, list[Run]]) -> dict[str, dict[str, float | int | None]]:
    """The medians, the sums of what went wrong, and the ratios."""
    rates = {name: statistics.median(run.rate for run in taken) for name, taken in runs.items()}
    # Pennypost fills its queue while it sends; a peer's rate of sending alone is beside it.
    sending = {
        name: statistics.median(run.sending for run in taken) for name, taken in runs.items()
    }
    # send_mass_mail queues and stores nothing: it is no peer, it is what a script does.
    peers = [name for name in runs if re.match("post_office|mailer", name)]
    best = max((rates[name] for name in peers), default=None)
    best_sending = max((sending[name] for name in peers), default=None)
    wire = rates.get(WIRE)
    table = {}
    for name, taken in runs.items():
        unrecorded = [run.unrecorded for run in taken if run.unrecorded is not None]
        table[name] = {
            "of_wire": wire and rates[name] / wire,
            "of_best_peer": best and rates[name] / best,
            "sending_of_best_peer": best_sending and sending[name] / best_sending,
            "rate": rates[name],
            "sending": sending[name],
            "lost": sum(run.lost for run in taken),
            "doubled": sum(run.doubled for run in taken),
            "unrecorded": sum(unrecorded) if unrecorded else None,
            "mb": max((run.mb for run in taken if run.mb is not None), default=None),
            "worker_us": statistics.median(run.worker_us for run in taken if run.worker_us)
            if any(run.worker_us for run in taken)
            else None,
        }
    return table


def print_table(table: dict[str, dict[str, float | int | None]]) -> None:
    def cell(value: float | int | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    print(
        f"{'':34} {'of wire':>8} {'x peer':>7} {'sending':>8} {'letters/s':>10} {'sending':>9}"
        f" {'lost':>5} {'doubled':>8} {'unrec.':>7} {'MB':>5} {'CPU µs':>7}"
    )
    for name, row in table.items():
        print(
            f"{name:34} {cell(row['of_wire'], '8.1%'):>8} {cell(row['of_best_peer'], '7.1f'):>7}"
            f" {cell(row['sending_of_best_peer'], '8.1f'):>8}"
            f" {cell(row['rate'], '10,.0f')} {cell(row['sending'], '9,.0f')}"
            f" {cell(row['lost'], '5d')} {cell(row['doubled'], '8d')}"
            f" {cell(row['unrecorded'], 'd'):>7} {cell(row['mb'], 'd'):>5}"
            f" {cell(row['worker_us'], '.0f'):>7}"
        )


def make_peers(folder: Path) -> Path:
    """A virtualenv with the peers; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*command, "-r", str(HERE / "requirements-peers.txt")], check=True)
    return python


def database_beside(url: str, name: str) -> str:
    """An empty database on the same server; its URL."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
    own = conninfo_to_dict(url)["dbname"]
    return re.sub(rf"/{own}(?=$|\?)", f"/{name}", url)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipients", type=int, default=20_000)
    parser.add_argument("--peer-recipients", type=int, default=4_000, help="peers are slow")
    parser.add_argument("--only", nargs="+", default=[], help="parts of contenders' names")
    parser.add_argument("--peers", type=Path, default=HERE.parent / "var" / "peers")
    parser.add_argument("--smtp-source", default=shutil.which("smtp-source"))
    parser.add_argument("--json", action="store_true", help="print JSON as the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pennypost-side-") as folder, harness.database() as url:
        url_of_peers = database_beside(url, "peers")
        os.environ["DATABASE_URL"] = database_beside(url, "pennypost")
        chosen = contenders(args, url_of_peers)
        if any(re.match("post_office|mailer|send_mass", name) for name in chosen):
            args.peers = make_peers(args.peers.resolve())
            chosen = contenders(args, url_of_peers)
        runs: dict[str, list[Run]] = {name: [] for name in chosen}
        with harness.sink(Path(folder)) as sink:
            for number in range(1, args.rounds + 1):
                for name, contender in chosen.items():
                    run = measured(contender, sink)
                    runs[name].append(run)
                    print(f"round {number}: {name:34} {run.rate:8,.0f}/s", file=sys.stderr)
    table = report(runs)
    print(f"Medians of {args.rounds} interleaved rounds; load {os.getloadavg()[0]:.1f}")
    print_table(table)
    if args.json:
        each = {name: [asdict(run) for run in taken] for name, taken in runs.items()}
        print(json.dumps({"medians": table, "rounds": each}))
    return int(any(row["lost"] or row["doubled"] or row["unrecorded"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
