"""SQLite's own transaction, for what a worker does all the time."""

from __future__ import annotations

import pytest
from django.db import connection
from django.db.utils import IntegrityError, OperationalError

from campaigns.models import Campaign
from delivery import filling
from delivery.models import Delivery
from delivery.sql import sqlite_transaction
from tests.delivery.conftest import make_unfilled

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.one_database]
RENAME = f"UPDATE {Campaign._meta.db_table} SET name = ? WHERE id = ?"


def test_what_it_writes_is_there_for_the_next_query(campaign):
    with sqlite_transaction() as cursor:
        cursor.execute(RENAME, ["Changed", campaign.pk])
    assert not connection.connection.in_transaction
    campaign.refresh_from_db()
    assert campaign.name == "Changed"


@pytest.mark.parametrize(
    ("statement", "error"), [("nonsense", OperationalError), ("SELECT 1", ZeroDivisionError)]
)
def test_whatever_leaves_it_rolls_back_and_the_databases_errors_are_djangos(
    campaign, statement, error
):
    with pytest.raises(error), sqlite_transaction() as cursor:
        cursor.execute(RENAME, ["Changed", campaign.pk])
        cursor.execute(statement)
        _ = 1 / 0
    assert not connection.connection.in_transaction
    before = campaign.name
    campaign.refresh_from_db()
    assert campaign.name == before != "Changed"


def test_one_that_stands_in_anothers_fails_and_leaves_that_as_it_was(campaign):
    with sqlite_transaction() as outer:
        outer.execute(RENAME, ["Changed", campaign.pk])
        with pytest.raises(OperationalError), sqlite_transaction():
            pass
        assert connection.connection.in_transaction
    campaign.refresh_from_db()
    assert campaign.name == "Changed"


@pytest.mark.parametrize("fails", [False, True])
def test_filling_leaves_readers_looked_up_for_everything_else(
    mailing_list, now, monkeypatch, fails
):
    """It has just read them; whoever else writes a letter must name a reader who exists."""
    unfilled = make_unfilled(mailing_list, now, readers=3)
    if fails:
        monkeypatch.setattr(filling.queue_pages, "write", lambda *page: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            filling.fill_page(unfilled, 10, now)
    else:
        assert filling.fill_page(unfilled, 10, now) == 3
    assert Delivery.objects.filter(campaign=unfilled).count() == (0 if fails else 3)
    filling.queue_tests(unfilled, unfilled.edition_id, [("x@example.org", "x")], None, now)
    with pytest.raises(IntegrityError):
        Delivery.objects.filter(campaign=unfilled, is_test=True).update(subscriber_id=999_999)
