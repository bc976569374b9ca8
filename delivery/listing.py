"""The list of deliveries, in pages, however many there are. Reading only.

What makes a list of a million rows slow is counting them, sorting them, and fetching all the rows
before the page that was asked for. So:

- Letters to readers are listed campaign by campaign. The totals, which every move keeps anyway, say
  how many each campaign has, and so in which campaign a page lies, and how far from its beginning.
- Within a campaign each selection has the order of an index, and is walked from the nearer end.
- The walk reads what the index holds (campaign and reader, or the id), and only the letters of the
  page itself are fetched. A hundred thousand places in an index take some 10 ms, as many letters
  100.
- A search, and test letters, are counted up to a bound, and no further.

The indexes are those that the engine needs: another one would cost every letter an entry at each of
its moves. That leaves one walk that fetches what it passes: the far pages of *sent* and of *queued*
within one campaign, for no index holds these states. Between which ids the queued ones stand is
what the pages of the queue tell (delivery/queue_pages.py).
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import F, Q, QuerySet, Subquery, Sum, Value
from django.db.models.expressions import OrderBy

from campaigns.models import Campaign, CampaignTotals
from delivery import queue_pages
from delivery.groups import WAITING_ALONE
from delivery.models import Claim, Delivery
from delivery.sql import in_order_of_an_index
from delivery.states import IN_HAND, UNUSUAL, WAITING, DeliveryStatus

# A search that finds more is no search: it is shown as "at least so many".
COUNTED_AT_MOST = 1_000
# The states of most letters. The others are found among many: the index delivery_unusual holds
# them, or the workers' claims name them.
COMMON = WAITING | {DeliveryStatus.SENT}


@dataclass(frozen=True, slots=True)
class Share:
    """What a campaign has of a selection: ``count`` letters.

    ``beyond``: about so many others stand at the end of the index that is walked.
    """

    campaign_id: int
    count: int
    beyond: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """The letters of a share from its place ``first`` to before its place ``last``."""

    share: Share
    first: int
    last: int

    @property
    def is_whole(self) -> bool:
        return self.last - self.first == self.share.count


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person chose to see. ``campaign_id``, ``status``: None for all of them.

    Test letters and letters to readers are never shown together: each index of the one kind
    knows nothing of the other. ``search``: an address, or how it begins, as an address_key.
    """

    campaign_id: int | None = None
    status: str | None = None
    is_test: bool = False
    search: str = ""

    def letters(self) -> QuerySet[Delivery]:
        """What was chosen, in no order."""
        letters = Delivery.objects.filter(is_test=self.is_test)
        if self.campaign_id is not None:
            letters = letters.filter(campaign_id=self.campaign_id)
        if self.status in UNUSUAL:
            letters = letters.filter(unusual=self.status)
        elif self.status is not None:
            letters = letters.filter(status=self.status)
        if self.status == DeliveryStatus.DEFERRED:
            letters = letters.extra(where=[WAITING_ALONE])
        elif self.status in IN_HAND:
            letters = letters.filter(pk__in=Claim.letters())
        return letters.filter(self.searched()) if self.search else letters

    def searched(self) -> Q:
        """The whole address if somebody has it, else every address that begins so."""
        exact = Q(address_key=self.search)
        if Delivery.objects.filter(exact, is_test=self.is_test).exists():
            return exact
        return Q(address_key__startswith=self.search)

    @property
    def is_by_reader(self) -> bool:
        """Whether a campaign's letters are listed in the order of their readers.

        It is the order of delivery_once_per_subscriber. Ascending, because the queue is filled by
        subscriber id: at the beginning of a campaign, what is sent stands at this end.
        """
        return self.status in (None, DeliveryStatus.SENT)

    @property
    def order(self) -> list[str]:
        """The order of the list; what comes last makes it a total one."""
        if self.is_test:
            return ["-id"]
        if self.search:
            return ["address_key", "-campaign_id"]
        return ["-campaign_id", *self.order_in_campaign]

    @property
    def order_in_campaign(self) -> list[str]:
        """The order of an index that holds this selection's letters of one campaign."""
        if self.is_by_reader:
            return ["subscriber_id", "id"]
        if self.status == DeliveryStatus.DEFERRED:
            # delivery_alone: the next to leave comes first.
            return ["due_at", "id"]
        # Queued letters are claimed in the order of their ids, nearly.
        return ["id"] if self.status == DeliveryStatus.QUEUED else ["-id"]

    def shares(self) -> list[Share]:
        """How many letters of each campaign that are, by the totals; newest campaign first."""
        totals = CampaignTotals.objects.order_by()
        if self.campaign_id is not None:
            totals = totals.filter(campaign_id=self.campaign_id)
        waiting = Sum(F("queued") + F("deferred"))
        sums = totals.values("campaign_id").annotate(
            count=Sum(self.status or "eligible"),
            # Letters are sent in the order of their readers, nearly.
            beyond=waiting if self.status == DeliveryStatus.SENT else Value(0),
        )
        return [Share(**of_one) for of_one in sums.filter(count__gt=0).order_by("-campaign_id")]


class DeliveryPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of deliveries without counting or fetching what lies before them."""

    # Not named pagination.html: Django would take that for every list of this app.
    template_name = "admin/delivery/page_numbers.html"

    def __init__(self, selection: Selection, per_page: int) -> None:
        super().__init__((), per_page)
        self.selection = selection

    @property
    def is_cut(self) -> bool:
        """Whether there may be more than ``count``."""
        return False

    def page(self, number: Any) -> Page:  # type: ignore[type-arg]
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        return Page(self.between(start, min(start + self.per_page, self.count)), number, self)

    @abstractmethod
    def between(self, start: int, stop: int) -> list[Delivery]:
        """The letters from place ``start`` of the list to before place ``stop``."""


def pages_of(selection: Selection, per_page: int) -> DeliveryPaginator:
    if selection.is_test:
        return TestLetters(selection, per_page)
    if selection.search:
        return LettersFound(selection, per_page)
    return LettersByCampaign(selection, per_page)


class LettersByCampaign(DeliveryPaginator):
    """Letters to readers, of which the totals know how many there are.

    A list that wins or loses letters between the count and the walk is shown as it is then: from
    the far end, its places have moved by the difference.
    """

    @cached_property
    def shares(self) -> list[Share]:
        return self.selection.shares()

    @cached_property
    def count(self) -> int:
        return sum(share.count for share in self.shares)

    def between(self, start: int, stop: int) -> list[Delivery]:
        """Three walks at most: in the first and in the last campaign, and in all between them."""
        stretches = list(self._stretches(start, stop))
        letters = self._of_whole([part.share for part in stretches if part.is_whole])
        for part in stretches:
            if not part.is_whole:
                letters[part.share.campaign_id] = self._of(part)
        return [letter for part in stretches for letter in letters[part.share.campaign_id]]

    def _stretches(self, start: int, stop: int) -> Iterator[Stretch]:
        before = 0
        for share in self.shares:
            first, last = max(start - before, 0), min(stop - before, share.count)
            if first < last:
                yield Stretch(share, first, last)
            before += share.count

    def _of_whole(self, shares: list[Share]) -> dict[int, list[Delivery]]:
        """All the letters of campaigns that have few, by campaign."""
        letters: dict[int, list[Delivery]] = {share.campaign_id: [] for share in shares}
        if shares:
            rows = self._rows(letters).order_by(*self.selection.order)
            walk = _only(rows, "pk")
            ids = list(walk[: sum(share.count for share in shares)])
            for letter in _fetched(_letters().filter(pk__in=ids), ids, "pk"):
                letters[letter.campaign_id].append(letter)
        return letters

    def _of(self, part: Stretch) -> list[Delivery]:
        """The letters of a part of one campaign."""
        campaign_id = part.share.campaign_id
        if self.selection.is_by_reader:
            of_all = replace(self.selection, campaign_id=None).letters()
            # A range and no equality, so that for PostgreSQL only an index that begins with the
            # campaign has this order. It would take the index of readers otherwise, and fetch
            # what they got from all other campaigns (2 s instead of 0.3 in half a million).
            rows = of_all.filter(campaign_id__gte=campaign_id, campaign_id__lte=campaign_id)
            rows = rows.order_by("campaign_id", "subscriber_id")
            readers = _walk(_only(rows, "subscriber_id"), part)
            if None not in readers:
                letters = _letters().filter(
                    campaign_id=campaign_id, is_test=False, subscriber_id__in=readers
                )
                return _fetched(letters, readers, "subscriber_id")
            # Of readers who were erased: nothing in this index tells their letters apart.
        rows = self._rows([campaign_id])
        is_queued = self.selection.status == DeliveryStatus.QUEUED
        # Of a campaign that was just filled: PostgreSQL takes its letters for few.
        with in_order_of_an_index() if is_queued else contextlib.nullcontext():
            ids = _walk(_only(rows.order_by(*self.selection.order_in_campaign), "pk"), part)
        return _fetched(_letters().filter(pk__in=ids), ids, "pk")

    def _rows(self, campaign_ids: Collection[int]) -> QuerySet[Delivery]:
        """The selection's letters of these campaigns, in no order."""
        if self.selection.status == DeliveryStatus.QUEUED:
            # In no index: where they stand, the pages of the queue tell.
            letters = queue_pages.between(queue_pages.spans(campaign_ids))
            return letters.filter(status=DeliveryStatus.QUEUED)
        letters = replace(self.selection, campaign_id=None).letters()
        return letters.filter(campaign_id__in=campaign_ids)


