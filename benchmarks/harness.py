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
        capture_output=True,
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


def django_up(var: Path) -> None:
    """Pennypost's own settings, with ``var`` as its folder."""
    os.environ["PENNYPOST_VAR"] = str(var)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    os.environ.setdefault("LOG_LEVEL", "ERROR")
    sys.path.insert(0, str(ROOT))
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def subscribers(count: int) -> int:
    """A list with so many readers, made by the database itself; the list's id."""
    from django.db import connection
    from django.utils import timezone

    from campaigns.models import MailingList, Subscriber, Subscription

    now = timezone.now()
    label = f"bench-{now:%H%M%S%f}"
    made = MailingList.objects.create(name=label, label=label)
    moment = connection.ops.adapt_datetimefield_value(now)
    numbers = (
        "generate_series(1, %s) AS n"
        if connection.vendor == "postgresql"
        else "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < %s)"
        " SELECT n FROM s) AS n"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Subscriber._meta.db_table}"
            " (email, address_key, name, language, attributes, created_at, updated_at)"
            " SELECT %s || n || '@example.org', %s || n || '@example.org', 'Ada Lovelace ' || n,"
            f" 'en', '{{\"first_name\": \"Ada\"}}', %s, %s FROM {numbers}",
            [label, label, moment, moment, count],
        )
        cursor.execute(
            f"INSERT INTO {Subscription._meta.db_table}"
            " (subscriber_id, mailing_list_id, status, source, created_at, changed_at)"
            f" SELECT id, %s, 'subscribed', 'benchmark', %s, %s FROM {Subscriber._meta.db_table}"
            " WHERE email LIKE %s ORDER BY id",
            [made.pk, moment, moment, f"{label}%"],
        )
    analyse()
    return made.pk


def analyse() -> None:
    """What autovacuum does within a minute of an import; a benchmark has no minute."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def sizes() -> dict[str, float]:
    """MB of the deliveries' table and of its indexes, and its dead rows in thousands."""
    from django.db import connection

    if connection.vendor != "postgresql":
        name = connection.settings_dict["NAME"]
        return {"database_mb": round(Path(name).stat().st_size / 1e6, 1)}
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT pg_table_size(relid), pg_indexes_size(relid), n_dead_tup, n_tup_upd,"
            " n_tup_hot_upd, autovacuum_count FROM pg_stat_user_tables"
            " WHERE relname = 'delivery_delivery'"
        )
        table, indexes, dead, updated, hot, vacuumed = cursor.fetchone()
    return {
        "table_mb": round(table / 1e6, 1),
        "index_mb": round(indexes / 1e6, 1),
        "dead_thousands": round(dead / 1e3, 1),
        "updates": updated,
        "hot_updates": hot,
        "autovacuums": vacuumed,
    }
