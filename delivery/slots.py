"""Connections to a provider, counted over all processes and hosts.

One row for each connection that may be open, made beforehand: N rows cannot be held by more than N,
while counting and inserting lets 25 through a limit of 5. A worker opens no more connections than
it holds rows. The rows are fenced by the worker's claim key and live as long as its lease, so one
heartbeat renews both, and what a dead worker held is free when its lease is taken back.

How many may be open follows the provider (additive increase, multiplicative decrease): half when
it asks for less, one more after a clean stretch, never above the setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.db import transaction
from django.db.models import F

from delivery.conf import DeliverySettings, ProviderSettings
from delivery.models import ConnectionPool, ConnectionSlot, WorkerLease
from delivery.outcomes import Outcome, Phase, Unavailable
from delivery.providers.base import KeepsConnections
from delivery.rates import Connections

# All refusals of one burst have one cause; and so long a stretch must be clean before one more.
STRETCH = timedelta(seconds=30)
FLOOR = 1
MOST_ROWS = 1000
# So often in a row asked for less than FLOOR: then nothing helps but silence.
CUTS_AT_THE_FLOOR = 2
# Who wants us back so soon has had enough of one connection, not of their number.
AT_ONCE = timedelta(seconds=10)
LESS_CODES = frozenset({421, 429, 432})


@dataclass(frozen=True, slots=True)
class Held:
    """``allowed``: how many connections the holder may have open; ``surplus``: rows that it must
    give back as soon as the connections above ``allowed`` are closed."""

    allowed: int
    surplus: int = 0


def connections_of(
    settings: DeliverySettings, provider: ProviderSettings, made: object
) -> Connections | None:
    """What is counted for a provider: its setting, or as many as all its workers would open; None
    for one that keeps no connections."""
    if not isinstance(made, KeepsConnections):
        return None
    most = min(settings.workers_for(provider.alias) * made.connections, MOST_ROWS)
    return provider.connections or Connections(most, f"provider:{provider.alias}")


def make(connections: Connections) -> None:
    """At least as many rows as connections are allowed. More do no harm: hold() counts up to the
    limit of whoever asks."""
    scope, most = connections.scope, connections.most
    if ConnectionSlot.objects.filter(scope=scope, number__lt=most).count() < most:
        # The pool first: who finds the rows need not look for it.
        ConnectionPool.objects.get_or_create(scope=scope)
        ConnectionSlot.objects.bulk_create(
            [ConnectionSlot(scope=scope, number=number) for number in range(most)],
            ignore_conflicts=True,
        )


def limit_of(connections: Connections) -> int:
    """How many may be open at this time."""
    reduced = (
        ConnectionPool.objects.filter(scope=connections.scope)
        .values_list("reduced_to", flat=True)
        .first()
    )
    return connections.most if reduced is None else min(reduced, connections.most)


def hold(connections: Connections, claim_key: int, wanted: int) -> Held:
    """Holds up to ``wanted`` rows, those that are held already included; never waits."""
    with transaction.atomic():
        limit = limit_of(connections)
        rows = ConnectionSlot.objects.filter(scope=connections.scope)
        mine = rows.filter(claim_key=claim_key).values_list("number", flat=True)
        allowed = sum(number < limit for number in mine)
        surplus = len(mine) - allowed
        if allowed < wanted:
            free = list(
                rows.filter(claim_key=None, number__lt=limit)
                .select_for_update(skip_locked=True)
                .order_by("number")
                .values_list("pk", flat=True)[: wanted - allowed]
            )
            allowed += ConnectionSlot.objects.filter(pk__in=free).update(claim_key=claim_key)
    return Held(allowed, surplus)


def keep(connections: Connections, claim_key: int, count: int) -> None:
    """Gives back all rows but ``count``; the connections above it are closed."""
    rows = ConnectionSlot.objects.filter(scope=connections.scope, claim_key=claim_key)
    kept = list(rows.order_by("number").values_list("pk", flat=True)[:count])
    rows.exclude(pk__in=kept).update(claim_key=None)


def give_back(claim_key: int) -> None:
    """All rows of a worker, whose connections are closed."""
    ConnectionSlot.objects.filter(claim_key=claim_key).update(claim_key=None)


def free_orphans() -> int:
    """Frees what workers held whose lease has ended; how many rows."""
    held = WorkerLease.objects.filter(claim_key__isnull=False).values("claim_key")
    return (
        ConnectionSlot.objects.filter(claim_key__isnull=False)
        .exclude(claim_key__in=held)
        .update(claim_key=None)
    )


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool as a person sees it: open or reserved now, allowed now, allowed by the settings."""

    held: int
    limit: int
    most: int
    reduced_since: datetime | None


