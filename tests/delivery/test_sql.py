"""How PostgreSQL runs what the queue asks of it: by which plans, planned how often, waiting for
whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.utils import OperationalError

from campaigns.models import Campaign, CampaignTotals
from delivery import coordinator, filling, groups, queue
from delivery.leases import Lease
from delivery.outcomes import Accepted, Phase, Reply
from delivery.settlement import Settlement
from delivery.sql import execute_prepared, in_order_of_an_index
from delivery.states import DeliveryStatus
from tests.delivery.conftest import make_unfilled, statuses

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

OK = Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 1A2B")


def rows_of(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


# ------------------------------------------------------------------------------------ the plans


@contextmanager
def plans_of_reading_the_queue() -> Iterator[list[str]]:
    """The plans of all queries in order but that for test letters, made where they are asked."""
    plans: list[str] = []

    def explain(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        is_of_tests = "WHERE d.is_test" in sql
        if sql.lstrip().startswith("SELECT") and "ORDER BY" in sql and not is_of_tests:
            with connection.cursor() as cursor:
                # Below the wrapper: this is not to be explained itself.
                cursor.cursor.execute(f"EXPLAIN {sql}", parameters)
                plans.append("\n".join(row[0] for row in cursor.cursor.fetchall()))
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(explain):
        yield plans


@pytest.mark.parametrize(
    "move",
    [
        lambda campaign, lease, now: queue.claim(lease, [campaign.pk], 5, now),
        lambda campaign, lease, now: queue.next_due([campaign.pk], ["default"]),
        lambda campaign, lease, now: queue.cancel_waiting(campaign.pk, 5, now),
        lambda campaign, lease, now: groups._move(campaign.pk, now, now),
    ],
    ids=["claim", "next_due", "cancel_waiting", "call_back"],
)
def test_without_statistics_the_first_letters_are_not_looked_for_among_all(
    mailing_list, lease, now, move
):
    """As at the start of a campaign, of which the statistics know nothing: its letters seem few,
    and all of them would be read and sorted for each claim."""
    campaign = make_unfilled(mailing_list, now, 300)
    filling.fill_page(campaign, 300, now)
    with connection.cursor() as cursor:
        # Of the table PostgreSQL knows how large it is, of its columns nothing.
        cursor.execute(
            "UPDATE pg_class SET relpages = 1, reltuples = 2000 WHERE relname = 'delivery_delivery'"
        )
    with plans_of_reading_the_queue() as plans:
        move(campaign, lease, now)
    (plan,) = [plan for plan in plans if "delivery_delivery" in plan]
    assert "Index Scan using delivery_open" in plan
    assert "Sort" not in plan


def test_nothing_but_the_query_in_order_is_planned_without_sorting():
    """A row that its key finds would be looked for along all that waits."""
    with transaction.atomic():
        with in_order_of_an_index():
            assert rows_of("SHOW enable_sort") == [("off",)]
        assert rows_of("SHOW enable_sort") == [("on",)]
    with in_order_of_an_index():
        assert rows_of("SHOW enable_sort") == [("off",)]
    assert rows_of("SHOW enable_sort") == [("on",)]


# ---------------------------------------------------------------------------------- what waits


def beside(patience: str, unit: Callable[[], object]) -> None:
    """Runs it on a connection of its own, which waits so long for locks. OperationalError then."""

    def run() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"SET lock_timeout = '{patience}'")
            unit()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()


def test_a_page_that_is_being_filled_stops_no_worker(mailing_list, now):
    """The first move of a worker writes a row of totals, which refers to the campaign's."""
    campaign = make_unfilled(mailing_list, now, 30)
    with transaction.atomic():
        assert filling.fill_page(campaign, 10, now) == 10
        beside("5s", lambda: CampaignTotals.add(campaign.pk, 7, {"claimed": 1}))


def test_two_coordinators_cannot_fill_the_same_page(mailing_list, now):
    campaign = make_unfilled(mailing_list, now, 30)
    with transaction.atomic():
        assert filling.fill_page(campaign, 10, now) == 10
        with pytest.raises(OperationalError, match="lock timeout"):
            beside("50ms", lambda: filling.fill_page(campaign, 10, now))


