"""Which letters a worker takes from the queue: QUEUED or DEFERRED -> CLAIMED, in SQL.

A claim is one transaction, or on PostgreSQL usually one prepared statement for each campaign, and
keeps CampaignTotals in it. Rows that another worker has locked are passed over (SKIP LOCKED);
SQLite ignores that, but its transactions are IMMEDIATE, so there a claim is alone anyway.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, cast

from django.db import connection, transaction
from django.db.models import Min

from campaigns.models import Campaign
from delivery import queue_pages, statements
from delivery.groups import Held
from delivery.leases import Lease
from delivery.models import Claim, Delivery, QueuePage
from delivery.sql import (
    Statement,
    Steps,
    among,
    as_moment,
    as_parameter,
    in_order_of_an_index,
    keeps_statements,
    run_prepared,
)
from delivery.states import DeliveryStatus
from delivery.tally import SHARDS_OF_CLAIMS, Tally

_S = DeliveryStatus


class Claimed(NamedTuple):
    """A claimed delivery with all that its letter needs.

    ``is_test``: 1 or 0 from SQLite, whose JSON has no true and false. ``queued``: as its database
    writes a moment. ``attributes``: None where there is no reader.
    """

    id: int
    campaign_id: int
    edition_id: int
    subscriber_id: int
    rcpt_to: str
    is_test: bool
    attempts: int
    queued: str
    name: str
    language: str
    attributes: Mapping[str, Any] | None
    list_name: str
    list_label: str

    @property
    def queued_at(self) -> datetime:
        """Read when it is asked for: an accepted letter's never is."""
        return as_moment(datetime.fromisoformat(self.queued))


# From a row of JSON, without a call in Python for each, as Claimed's own constructors would be: it
# takes half of the time of reading the row.
_AS_CLAIMED = cast(Callable[[Sequence[Any]], Claimed], partial(tuple.__new__, Claimed))

# A due letter as the statements give it: the fields of Claimed, its state, whether it is wanted.
Due = Sequence[Any]
_LETTER_OF = itemgetter(slice(len(Claimed._fields)))
_IS_WANTED = len(Claimed._fields) + 1
# What tells letters apart for the totals: campaign, test letter or not, state.
_KIND_OF_DUE = itemgetter(1, 5, len(Claimed._fields))


def open_campaigns(names: Sequence[str]) -> list[int]:
    """The campaigns that may send now through a provider of these names."""
    with connection.cursor() as cursor:
        cursor.execute(
            statements.OPEN_CAMPAIGNS.format(names=", ".join(["%s"] * len(names))), list(names)
        )
        return [row[0] for row in cursor.fetchall()]


def opening(alias: str, names: Sequence[str], now: datetime, pages: int) -> Steps[Opening | None]:
    """What ``usual_claim`` needs to know; None where the usual claim will not do: the provider is
    unknown, closed or has failed, or holds a group. ``pages``: of so many for each campaign the
    letters are counted. For a session, or for run_prepared."""
    parameters = {"alias": alias, "names": json.dumps(list(names)), "now": now, "pages": pages}
    answer = yield Statement(statements.OPENING, parameters, "opening")
    if answer is None:
        return None
    groups_held, campaigns = answer
    priorities = {campaign_id: priority for campaign_id, priority, _letters in campaigns or ()}
    return Opening(groups_held, priorities, sum(letters for _id, _pr, letters in campaigns or ()))


class Opening(NamedTuple):
    """An open provider: its count of held groups, the priority of each of its campaigns, and how
    many letters stand in the first pages of their queues."""

    groups_held: int
    priorities: dict[int, int]
    in_pages: int


