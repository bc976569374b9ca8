"""Who receives a campaign."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from campaigns.audience import audience, audience_count, audience_page
from campaigns.models import Suppression
from campaigns.states import SubscriptionStatus, SuppressionReason
from tests.campaigns.people import a_campaign, a_list, a_reader

pytestmark = pytest.mark.django_db


def test_a_reader_on_two_lists_is_in_the_audience_once() -> None:
    first, second = a_list("first"), a_list("second")
    reader = a_reader("ada@example.org", second, first)

    readers = list(audience(a_campaign(first, second)))

    assert readers == [reader]


def test_the_lowest_list_through_which_a_reader_is_subscribed_is_named() -> None:
    first, second, third = a_list("first"), a_list("second"), a_list("third")
    a_reader("both@example.org", third, second)
    left = a_reader("left@example.org", third)
    left.subscriptions.create(mailing_list=first, status=SubscriptionStatus.UNSUBSCRIBED)

    through = {r.email: r.through_list for r in audience(a_campaign(first, second, third))}

    assert through == {"both@example.org": second.pk, "left@example.org": third.pk}


@pytest.mark.parametrize("status", [SubscriptionStatus.PENDING, SubscriptionStatus.UNSUBSCRIBED])
def test_only_subscribed_readers_are_in_it(status: str) -> None:
    weekly = a_list()
    a_reader("ada@example.org", weekly, status=status)

    assert audience_count(a_campaign(weekly)) == 0


def test_a_reader_of_an_excluded_list_is_not_in_it() -> None:
    weekly, staff = a_list("weekly"), a_list("staff")
    a_reader("ada@example.org", weekly, staff)
    reader = a_reader("bob@example.org", weekly)
    former = a_reader("eve@example.org", weekly)
    former.subscriptions.create(mailing_list=staff, status=SubscriptionStatus.UNSUBSCRIBED)

    assert set(audience(a_campaign(weekly, exclude=(staff,)))) == {reader, former}


def test_a_suppressed_reader_is_not_in_it_until_the_suppression_is_lifted(now: datetime) -> None:
    weekly = a_list()
    a_reader("Ada@example.org", weekly)
    campaign = a_campaign(weekly)
    Suppression.add("ADA@example.org", SuppressionReason.COMPLAINT, source="a test")

    assert audience_count(campaign) == 0

    Suppression.in_force().get().lift(now=now)
    assert audience_count(campaign) == 1


def test_a_campaign_to_no_list_has_no_audience() -> None:
    a_reader("ada@example.org", a_list())

    assert audience_count(a_campaign()) == 0
    assert list(audience_page(a_campaign(), 0, 10)) == []


def test_pages_by_id_give_everybody_once_and_in_order() -> None:
    weekly = a_list()
    expected = [a_reader(f"reader{number}@example.org", weekly).pk for number in range(7)]
    campaign = a_campaign(weekly)

    seen: list[int] = []
    while page := [reader.pk for reader in audience_page(campaign, seen[-1] if seen else 0, 3)]:
        seen += page

    assert seen == expected


def test_a_page_is_one_query_without_distinct_and_without_joins() -> None:
    weekly = a_list()
    page = audience_page(a_campaign(weekly, exclude=(a_list("staff"),)), 0, 10)

    with CaptureQueriesContext(connection) as queries:
        list(page)

    (query,) = queries.captured_queries
    assert "DISTINCT" not in query["sql"]
    assert "JOIN" not in query["sql"]


def test_the_audience_itself_has_no_order_that_the_database_would_have_to_keep() -> None:
    assert not audience(a_campaign(a_list())).query.order_by
    assert "ORDER BY" not in str(audience(a_campaign(a_list("other"))).query).rpartition("WHERE")[2]
