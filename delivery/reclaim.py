"""What a dead worker left behind, settled as far as it can be known."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

from django.db import InterfaceError, OperationalError, transaction

from delivery import leases, limits, queue, slots
from delivery.conf import DeliverySettings
from delivery.leases import Lease
from delivery.ledger import Ledger, Result
from delivery.recorder import Recording, is_being_written, read_recording, recording_path
from delivery.settlement import RetryPolicy, settle

logger = logging.getLogger(__name__)

# A worker that is alive on this machine may only be slow, or its database away: it gets longer.
PATIENCE_WITH_THE_LIVING = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """How many letters were released (certainly not sent), settled from the recording, and are in
    doubt."""

    released: int = 0
    settled: int = 0
    unconfirmed: int = 0


def reclaim_all(
    settings: DeliverySettings, now: datetime, dice: Random, recorders: Path | None
) -> Reclaimed:
    """Takes back what dead workers held: their leases ran out, or their processes are gone."""
    total = Reclaimed()
    dead = [
        lease for lease, expires_at in leases.held() if _is_over(lease, expires_at, now, recorders)
    ]
    strays = [lease for lease in queue.without_a_place() if not _is_alive(lease, recorders)]
    for lease in (*dead, *strays):
        try:
            one = reclaim(lease, settings, now, dice, recorders)
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            # What one worker left must not keep the coordinator from everything else.
            logger.exception("delivery.not_reclaimed", extra={"holder": lease.holder})
            continue
        total = Reclaimed(
            total.released + one.released,
            total.settled + one.settled,
            total.unconfirmed + one.unconfirmed,
        )
    limits.close_orphans(now)
    slots.free_orphans()
    return total


def _is_over(lease: Lease, expires_at: datetime, now: datetime, recorders: Path | None) -> bool:
    """Whether a lease's worker is gone. Where its recording is here we can look: no need to wait
    for the end of the lease, and no haste with the living."""
    writing = is_being_written(recording_path(recorders, lease.claim_key)) if recorders else None
    if writing is None:
        return now >= expires_at
    return not writing or now >= expires_at + PATIENCE_WITH_THE_LIVING


def _is_alive(lease: Lease, recorders: Path | None) -> bool:
    """Whether the worker is seen to live on this host."""
    return bool(recorders and is_being_written(recording_path(recorders, lease.claim_key)))


def reclaim(
    lease: Lease,
    settings: DeliverySettings,
    now: datetime,
    dice: Random,
    recorders: Path | None,
) -> Reclaimed:
    """One dead worker's letters, and its place.

    CLAIMED was certainly not sent and returns to the queue. SENDING is what the recording says:
    the outcome that the worker knew, or not sent when the final dot had not been written; all
    else, and everything where there is no recording (another host, a power cut), is UNCONFIRMED.
    """
    recording = _recording_of(lease, recorders)
    with transaction.atomic():
        released = queue.release(lease)
        settled = 0
        if recording is not None:
            settled, unsent = _settle_known(lease, recording, settings, now, dice)
            released += unsent
        unconfirmed = queue.doubt(lease, now)
        leases.give_back(lease)
    if recording is not None and recorders is not None:
        recording_path(recorders, lease.claim_key).unlink(missing_ok=True)
    reclaimed = Reclaimed(released, settled, unconfirmed)
    logger.warning(
        "delivery.reclaimed %s from %s", reclaimed, lease.holder, extra={"slot": lease.slot}
    )
    return reclaimed


def _recording_of(lease: Lease, recorders: Path | None) -> Recording | None:
    """The worker's recording; None where there is none, or somebody still writes it."""
    if recorders is None:
        return None
    path = recording_path(recorders, lease.claim_key)
    if is_being_written(path) is not False:
        return None
    recording = read_recording(path)
    return recording if recording is not None and recording.claim_key == lease.claim_key else None


def _settle_known(
    lease: Lease, recording: Recording, settings: DeliverySettings, now: datetime, dice: Random
) -> tuple[int, int]:
    """(settled by their outcomes, returned as not sent)."""
    policy = RetryPolicy(settings.retry_after, settings.max_attempts, settings.max_age)
    open_letters = queue.sending(lease)
    known = [claimed for claimed in open_letters if claimed.id in recording.outcomes]
    queue.settle(
        lease,
        [
            (
                claimed,
                recording.outcomes[claimed.id],
                settle(
                    recording.outcomes[claimed.id],
                    attempts=claimed.attempts,
                    queued_at=claimed.queued_at,
                    now=now,
                    policy=policy,
                    dice=dice,
                ),
            )
            for claimed in known
        ],
        now,
    )
    results = [Result(claimed.id, recording.outcomes[claimed.id]) for claimed in known]
    if trouble := Ledger.trouble(results):
        limits.pause(lease.provider, trouble, now)
    if not recording.is_complete:
        return len(known), 0
    not_sent = [
        claimed.id
        for claimed in open_letters
        if claimed.id not in recording.outcomes and claimed.id not in recording.on_wire
    ]
    return len(known), queue.return_unsent(lease, not_sent)
