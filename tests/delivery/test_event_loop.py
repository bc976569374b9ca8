"""A worker's slice runs in the event loop that the settings name."""

from __future__ import annotations

import asyncio
import gc

import pytest

from delivery import tasks
from delivery.models import Delivery
from delivery.providers.memory import MemoryProvider


class NotesItsLoop(MemoryProvider):
    """Accepts everything, and knows in which kind of loop."""

    loops: set[str] = set()

    async def send(self, message):
        self.loops.add(type(asyncio.get_running_loop()).__module__.partition(".")[0])
        return await super().send(message)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "event_loop, has_uvloop, expected",
    [
        ("asyncio", True, "asyncio"),
        ("uvloop", True, "uvloop"),
        ("auto", True, "uvloop"),
        ("auto", False, "asyncio"),
    ],
)
def test_letters_leave_in_the_event_loop_of_the_settings(
    campaign, settings, monkeypatch, event_loop, has_uvloop, expected
):
    monkeypatch.setattr(tasks, "has_uvloop", lambda: has_uvloop)
    NotesItsLoop.loops.clear()
    backend = f"{__name__}.NotesItsLoop"
    settings.DELIVERY = settings.DELIVERY | {
        "EVENT_LOOP": event_loop,
        "PROVIDERS": {"default": {"BACKEND": backend, "OPTIONS": {}}},
    }
    assert tasks.run_worker("default") == "12 letters"
    assert Delivery.objects.filter(status="sent").count() == 12
    assert NotesItsLoop.loops == {expected}


@pytest.mark.django_db(transaction=True)
def test_what_was_there_before_the_first_slice_is_spared_by_the_collector_once(db):
    gc.unfreeze()
    tasks._spare_what_is_there.cache_clear()
    tasks.run_worker("default")
    frozen = gc.get_freeze_count()
    assert frozen > 0
    tasks.run_worker("default")
    # What is freed since is no longer counted.
    assert 0 < gc.get_freeze_count() <= frozen
