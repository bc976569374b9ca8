"""The queue: every move of a delivery after its claim (claiming.py), in SQL. Nothing but these two
writes Delivery.status.

Each function is one transaction (or part of the caller's) and keeps CampaignTotals in it. Each
UPDATE names the state that it leaves and, for a worker's move, the claim key under which the row
is held: zero rows changed is an answer ("not yours any more"), not an error. The same statements
run on PostgreSQL and SQLite.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Count

from delivery import guard_rails, queue_pages, statements, unclassified
from delivery.claiming import Claimed, forget_claims
from delivery.leases import Lease
from delivery.message_ids import note_assigned
from delivery.models import Attempt, Claim, Delivery, SuppressionDue, WorkerLease
from delivery.outcomes import Accepted, Outcome, Phase
from delivery.settlement import Settlement
from delivery.sql import (
    Statement,
    Steps,
    among,
    as_parameter,
    in_order_of_an_index,
    keeps_statements,
    run_prepared,
)
from delivery.states import WAITING, DeliveryStatus
from delivery.tally import COMMON_SHARD, Tally

_S = DeliveryStatus


# ------------------------------------------------------------------------------ a worker's moves


def record_and_hand_over(
    lease: Lease,
    settled: Sequence[Settled],
    unsent: Sequence[int],
    wave: Sequence[int],
    now: datetime,
    groups_held: int | None = None,
) -> list[int]:
    """What a worker writes between two waves, in one transaction: outcomes, letters that were
    noted and certainly not sent (SENDING -> QUEUED), and the note for the letters that leave next
    (CLAIMED -> SENDING), durable before a byte leaves; the ids of those that may leave.

    The others may not be sent: their campaign was paused or cancelled meanwhile, or the provider
    by another worker's trouble (then they are released here), or the lease was lost (then they
    are somebody else's). ``groups_held``: the provider's when they were claimed; none leaves when
    another group is held since.
    """
    with transaction.atomic(savepoint=False):
        tally = Tally(lease.slot + 1)
        _settle(lease, settled, now, tally)
        _return_unsent(lease, unsent, tally)
        moved = _hand_over(lease, wave, now, tally, groups_held)
        tally.write()
    return moved


def all_accepted(answered: Sequence[Answered]) -> bool:
    """Whether these are what an exchange writes: accepted, and no id was assigned."""
    return all(
        isinstance(outcome, Accepted) and not outcome.provider_message_id
        for _claimed, outcome in answered
    )


class Exchange(NamedTuple):
    """The usual case of ``record_and_hand_over``: all were accepted, and none is unsent."""

    lease: Lease
    accepted: Sequence[Answered]
    wave: Sequence[Claimed]
    now: datetime
    groups_held: int | None

    @property
    def ids(self) -> list[int]:
        """Of the wave."""
        return [claimed.id for claimed in self.wave]

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "outcomes": json.dumps({key: values for key, *values in _outcomes(self.accepted)}),
            "sent": _ids_of(self.accepted),
            "wave": self.ids,
            "now": self.now,
            "key": self.lease.claim_key,
            "provider": self.lease.provider,
            "groups_held": self.groups_held,
            "shard": self.lease.slot + 1,
        }


class Exchanged(NamedTuple):
    """The ids of the letters whose outcomes were written, and of those that may leave."""

    written: list[int]
    moved: list[int]


def exchange(usual: Exchange) -> list[int] | None:
    """The ids of the letters that may leave; None where nothing was written: then
    ``record_and_hand_over`` does it. Never in a transaction of the caller's. In SQLite only a
    session can (delivery/sqlite_session.py)."""
    if connection.vendor != "postgresql":
        return None
    exchanged = run_prepared(exchanging(usual)) if keeps_statements() else _exchange(usual)
    assert exchanged is not None
    if not is_whole(usual, exchanged):
        make_up(usual, exchanged)
    return exchanged.moved


def exchanging(usual: Exchange) -> Steps[Exchanged | None]:
    """The same as one prepared statement; ``make_up`` looks after letters that it did not find.
    None from SQLite where nothing was written, for not all were found as they should be."""
    answer = yield Statement(statements.EXCHANGE_PREPARED, usual.parameters, "exchange")
    return None if answer is None else Exchanged(*answer)


def _exchange(usual: Exchange) -> Exchanged:
    """The same where nothing may be prepared. It is planned each time, and sees the ids."""
    sent, wave = among("d.id", _ids_of(usual.accepted)), among("id", usual.ids)
    with connection.cursor() as cursor:
        cursor.execute(statements.EXCHANGE.format(sent=sent, wave=wave), usual.parameters)
        return Exchanged(*cursor.fetchone())


def is_whole(usual: Exchange, exchanged: Exchanged) -> bool:
    """Whether all outcomes were written, and all letters of the wave may leave."""
    found = len(exchanged.written), len(exchanged.moved)
    return found == (len(usual.accepted), len(usual.wave))


def make_up(usual: Exchange, exchanged: Exchanged) -> None:
    """After an exchange that is not whole: writes the outcomes of letters that were meanwhile
    called UNCONFIRMED, and gives back letters that may not leave."""
    lease = usual.lease
    with transaction.atomic():
        tally = Tally(lease.slot + 1)
        written = set(exchanged.written)
        late = [(one, outcome) for one, outcome in usual.accepted if one.id not in written]
        _write_sent(lease, late, _S.UNCONFIRMED, usual.now, tally)
        _give_up_claims(lease.claim_key, sorted({*usual.ids} - {*exchanged.moved}), tally)
        tally.write()


def _hand_over(
    lease: Lease,
    ids: Sequence[int],
    now: datetime,
    tally: Tally,
    groups_held: int | None = None,
) -> list[int]:
    if not ids:
        return []
    rows = _update_returning(
        f"{statements.MOVED_TO[_S.SENDING]}, handed_over_at = %s, provider = %s",
        [now, lease.provider],
        f"status = '{_S.CLAIMED.value}' AND claim_key = %s AND {among('id', ids)}"
        f" AND {statements.MAY_LEAVE.format(provider='%s', now='%s', groups_held='%s')}",
        [lease.claim_key, lease.provider, now, groups_held],
    )
    tally.moved(rows, _S.CLAIMED, _S.SENDING)
    moved = [row[0] for row in rows]
    if len(moved) < len(ids):
        _give_up_claims(lease.claim_key, sorted(set(ids) - set(moved)), tally)
    return moved


Answered = tuple[Claimed, Outcome]
Settled = tuple[Claimed, Outcome, Settlement]


def settle(lease: Lease, settled: Sequence[Settled], now: datetime) -> list[int]:
    """SENDING -> what the outcome says, for the rows still held under this lease; their ids.

    Whatever is no acceptance gets its Attempt row, in which a bad address is due to be suppressed,
    and refusals are shown to the circuit breaker (delivery.guard_rails). Rows that were meanwhile
    called UNCONFIRMED because this worker seemed dead are settled too: its knowledge is the
    evidence that they wait for.
    """
    with transaction.atomic():
        tally = Tally(lease.slot + 1)
        written = _settle(lease, settled, now, tally)
        tally.write()
    return written


def _settle(lease: Lease, settled: Sequence[Settled], now: datetime, tally: Tally) -> list[int]:
    # Nearly all of them: a statement of their own, a third of the size and without the rest.
    sent = [(claimed, outcome) for claimed, outcome, s in settled if s.status is _S.SENT]
    others = [entry for entry in settled if entry[2].status is not _S.SENT]
    # Asked before the totals change, and in the order of the answers.
    places = guard_rails.places([(c.id, c.campaign_id, s) for c, _, s in settled if not c.is_test])
    written = _write_sent(lease, sent, _S.SENDING, now, tally)
    written += _write_settled(lease, others, _S.SENDING, now, tally, places)
    if len(written) < len(settled):
        # Only final answers: a campaign that has finished since cannot take a letter back.
        missing = set(_ids_of(settled)) - set(written)
        late = [entry for entry in others if entry[0].id in missing]
        written += _write_sent(
            lease, [entry for entry in sent if entry[0].id in missing], _S.UNCONFIRMED, now, tally
        )
        written += _write_settled(
            lease,
            [entry for entry in late if entry[2].status is _S.REJECTED],
            _S.UNCONFIRMED,
            now,
            tally,
            places,
        )
    held = set(written)
    note_assigned((claimed.id, o) for claimed, o, _s in settled if claimed.id in held)
    if places:
        guard_rails.watch({entry[0].campaign_id for entry in others if entry[0].id in places}, now)
    return written


def _write_sent(
    lease: Lease, sent: Sequence[Answered], source: DeliveryStatus, now: datetime, tally: Tally
) -> list[int]:
    if not sent:
        return []
    table = Delivery._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET {statements.SENT.format(now='%s')}"
            f" FROM {statements.ROWS_OF[connection.vendor].format(outcomes='%s')} AS v"
            f" WHERE {table}.id = v.id AND {among(f'{table}.id', _ids_of(sent))}"
            f" AND {table}.claim_key = %s AND {table}.status = '{source.value}'"
            f" RETURNING {table}.id, {table}.campaign_id, {table}.is_test",
            [as_parameter(now), _as_json(sent), lease.claim_key],
        )
        rows = cursor.fetchall()
    tally.moved(rows, source, _S.SENT)
    return [row[0] for row in rows]


def _write_settled(
    lease: Lease,
    settled: Sequence[Settled],
    source: DeliveryStatus,
    now: datetime,
    tally: Tally,
    places: Mapping[int, int],
) -> list[int]:
    if not settled:
        return []
    rows = _update_settled(lease, settled, source, now)
    by_id = {claimed.id: (claimed, outcome, settlement) for claimed, outcome, settlement in settled}
    for row in rows:
        tally.add(row[1], row[2], source, by_id[row[0]][2].status, 1)
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
            answered_before=places.get(claimed.id),
            # Not suppressed at once: the refusal may be one of a burst.
            suppression=SuppressionDue.DUE
            if settlement.suppress and not claimed.is_test
            else SuppressionDue.NONE,
        )
        for claimed, outcome, settlement in mine
    )
    unclassified.note(((settlement.reply, settlement.rule) for _c, _o, settlement in mine), now)
    return _ids_of(mine)


def _update_settled(
    lease: Lease, settled: Sequence[Settled], source: DeliveryStatus, now: datetime
) -> list[tuple[int, int, bool]]:
    """One UPDATE for all outcomes of a wave that are no acceptance. VALUES names its columns
    column1, column2 ... on both databases."""
    row = "(%s, %s, %s, %s, %s, %s, %s, %s)"
    values: list[Any] = []
    for claimed, _outcome, settlement in settled:
        values += [
            claimed.id,
            *Delivery.of_state(settlement.status).values(),
            claimed.attempts + settlement.used_an_attempt,
            as_parameter(settlement.due_at or now),
            settlement.reply.code,
            settlement.reply.text,
        ]
    table = Delivery._meta.db_table
    is_postgresql = connection.vendor == "postgresql"
    due_at = "CAST(v.column6 AS timestamptz)" if is_postgresql else "v.column6"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {table}
               SET status = v.column2, waits_alone = CAST(v.column3 AS boolean),
                   unusual = CAST(v.column4 AS varchar), claim_key = NULL,
                   attempts = v.column5, due_at = {due_at},
                   code = CAST(v.column7 AS smallint), reply = v.column8, settled_at = %s
              FROM (VALUES {", ".join([row] * len(settled))}) AS v
             WHERE {table}.id = v.column1 AND {table}.claim_key = %s AND {table}.status = %s
            RETURNING {table}.id, {table}.campaign_id, {table}.is_test
            """,
            [as_parameter(now), *values, lease.claim_key, source.value],
        )
        return list(cursor.fetchall())


