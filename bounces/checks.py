"""System checks: a wrong BOUNCES setting stops ``manage.py check``, before the first poll.

bounces.E001 to E022 are the problems that conf.py numbers; E101 and W101 are about what stands in
other settings and would make every bounce useless.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from bounces.conf import read_settings
from delivery.conf import delivery_settings


@register
def check_bounce_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Every mistake in BOUNCES, each with its id and a hint."""
    bounces, problems = read_settings(getattr(settings, "BOUNCES", {}))
    found: list[CheckMessage] = [
        Error(problem.message, hint=problem.hint, id=f"bounces.E{problem.number:03}")
        for problem in problems
    ]
    delivery = delivery_settings()
    # One that sends as a mailbox has that for its return path, whatever is asked for.
    asks = not all(provider.mailbox for provider in delivery.providers.values())
    if bounces.mailboxes and asks and not delivery.return_path:
        found.append(
            Error(
                "Bounces are polled, but DELIVERY['RETURN_PATH'] gives letters no return path.",
                hint='Such as "bounce+{token}@bounces.example.org": only its signed token says '
                "for certain which letter came back.",
                id="bounces.E101",
            )
        )
    if not bounces.mailboxes and not problems:
        found.append(
            Warning(
                "BOUNCES names no mailbox: nobody reads what comes back.",
                hint="Dead addresses are written to again and again, which mailbox providers "
                "count against the sender. Add BOUNCES['MAILBOXES'].",
                id="bounces.W101",
            )
        )
    return found
