"""A worker that had to stop for a limit comes back the moment the limit lets it."""

from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.brokers import get_broker
from django_q.models import OrmQ

from delivery import limits, tasks
from delivery.wakeups import wake_at

pytestmark = pytest.mark.django_db


@pytest.fixture
def state():
    return limits.state_of("default")


def queued() -> list[tuple[str, tuple]]:
    return [(row.task["func"], row.task["args"]) for row in OrmQ.objects.order_by("lock")]


def test_the_task_is_there_at_once_and_taken_at_its_moment(state):
    now = timezone.now()
    assert wake_at("default", now + timedelta(seconds=8), now)
    assert queued() == [("delivery.tasks.wake_again", ("default",))]
    assert get_broker().dequeue() is None
    OrmQ.objects.update(lock=timezone.now() - timedelta(milliseconds=1))
    assert len(get_broker().dequeue()) == 1


def test_it_wakes_in_the_wait_that_the_shared_clock_tells_whatever_this_host_believes(state):
    far = timezone.now() + timedelta(days=3)
    wake_at("default", far + timedelta(seconds=8), far)
    wait = OrmQ.objects.get().lock - timezone.now()
    assert timedelta(seconds=3) < wait <= timedelta(seconds=8)


def test_five_workers_that_stop_leave_one_task(state):
    now = timezone.now()
    moment = now + timedelta(seconds=8)
    assert [wake_at("default", moment, now) for _ in range(5)] == [True] + [False] * 4
    # An earlier moment is not lost behind a later one, and a past one holds up nobody.
    assert wake_at("default", now + timedelta(seconds=5), now)
    assert wake_at("default", moment + timedelta(seconds=8), moment)
    assert OrmQ.objects.count() == 3


def test_a_moment_far_away_is_left_to_the_coordinator(state):
    now = timezone.now()
    assert not wake_at("default", now + timedelta(hours=3), now)
    assert not OrmQ.objects.exists()


def test_a_provider_that_opens_gets_as_many_workers_as_have_a_place(state):
    assert tasks.wake_again("default") == "3 workers"
    assert queued() == [("delivery.tasks.run_worker", ("default",))] * 3