def release(lease: Lease) -> int:
    """CLAIMED -> QUEUED for all that a worker, or one that is dead, has not handed over; how
    many."""
    with transaction.atomic():
        tally = Tally(lease.slot + 1)
        ids = Claim.letters(claim_key=lease.claim_key)
        released = _give_up_claims(lease.claim_key, ids, tally)
        tally.write()
    return released


def holds(claim_key: int) -> bool:
    """Whether any letter is still claimed or on its way under this key."""
    with transaction.atomic():
        forget_claims(claim_key)
        return Claim.objects.filter(claim_key=claim_key).exists()


# ---------------------------------------------------------------------------------- after a crash


def without_a_place() -> list[Lease]:
    """Who holds letters and no place any more: a worker that was frozen, taken for dead, claimed
    once more under its old key when it woke, and died before it noticed."""
    places = WorkerLease.objects.filter(claim_key__isnull=False).values("claim_key")
    strays = Claim.objects.exclude(claim_key__in=places).order_by("claim_key")
    rows = strays.values_list("claim_key", "provider").distinct()
    # Their moves are counted on the common shard.
    return [
        Lease(provider, COMMON_SHARD - 1, key, "without a place")
        for key, provider in list(rows)
        if holds(key)
    ]


def sending(lease: Lease) -> list[Claimed]:
    """What a worker had handed over and not settled; without the readers' fields."""
    claimed = Delivery.objects.filter(pk__in=Claim.letters(claim_key=lease.claim_key))
    return [
        Claimed(
            d.pk, d.campaign_id, d.edition_id, d.subscriber_id or 0, d.rcpt_to, d.is_test,
            d.attempts, d.queued_at.isoformat(), "", "", None, "", "",
        )
        for d in claimed.filter(claim_key=lease.claim_key, status=_S.SENDING)
    ]  # fmt: skip


