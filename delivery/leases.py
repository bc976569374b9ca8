"""Places in a provider's pool of workers: pre-made rows, taken with SKIP LOCKED, fenced by a key.

A count-and-insert lease lets 25 through a limit of 5 (the snapshot is older than the lock); N rows
cannot be held by more than N.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction

from delivery.models import WorkerLease


@dataclass(frozen=True, slots=True)
class Lease:
    """A held place. ``claim_key`` fences every write of the holder; ``slot`` is its place."""

    provider: str
    slot: int
    claim_key: int
    holder: str


def make_places(provider: str, workers: int) -> None:
    """As many rows as workers are allowed. Surplus free rows go; held ones go when they end."""
    rows = WorkerLease.objects.filter(provider=provider)
    slots = set(rows.values_list("slot", flat=True))
    if missing := set(range(workers)) - slots:
        WorkerLease.objects.bulk_create(
            [WorkerLease(provider=provider, slot=slot) for slot in sorted(missing)],
            ignore_conflicts=True,
        )
    if len(slots) + len(missing) > workers:
        rows.filter(slot__gte=workers, claim_key__isnull=True).delete()


def free_places(provider: str, workers: int) -> int:
    """How many workers may start now."""
    held = WorkerLease.objects.filter(provider=provider, claim_key__isnull=False).count()
    return max(0, workers - held)


def take(
    provider: str, workers: int, holder: str, now: datetime, length: timedelta
) -> Lease | None:
    """A free place, or None. A place whose holder died is free only after reclaim()."""
    with transaction.atomic():
        row = (
            WorkerLease.objects.select_for_update(skip_locked=True)
            .filter(provider=provider, slot__lt=workers, claim_key__isnull=True)
            .order_by("slot")
            .first()
        )
        if row is None:
            return None
        lease = Lease(provider, row.slot, secrets.randbits(62) + 1, holder)
        WorkerLease.objects.filter(pk=row.pk).update(
            claim_key=lease.claim_key, holder=holder[:120], expires_at=now + length
        )
        return lease


def renew(lease: Lease, now: datetime, length: timedelta) -> bool:
    """Holds the place longer; False when it was lost: then nothing may be sent any more."""
    return bool(
        WorkerLease.objects.filter(claim_key=lease.claim_key).update(expires_at=now + length)
    )


def give_back(lease: Lease) -> None:
    """Frees the place; the caller has released what it had claimed."""
    WorkerLease.objects.filter(claim_key=lease.claim_key).update(
        claim_key=None, holder="", expires_at=None
    )


def held() -> list[tuple[Lease, datetime]]:
    """The places that somebody holds, dead or alive, and when each runs out."""
    rows = WorkerLease.objects.filter(claim_key__isnull=False, expires_at__isnull=False)
    return [
        (Lease(row.provider, row.slot, row.claim_key, row.holder), row.expires_at)
        for row in rows
        if row.claim_key is not None and row.expires_at is not None
    ]
