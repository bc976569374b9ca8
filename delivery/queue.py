"""The queue: every move of a delivery, in SQL. Nothing else writes Delivery.status.

Each function is one transaction (or part of the caller's) and keeps CampaignTotals in it. Each
UPDATE names the state that it leaves and, for a worker's move, the claim key under which the row
is held: zero rows changed is an answer ("not yours any more"), not an error. The same statements
run on PostgreSQL and SQLite; SKIP LOCKED is ignored by SQLite, where a transaction is IMMEDIATE
and so the claim is exclusive anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connection, transaction
from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet

from campaigns.audience import audience_page
from campaigns.models import Campaign, CampaignTotals, Subscription, Suppression
from campaigns.states import CampaignStatus, SubscriptionStatus, SuppressionReason
from delivery.leases import Lease
from delivery.models import Attempt, Delivery
from delivery.outcomes import Outcome, Phase
from delivery.settlement import Settlement
from delivery.states import WAITING, DeliveryStatus

_S = DeliveryStatus
# Moves that no worker makes are counted on this shard; a worker counts on its slot + 1.
COMMON_SHARD = 0


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claimed delivery with all that its letter needs."""

    id: int
    campaign_id: int
    edition_id: int
    subscriber_id: int
    rcpt_to: str
    is_test: bool
    attempts: int
    queued_at: datetime
    name: str
    language: str
    attributes: Mapping[str, Any]
    list_name: str
    list_label: str


# ---------------------------------------------------------------------------------- filling


def fill_page(campaign: Campaign, size: int, now: datetime) -> int | None:
    """Queues the next ``size`` readers of the audience; how many; None when none is left.

    One INSERT ... SELECT and the checkpoint in one transaction, under the campaign's row lock: two
    coordinators cannot fill the same page, and a killed one is taken up where it stopped.
    ON CONFLICT DO NOTHING: an address whose subscriber was made anew gets one letter.
    """
    with transaction.atomic():
        row = Campaign.objects.select_for_update().get(pk=campaign.pk)
        if row.filled_at is not None or row.status != CampaignStatus.SENDING:
            return None
        readers: QuerySet[Any] = audience_page(row, row.filled_up_to, size)
        page = readers.values("id", "through_list", "email", "address_key")
        try:
            sql, parameters = page.query.sql_with_params()
        except EmptyResultSet:  # a campaign to no list
            Campaign.objects.filter(pk=row.pk).update(filled_at=now)
            return None
        with connection.cursor() as cursor:
            # MAX() first: the page may be empty, or hold readers who are queued already.
            cursor.execute(f"SELECT MAX(id) FROM ({sql}) AS page", parameters)
            last = cursor.fetchone()[0]
            queued = 0
            if last is not None:
                cursor.execute(
                    f"""
                    INSERT INTO {Delivery._meta.db_table}
                        (campaign_id, edition_id, subscriber_id, mailing_list_id, rcpt_to,
                         address_key, status, is_test, due_at, attempts, provider, reply, queued_at)
                    SELECT %s, %s, page.id, page.through_list, page.email, page.address_key,
                           %s, %s, %s, 0, '', '', %s
                      FROM ({sql}) AS page WHERE true ORDER BY page.id
                        ON CONFLICT DO NOTHING
                    """,
                    [
                        row.pk,
                        row.edition_id,
                        _S.QUEUED.value,
                        False,
                        _as_parameter(now),
                        _as_parameter(now),
                        *parameters,
                    ],
                )
                queued = cursor.rowcount
        if last is None:
            Campaign.objects.filter(pk=row.pk).update(filled_at=now)
            return None
        Campaign.objects.filter(pk=row.pk).update(filled_up_to=last)
        CampaignTotals.add(row.pk, COMMON_SHARD, {"eligible": queued, "queued": queued})
        return queued


def queue_tests(
    campaign: Campaign, edition_id: int, addresses: Iterable[tuple[str, str]],
    subscriber_id: int | None, now: datetime,
) -> int:  # fmt: skip
    """Queues a test letter for each (address, key); it goes before all others, and uncounted."""
    made = Delivery.objects.bulk_create(
        Delivery(
            campaign=campaign,
            edition_id=edition_id,
            subscriber_id=subscriber_id,
            rcpt_to=address,
            address_key=key,
            is_test=True,
            due_at=now,
            queued_at=now,
        )
        for address, key in addresses
    )
    return len(made)


