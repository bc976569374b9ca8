"""What wakes the apps up stands in django-q2's schedule, whatever was migrated first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from django.apps import apps
from django.db import connection
from django.db.models.signals import post_migrate
from django_q.models import Schedule

from tests.database_url import database_url

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.django_db

EXPECTED = {
    "campaigns.tasks.resume_imports": 1,
    "campaigns.tasks.keep_house": 60,
    "delivery.tasks.coordinate": 1,
    "delivery.tasks.look_up_domains": 10,
    "bounces.tasks.poll_mailboxes": 1,
    "bounces.tasks.keep_watching": 5,
    "bounces.tasks.keep_house": 60,
}
APPS = ["campaigns", "delivery", "bounces"]


def migrate_again() -> None:
    for label in APPS:
        config = apps.get_app_config(label)
        post_migrate.send(
            config, app_config=config, verbosity=0, interactive=False, using="default", apps=apps
        )


def minutes_of_ours() -> dict[str, int | None]:
    return dict(Schedule.objects.values_list("func", "minutes"))


def test_a_migrated_database_has_each_schedule_once() -> None:
    migrate_again()
    migrate_again()
    assert minutes_of_ours() == EXPECTED
    assert Schedule.objects.count() == len(EXPECTED)


@pytest.mark.parametrize("path", EXPECTED)
def test_what_the_schedule_names_can_be_called(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_a_schedule_that_an_administrator_changed_stays_changed() -> None:
    migrate_again()
    of_poll = Schedule.objects.filter(func="bounces.tasks.poll_mailboxes")
    of_poll.update(name="Fetch bounces", minutes=5, repeats=0)
    migrate_again()
    assert list(of_poll.values_list("name", "minutes", "repeats")) == [("Fetch bounces", 5, 0)]


@pytest.fixture
def empty_database(transactional_db: None, tmp_path: Path) -> Iterator[str]:
    """The DATABASE_URL of a database of this test's own without a single table."""
    if connection.vendor != "postgresql":
        yield f"sqlite:///{tmp_path / 'fresh.sqlite3'}"
        return
    name = f"{connection.settings_dict['NAME']}_fresh"
    quoted = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {quoted}")
    try:
        yield database_url().replace(connection.settings_dict["NAME"], name)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {quoted} WITH (FORCE)")


BY_HAND = """
import json, sys, django
django.setup()
from django.core.management import call_command
call_command("migrate", "delivery", verbosity=0)
call_command("migrate", verbosity=0)
from django_q.models import Schedule
json.dump(list(Schedule.objects.values_list("func", "minutes")), sys.stdout)
"""


def test_one_app_can_be_migrated_before_django_q2_and_the_schedules_come_with_the_rest(
    empty_database: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BY_HAND],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": empty_database},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == sorted(map(list, EXPECTED.items()))