def return_unsent(lease: Lease, ids: Sequence[int]) -> int:
    """SENDING -> QUEUED for letters that were noted and then certainly not sent."""
    with transaction.atomic():
        tally = Tally(lease.slot + 1)
        returned = _return_unsent(lease, ids, tally)
        tally.write()
    return returned


def _return_unsent(lease: Lease, ids: Sequence[int], tally: Tally) -> int:
    if not ids:
        return 0
    returned = _update_returning(
        f"{statements.MOVED_TO[_S.QUEUED]}, claim_key = NULL",
        [],
        f"status = '{_S.SENDING.value}' AND claim_key = %s AND {among('id', ids)}",
        [lease.claim_key],
    )
    tally.moved(returned, _S.SENDING, _S.QUEUED)
    return len(returned)


def doubt(lease: Lease, now: datetime) -> int:
    """SENDING -> UNCONFIRMED for what a dead worker left: it may have been sent. Never QUEUED.

    The claim key stays: should the worker come back and know an outcome after all, that is the
    evidence (settle).
    """
    text = "The worker was lost while the letter was being handed over."
    ids = Claim.letters(claim_key=lease.claim_key)
    if not ids:
        return 0
    doubtful = _update_returning(
        f"{statements.MOVED_TO[_S.UNCONFIRMED]}, settled_at = %s, reply = %s,"
        " attempts = attempts + 1",
        [now, text],
        f"status = %s AND claim_key = %s AND {among('id', ids)}",
        [_S.SENDING, lease.claim_key],
    )
    tally = Tally(lease.slot + 1)
    tally.moved(doubtful, _S.SENDING, _S.UNCONFIRMED)
    tally.write()
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