# ---------------------------------------------------------------------------------- claiming


def open_campaigns(provider: str) -> list[int]:
    """The campaigns that may send through this provider now."""
    return list(
        Campaign.objects.filter(status=CampaignStatus.SENDING, provider=provider)
        .order_by("id")
        .values_list("pk", flat=True)
    )


def claim(lease: Lease, campaign_ids: Sequence[int], wanted: int, now: datetime) -> list[Claimed]:
    """Claims up to ``wanted`` due letters under this lease: test letters first, then a fair share
    of each campaign. A reader who has meanwhile unsubscribed or was suppressed is SUPPRESSED by
    the same transaction that would have claimed the letter.
    """
    with transaction.atomic():
        rows = _lock_due(Q(is_test=True, campaign__provider=lease.provider), wanted, now)
        left = len(campaign_ids)
        for campaign_id in campaign_ids:
            share = -(-(wanted - len(rows)) // left)
            if share > 0:
                rows += _lock_due(Q(campaign_id=campaign_id, is_test=False), share, now)
            left -= 1
        stay = [row for row in rows if row["is_test"] or _still_wanted(row)]
        unwanted = [row for row in rows if not row["is_test"] and not _still_wanted(row)]
        _move_waiting(unwanted, _S.SUPPRESSED, lease, now)
        _move_waiting(stay, _S.CLAIMED, lease, now)
    return [_claimed(row) for row in stay]


def _lock_due(which: Q, limit: int, now: datetime) -> list[dict[str, Any]]:
    """Due rows, locked. Ordered as the partial index delivery_waiting is: ordering by id would walk
    the primary key over every finished letter."""
    suppressed = Suppression.in_force().filter(address_key=OuterRef("address_key"))
    subscribed = Subscription.objects.filter(
        subscriber_id=OuterRef("subscriber_id"),
        status=SubscriptionStatus.SUBSCRIBED,
        mailing_list__campaigns=OuterRef("campaign_id"),
    )
    rows = (
        Delivery.objects.filter(which, status__in=[_S.QUEUED, _S.DEFERRED], due_at__lte=now)
        .order_by("campaign_id", "due_at", "id")
        .select_for_update(skip_locked=True, of=("self",))
        .values(
            "id", "campaign_id", "edition_id", "subscriber_id", "rcpt_to", "is_test", "status",
            "attempts", "queued_at", "subscriber__name", "subscriber__language",
            "subscriber__attributes", "mailing_list__name", "mailing_list__label",
            is_suppressed=Exists(suppressed), is_subscribed=Exists(subscribed),
        )[:limit]
    )  # fmt: skip
    return [dict(row) for row in rows]


def _still_wanted(row: Mapping[str, Any]) -> bool:
    return bool(row["is_subscribed"]) and not row["is_suppressed"]


def _claimed(row: Mapping[str, Any]) -> Claimed:
    return Claimed(
        id=row["id"],
        campaign_id=row["campaign_id"],
        edition_id=row["edition_id"],
        subscriber_id=row["subscriber_id"] or 0,
        rcpt_to=row["rcpt_to"],
        is_test=row["is_test"],
        attempts=row["attempts"],
        queued_at=row["queued_at"],
        name=row["subscriber__name"] or "",
        language=row["subscriber__language"] or "",
        attributes=row["subscriber__attributes"] or {},
        list_name=row["mailing_list__name"] or "",
        list_label=row["mailing_list__label"] or "",
    )


def _move_waiting(
    rows: list[dict[str, Any]], target: DeliveryStatus, lease: Lease, now: datetime
) -> None:
    """Rows that this transaction has locked in a waiting state."""
    if not rows:
        return
    changes: dict[str, Any] = {"claim_key": lease.claim_key}
    if target is _S.SUPPRESSED:
        changes = {"settled_at": now, "reply": ""}
    Delivery.objects.filter(pk__in=[row["id"] for row in rows], status__in=WAITING).update(
        status=target, **changes
    )
    _count(
        ((row["campaign_id"], row["is_test"], row["status"], target) for row in rows),
        lease.slot + 1,
    )


def next_due(campaign_ids: Sequence[int], provider: str) -> datetime | None:
    """When the next waiting letter of these campaigns, or test letter, is due; None without one."""
    waiting = Delivery.objects.filter(status__in=[_S.QUEUED, _S.DEFERRED])
    moments = [
        waiting.filter(campaign_id=campaign_id, is_test=False).aggregate(due=Min("due_at"))["due"]
        for campaign_id in campaign_ids
    ]
    tests = waiting.filter(is_test=True, campaign__provider=provider)
    moments.append(tests.aggregate(due=Min("due_at"))["due"])
    return min((moment for moment in moments if moment is not None), default=None)


# ------------------------------------------------------------------------------ a worker's moves


def hand_over(lease: Lease, ids: Sequence[int], now: datetime) -> list[int]:
    """CLAIMED -> SENDING, the note that is durable before a byte leaves; the ids that moved.

    The others may not be sent: their campaign was paused or cancelled meanwhile (then they are
    released here), or the lease was lost (then they are somebody else's).
    """
    if not ids:
        return []
    moved = _update_returning(
        "status = %s, handed_over_at = %s, provider = %s",
        [_S.SENDING, now, lease.provider],
        f"status = %s AND claim_key = %s AND {_among('id', ids)} AND (is_test OR EXISTS"
        f" (SELECT 1 FROM {Campaign._meta.db_table} c WHERE c.id = campaign_id AND c.status = %s))",
        [_S.CLAIMED, lease.claim_key, *ids, CampaignStatus.SENDING],
    )
    _count(((row[1], row[2], _S.CLAIMED, _S.SENDING) for row in moved), lease.slot + 1)
    left = set(ids) - {row[0] for row in moved}
    if left:
        release(lease, sorted(left))
    return [row[0] for row in moved]


def settle(
    lease: Lease,
    settled: Sequence[tuple[Claimed, Outcome, Settlement]],
    now: datetime,
) -> list[int]:
    """SENDING -> what the outcome says, for the rows still held under this lease; their ids.

    Whatever is no acceptance gets its Attempt row. Bad addresses are suppressed. Rows that were
    meanwhile called UNCONFIRMED because this worker seemed dead are settled too: its knowledge
    is the evidence that they wait for.
    """
    if not settled:
        return []
    written = _write_settled(lease, settled, _S.SENDING, now)
    missing = set(written) ^ {claimed.id for claimed, _outcome, _settlement in settled}
    if missing:
        # Only final answers: a campaign that has finished since cannot take a letter back.
        late = [
            entry
            for entry in settled
            if entry[0].id in missing and entry[2].status in {_S.SENT, _S.REJECTED}
        ]
        written += _write_settled(lease, late, _S.UNCONFIRMED, now)
    return written


def _write_settled(
    lease: Lease,
    settled: Sequence[tuple[Claimed, Outcome, Settlement]],
    source: DeliveryStatus,
    now: datetime,
) -> list[int]:
    if not settled:
        return []
    rows = _update_settled(lease, settled, source, now)
    by_id = {claimed.id: (claimed, outcome, settlement) for claimed, outcome, settlement in settled}
    _count(((row[1], row[2], source, by_id[row[0]][2].status) for row in rows), lease.slot + 1)
    mine = [by_id[row[0]] for row in rows]
    Attempt.objects.bulk_create(
        Attempt(
            delivery_id=claimed.id,
            at=now,
            provider=lease.provider,
            outcome=type(outcome).__name__.lower(),
            phase=settlement.reply.phase,
            code=settlement.reply.code,
            reply=settlement.reply.text,
            rule=settlement.rule,
            used_an_attempt=settlement.used_an_attempt,
            status=settlement.status,
        )
        for claimed, outcome, settlement in mine
        if settlement.status is not _S.SENT
    )
    for claimed, _outcome, settlement in mine:
        if settlement.suppress and not claimed.is_test:
            Suppression.add(
                claimed.rcpt_to,
                SuppressionReason.HARD_BOUNCE,
                source=f"refused by the reader's server (delivery {claimed.id})",
                evidence=str(settlement.reply),
            )
    return [claimed.id for claimed, _outcome, _settlement in mine]


def _update_settled(
    lease: Lease,
    settled: Sequence[tuple[Claimed, Outcome, Settlement]],
    source: DeliveryStatus,
    now: datetime,
) -> list[tuple[int, int, bool]]:
    """One UPDATE for all outcomes of a wave. VALUES names its columns column1, column2 ... on
    both databases."""
    row = "(%s, %s, %s, %s, %s, %s)"
    values: list[Any] = []
    for claimed, _outcome, settlement in settled:
        values += [
            claimed.id,
            settlement.status.value,
            claimed.attempts + settlement.used_an_attempt,
            _as_parameter(settlement.due_at or now),
            settlement.reply.code,
            settlement.reply.text,
        ]
    table = Delivery._meta.db_table
    is_postgresql = connection.vendor == "postgresql"
    due_at = "CAST(v.column4 AS timestamptz)" if is_postgresql else "v.column4"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {table}
               SET status = v.column2, claim_key = NULL, attempts = v.column3, due_at = {due_at},
                   code = CAST(v.column5 AS smallint), reply = v.column6, settled_at = %s
              FROM (VALUES {", ".join([row] * len(settled))}) AS v
             WHERE {table}.id = v.column1 AND {table}.claim_key = %s AND {table}.status = %s
            RETURNING {table}.id, {table}.campaign_id, {table}.is_test
            """,
            [_as_parameter(now), *values, lease.claim_key, source.value],
        )
        return list(cursor.fetchall())


def release(lease: Lease, ids: Sequence[int] | None = None) -> int:
    """CLAIMED -> QUEUED for what this lease holds and has not handed over; how many."""
    return _give_up_claims(lease.claim_key, lease.slot + 1, ids)


def holds(claim_key: int) -> bool:
    """Whether any letter is still claimed or on its way under this key."""
    return Delivery.objects.filter(
        claim_key=claim_key, status__in=[_S.CLAIMED, _S.SENDING]
    ).exists()


# ---------------------------------------------------------------------------------- after a crash


def sending(lease: Lease) -> list[Claimed]:
    """What a worker had handed over and not settled; without the readers' fields."""
    rows = Delivery.objects.filter(claim_key=lease.claim_key, status=_S.SENDING).values(
        "id", "campaign_id", "edition_id", "subscriber_id", "rcpt_to", "is_test", "attempts",
        "queued_at",
    )  # fmt: skip
    return [
        Claimed(**row, name="", language="", attributes={}, list_name="", list_label="")
        for row in rows
    ]


def return_unsent(lease: Lease, ids: Sequence[int]) -> int:
    """SENDING -> QUEUED for letters that were noted and then certainly not sent."""
    if not ids:
        return 0
    returned = _update_returning(
        "status = %s, claim_key = NULL",
        [_S.QUEUED],
        f"status = %s AND claim_key = %s AND {_among('id', ids)}",
        [_S.SENDING, lease.claim_key, *ids],
    )
    _count(((row[1], row[2], _S.SENDING, _S.QUEUED) for row in returned), lease.slot + 1)
    return len(returned)


def doubt(lease: Lease, now: datetime) -> int:
    """SENDING -> UNCONFIRMED for what a dead worker left: it may have been sent. Never QUEUED.

    The claim key stays: should the worker come back and know an outcome after all, that is the
    evidence (settle).
    """
    text = "The worker was lost while the letter was being handed over."
    doubtful = _update_returning(
        "status = %s, settled_at = %s, reply = %s, attempts = attempts + 1",
        [_S.UNCONFIRMED, now, text],
        "status = %s AND claim_key = %s",
        [_S.SENDING, lease.claim_key],
    )
    _count(((row[1], row[2], _S.SENDING, _S.UNCONFIRMED) for row in doubtful), lease.slot + 1)
    Attempt.objects.bulk_create(
        Attempt(
            delivery_id=row[0],
            at=now,
            provider=row[3],
            outcome="unconfirmed",
            phase=Phase.FINAL_DOT,
            reply=f"{text} ({lease.holder})",
            rule="worker lost",
            used_an_attempt=True,
            status=_S.UNCONFIRMED,
        )
        for row in doubtful
    )
    return len(doubtful)


def release_claims(lease: Lease) -> int:
    """CLAIMED -> QUEUED for all that a dead worker had not handed over; how many."""
    return _give_up_claims(lease.claim_key, lease.slot + 1, None)


def _give_up_claims(claim_key: int, shard: int, ids: Sequence[int] | None) -> int:
    if ids is not None and not ids:
        return 0
    released = _update_returning(
        "status = %s, claim_key = NULL",
        [_S.QUEUED],
        "status = %s AND claim_key = %s" + (f" AND {_among('id', ids)}" if ids else ""),
        [_S.CLAIMED, claim_key, *(ids or ())],
    )
    _count(((row[1], row[2], _S.CLAIMED, _S.QUEUED) for row in released), shard)
    return len(released)


# ------------------------------------------------------------------------------ the others' moves


def cancel_waiting(campaign_id: int, size: int, now: datetime) -> int:
    """QUEUED and DEFERRED letters of a cancelled campaign -> CANCELLED, ``size`` at a time."""
    with transaction.atomic():
        rows = list(
            Delivery.objects.filter(
                campaign_id=campaign_id, is_test=False, status__in=[_S.QUEUED, _S.DEFERRED]
            )
            .order_by("campaign_id", "due_at", "id")
            .select_for_update(skip_locked=True)
            .values_list("id", "status")[:size]
        )
        Delivery.objects.filter(pk__in=[pk for pk, _status in rows], status__in=WAITING).update(
            status=_S.CANCELLED, settled_at=now
        )
        _count(((campaign_id, False, status, _S.CANCELLED) for _pk, status in rows), COMMON_SHARD)
    return len(rows)


def mark_bounced(delivery_id: int) -> bool:
    """SENT or UNCONFIRMED -> BOUNCED: a final failure came back. False when it was neither.

    In the caller's transaction. A second report about the same letter changes nothing.
    """
    for source in (_S.SENT, _S.UNCONFIRMED):
        row = (
            Delivery.objects.filter(pk=delivery_id, status=source)
            .values_list("campaign_id", "is_test")
            .first()
        )
        if row is None:
            continue
        if Delivery.objects.filter(pk=delivery_id, status=source).update(status=_S.BOUNCED):
            _count([(row[0], row[1], source, _S.BOUNCED)], COMMON_SHARD)
            return True
    return False


def counted(campaign_id: int) -> dict[str, int]:
    """How many letters of a campaign are in each state, by looking at each: for the proof of the
    ledger, not for pages."""
    return dict(
        Delivery.objects.filter(campaign_id=campaign_id, is_test=False)
        .order_by()
        .values_list("status")
        .annotate(n=Count("*"))
    )


# ---------------------------------------------------------------------------------- SQL


def _count(moves: Iterable[tuple[int, bool, str, str]], shard: int) -> None:
    """Moves (campaign, is test letter, from, to) as changes of the totals."""
    changes: dict[int, Counter[str]] = {}
    for campaign_id, is_test, source, target in moves:
        if not is_test:
            counter = changes.setdefault(campaign_id, Counter())
            counter[str(source)] -= 1
            counter[str(target)] += 1
    # In the order of ids: two transactions that touch the same campaigns must not deadlock.
    for campaign_id in sorted(changes):
        CampaignTotals.add(campaign_id, shard, dict(changes[campaign_id]))


def _among(column: str, ids: Sequence[int]) -> str:
    return f"{column} IN ({', '.join(['%s'] * len(ids))})"


def _update_returning(
    changes: str, new: Sequence[Any], condition: str, old: Sequence[Any]
) -> list[tuple[int, int, bool, str]]:
    """UPDATE ... RETURNING id, campaign, is test letter, provider. Django's ORM has none."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {Delivery._meta.db_table} SET {changes} WHERE {condition}"
            " RETURNING id, campaign_id, is_test, provider",
            [_as_parameter(value) for value in (*new, *old)],
        )
        return list(cursor.fetchall())


def _as_parameter(value: Any) -> Any:
    """As the ORM would write it: SQLite has no type for moments, drivers differ over enums."""
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.value if isinstance(value, Enum) else value