def view(alias: str, configured: Connections | None) -> PoolView | None:
    """The connections of a provider; None before its first worker, and for one without any."""
    scope = configured.scope if configured else f"provider:{alias}"
    rows = ConnectionSlot.objects.filter(scope=scope)
    pool = ConnectionPool.objects.filter(scope=scope).first()
    if pool is None:
        return None
    most = configured.most if configured else rows.count()
    limit = min(pool.reduced_to or most, most)
    return PoolView(
        held=rows.filter(claim_key__isnull=False).count(),
        limit=limit,
        most=most,
        reduced_since=pool.changed_at if limit < most else None,
    )


# ---------------------------------------------------------------------------------- adapting


def asks_for_less(outcome: Outcome) -> bool:
    """Whether fewer connections might help: the provider says so, or does not answer any more."""
    if not isinstance(outcome, Unavailable) or outcome.needs_a_person:
        return False
    reply = outcome.reply
    if reply.phase is Phase.LOCAL:
        return False
    if outcome.throttle is None and outcome.retry_after and outcome.retry_after < AT_ONCE:
        return False
    enhanced = str(reply.enhanced or "")
    return (
        outcome.throttle is not None
        or reply.code is None
        or reply.code in LESS_CODES
        or enhanced.startswith("4.7.")
    )


class Cut(StrEnum):
    """What came of the wish to have fewer connections."""

    MADE = "made"
    # There was one for the same burst already.
    MADE_BEFORE = "made before"
    # Even FLOOR was too many, several times in a row: the provider must be paused.
    IN_VAIN = "in vain"


def fewer(connections: Connections, now: datetime) -> Cut:
    """Half as many, rounded up (Exchange's three become two), once for each burst."""
    with transaction.atomic():
        pool = ConnectionPool.objects.select_for_update().get(scope=connections.scope)
        if pool.cut_at is not None and now - pool.cut_at < STRETCH:
            return Cut.MADE_BEFORE
        limit = min(pool.reduced_to or connections.most, connections.most)
        pool.cuts_at_the_floor = pool.cuts_at_the_floor + 1 if limit <= FLOOR else 0
        pool.reduced_to = max(FLOOR, -(-limit // 2))
        pool.accepted = 0
        pool.cut_at = pool.changed_at = now
        in_vain = pool.cuts_at_the_floor >= CUTS_AT_THE_FLOOR
        if in_vain:
            pool.cuts_at_the_floor = 0
        pool.save()
    return Cut.IN_VAIN if in_vain else Cut.MADE


def went_well(connections: Connections, letters: int, now: datetime) -> None:
    """So many letters were accepted: one more connection after as many as the limit and STRETCH
    without trouble. Writes nothing while the limit is the setting's."""
    reduced = ConnectionPool.objects.filter(scope=connections.scope, reduced_to__isnull=False)
    if not reduced.update(accepted=F("accepted") + letters, cuts_at_the_floor=0):
        return
    reduced.filter(accepted__gte=F("reduced_to"), changed_at__lte=now - STRETCH).update(
        reduced_to=F("reduced_to") + 1, changed_at=now, accepted=0
    )
    reduced.filter(reduced_to__gte=connections.most).update(reduced_to=None)
