"""How PostgreSQL runs what the queue asks of it: by which plans, planned how often, waiting for
whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.utils import OperationalError

from campaigns.models import Campaign, CampaignTotals, MailingList
from delivery import claiming, coordinator, filling, groups, queue
from delivery.leases import Lease
from delivery.models import Delivery
from delivery.outcomes import Accepted, Phase, Reply
from delivery.sql import in_order_of_an_index, run_prepared
from tests.delivery.conftest import (
    asking,
    beside,
    make_unfilled,
    rows_of,
    statuses,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

OK = Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 1A2B")


# ------------------------------------------------------------------------------------ the plans


@contextmanager
def plans_of_reading_the_queue() -> Iterator[list[str]]:
    """The plans of all queries for letters, made where they are asked."""
    plans: list[str] = []

    def explain(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().startswith("SELECT") and "delivery_delivery" in sql:
            with connection.cursor() as cursor:
                # Below the wrapper: this is not to be explained itself.
                cursor.cursor.execute(f"EXPLAIN {sql}", parameters)
                plans.append("\n".join(row[0] for row in cursor.cursor.fetchall()))
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(explain):
        yield plans


@pytest.mark.parametrize(
    ("move", "in_pages"),
    [
        (lambda campaign, lease, now: claiming.claim(lease, [campaign.pk], 5, now), True),
        (lambda campaign, lease, now: claiming.next_due([campaign.pk], ["default"]), False),
        (lambda campaign, lease, now: queue.cancel_waiting(campaign.pk, 5, now), True),
        (lambda campaign, lease, now: groups._move(campaign.pk, now, now), False),
    ],
    ids=["claim", "next_due", "cancel_waiting", "call_back"],
)
def test_without_statistics_the_first_letters_are_not_looked_for_among_all(
    mailing_list, lease, now, move, in_pages, pooled
):
    """As at the start of a campaign, of which the statistics know nothing: its letters seem few,
    and all of them would be read and sorted for each claim."""
    campaign = without_statistics(mailing_list, now)
    # Where one is missing, those that stand in the page are counted.
    Delivery.objects.filter(pk=Delivery.objects.order_by("pk")[1].pk).delete()
    with plans_of_reading_the_queue() as plans:
        move(campaign, lease, now)
    alone, *of_a_page = [plan for plan in plans if "delivery_tests" not in plan]
    assert "Index Scan using delivery_alone" in alone
    assert "Sort" not in alone
    assert len(of_a_page) == (2 if in_pages else 0)  # the letters, and how many stand there
    for plan in of_a_page:
        assert "delivery_delivery_pkey" in plan
        assert "delivery_once_per_subscriber" not in plan
    # Nor are test letters looked for among all that wait.
    assert not [plan for plan in plans if "delivery_tests" in plan and "delivery_alone" in plan]


def test_without_statistics_a_prepared_claim_does_not_look_among_all_either(
    mailing_list, lease, now
):
    campaign = without_statistics(mailing_list, now)
    assert len(claiming.claim(lease, [campaign.pk], 5, now)) == 5
    plan = plan_of("WITH free")
    tests, _, singles = plan.partition("CTE tests")[2].partition("CTE singles")
    singles, _, of_page = singles.partition("CTE of_page")
    of_page = of_page.partition("CTE taken")[0]
    assert "Index Scan using delivery_tests" in tests
    assert "delivery_alone" not in tests
    assert "Index Scan using delivery_alone" in singles
    assert "Index Scan using delivery_delivery_pkey" in of_page
    assert "Sort" not in singles + of_page


def without_statistics(mailing_list: MailingList, now: datetime) -> Campaign:
    """A campaign that was just filled, and a connection that has planned nothing."""
    campaign = make_unfilled(mailing_list, now, 300)
    filling.fill_page(campaign, 300, now)
    with connection.cursor() as cursor:
        # Of the table PostgreSQL knows how large it is, of its columns nothing.
        cursor.execute(
            "UPDATE pg_class SET relpages = 1, reltuples = 2000 WHERE relname = 'delivery_delivery'"
        )
    connection.close()
    return campaign


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
    coordinator.fill_queue(campaign, clock, clock() + timedelta(minutes=1))
    assert statuses(campaign) == {"queued": 100}
    pages = rows_of("SELECT COUNT(*) FROM delivery_delivery GROUP BY xmin ORDER BY MIN(id)")
    assert [count for (count,) in pages] == [5, 10, 20, 40, 25]


# ------------------------------------------------------------------------- prepared statements


def exchange(lease: Lease, campaign: Campaign, now: datetime, waves: Sequence[int]) -> None:
    """Claims and moves waves of these sizes, each with the outcomes of the one before."""
    answered: list[queue.Answered] = []
    for size in [*waves, 0]:
        claims = claiming.claim(lease, [campaign.pk], size, now) if size else []
        usual = queue.Exchange(lease, answered, claims, now, None)
        assert sorted(queue.exchange(usual) or []) == sorted(usual.ids)
        answered = [(claimed, Accepted(OK)) for claimed in claims]


def kept_statements(beginning: str = "WITH sent") -> list[tuple[str, int, int]]:
    """Name, generic plans, plans of its own for each time: of what this connection prepared."""
    return rows_of(
        "SELECT name, generic_plans, custom_plans FROM pg_prepared_statements"
        " WHERE ltrim(statement, E' \\n') LIKE %s",
        [f"{beginning}%"],
    )


def plan_of(beginning: str) -> str:
    """The plan of the one kept statement that begins so."""
    ((name, _generic, _custom),) = kept_statements(beginning)
    ((types,),) = rows_of(
        "SELECT array_length(parameter_types, 1) FROM pg_prepared_statements WHERE name = %s",
        [name],
    )
    arguments = ", ".join(["NULL"] * types)
    return "\n".join(row[0] for row in rows_of(f"EXPLAIN EXECUTE {name}({arguments})"))


def test_waves_of_all_sizes_are_planned_once(campaign, readers, lease, now):
    exchange(lease, campaign, now, [1, 4, 2, 3])
    assert statuses(campaign) == {"queued": 2, "sent": 10}
    ((_name, generic, custom),) = kept_statements()
    assert (generic, custom) == (5, 0)


@pytest.mark.parametrize("letters", [0, 1, 12])
def test_a_plan_that_was_made_for_few_letters_suits_many(mailing_list, lease, now, letters):
    """A worker may come before the first letter, and its session keeps the plans: a table that is
    empty may as well be read. It took two seconds for each claim of 20,000 letters."""
    campaign = make_unfilled(mailing_list, now, 12)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    if letters:
        filling.fill_page(campaign, letters, now)
    exchange(lease, campaign, now, [1])
    if not letters:
        filling.fill_page(campaign, 12, now)
        exchange(lease, campaign, now, [1])
    for beginning, times in (("WITH sent", 2), ("WITH free", 11)):
        plan = plan_of(beginning)
        assert "Hash Join" not in plan
        scan = r"^.* Scan .*on delivery_(?:delivery|queuepage) .*(?:\n +Index Cond: .*)?"
        scans = re.findall(scan, plan, re.MULTILINE)
        assert len(scans) == times, plan
        for one in scans:
            assert "Index Cond: " in one or "using delivery_tests" in one, plan


def test_a_statement_outlives_a_transaction_that_was_rolled_back(campaign, readers, lease, now):
    exchange(lease, campaign, now, [2])
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        CampaignTotals.add(campaign.pk, 0, {"queued": 0})
        _ = 1 / 0
    exchange(lease, campaign, now, [3])
    assert statuses(campaign) == {"queued": 7, "sent": 5}


def test_behind_a_pooler_of_transactions_nothing_is_prepared(campaign, readers, lease, now, pooled):
    exchange(lease, campaign, now, [2, 5])
    assert statuses(campaign) == {"queued": 5, "sent": 7}
    assert rows_of("SELECT statement FROM pg_prepared_statements") == []
    assert rows_of("SHOW plan_cache_mode") == [("auto",)]


def test_a_statement_names_its_parameters_in_any_order_and_more_than_once(db):
    a, b = "CAST(%(a)s AS int)", "CAST(%(b)s AS int)"
    assert run_prepared(asking(f"SELECT {b} %% {a} * {a} - {b}", a=4, b=10)) == [-2]


def test_an_error_of_a_prepared_statement_is_djangos(db):
    """A worker waits for a database that went away, and knows it by Django's errors."""
    with pytest.raises(OperationalError):
        run_prepared(asking("SELECT pg_terminate_backend(pg_backend_pid())"))
    connection.close()


# ---------------------------------------------------------------- a claim, in one statement or many


def test_what_another_worker_holds_is_passed_over_either_way(
    campaign, readers, lease, now, either_way
):
    with transaction.atomic():
        first = Delivery.objects.select_for_update().order_by("due_at", "pk")[:2]
        theirs = {letter.pk for letter in first}
        mine: list[int] = []
        beside(
            "1s", lambda: mine.extend(c.id for c in claiming.claim(lease, [campaign.pk], 5, now))
        )
    assert len(mine) == 5
    assert not theirs & set(mine)
