"""System checks: a wrong setting stops ``manage.py check``, before the first letter.

delivery.E001 to E025, E028, E029, E040 to E048, E060 to E063 and E070 to E077 are the
problems that delivery/conf.py numbers.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from delivery.conf import read_settings


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
