"""What the benchmarks share: a database of their own, the sink, and who got a letter."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@contextlib.contextmanager
def database(name: str = "") -> Iterator[str]:
    """DATABASE_URL's server when it is PostgreSQL, else a throw-away one; the URL is in the
    environment meanwhile."""
    sys.path.insert(0, str(ROOT))
    from tests.postgresql import throwaway_server

    before = os.environ.get("DATABASE_URL")
    with contextlib.ExitStack() as stack:
        if before is None or not before.startswith("postgres"):
            os.environ["DATABASE_URL"] = stack.enter_context(throwaway_server())
        try:
            yield os.environ["DATABASE_URL"]
        finally:
            if before is None:
                os.environ.pop("DATABASE_URL", None)
            else:
                os.environ["DATABASE_URL"] = before


@dataclass(frozen=True, slots=True)
class Sink:
    """A running sink (benchmarks/sink.py): where it listens, and its log of recipients."""

    address: str
    log: Path
    pid: int

    def forget(self) -> None:
        """Begins a new count."""
        time.sleep(0.2)  # it writes its log out every 50 ms
        os.truncate(self.log, 0)

    def named(self) -> Counter[str]:
        """How many letters each recipient got since the last ``forget``."""
        time.sleep(0.2)
        return Counter(self.log.read_text().splitlines())


@contextlib.contextmanager
def sink(folder: Path, latency: float = 0.0) -> Iterator[Sink]:
    """A sink that answers after ``latency`` seconds, as long as the block."""
    log = folder / "sink.log"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "sink.py"), "--log", str(log), "--latency", str(latency)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Sink(process.stdout.readline().strip(), log, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def json_of(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Runs a command whose last line is JSON."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def throughput(recipients: int, smtp: str, **options: int | None) -> dict[str, Any]:
    """One run of benchmarks/throughput.py; None leaves a default of Pennypost."""
    command = [sys.executable, str(HERE / "throughput.py"), "--json", "--all"]
    command += ["--recipients", str(recipients), "--smtp", smtp]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return json_of(command)
