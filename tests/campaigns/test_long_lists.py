"""Lists of readers and subscriptions, however many there are, page by page."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from unfold.templatetags import unfold_list

from campaigns.admin import long_lists
from campaigns.admin.long_lists import LongList
from tests.campaigns.people import a_list, a_reader

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _seven_to_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LongList, "list_per_page", 7)


@pytest.fixture
def readers() -> list[str]:
    """Thirty, whose addresses have another order than their ids; every third has left."""
    weekly = a_list()
    addresses = [f"r{number * 7 % 30:02}@example.org" for number in range(30)]
    for number, address in enumerate(addresses):
        a_reader(address, weekly, status="subscribed" if number % 3 else "unsubscribed")
    return addresses


def pages_of(client: Client, model: str, **query: str) -> list[list[object]]:
    """The addresses on each page."""
    url = reverse(f"admin:campaigns_{model}_changelist")
    count = client.get(url, query).context["cl"].paginator.num_pages
    answers = [client.get(url, query | {"p": str(number + 1)}) for number in range(count)]
    return [
        [getattr(row, "subscriber", row).email for row in answer.context["cl"].result_list]
        for answer in answers
    ]


@pytest.mark.parametrize("model", ["subscriber", "subscription"])
@pytest.mark.parametrize("order", ["", "1", "-1"])
def test_every_page_holds_its_own_readers_whatever_the_order(
    admin_client: Client, readers: list[str], model: str, order: str
) -> None:
    pages = pages_of(admin_client, model, **({"o": order} if order else {}))
    assert [len(page) for page in pages] == [7, 7, 7, 7, 2]
    in_order = {"": readers[::-1], "1": sorted(readers), "-1": sorted(readers)[::-1]}[order]
    assert [address for page in pages for address in page] == in_order


def test_a_filter_has_pages_of_its_own(admin_client: Client, readers: list[str]) -> None:
    pages = pages_of(admin_client, "subscription", status__exact="unsubscribed")
    assert [len(page) for page in pages] == [7, 3]
    assert [address for page in pages for address in page] == readers[::3][::-1]


def test_a_far_page_fetches_its_own_rows_and_joins_no_others(
    admin_client: Client, readers: list[str]
) -> None:
    url = reverse("admin:campaigns_subscription_changelist")
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(url, {"p": "2"})
    (walk,) = [query["sql"] for query in queries if "OFFSET 7" in query["sql"]]
    assert "JOIN" not in walk
    assert walk.startswith('SELECT "campaigns_subscription"."id" AS "pk" FROM')


def test_the_last_page_is_read_from_the_end(admin_client: Client, readers: list[str]) -> None:
    url = reverse("admin:campaigns_subscriber_changelist")
    with CaptureQueriesContext(connection) as queries:
        answer = admin_client.get(url, {"p": "5"})
    assert [row.email for row in answer.context["cl"].result_list] == readers[1::-1]
    assert not [query["sql"] for query in queries if "OFFSET" in query["sql"]]


@pytest.mark.parametrize("model", ["subscriber", "subscription"])
def test_a_search_finds_what_begins_so_up_to_a_bound_and_says_where_that_is(
    admin_client: Client, readers: list[str], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = reverse(f"admin:campaigns_{model}_changelist")
    for bound, found, is_told in ((11, 10, False), (10, 10, False), (9, 9, True)):
        monkeypatch.setattr(long_lists, "FOUND_AT_MOST", bound)
        answer = admin_client.get(url, {"q": "R2"})
        assert answer.context["cl"].result_count == found
        words = f"Of more than {bound} that begin so, {bound} are shown"
        assert (words in answer.content.decode()) == is_told
        pages = pages_of(admin_client, model, q="R2")
        addresses = [address for page in pages for address in page]
        assert len(addresses) == len(set(addresses)) == found
        assert all(address.startswith("r2") for address in addresses)


def test_the_heads_of_columns_are_made_once_however_many_rows_there_are(
    admin_client: Client, readers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    label = unfold_list.label_for_field

    def counted(name: object, *args: object, **options: object) -> object:
        made.append(name)
        return label(name, *args, **options)

    monkeypatch.setattr(unfold_list, "label_for_field", counted)
    url = reverse("admin:campaigns_subscription_changelist")
    page = admin_client.get(url).content.decode()
    assert page.count("@example.org") >= 7
    assert page.count('id="action-toggle"') == 1
    assert len(made) == len(set(made)) > 3
