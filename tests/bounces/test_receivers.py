"""What bounces tells a letter's story, and its place in the schedule."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db.models.signals import post_migrate
from django_q.models import Schedule

from delivery.story import story_of
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_intake import take

pytestmark = pytest.mark.django_db


def test_the_story_of_a_letter_tells_its_bounce(deliver: Deliver, now) -> None:
    letter = deliver()
    take(report(delivered_to=return_path(letter)), now, "1")
    letter.refresh_from_db()
    (line,) = [line for line in story_of(letter) if "bounced" in line.title]
    assert line.at == now
    assert line.quote == "smtp; 550 5.1.1 unknown user"
    assert "suppressed" in line.detail


def test_the_story_tells_which_report_changed_nothing(deliver: Deliver, now) -> None:
    letter = deliver()
    for uid in ("1", "2"):
        take(report(group(), delivered_to=return_path(letter)), now, uid)
    titles = [line.title for line in story_of(letter)]
    assert "Another report, which changed nothing" in titles


def test_a_letter_that_did_not_come_back_has_no_such_line(deliver: Deliver) -> None:
    assert all("bounce" not in line.title.lower() for line in story_of(deliver()))


def test_the_poll_is_scheduled_each_minute_and_once() -> None:
    config = apps.get_app_config("bounces")
    for _ in range(2):
        post_migrate.send(
            config, app_config=config, verbosity=0, interactive=False, using="default"
        )
    schedule = Schedule.objects.get(name="Poll the bounce mailboxes")
    assert (schedule.func, schedule.minutes) == ("bounces.tasks.poll_mailboxes", 1)


def test_a_schedule_that_a_person_changed_stays_changed() -> None:
    Schedule.objects.filter(name="Poll the bounce mailboxes").update(minutes=5)
    config = apps.get_app_config("bounces")
    post_migrate.send(config, app_config=config, verbosity=0, interactive=False, using="default")
    assert Schedule.objects.get(name="Poll the bounce mailboxes").minutes == 5
