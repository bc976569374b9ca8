"""A campaign with readers, and a worker whose clock, dice and provider are ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from django.db import connection, connections

from campaigns.addresses import address_key
from campaigns.editions import freeze
from campaigns.models import Campaign, CampaignTotals, MailingList, Subscriber, Subscription
from delivery import claiming, coordinator, leases, queue
from delivery.bridge import Bridge
from delivery.conf import delivery_settings
from delivery.leases import Lease
from delivery.models import Delivery
from delivery.providers.memory import MemoryProvider
from delivery.session import Session
from delivery.sql import Statement, Steps
from delivery.sqlite_session import SQLiteSession
from delivery.worker import Slice, Worker

T = TypeVar("T")
# The letter of a reader whose first name is Zero cannot be written.
HTML = (
    '<p>Good day {{ first_name | default("reader") }}!</p>'
    '{% if first_name == "Zero" %}{{ 1 / 0 }}{% endif %}'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>'
)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> datetime:
        self.now += timedelta(**duration)
        return self.now


@pytest.fixture
def clock(now) -> Clock:
    return Clock(now)


@pytest.fixture(autouse=True)
def _clean_outbox():
    MemoryProvider.outbox.clear()
    MemoryProvider.answer = None
    yield
    MemoryProvider.outbox.clear()
    MemoryProvider.answer = None


@pytest.fixture(autouse=True)
def _settings(settings):
    settings.BASE_URL = "https://news.example.org"
    settings.DELIVERY = {
        "WORKERS": 3,
        "CYCLE_BATCH_SIZE": 10,
        "SEND_BATCH_SIZE": 5,
        "RETURN_PATH": "bounce+{token}@bounces.example.org",
        "PROVIDERS": {
            "default": {"BACKEND": "delivery.providers.memory.MemoryProvider"},
            "other": {"BACKEND": "delivery.providers.memory.MemoryProvider"},
        },
    }


@pytest.fixture
def alone(settings) -> None:
    """The only worker: it claims all that a claim may hold, and leaves nothing to others."""
    settings.DELIVERY = settings.DELIVERY | {"WORKERS": 1}


def make_readers(mailing_list: MailingList, count: int, prefix: str = "reader") -> list[Subscriber]:
    readers = Subscriber.objects.bulk_create(
        Subscriber(
            email=f"{prefix}{n}@example.org",
            address_key=address_key(f"{prefix}{n}@example.org"),
            name=f"Reader {n}",
        )
        for n in range(count)
    )
    Subscription.objects.bulk_create(
        Subscription(subscriber=reader, mailing_list=mailing_list) for reader in readers
    )
    return readers


def make_campaign(
    mailing_list: MailingList, now: datetime, *, name: str = "May", provider: str = "default"
) -> Campaign:
    """A campaign that is due now."""
    campaign = Campaign.objects.create(
        name=name,
        from_name="The News",
        from_email="news@example.org",
        subject="News",
        html=HTML,
        provider=provider,
    )
    campaign.include_lists.add(mailing_list)
    assert campaign.schedule(now, edition=freeze(campaign))
    return campaign


@pytest.fixture
def mailing_list(db) -> MailingList:
    return MailingList.objects.create(name="Weekly", label="weekly")


@pytest.fixture
def readers(mailing_list) -> list[Subscriber]:
    return make_readers(mailing_list, 12)


@pytest.fixture
def campaign(mailing_list, readers, clock) -> Campaign:
    """A sending campaign whose queue is full."""
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    campaign.refresh_from_db()
    return campaign


def make_unfilled(mailing_list: MailingList, now: datetime, readers: int) -> Campaign:
    """A sending campaign to so many readers, of whom none is queued."""
    make_readers(mailing_list, readers)
    campaign = make_campaign(mailing_list, now)
    assert campaign.start(now)
    return campaign


@pytest.fixture
def lease(now) -> Lease:
    """A worker's place at the default provider, of three."""
    leases.make_places("default", 3)
    lease = leases.take("default", 3, "host:1", now, timedelta(seconds=60))
    assert lease is not None
    return lease


def hand_over(lease: Lease, ids: Sequence[int], now: datetime) -> list[int]:
    """The note that these letters leave, and no outcome; the ids of those that may."""
    return queue.record_and_hand_over(lease, [], [], ids, now)


def coordinate(clock: Callable[[], datetime], recorders: Path | None = None) -> dict[str, int]:
    """One round of the coordinator; the workers that it would have started."""
    started: dict[str, int] = {}
    coordinator.coordinate(
        delivery_settings(),
        clock,
        started.__setitem__,
        timedelta(seconds=20),
        dice=Random(1),
        recorders=recorders,
    )
    return started