def _give_up_claims(claim_key: int, ids: Sequence[int], tally: Tally) -> int:
    if not ids:
        return 0
    released = _update_returning(
        f"{statements.MOVED_TO[_S.QUEUED]}, claim_key = NULL",
        [],
        f"status = '{_S.CLAIMED.value}' AND claim_key = %s AND {among('id', ids)}",
        [claim_key],
    )
    tally.moved(released, _S.CLAIMED, _S.QUEUED)
    return len(released)


# ------------------------------------------------------------------------------ the others' moves


def cancel_waiting(campaign_id: int, size: int, now: datetime) -> int:
    """QUEUED and DEFERRED letters of a cancelled campaign -> CANCELLED, ``size`` at a time."""
    with transaction.atomic():
        alone = (
            Delivery.objects.filter(
                campaign_id=campaign_id,
                is_test=False,
                waits_alone=True,
                status__in=[_S.QUEUED, _S.DEFERRED],
            )
            .order_by("campaign_id", "due_at", "id")
            .select_for_update(skip_locked=True)
        )
        with in_order_of_an_index():
            rows = list(alone.values_list("id", "status")[:size])
        rows += [(pk, _S.QUEUED) for pk in queue_pages.take(campaign_id, size - len(rows))]
        Delivery.objects.filter(pk__in=[pk for pk, _status in rows], status__in=WAITING).update(
            **Delivery.of_state(_S.CANCELLED), settled_at=now
        )
        tally = Tally(COMMON_SHARD)
        for _pk, status in rows:
            tally.add(campaign_id, False, status, _S.CANCELLED, 1)
        tally.write()
    return len(rows)


