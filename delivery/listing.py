"""The list of deliveries, in pages, however many there are. Reading only.

What makes a list of a million rows slow is counting them, sorting them, and walking over all the
pages before the one that was asked for. So the count comes from the totals, which every move
keeps anyway; each selection is shown in the order in which an index holds it; and a page is found
by its ids alone, from whichever end is nearer.

The indexes are those that the engine needs. An index (campaign, id) would serve one order for all
selections, and would cost every letter another entry at each of its moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet, Sum

from campaigns.models import CampaignTotals
from delivery.models import Delivery
from delivery.states import FINAL, WAITING, DeliveryStatus

# A search that finds more is no search: it is shown as "at least so many".
COUNTED_AT_MOST = 1_000
# Final states that are not the normal case: the index delivery_unusual holds them.
UNUSUAL = FINAL - {DeliveryStatus.SENT}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person chose to see. ``campaign_id``, ``status``: None for all of them.

    Test letters and letters to readers are never shown together: each index of the one kind
    knows nothing of the other.
    """

    campaign_id: int | None = None
    status: str | None = None
    is_test: bool = False
    search: str = ""

    @property
    def order(self) -> list[str]:
        """The order of an index that holds this selection; always ends in something unique."""
        if self.campaign_id is None or self.is_test or self.status in UNUSUAL:
            return ["-id"]
        if self.status in WAITING:
            # delivery_waiting: the next to leave comes first.
            return ["campaign_id", "due_at", "id"]
        if self.status in (None, DeliveryStatus.SENT):
            # delivery_once_per_subscriber. Ascending, because the queue is filled by subscriber
            # id: at the beginning of a campaign, what is sent stands at this end.
            return ["subscriber_id", "id"]
        return ["-id"]

    def known_count(self) -> int | None:
        """How many letters that are, by the totals; None when only counting can tell."""
        if self.is_test or self.search:
            return None
        field = self.status or "eligible"
        if field not in CampaignTotals.COUNTS:
            return None
        totals = CampaignTotals.objects.order_by()
        if self.campaign_id is not None:
            totals = totals.filter(campaign_id=self.campaign_id)
        return max(0, totals.aggregate(sum=Sum(field))["sum"] or 0)


class DeliveryPaginator(Paginator):  # type: ignore[type-arg]
    """Pages of deliveries without counting or walking over what lies before them."""

    # Not named pagination.html: Django would take that for every list of this app.
    template_name = "admin/delivery/page_numbers.html"

    def __init__(
        self, object_list: QuerySet[Delivery], per_page: int, known_count: int | None = None
    ) -> None:
        super().__init__(object_list, per_page)
        self.known_count = known_count

    @cached_property
    def count(self) -> int:
        """The known count, or a count that stops just above COUNTED_AT_MOST."""
        if self.known_count is not None:
            return self.known_count
        return min(self._counted, COUNTED_AT_MOST)

    @property
    def is_cut(self) -> bool:
        """Whether there are more than ``count``."""
        return self.known_count is None and self._counted > COUNTED_AT_MOST

    @cached_property
    def _counted(self) -> int:
        return self._rows.order_by()[: COUNTED_AT_MOST + 1].count()

    @property
    def _rows(self) -> QuerySet[Delivery]:
        rows = self.object_list
        assert isinstance(rows, QuerySet)
        return rows

    def page(self, number: Any) -> Page:  # type: ignore[type-arg]
        """One page: its ids through an index, then these rows with their campaigns.

        Joining first would join every row on the pages before it, too (1.3 s instead of 80 ms for
        the last of a million).
        """
        number = self.validate_number(number)
        start = (number - 1) * self.per_page
        stop = min(start + self.per_page, self.count)
        ids = self._ids(start, stop)
        found = self._rows.model._default_manager.select_related("campaign").in_bulk(ids)
        return Page([found[pk] for pk in ids if pk in found], number, self)

    def _ids(self, start: int, stop: int) -> list[int]:
        ids = self._rows.select_related(None).values_list("pk", flat=True)
        if stop <= start:
            return []
        if self.is_cut or start <= self.count // 2:
            return list(ids[start:stop])
        from_the_end = ids.reverse()[self.count - stop : self.count - start]
        return list(from_the_end)[::-1]
