"""The event loop's own session: prepared statements without a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.db import connection
from django.db.utils import DataError, OperationalError
from psycopg import AsyncConnection

from delivery.bridge import Bridge
from delivery.session import Session
from tests.delivery.conftest import (
    asking,
    in_session,
    make_worker,
    rows_of,
    statuses,
    units_called,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

SESSION_ID = "SELECT pg_backend_pid()"


def test_statements_run_in_one_session_of_the_same_database_each_prepared_once():
    async def use(session: Session) -> Any:
        names = await session.run(asking("SELECT current_database()", SESSION_ID, SESSION_ID))
        kept = await session.run(
            asking(
                "SELECT array_agg(generic_plans + custom_plans ORDER BY prepare_time)"
                " FROM pg_prepared_statements WHERE statement NOT LIKE '%%agg%%'"
            )
        )
        return names, kept

    (database, first, second), (uses,) = in_session(use)
    assert database == connection.settings_dict["NAME"]
    assert first == second != rows_of(SESSION_ID)[0][0]
    assert uses == [1, 2]


def test_rows_are_looked_up_one_by_one_as_in_the_threads_session():
    plans = asking("SHOW plan_cache_mode", "SHOW enable_seqscan", "SHOW jit")
    how = in_session(lambda session: session.run(plans))
    assert how == ["force_generic_plan", "off", "off"]


def test_an_error_is_djangos_and_the_next_statement_has_a_new_session():
    async def use(session: Session) -> Any:
        (before,) = await session.run(asking(SESSION_ID))
        with pytest.raises(DataError):
            await session.run(asking("SELECT 1 / CAST(%(by)s AS int)", by=0))
        with pytest.raises(OperationalError):
            await session.run(asking("SELECT pg_terminate_backend(pg_backend_pid())"))
        (after,) = await session.run(asking(SESSION_ID))
        return before, after

    before, after = in_session(use)
    assert before != after


def test_a_session_that_was_opened_beforehand_is_the_one_that_is_used(monkeypatch):
    opened = []
    connect = AsyncConnection.connect

    async def counted(**options: Any) -> Any:
        opened.append(await connect(**options))
        return opened[-1]

    async def use(session: Session) -> Any:
        await session.open()
        (pid,) = await session.run(asking(SESSION_ID))
        assert [one.info.backend_pid for one in opened] == [pid]

    monkeypatch.setattr(AsyncConnection, "connect", counted)
    in_session(use)


def test_a_session_that_cannot_be_opened_leaves_the_error_to_its_first_statement(monkeypatch):
    async def use(session: Session) -> Any:
        await session.open()
        with pytest.raises(OperationalError, match="no_such_database"):
            await session.run(asking(SESSION_ID))

    monkeypatch.setitem(connection.settings_dict, "NAME", "no_such_database")
    in_session(use)


def test_a_server_that_is_not_there_is_djangos_error_too(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "NAME", "no_such_database")
    with pytest.raises(OperationalError, match="no_such_database"):
        in_session(lambda session: session.run(asking(SESSION_ID)))


def test_each_statement_is_committed_before_it_is_answered(campaign):
    change = "UPDATE campaigns_campaign SET name = %(name)s WHERE id = %(id)s RETURNING name"

    async def use(session: Session) -> None:
        await session.run(asking(change, name="Changed", id=campaign.pk))
        seen: list[str] = []

        def look() -> None:
            campaign.refresh_from_db()
            seen.append(campaign.name)

        async with Bridge() as bridge:
            await bridge.call(look)
        assert seen == ["Changed"]

    in_session(use)


def test_when_a_caller_is_cancelled_its_statement_does_not_go_on():
    """No claim may be made after its worker has given back its place."""

    async def use(session: Session) -> Any:
        (pid,) = await session.run(asking(SESSION_ID))
        sleeping = asyncio.create_task(session.run(asking("SELECT 1 FROM pg_sleep(60)")))
        while not await waits(pid):
            await asyncio.sleep(0.01)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert not await waits(pid)
        return (await session.run(asking(SESSION_ID))) != [pid]

    async def waits(pid: int) -> bool:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = %(pid)s AND state = 'active'"
        other = Session()
        (count,) = await other.run(asking(sql, pid=pid))
        await other.close()
        return bool(count)

    assert in_session(use)


def test_the_role_that_the_settings_name_is_taken(monkeypatch):
    options = {**connection.settings_dict["OPTIONS"], "assume_role": "pg_read_all_data"}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    (role,) = in_session(lambda session: session.run(asking("SELECT current_user::text")))
    assert role == "pg_read_all_data"


def test_a_session_that_may_not_take_its_role_is_none(monkeypatch):
    """Opened beforehand, it must not go on as somebody else."""

    async def use(session: Session) -> Any:
        await session.open()
        with pytest.raises(DataError, match="nobody_at_all"):
            await session.run(asking(SESSION_ID))

    options = {**connection.settings_dict["OPTIONS"], "assume_role": "nobody_at_all"}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    in_session(use)


def test_behind_a_pooler_of_transactions_there_is_no_session(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)

    async def beside() -> list[Session | None]:
        async with Bridge() as bridge, bridge.beside() as other:
            assert bridge is not other
            return [bridge.session, other.session]

    assert asyncio.run(beside()) == [None, None]


def test_a_usual_campaign_is_claimed_and_written_without_the_thread(campaign, clock, monkeypatch):
    """The thread takes the place, reads the edition, and gives the place back."""
    threads = threading.active_count()
    in_thread = units_called(monkeypatch)
    assert asyncio.run(make_worker(clock).run_slice()).sent == 12
    assert statuses(campaign) == {"sent": 12}
    assert not {"_record_and_hand_over", "exchange", "make_up"} & {*in_thread}
    assert in_thread.count("letters_of") == 1
    assert "claim" not in in_thread
    assert threading.active_count() == threads