def mark_all_bounced(delivery_ids: Sequence[int]) -> set[int]:
    """SENT or UNCONFIRMED -> BOUNCED: a final failure came back for each; those that moved.

    In the caller's transaction. A second report about the same letter changes nothing.
    """
    rows = list(
        Delivery.objects.select_for_update()
        .filter(pk__in=delivery_ids, status__in=[_S.SENT, _S.UNCONFIRMED])
        .order_by("pk")
        .values_list("pk", "campaign_id", "is_test", "status")
    )
    if rows:
        Delivery.objects.filter(pk__in=[row[0] for row in rows]).update(
            **Delivery.of_state(_S.BOUNCED)
        )
        tally = Tally(COMMON_SHARD)
        for _pk, campaign_id, is_test, source in rows:
            tally.add(campaign_id, is_test, source, _S.BOUNCED, 1)
        tally.write()
    return {row[0] for row in rows}


def take_back(ids: Sequence[int], due_at: datetime, now: datetime) -> list[int]:
    """SENT or UNCONFIRMED -> QUEUED: it came back for a reason of ours; the ids that moved. Only
    delivery.returned calls it.

    It begins anew: it has not used the attempt that was no fault of its reader, nor grown older.
    """
    moved: list[int] = []
    with transaction.atomic():
        tally = Tally(COMMON_SHARD)
        for source in (_S.SENT, _S.UNCONFIRMED):
            rows = _update_returning(
                f"{statements.MOVED_TO[_S.QUEUED]}, due_at = %s, queued_at = %s,"
                " claim_key = NULL, settled_at = NULL,"
                " attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END",
                [due_at, now],
                f"status = %s AND {among('id', ids)}",
                [source],
            )
            tally.moved(rows, source, _S.QUEUED)
            moved += [row[0] for row in rows]
        tally.write()
    return moved


def resolve(ids: Sequence[int], status: DeliveryStatus, now: datetime) -> list[int]:
    """UNCONFIRMED -> SENT or QUEUED; the ids that moved. Only delivery.doubts calls it.

    A letter that is sent again has a new age, so that it is not given up for the old one, and the
    worker that was taken for dead can no longer write to it.
    """
    if not ids:
        return []
    changes, values = (
        ("settled_at = %s", [now])
        if status is _S.SENT
        else ("due_at = %s, queued_at = %s, claim_key = NULL, settled_at = NULL", [now, now])
    )
    with transaction.atomic():
        rows = _update_returning(
            f"{statements.MOVED_TO[status]}, {changes}",
            values,
            f"status = %s AND {among('id', ids)}",
            [_S.UNCONFIRMED],
        )
        tally = Tally(COMMON_SHARD)
        tally.moved(rows, _S.UNCONFIRMED, status)
        tally.write()
    return [row[0] for row in rows]


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


def _outcomes(sent: Sequence[Answered]) -> Iterator[tuple[int, int, int | None, str]]:
    """Id, attempts, code and reply of letters that were accepted."""
    for claimed, outcome in sent:
        yield claimed.id, claimed.attempts + 1, outcome.reply.code, outcome.reply.text


def _as_json(sent: Sequence[Answered]) -> str:
    return json.dumps(list(_outcomes(sent)))


def _ids_of(letters: Iterable[Answered | Settled]) -> list[int]:
    return [letter[0].id for letter in letters]


def _update_returning(
    changes: str, new: Sequence[Any], condition: str, old: Sequence[Any]
) -> list[tuple[int, int, bool, str]]:
    """UPDATE ... RETURNING id, campaign, is test letter, provider. Django's ORM has none."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {Delivery._meta.db_table} SET {changes} WHERE {condition}"
            " RETURNING id, campaign_id, is_test, provider",
            [as_parameter(value) for value in (*new, *old)],
        )
        return list(cursor.fetchall())
