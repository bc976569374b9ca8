"""System checks: a wrong setting stops ``manage.py check``, before the first letter.

delivery.E001 to E025, E028, E029, E040 to E050, E060 to E065 and E070 to E077 are the
problems that delivery/conf.py numbers.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

from delivery.conf import ProviderSettings, read_settings
from delivery.providers.http import is_loopback

# Beyond it, one writer at a time is felt (docs/performance.md).
MOST_READERS_ON_SQLITE = 100_000


@register
def check_delivery_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Every mistake in DELIVERY, each with its id and a hint."""
    delivery, problems = read_settings(getattr(settings, "DELIVERY", None))
    found: list[CheckMessage] = [
        Error(problem.message, hint=problem.hint, id=f"delivery.E{problem.number:03}")
        for problem in problems
    ]
    if delivery.send_batch_size > delivery.cycle_batch_size:
        found.append(
            Warning(
                "DELIVERY['SEND_BATCH_SIZE'] is larger than CYCLE_BATCH_SIZE.",
                hint="A wave cannot be larger than what was claimed; the smaller one counts.",
                id="delivery.W101",
            )
        )
    cluster = getattr(settings, "Q_CLUSTER", {})
    if cluster.get("timeout") and cluster["timeout"] < delivery.slice_length.total_seconds() * 2:
        found.append(
            Error(
                "Q_CLUSTER['timeout'] would kill a worker in the middle of its slice.",
                hint="At least twice DELIVERY['SLICE_LENGTH']; 900 leaves room for a slow answer "
                "to a final dot (RFC 5321 section 4.5.3.2.6 allows ten minutes).",
                id="delivery.E026",
            )
        )
    if not cluster.get("orm") and not cluster.get("redis"):
        found.append(
            Error(
                "Q_CLUSTER names no broker.",
                hint='Q_CLUSTER = {"orm": "default", ...}',
                id="delivery.E027",
            )
        )
    return found


@register
def check_where_letters_lead(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """A warning when letters leave this machine, and their links lead back to it alone: BASE_URL
    was forgotten, and nobody who gets them can unsubscribe."""
    delivery, _problems = read_settings(getattr(settings, "DELIVERY", None))
    far = sorted(alias for alias, one in delivery.providers.items() if _leaves_this_machine(one))
    if not far or not is_loopback(settings.BASE_URL):
        return []
    return [
        Warning(
            f"Letters leave through {', '.join(far)}, but their links lead to "
            f"{settings.BASE_URL}, which readers cannot reach.",
            hint="Set BASE_URL to where readers reach this site, such as https://news.example.org",
            id="delivery.W102",
        )
    ]


def _leaves_this_machine(provider: ProviderSettings) -> bool:
    """As far as options tell that are ours: a server's name, or a mailbox at Microsoft."""
    host = provider.options.get("host")
    if isinstance(host, str):
        return not is_loopback(f"smtp://[{host}]" if ":" in host else f"smtp://{host}")
    return bool(provider.mailbox) and not provider.options.get("emulator")


@register(Tags.database)
def check_size_of_sqlite(
    app_configs: Any = None, databases: Any = None, **kwargs: Any
) -> list[CheckMessage]:
    """A warning when the embedded database has outgrown what it is meant for. Looks into the
    database, so it runs with ``migrate`` and ``check --database default`` only."""
    if "default" not in (databases or ()) or connections["default"].vendor != "sqlite":
        return []
    from campaigns.models import Subscriber
    from delivery.models import WorkerLease

    tables = connections["default"].introspection.table_names()
    if not {Subscriber._meta.db_table, WorkerLease._meta.db_table} <= set(tables):
        return []  # before the first migration
    hint = "Move to PostgreSQL: docs/operators-guide.md tells how."
    found: list[CheckMessage] = []
    one_too_many = slice(MOST_READERS_ON_SQLITE, MOST_READERS_ON_SQLITE + 1)
    if Subscriber.objects.order_by("pk").values_list("pk")[one_too_many]:
        text = f"SQLite holds more than {MOST_READERS_ON_SQLITE:,} readers."
        found.append(Warning(text, hint=hint, id="delivery.W001"))
    holders = WorkerLease.objects.exclude(holder="").values_list("holder", flat=True)
    if len({holder.rpartition(":")[0] for holder in holders}) > 1:
        text = "Workers of several hosts use one SQLite file; its locks reach over no network."
        found.append(Warning(text, hint=hint, id="delivery.W002"))
    return found
