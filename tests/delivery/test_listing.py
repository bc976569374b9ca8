"""The pages of the list of deliveries: each holds its own letters, and reads hardly any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.test.utils import CaptureQueriesContext

from campaigns.models import Campaign, CampaignTotals, Subscriber
from delivery import listing
from delivery.listing import Selection, pages_of
from delivery.models import Claim, Delivery
from delivery.states import DeliveryStatus
from tests.delivery.rows import a_campaign, a_letter, a_reader

pytestmark = pytest.mark.django_db
BY_ID = {"postgresql": "delivery_delivery_pkey", "sqlite": "USING INTEGER PRIMARY KEY (rowid>"}
STATES = ["sent", "rejected", "queued", "sent", "bounced", "claimed", "deferred", "sent"]
# Both tables of a page: what autovacuum noted of a table that was empty then makes other plans.
ANALYZE = "ANALYZE campaigns_campaign, delivery_delivery"


def addresses(letters: list[Delivery]) -> list[str]:
    return [letter.rcpt_to for letter in letters]


def all_pages(selection: Selection, per_page: int = 4) -> list[list[Delivery]]:
    pages = pages_of(selection, per_page)
    return [list(pages.page(number)) for number in pages.page_range]


def as_one_list(selection: Selection) -> list[Delivery]:
    """The selection in its order, by a query that sorts all of it."""
    return list(selection.letters().order_by(*selection.order))


def letters_of(campaign: Campaign, now: datetime, count: int, **changes: str) -> None:
    for number in range(count):
        state = changes.get("status", STATES[number % len(STATES)])
        reader = a_reader(f"{campaign.name.lower()}{number:02}@example.org")
        a_letter(campaign, reader, now, state, due_at=now + timedelta(minutes=number % 5))


@pytest.fixture
def four_campaigns(now: datetime) -> list[Campaign]:
    """A long one, two short ones and a long one; with test letters and readers since erased."""
    campaigns = [a_campaign(name) for name in ("Spring", "Summer", "Autumn", "Winter")]
    for campaign, count in zip(campaigns, (23, 2, 1, 17), strict=True):
        letters_of(campaign, now, count)
        a_letter(campaign, f"boss-of-{campaign.name}@example.org", now, is_test=True)
    for number in (3, 8, 21):
        Delivery.objects.get(rcpt_to=f"spring{number:02}@example.org").subscriber.delete()
    claimed = Delivery.objects.filter(status="claimed").values_list("pk", flat=True)
    Claim.objects.create(claim_key=1, provider="default", delivery_ids=json.dumps(list(claimed)))
    return campaigns


@pytest.mark.parametrize("of_one_campaign", [False, True])
@pytest.mark.parametrize("search", ["", "s"])
def test_every_page_holds_its_own_letters_in_the_order_of_the_list(
    four_campaigns: list[Campaign], of_one_campaign: bool, search: str
) -> None:
    campaign_id = four_campaigns[0].pk if of_one_campaign else None
    for status in (None, *sorted(set(STATES)), "expired"):
        selection = Selection(campaign_id, status, search=search)
        pages = all_pages(selection)
        assert [letter for page in pages for letter in page] == as_one_list(selection), status
        assert all(len(page) == 4 for page in pages[:-1]), status


def test_test_letters_have_pages_of_their_own(four_campaigns: list[Campaign]) -> None:
    pages = all_pages(Selection(is_test=True), per_page=3)
    assert [addresses(page) for page in pages] == [
        [f"boss-of-{name}@example.org" for name in ("Winter", "Autumn", "Summer")],
        ["boss-of-Spring@example.org"],
    ]
    assert addresses(all_pages(Selection(is_test=True, search="boss-of-s"))[0]) == [
        "boss-of-Summer@example.org",
        "boss-of-Spring@example.org",
    ]


def test_a_page_that_crosses_many_campaigns_costs_as_much_as_one_that_crosses_two(
    now: datetime,
) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert len(pages_of(Selection(), 20).page(1)) == 20
        return len(queries)

    for name in ("First", "Second"):
        letters_of(a_campaign(name), now, 15)
    before = cost()
    for number in range(18):
        letters_of(a_campaign(f"Number{number}"), now, 1)
    assert cost() <= before + 1


def test_letters_that_are_queued_meanwhile_tear_no_page(four_campaigns: list[Campaign]) -> None:
    """The totals are read once, then the campaign goes on being filled."""
    now = Delivery.objects.latest("id").queued_at
    pages = pages_of(Selection(four_campaigns[-1].pk), 4)
    assert pages.count == 17
    before = as_one_list(pages.selection)
    for number in range(5):
        a_letter(four_campaigns[-1], a_reader(f"later{number}@example.org"), now, "queued")
    whole = as_one_list(pages.selection)
    for number in pages.page_range:
        found = list(pages.page(number))
        place = whole.index(found[0])
        assert found == whole[place : place + len(found)]
        assert len(found) == (1 if number == 5 else 4)
    assert list(pages.page(1)) == before[:4]
    again = [letter for page in all_pages(pages.selection) for letter in page]
    assert again == whole


def test_a_letter_that_moves_on_meanwhile_is_shown_as_it_is_now(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters_of(a_campaign(), now, 3, status="queued")
    found_by_index = listing._walk

    def and_then_it_is_claimed(*walk: object) -> list[object]:
        places = found_by_index(*walk)  # type: ignore[arg-type]
        Delivery.objects.filter(rcpt_to="spring01@example.org").update(status="claimed")
        return places

    monkeypatch.setattr(listing, "_walk", and_then_it_is_claimed)
    monkeypatch.setattr(listing.Stretch, "is_whole", False)
    (page,) = all_pages(Selection(status="queued"))
    assert {letter.rcpt_to[:8]: letter.status for letter in page} == {
        "spring00": "queued",
        "spring01": "claimed",
        "spring02": "queued",
    }


def test_what_campaigns_say_is_not_fetched_with_their_letters(now: datetime) -> None:
    letters_of(a_campaign(html="<p>" + "long " * 20_000), now, 3)
    with CaptureQueriesContext(connection) as queries:
        assert [letter.campaign.name for letter in pages_of(Selection(), 2).page(1)] == [
            "Spring"
        ] * 2
    assert not [query["sql"] for query in queries if '"html"' in query["sql"]]


def test_a_search_that_finds_too_many_says_so_whatever_the_state(
    four_campaigns: list[Campaign], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "COUNTED_AT_MOST", 8)
    for status in (None, "sent", "rejected"):
        pages = pages_of(Selection(status=status, search="spring"), 50)
        right = as_one_list(pages.selection)
        assert pages.is_cut == (len(right) > 8 or status == "sent")
        assert set(pages.page(1)) <= set(right)
    assert not pages_of(Selection(search="summer"), 50).is_cut


# ------------------------------------------------------------------------- what a page costs


def as_if_it_were_large(cursor: CursorWrapper) -> None:
    """PostgreSQL plans for a table that nobody would read or sort as a whole."""
    for way in ("seqscan", "bitmapscan", "sort", "incremental_sort"):
        cursor.execute(f"SET LOCAL enable_{way} TO off")


def plans_of(read: Callable[[], object]) -> list[str]:
    """How each query on deliveries is answered."""
    with CaptureQueriesContext(connection) as queries:
        read()
    found = [query["sql"] for query in queries if 'FROM "delivery_delivery"' in query["sql"]]
    prefix = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(ANALYZE)
            as_if_it_were_large(cursor)
        plans = []
        for sql in found:
            cursor.execute(f"{prefix} {sql}")
            plans.append(" ".join(str(column) for row in cursor.fetchall() for column in row))
    return plans


@pytest.mark.parametrize(
    ("selection", "index"),
    [
        (Selection(), "delivery_once_per_subscriber"),
        (Selection(status="sent"), "delivery_once_per_subscriber"),
        (Selection(status="queued"), BY_ID),
        (Selection(status="deferred"), "delivery_alone"),
        (Selection(status="bounced"), "delivery_unusual"),
        (Selection(status="rejected"), "delivery_unusual"),
        (Selection(status="unconfirmed"), "delivery_unusual"),
    ],
)
@pytest.mark.parametrize("of_one_campaign", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_walk_to_a_page_is_along_an_index_that_has_its_order(
    now: datetime,
    selection: Selection,
    index: str | dict[str, str],
    of_one_campaign: bool,
    number: int,
) -> None:
    for name in ("Spring", "Summer"):
        campaign = a_campaign(name)
        for state in dict.fromkeys([selection.status or "sent", "suppressed"]):
            for place in range(9):
                address = f"{state}-{name}-{place}@example.org"
                a_letter(campaign, a_reader(address), now, state)
    if of_one_campaign:
        selection = replace(selection, campaign_id=campaign.pk)
    plans = plans_of(lambda: pages_of(selection, 4).page(number))
    # Where queued letters stand is asked first.
    walk = plans[1 if selection.status == "queued" else 0]
    assert (index if isinstance(index, str) else index[connection.vendor]) in walk
    assert "Sort" not in walk
    assert "TEMP B-TREE" not in walk


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "selection", [Selection(), Selection(search="spr"), Selection(search="spr", status="queued")]
)
def test_what_lies_before_a_page_is_read_from_an_index_alone(
    now: datetime, selection: Selection
) -> None:
    campaign = a_campaign()
    letters_of(campaign, now, 40)
    plans = plans_of(lambda: pages_of(selection, 4).page(2))
    assert [plan for plan in plans if "Index Only Scan" in plan]


def letters_read(selection: Selection, number: int, per_page: int, *, analyzed: bool = True) -> int:
    """How many letters, in the table or in its indexes, PostgreSQL looks at for a page."""

    def of_node(node: dict) -> int:
        looked_at = 0
        if node.get("Relation Name") == "delivery_delivery":
            looked_at = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            looked_at *= node["Actual Loops"]
        return looked_at + sum(of_node(child) for child in node.get("Plans", []))

    with CaptureQueriesContext(connection) as queries:
        pages_of(selection, per_page).page(number)
    found = [query["sql"] for query in queries if 'FROM "delivery_delivery"' in query["sql"]]
    with connection.cursor() as cursor:
        if analyzed:
            cursor.execute(ANALYZE)
        as_if_it_were_large(cursor)
        total = 0
        for sql in found:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
            answer = cursor.fetchone()[0]
            plan = json.loads(answer) if isinstance(answer, str) else answer
            total += of_node(plan[0]["Plan"])
    return total


def many_readers(count: int, name: str) -> list[Subscriber]:
    addresses = [f"{name}{number:03}@example.org" for number in range(count)]
    readers = [Subscriber(email=address, address_key=address) for address in addresses]
    return Subscriber.objects.bulk_create(readers)


def many_letters(
    campaign: Campaign, readers: list[Subscriber], now: datetime, status: str = "sent"
) -> None:
    edition = campaign.editions.get()
    Delivery.objects.bulk_create(
        Delivery(
            campaign=campaign,
            edition=edition,
            subscriber=reader,
            rcpt_to=reader.email,
            address_key=reader.address_key,
            **Delivery.of_state(DeliveryStatus(status)),
            due_at=now,
            queued_at=now,
        )
        for reader in readers
    )
    CampaignTotals.add(campaign.pk, 0, {"eligible": len(readers), status: len(readers)})


@pytest.fixture
def ten_campaigns(now: datetime) -> list[Campaign]:
    """400 letters each, to the same readers. All but the newest have one that was rejected."""
    readers = many_readers(400, "reader")
    campaigns = [a_campaign(f"Number {number}") for number in range(10)]
    for campaign in campaigns:
        if campaign == campaigns[-1]:
            many_letters(campaign, readers, now)
        else:
            many_letters(campaign, readers[:200], now)
            a_letter(campaign, readers[200], now, "rejected")
            many_letters(campaign, readers[201:], now)
    return campaigns


@pytest.mark.postgresql
@pytest.mark.parametrize("status", [None, "sent"])
def test_a_page_in_the_middle_of_all_letters_reads_half_of_one_campaign_at_most(
    ten_campaigns: list[Campaign], status: str | None
) -> None:
    assert pages_of(Selection(status=status), 10).num_pages == 400
    for number in (1, 200, 221, 222, 240, 400):
        # Half of a campaign in the index; then the letters of the page, of two campaigns perhaps.
        assert letters_read(Selection(status=status), number, per_page=10) <= 200 + 2 * 10 + 2


@pytest.mark.postgresql
def test_rare_letters_are_found_without_walking_over_newer_campaigns(
    ten_campaigns: list[Campaign],
) -> None:
    assert letters_read(Selection(status="rejected"), 1, per_page=50) <= 3 * 9


@pytest.mark.postgresql
def test_letters_that_were_sent_are_sought_from_the_end_that_is_not_waiting(now: datetime) -> None:
    campaign = a_campaign()
    many_letters(campaign, many_readers(40, "taken"), now)
    many_letters(campaign, many_readers(800, "waits"), now, "queued")
    assert letters_read(Selection(campaign.pk, "sent"), 4, per_page=10) <= 40 + 20


@pytest.mark.postgresql
def test_a_search_looks_at_so_many_letters_and_no_more(
    ten_campaigns: list[Campaign], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "COUNTED_AT_MOST", 20)
    for status in (None, "sent", "queued"):
        assert letters_read(Selection(status=status, search="reader"), 1, per_page=10) <= 150


@pytest.mark.postgresql
def test_a_search_does_not_read_a_campaign_that_statistics_have_not_seen_yet(
    ten_campaigns: list[Campaign], now: datetime
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(ANALYZE)
    begun = a_campaign("Begun")
    many_letters(begun, many_readers(300, "new"), now, "queued")
    for campaign_id in (None, begun.pk):
        for status in (None, "queued"):
            selection = Selection(campaign_id, status, search="new00")
            assert pages_of(selection, 10).count == 10
            assert letters_read(selection, 1, per_page=10, analyzed=False) <= 50