class LettersFound(DeliveryPaginator):
    """The letters of a search, by address, and those to one address newest first.

    Where more than COUNTED_AT_MOST are found, it holds the first of them by address.
    """

    @cached_property
    def count(self) -> int:
        return len(self._places)

    @property
    def is_cut(self) -> bool:
        return len(self._looked_at) > COUNTED_AT_MOST

    def between(self, start: int, stop: int) -> list[Delivery]:
        places = self._places[start:stop]
        return _fetched(self._at(places, _letters()), places, "address_key", "campaign_id")

    @cached_property
    def _looked_at(self) -> list[tuple[str, int]]:
        """Address and campaign of letters that may be meant; one more than may be shown.

        Both are in the index delivery_once_per_address. The state is not: for a common one only
        so many letters are looked at, whether they are in it or not. Else a search for queued
        letters after the campaign would look at all of them.
        """
        status = None if self.selection.status in COMMON else self.selection.status
        letters = replace(self.selection, campaign_id=None, status=status).letters()
        in_order = self._of_campaign(letters).order_by(AlongTheIndex(F("address_key")))
        return list(_only(in_order, "address_key", "campaign_id")[: COUNTED_AT_MOST + 1])

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        places = self._looked_at[:COUNTED_AT_MOST]
        if self.selection.status in COMMON:
            # The state is compared here: PostgreSQL might seek by it, among all that wait.
            found = self._at(places, Delivery.objects.all())
            meant = {
                (letter.address_key, letter.campaign_id)
                for letter in found.only("address_key", "campaign_id", "status")
                if letter.status == self.selection.status
            }
            places = [place for place in places if place in meant]
        return sorted(places, key=lambda place: (place[0], -place[1]))

    def _at(
        self, places: Sequence[tuple[str, int]], rows: QuerySet[Delivery]
    ) -> QuerySet[Delivery]:
        """The letters at these places, and at few others: they are neighbours in the index."""
        addresses = {address for address, _ in places}
        return self._of_campaign(rows.filter(is_test=False, address_key__in=addresses))

    def _of_campaign(self, rows: QuerySet[Delivery]) -> QuerySet[Delivery]:
        """Those of the campaign that was chosen, by a sub-query that PostgreSQL cannot foresee.

        Its statistics know nothing of a campaign that has just begun: it would take that for
        empty, and read all its letters (0.6 s while 100,000 were queued).
        """
        if self.selection.campaign_id is None:
            return rows
        chosen = Campaign.objects.filter(pk=self.selection.campaign_id)
        return rows.filter(campaign_id=Subquery(chosen.values("pk")))


class AlongTheIndex(OrderBy):
    """By address as delivery_once_per_address has it, which on PostgreSQL goes by octets."""

    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        # The remark, because Django's compiler wants to see a direction.
        return self.as_sql(compiler, connection, template="%(expression)s USING ~<~ /* ASC */")


class TestLetters(DeliveryPaginator):
    """Test letters, searched or not: few, and found by an index that holds no others."""

    @cached_property
    def count(self) -> int:
        return min(len(self._ids), COUNTED_AT_MOST)

    @property
    def is_cut(self) -> bool:
        return len(self._ids) > COUNTED_AT_MOST

    def between(self, start: int, stop: int) -> list[Delivery]:
        ids = self._ids[start:stop]
        return _fetched(_letters().filter(pk__in=ids), ids, "pk")

    @cached_property
    def _ids(self) -> list[int]:
        letters = self.selection.letters().order_by(*self.selection.order)
        return list(_only(letters, "pk")[: COUNTED_AT_MOST + 1])


def _walk(rows: QuerySet[Delivery, Any], part: Stretch) -> list[Any]:
    """What stands in this part of its campaign's ``rows``, found from the nearer end."""
    count = part.share.count
    if part.first <= count - part.last + part.share.beyond:
        return list(rows[part.first : part.last])
    return list(rows.reverse()[count - part.last : count - part.first])[::-1]


def _only(rows: QuerySet[Delivery], *fields: str) -> QuerySet[Delivery, Any]:
    """Of each row these fields and nothing else: a walk that an index can answer alone."""
    return rows.values_list(*fields, flat=len(fields) == 1)


def _letters() -> QuerySet[Delivery]:
    """Letters as the list shows them. What a campaign says, 100 KB perhaps, stays where it is."""
    rows = Delivery.objects.select_related("campaign")
    return rows.defer("campaign__html", "campaign__text")


def _fetched(rows: QuerySet[Delivery], places: Sequence[Any], *fields: str) -> list[Delivery]:
    """``rows`` in the order of their places, which these fields tell; without those now gone."""
    place_of = attrgetter(*fields)
    found = {place_of(letter): letter for letter in rows}
    return [found[place] for place in places if place in found]
