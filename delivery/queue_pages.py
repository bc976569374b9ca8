"""Pages of the queue: where the letters stand that no claim has come to yet.

A letter that was just queued needs no entry in an index of what waits: it stands in the table
beside those that were queued with it. So a page names a stretch of ids, and a claim takes the next
letters of the first page and moves its mark: no index changes when a letter comes, nor when it
goes. Whatever waits again (released, deferred, taken back) waits alone, in an index that stays
small (``Delivery.waits_alone``).

The promise: a letter of a campaign that is waiting either waits alone or stands in a page at or
behind its mark. Who passes over a letter has moved it in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any

from django.db import connection
from django.db.models import F, Max, Min, Q, QuerySet

from delivery import statements
from delivery.models import Delivery, QueuePage
from delivery.sql import as_moment, as_parameter
from delivery.states import DeliveryStatus

# So few that workers find a page each at the beginning of a campaign, and so many that a claim
# seldom needs two.
SIZE = 1_000


def end_of_the_queue() -> int:
    """An id below those of all letters that will be queued from now on by this transaction."""
    return Delivery.objects.aggregate(last=Max("pk"))["last"] or 0


def last_reader(campaign_id: int, end: int) -> int | None:
    """The highest reader of the letters that this transaction has queued for a campaign since
    ``end_of_the_queue``; None where there are none."""
    new = Delivery.objects.alias(of=F("campaign_id") + 0).filter(pk__gt=end)
    return new.filter(of=campaign_id, is_test=False).aggregate(last=Max("subscriber_id"))["last"]


def write(campaign_id: int, end: int, due_at: datetime) -> None:
    """Makes pages of the letters that this transaction has queued for a campaign since
    ``end_of_the_queue``. Letters of others may stand between them."""
    new = Delivery.objects.filter(pk__gt=end).aggregate(first=Min("pk"), last=Max("pk"))
    if new["first"] is None:
        return
    QueuePage.objects.bulk_create(
        QueuePage(
            campaign_id=campaign_id,
            next_id=next_id,
            last_id=min(next_id + SIZE - 1, new["last"]),
            due_at=due_at,
        )
        for next_id in range(new["first"], new["last"] + 1, SIZE)
    )


# SQLite has no locks of rows, and its transactions are alone.
_LOCKED = {"postgresql": (" FOR UPDATE SKIP LOCKED", " FOR UPDATE")}


def first(campaign_id: int, due_by: datetime | None = None) -> QueuePage | None:
    """A campaign's first page, locked; one that nobody holds, where there is one."""
    due = "" if due_by is None else " AND due_at <= %s"
    which = [campaign_id] if due_by is None else [campaign_id, as_parameter(due_by)]
    with connection.cursor() as cursor:
        for locked in _LOCKED.get(connection.vendor, ("",)):
            cursor.execute(statements.FIRST_PAGE.format(due=due, locked=locked), which)
            if (page := cursor.fetchone()) is not None:
                return QueuePage(*page[:-1], due_at=as_moment(page[-1]))
    return None


def turn(page: QueuePage, taken: Sequence[int], wanted: int) -> bool:
    """Moves the mark behind the letters that were taken of a locked page, ``wanted`` of them or
    all that nobody else had locked; whether none was passed over. A page that was read to its end
    is forgotten. Letters that were passed over get a page of their own, behind all others."""
    up_to = max(taken) if len(taken) == wanted else page.last_id
    passed_over = False
    if up_to - page.next_id + 1 > len(taken):  # mostly it is all of the stretch
        passed_over = standing(page).filter(pk__lte=up_to).count() > len(taken)
    if passed_over:
        QueuePage.objects.create(
            campaign_id=page.campaign_id, next_id=page.next_id, last_id=up_to, due_at=page.due_at
        )
    with connection.cursor() as cursor:
        if up_to == page.last_id:
            cursor.execute(statements.FORGET_PAGE, [page.pk])
        else:
            cursor.execute(statements.TURN_PAGE, [up_to + 1, page.pk])
    return not passed_over


def standing(page: QueuePage) -> QuerySet[Delivery]:
    """The letters of a page, none of which a claim has taken yet."""
    letters = between({page.campaign_id: (page.next_id, page.last_id)})
    return letters.filter(waits_alone=False, status=DeliveryStatus.QUEUED)


def between(spans: Mapping[int, tuple[int, int]]) -> QuerySet[Delivery]:
    """Each campaign's letters from one id to another, test letters left out. Found by the ids and
    by no other index: databases think little of ranges, and would rather read whole campaigns."""
    stand_there = (
        Q(of=campaign_id, pk__gte=first_id, pk__lte=last_id)
        for campaign_id, (first_id, last_id) in spans.items()
    )
    letters = Delivery.objects.alias(of=F("campaign_id") + 0)
    return letters.filter(reduce(or_, stand_there, Q(pk__in=())), is_test=False)


def take(campaign_id: int, wanted: int) -> list[int]:
    """The ids of the next letters that no claim has come to, ``wanted`` where there are so many;
    waits for those that somebody else has locked. The pages pass over them: the caller's
    transaction moves them, or has them wait alone."""
    taken: list[int] = []
    while len(taken) < wanted and (page := first(campaign_id)) is not None:
        room = wanted - len(taken)
        letters = standing(page).order_by("pk").select_for_update()
        of_page = list(letters.values_list("pk", flat=True)[:room])
        turn(page, of_page, room)
        taken += of_page
    return taken


def stretches(campaign_id: int) -> list[tuple[int, int]]:
    """The first and the last id of each page of a campaign, neighbours taken together."""
    pages = QueuePage.objects.filter(campaign_id=campaign_id).order_by("next_id")
    together: list[tuple[int, int]] = []
    for first_id, last_id in pages.values_list("next_id", "last_id"):
        if together and first_id <= together[-1][1] + 1:
            first_id, before = together.pop()
            last_id = max(last_id, before)
        together.append((first_id, last_id))
    return together


def spans(campaign_ids: Collection[int]) -> dict[int, tuple[int, int]]:
    """The first and the last id between which all waiting letters of each campaign stand, test
    letters left out; campaigns without any are missing."""
    alone = Delivery.objects.filter(waits_alone=True, is_test=False, campaign_id__in=campaign_ids)
    pages = QueuePage.objects.filter(campaign_id__in=campaign_ids)
    ends: dict[int, tuple[int, int]] = {}
    for rows, first_id, last_id in ((alone, "pk", "pk"), (pages, "next_id", "last_id")):
        grouped: QuerySet[Any, Any] = rows.order_by().values_list("campaign_id")
        for campaign_id, low, high in grouped.annotate(Min(first_id), Max(last_id)):
            known = ends.get(campaign_id, (low, high))
            ends[campaign_id] = min(low, known[0]), max(high, known[1])
    return ends


def spread(campaign_id: int, wanted: int) -> int:
    """Has the next letters that no claim has come to wait alone; how many. In a transaction."""
    ids = take(campaign_id, wanted)
    return Delivery.objects.filter(pk__in=ids).update(waits_alone=True)