def claim(
    lease: Lease,
    campaign_ids: Sequence[int],
    wanted: int,
    now: datetime,
    names: Sequence[str] = (),
    held: Held | None = None,
) -> list[Claimed]:
    """Claims up to ``wanted`` due letters under this lease: test letters first, then the campaigns
    by their priority, with a fair share of each among equals. A reader who has meanwhile
    unsubscribed or was suppressed is SUPPRESSED by the same transaction that would have claimed
    the letter. ``names``: those by which test letters name the provider; its alias where none are
    given. ``held``: groups of domains whose letters stay; test letters go to them all the same.
    """
    names = names or [lease.provider]
    if held is None and keeps_statements() and not connection.in_atomic_block:
        return run_prepared(usual_claim(lease, _in_turn(campaign_ids), wanted, now, names))
    with transaction.atomic():
        of_tests = statements.DUE_TESTS.format(names=", ".join(["%s"] * len(names)))
        due = _lock_due(of_tests, [*names, as_parameter(now)], wanted)
        for campaign_id, left in _in_turn(campaign_ids):
            share = -(-(wanted - len(due)) // left)
            if share > 0 and held is None:
                due += _lock_first(campaign_id, share, now)
            elif share > 0 and held is not None:
                due += _lock_free(campaign_id, share, held, now)
        stay = [row for row in due if row[_IS_WANTED]]
        tally = Tally(SHARDS_OF_CLAIMS + lease.slot)
        _move_waiting([row for row in due if not row[_IS_WANTED]], _S.SUPPRESSED, lease, now, tally)
        _move_waiting(stay, _S.CLAIMED, lease, now, tally)
        if stay:
            forget_claims(lease.claim_key)
            _note_claim(lease, [row[0] for row in stay])
        tally.write()
    return [*map(_AS_CLAIMED, map(_LETTER_OF, stay))]


def usual_claim(
    lease: Lease,
    turns: Sequence[tuple[int, int]],
    wanted: int,
    now: datetime,
    names: Sequence[str],
) -> Steps[list[Claimed]]:
    """The usual claim: a statement and a commit for each campaign and page of its queue, until
    there are enough. Each is whole by itself. For a session, or for run_prepared, and where no
    group is held. ``turns``: of in_turn."""
    claims: list[Claimed] = []
    nobodys: list[tuple[int | None, int]] = [(None, 1)]
    for campaign_id, left in turns or nobodys:
        share = -(-(wanted - len(claims)) // left)
        has_more = True
        while has_more and share > 0:
            parameters = {
                "names": json.dumps(list(names)),
                "campaign": campaign_id,
                "now": now,
                "wanted": share,
                "key": lease.claim_key,
                "provider": lease.provider,
                "shard": SHARDS_OF_CLAIMS + lease.slot,
            }
            answer = yield Statement(statements.CLAIM, parameters, "claim")
            assert answer is not None
            letters, has_more = answer
            claims += map(_AS_CLAIMED, letters)
            share -= len(letters)
    return claims


def in_turn(priorities: Mapping[int, int]) -> list[tuple[int, int]]:
    """The campaigns in the order in which they may claim, the highest priority first and equals as
    they come; with each how many of its priority have not had their share, itself included."""
    left = Counter(priorities.values())
    turns = []
    # Stable: equals stay in their order.
    for campaign_id in sorted(priorities, key=lambda pk: priorities[pk], reverse=True):
        turns.append((campaign_id, left[priorities[campaign_id]]))
        left[priorities[campaign_id]] -= 1
    return turns


def _in_turn(campaign_ids: Sequence[int]) -> list[tuple[int, int]]:
    priorities = dict.fromkeys(campaign_ids, 0)
    if len(campaign_ids) > 1:
        known = Campaign.objects.filter(pk__in=campaign_ids).order_by()
        priorities.update(known.values_list("pk", "priority"))
    return in_turn(priorities)


def _lock_first(campaign_id: int, limit: int, now: datetime) -> list[Due]:
    """What waits alone goes before a page that was queued later."""
    rows: list[Due] = []
    looked_up_to = datetime.min.replace(tzinfo=UTC)
    while len(rows) < limit:
        page = queue_pages.first(campaign_id, due_by=now)
        due_by = page.due_at if page is not None else now
        moments = [as_parameter(looked_up_to), as_parameter(due_by)]
        with in_order_of_an_index():
            rows += _lock_due(
                statements.DUE_ALONE, [campaign_id, campaign_id, *moments], limit - len(rows)
            )
        if page is None or len(rows) == limit:
            break
        room = limit - len(rows)
        which = [campaign_id, page.next_id, page.last_id, campaign_id]
        of_page = _lock_due(statements.OF_A_PAGE, which, room)
        rows += of_page
        if not queue_pages.turn(page, [row[0] for row in of_page], room):
            break
        looked_up_to = due_by
    return rows


def _lock_free(campaign_id: int, limit: int, held: Held, now: datetime) -> list[Due]:
    """As _lock_first, without the letters to groups that are held."""
    free = held.free_letters(campaign_id, limit, now)
    if not free:
        return []
    of_these = statements.DUE_OF_THESE.format(ids=among("d.id", free))
    return _lock_due(of_these, [campaign_id, campaign_id, as_parameter(now)], limit)


def _lock_due(sql: str, which: list[Any], limit: int) -> list[Due]:
    """Due letters, locked."""
    if connection.vendor == "postgresql":
        sql += " FOR UPDATE OF d SKIP LOCKED"
    with connection.cursor() as cursor:
        cursor.execute(
            statements.DUE_AS_JSON[connection.vendor].format(due=sql),
            [*which, limit],
        )
        (due,) = cursor.fetchone()
    rows: list[Due] = json.loads(due)
    return rows


def _move_waiting(
    rows: Sequence[Due],
    target: DeliveryStatus,
    lease: Lease,
    now: datetime,
    tally: Tally,
) -> None:
    """Rows that this transaction has locked in a waiting state."""
    if not rows:
        return
    changes, values = "claim_key = %s", [lease.claim_key]
    if target is _S.SUPPRESSED:
        changes, values = "settled_at = %s, reply = ''", [as_parameter(now)]
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {Delivery._meta.db_table}"
            f" SET {statements.MOVED_TO[target]}, {changes}"
            f" WHERE {among('id', [row[0] for row in rows])}"
            f" AND status IN ('{_S.QUEUED.value}', '{_S.DEFERRED.value}')",
            values,
        )
    for (campaign_id, is_test, status), count in Counter(map(_KIND_OF_DUE, rows)).items():
        tally.add(campaign_id, is_test, status, target, count)


def next_due(campaign_ids: Sequence[int], names: Sequence[str]) -> datetime | None:
    """When the next waiting letter of these campaigns, or test letter for a provider of these
    names, is due; None without one."""
    waiting = Delivery.objects.filter(status__in=[_S.QUEUED, _S.DEFERRED])
    # Without waits_alone, as where they are claimed.
    tests = waiting.filter(is_test=True, campaign__provider__in=names)
    moments = [tests.aggregate(due=Min("due_at"))["due"]]
    alone = waiting.filter(waits_alone=True, is_test=False).order_by("campaign_id", "due_at", "id")
    pages = QueuePage.objects.order_by("campaign_id", "id")
    with in_order_of_an_index():
        for campaign_id in campaign_ids:
            for in_order in (alone, pages):
                of_one = in_order.filter(campaign_id=campaign_id)
                moments.append(of_one.values_list("due_at", flat=True).first())
    return min((moment for moment in moments if moment is not None), default=None)


def is_being_filled(campaign_ids: Sequence[int]) -> bool:
    """Whether more letters of these campaigns are on their way into the queue."""
    return Campaign.objects.filter(pk__in=campaign_ids, filled_at=None).exists()


def _note_claim(lease: Lease, ids: Sequence[int]) -> None:
    """The last letter first: it is the last to leave, and forget_claims finds it at once."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Claim._meta.db_table} (claim_key, provider, delivery_ids)"
            " VALUES (%s, %s, %s)",
            [lease.claim_key, lease.provider, json.dumps(ids[::-1])],
        )


def forget_claims(claim_key: int) -> None:
    """Forgets the claims under this key of which nothing is in hand any more."""
    with connection.cursor() as cursor:
        cursor.execute(statements.FORGET[connection.vendor], [claim_key])
