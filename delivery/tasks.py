"""The few functions that django-q2 calls. Each is short, and may be called once too often."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from datetime import timedelta
from functools import cache
from random import Random
from typing import TypeVar

from django_q.tasks import async_task

from delivery import alerts, exchanges, leases
from delivery.clocks import database_now, shared_clock
from delivery.conf import delivery_settings, has_uvloop
from delivery.coordinator import coordinate as coordinate_once
from delivery.installation import Standing, check_in
from delivery.wakeups import wake_at
from delivery.worker import PATIENCE, Worker

logger = logging.getLogger(__name__)

COORDINATOR_BUDGET = timedelta(seconds=20)
LOOK_UP_BUDGET = timedelta(seconds=30)
T = TypeVar("T")
SENDING_IS_OFF = "sending is off on this host (delivery/installation.py)"


def wake_coordinator() -> None:
    """Queues a round of the coordinator; in a transaction, with its commit."""
    async_task("delivery.tasks.coordinate", group="coordinator")


def wake_workers(alias: str, count: int = 1) -> None:
    """Queues worker tasks for a provider. Too many do no harm: a surplus one finds no place."""
    for _ in range(count):
        async_task("delivery.tasks.run_worker", alias, group=f"worker {alias}")


def coordinate() -> str:
    """One round; queues the next one at once when there was more to do than time."""
    settings = delivery_settings()
    if check_in(settings, database_now()) is not Standing.OURS:
        alerts.tell(settings.alerts, database_now())
        return SENDING_IS_OFF
    if coordinate_once(
        settings,
        shared_clock(),
        wake_workers,
        COORDINATOR_BUDGET,
        dice=Random(),
        recorders=settings.recorders,
    ):
        wake_coordinator()
        return "more to do"
    return "done"


def look_up_domains() -> str:
    """Asks DNS for the mail exchangers of some of the readers' domains."""
    if not delivery_settings().look_up_exchanges:
        return "the settings say no"
    exchanges.gather(database_now, LOOK_UP_BUDGET)
    return f"{exchanges.look_up_due(exchanges.from_dns(), database_now, LOOK_UP_BUDGET)} domains"


def wake_again(alias: str) -> str:
    """A limit or a pause is over: as many workers as have a place."""
    free = leases.free_places(alias, delivery_settings().workers_for(alias))
    wake_workers(alias, free)
    return f"{free} workers"


def run_worker(alias: str) -> str:
    """One slice for a provider; queues its successor while work is near, or else the coordinator,
    who finishes campaigns and knows what comes next."""
    settings = delivery_settings()
    provider_settings = settings.providers.get(alias)
    if provider_settings is None:
        return f"no provider is called {alias!r} any more"
    if check_in(settings, database_now()) is not Standing.OURS:
        return SENDING_IS_OFF
    clock = shared_clock()
    worker = Worker(
        settings,
        provider_settings,
        provider_settings.make(),
        clock=clock,
        dice=Random(),
        recorders=settings.recorders,
    )
    done = _run(worker.run_slice(), settings.event_loop)
    if not done.lease_was_free:
        return "no place was free"
    if done.wait_until is None:
        wake_coordinator()
    elif done.wait_until <= clock() + PATIENCE:
        wake_workers(alias)
    else:
        wake_at(alias, done.wait_until, clock())
    return f"{done.sent} letters"


def _run(work: Coroutine[None, None, T], event_loop: str) -> T:
    """Runs it to its end in the event loop that the settings name."""
    _spare_what_is_there()
    if event_loop == "uvloop" or (event_loop == "auto" and has_uvloop()):
        import uvloop  # not on every machine

        result: T = uvloop.run(work)
        return result
    return asyncio.run(work)


@cache
def _spare_what_is_there() -> None:
    """Has the collector pass over all of Django, once a process: or each full collection walks
    through it, 50 ms in which no reply is read, after every thirty thousand letters. To ask
    whether it was done (get_freeze_count) walks as well, for 13 ms of each slice."""
    gc.freeze()
