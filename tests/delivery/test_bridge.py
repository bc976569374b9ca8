"""The door from asyncio to the ORM."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, connection, transaction

from delivery.bridge import Bridge
from delivery.models import ProviderState

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_unit_may_use_the_orm_and_nothing_beside_it_may():
    async def use() -> None:
        async with Bridge() as bridge:
            await bridge.call(ProviderState.objects.create, alias="one")
            with pytest.raises(OperationalError, match="no such thing"):
                await bridge.call(fails)
            # The loop is there again, for asyncio and for Django's guard.
            assert asyncio.get_running_loop()
            with pytest.raises(SynchronousOnlyOperation):
                ProviderState.objects.count()
            assert await bridge.call(ProviderState.objects.count) == 1

    def fails() -> None:
        with transaction.atomic():
            ProviderState.objects.create(alias="two")
            raise OperationalError("no such thing")

    asyncio.run(use())


def test_whoever_calls_again_and_again_leaves_the_others_their_turns():
    async def use() -> None:
        over = asyncio.Event()
        calls = 0
        async with Bridge() as bridge:
            other = asyncio.create_task(asyncio.sleep(0.01))
            other.add_done_callback(lambda _task: over.set())
            while not over.is_set():
                await bridge.call(ProviderState.objects.count)
                calls += 1
                assert calls < 100_000

    asyncio.run(use())


def test_sqlite_needs_no_thread_and_postgresql_has_one_of_its_own():
    async def use() -> int:
        async with Bridge() as bridge:
            return await bridge.call(threading.get_ident)

    is_here = asyncio.run(use()) == threading.get_ident()
    assert is_here is (connection.vendor == "sqlite")
