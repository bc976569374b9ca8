"""What each app has in django-q2's schedule: nothing else wakes it up by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.apps import apps as installed_apps
from django.apps.registry import Apps
from django.db import DEFAULT_DB_ALIAS, router


class Repeated(NamedTuple):
    """A function, by its dotted path, that is called every so many minutes."""

    name: str
    func: str
    minutes: int


def make_schedules(
    sender: Any, using: str = DEFAULT_DB_ALIAS, apps: Apps = installed_apps, **kwargs: Any
) -> None:
    """A receiver of ``post_migrate`` that makes those of ``sender.schedules`` that are missing.

    One that is there, known by its function, stays as an administrator left it. Where django-q2's
    own migrations were not applied yet (`migrate delivery` alone), the next `migrate` makes them.
    """
    from django_q.models import Schedule  # apps.py imports this module before models can be

    try:
        migrated = apps.get_model("django_q", "Schedule")
    except LookupError:
        return
    if not router.allow_migrate_model(using, migrated):
        return
    schedules = migrated._default_manager.using(using)
    known = set(schedules.values_list("func", flat=True))
    for entry in sender.schedules:
        if entry.func not in known:
            schedules.create(**entry._asdict(), schedule_type=Schedule.MINUTES, repeats=-1)