def test_pages_grow_so_that_no_worker_waits_for_the_second(mailing_list, clock, monkeypatch):
    campaign = make_unfilled(mailing_list, clock(), 100)
    monkeypatch.setattr(coordinator, "FIRST_PAGE", 5)
    monkeypatch.setattr(coordinator, "PAGE", 40)
    filled_when_told: list[dict[str, int]] = []
    coordinator.fill_queue(
        campaign,
        clock,
        clock() + timedelta(minutes=1),
        lambda: filled_when_told.append(statuses(campaign)),
    )
    assert filled_when_told == [{"queued": 5}]
    assert statuses(campaign) == {"queued": 100}
    pages = rows_of("SELECT COUNT(*) FROM delivery_delivery GROUP BY xmin ORDER BY MIN(id)")
    assert [count for (count,) in pages] == [5, 10, 20, 40, 25]


# ------------------------------------------------------------------------- prepared statements


def exchange(lease: Lease, campaign: Campaign, now: datetime, waves: Sequence[int]) -> None:
    """Claims and moves waves of these sizes, each with the outcomes of the one before."""
    settled: list[queue.Settled] = []
    for size in [*waves, 0]:
        claims = queue.claim(lease, [campaign.pk], size, now) if size else []
        ids = [claimed.id for claimed in claims]
        assert sorted(queue.record_and_hand_over(lease, settled, [], ids, now)) == sorted(ids)
        settlement = Settlement(DeliveryStatus.SENT, OK)
        settled = [(claimed, Accepted(OK), settlement) for claimed in claims]


def kept_statements() -> list[tuple[str, int, int]]:
    """Name, generic plans, plans of its own for each time: of what this connection prepared."""
    return rows_of(
        "SELECT name, generic_plans, custom_plans FROM pg_prepared_statements"
        " WHERE statement LIKE '%%WITH sent%%'"
    )


def test_waves_of_all_sizes_are_planned_once(campaign, readers, lease, now):
    exchange(lease, campaign, now, [1, 4, 2, 3])
    assert statuses(campaign) == {"queued": 2, "sent": 10}
    ((_name, generic, custom),) = kept_statements()
    assert (generic, custom) == (5, 0)


def test_a_plan_that_was_made_for_few_letters_suits_many(campaign, readers, lease, now):
    exchange(lease, campaign, now, [1])
    ((name, _generic, _custom),) = kept_statements()
    ((types,),) = rows_of(
        "SELECT array_length(parameter_types, 1) FROM pg_prepared_statements WHERE name = %s",
        [name],
    )
    plan = "\n".join(
        row[0] for row in rows_of(f"EXPLAIN EXECUTE {name}({', '.join(['NULL'] * types)})")
    )
    assert "Seq Scan on delivery_delivery" not in plan
    assert "Hash Join" not in plan
    assert plan.count("Index Scan using delivery_delivery_pkey") == 2


def test_a_statement_outlives_a_transaction_that_was_rolled_back(campaign, readers, lease, now):
    exchange(lease, campaign, now, [2])
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        CampaignTotals.add(campaign.pk, 0, {"queued": 0})
        _ = 1 / 0
    exchange(lease, campaign, now, [3])
    assert statuses(campaign) == {"queued": 7, "sent": 5}


def test_behind_a_pooler_of_transactions_nothing_is_prepared(
    campaign, readers, lease, now, monkeypatch
):
    monkeypatch.setitem(connection.settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)
    connection.close()  # as a connection that has never prepared anything
    exchange(lease, campaign, now, [2, 5])
    assert statuses(campaign) == {"queued": 5, "sent": 7}
    assert kept_statements() == []
    assert rows_of("SHOW plan_cache_mode") == [("auto",)]


def test_an_error_of_a_prepared_statement_is_djangos(db):
    """A worker waits for a database that went away, and knows it by Django's errors."""
    with pytest.raises(OperationalError):
        execute_prepared("SELECT pg_terminate_backend(pg_backend_pid())", {})
    connection.close()