def make_worker(clock: Callable[[], datetime], provider=None, alias: str = "default") -> Worker:
    settings = delivery_settings()
    provider_settings = settings.providers[alias]
    return Worker(
        settings,
        provider_settings,
        provider or provider_settings.make(),
        clock=clock,
        dice=Random(1),
        holder="test:1",
        limit_clock=clock,
    )


def interfere(
    monkeypatch: pytest.MonkeyPatch,
    move: str,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Calls these around each "commit" or "claim" of a worker, whether its thread makes it or its
    session; what they raise, the move raises."""
    module, in_thread, in_session = {
        "commit": (queue, ("record_and_hand_over", "exchange"), "exchanging"),
        "claim": (claiming, ("claim",), "usual_claim"),
    }[move]

    def around(real_unit):
        def unit(*arguments):
            before()
            result = real_unit(*arguments)
            after()
            return result

        return unit

    def session_around(real_run):
        async def run(self, steps):
            if steps.__name__ != in_session:
                return await real_run(self, steps)
            before()
            result = await real_run(self, steps)
            after()
            return result

        return run

    for name in in_thread:
        monkeypatch.setattr(module, name, around(getattr(module, name)))
    for session in (Session, SQLiteSession):
        monkeypatch.setattr(session, "run", session_around(session.run))


def run_slice(clock: Callable[[], datetime], provider=None, alias: str = "default") -> Slice:
    return asyncio.run(make_worker(clock, provider, alias).run_slice())


def rows_of(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What a query answers, by hand."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def asking(*statements: str, **parameters: Any) -> Steps[list[Any]]:
    """A move of these statements; the value that each answered with."""
    answers = []
    for statement in statements:
        answer = yield Statement(statement, parameters)
        assert answer is not None
        answers.append(answer[0])
    return answers


@pytest.fixture
def pooled(db, monkeypatch) -> None:
    """Behind a pooler of transactions, on a connection that has never prepared anything."""
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    connection.close()


def in_session(use: Callable[[Session | SQLiteSession], Awaitable[T]]) -> T:
    """What a session answers, as a worker of this database has it."""

    async def run() -> T:
        async with Bridge() as bridge:
            assert bridge.session is not None
            return await use(bridge.session)

    return asyncio.run(run())


def units_called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the units that bridges run from now on, as they come."""
    units: list[str] = []
    real = Bridge.call

    async def call(self: Bridge, unit: Any, *arguments: Any, **keywords: Any) -> Any:
        units.append(unit.__name__)
        return await real(self, unit, *arguments, **keywords)

    monkeypatch.setattr(Bridge, "call", call)
    return units


def exchange(usual: queue.Exchange) -> list[int] | None:
    """As ``queue.exchange``; on SQLite only a session can."""
    if connection.vendor == "postgresql":
        return queue.exchange(usual)
    exchanged = in_session(lambda session: session.run(queue.exchanging(usual)))
    return None if exchanged is None else exchanged.moved


def _claim_in_session(
    lease: Lease, campaign_ids: Sequence[int], wanted: int, now: datetime
) -> list[claiming.Claimed]:
    turns = claiming._in_turn(campaign_ids)
    steps = claiming.usual_claim(lease, turns, wanted, now, [lease.provider])
    return in_session(lambda session: session.run(steps))


@pytest.fixture(params=["usual", "single"])
def either_way(request, monkeypatch) -> None:
    """The usual claim, as one prepared statement or as SQLite's procedure, and the one of single
    statements: behind a pooler, and where something is not usual."""
    if request.param == "single":
        request.getfixturevalue("pooled")
    elif connection.vendor == "sqlite":
        monkeypatch.setattr(claiming, "claim", _claim_in_session)


def beside(patience: str, unit: Callable[[], T]) -> T:
    """What it returns, run on a connection of its own, which waits so long for locks;
    OperationalError then."""

    def run() -> T:
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = '{patience}'")
            return unit()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def statuses(campaign: Campaign) -> dict[str, int]:
    """How many letters are in each state; proves on the way that the totals agree."""
    counted = queue.counted(campaign.pk)
    totals = CampaignTotals.of([campaign.pk])[campaign.pk]
    assert {state: totals[state] for state in counted} == counted
    assert sum(counted.values()) == totals["eligible"] == sum(totals.values()) - totals["eligible"]
    return counted


def letters_to(address: str) -> list:
    return [letter for letter in MemoryProvider.outbox if letter.envelope.rcpt_to == address]


def delivery_to(address: str) -> Delivery:
    return Delivery.objects.get(rcpt_to=address)
