"""One slice of work: claim, compose, hand over, send, settle, until the time is up.

The order of the writes is the promise. A letter is SENDING in a committed transaction before its
first byte leaves; its outcome is written with the note for the next wave. A crash therefore
leaves CLAIMED rows, certainly not sent, and at most one wave of SENDING rows, of which the flight
recorder knows all but those whose final dot was on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from time import monotonic

from django.db import InterfaceError, OperationalError, connection, transaction

from delivery import leases, limits, mailboxes, queue, resolution, slots
from delivery.bridge import Bridge
from delivery.clocks import database_now
from delivery.composing import Unwritable, compose
from delivery.conf import DeliverySettings, ProviderSettings
from delivery.leases import Lease
from delivery.ledger import Ledger, Result
from delivery.limits import Grant
from delivery.message import OutgoingMessage
from delivery.outcomes import Accepted, Outcome, Phase, Reply, Throttle, Unavailable, Unconfirmed
from delivery.providers.base import Confirms, KeepsConnections, Provider, ReportsFinalDot
from delivery.queue import Claimed
from delivery.recorder import FlightRecorder, recording_path
from delivery.settlement import RetryPolicy, Settlement, settle

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
# A wait longer than this ends the slice: no process sleeps through a pause.
PATIENCE = timedelta(seconds=5)
# How often a worker asks how many connections it may have, and when one without any asks again.
COUNT_CONNECTIONS = timedelta(seconds=1)
ALL_CONNECTIONS_HELD = timedelta(seconds=10)
# How long known outcomes wait for a database that went away, and how often it is asked.
DATABASE_PATIENCE = timedelta(minutes=10)
DATABASE_PAUSE = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Slice:
    """How a slice ended. ``wait_until``: when there is work again, None when nothing is waiting."""

    sent: int = 0
    wait_until: datetime | None = None
    lease_was_free: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """What one claim brought: messages in order, the claims behind them, and their permits.

    ``permits``: which permit of the grant each letter has; ``answered``: the monotonic moments at
    which answers came.
    """

    messages: list[OutgoingMessage] = field(default_factory=list)
    claims: dict[int, Claimed] = field(default_factory=dict)
    grant: Grant | None = None
    permits: dict[int, int] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    # Why it is empty: when to ask again, None when nothing is waiting at all.
    retry_at: datetime | None = None


def holder_name() -> str:
    """Who holds a lease, for a person who looks: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """A worker of one provider. Clocks, dice and provider are passed in.

    ``limit_clock`` is read under the locks of the limits: it must be the database's.
    ``recorders``: the folder of the flight recorders on this machine's disk; None: none is kept.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        provider_settings: ProviderSettings,
        provider: Provider,
        *,
        clock: Clock,
        dice: Random,
        holder: str | None = None,
        recorders: Path | None = None,
        limit_clock: Clock = database_now,
    ) -> None:
        self.settings = settings
        self.alias = provider_settings.alias
        self.limits = provider_settings.limits
        self.connections = slots.connections_of(settings, provider_settings, provider)
        self.counted_at = float("-inf")
        self.held = 0
        # The provider asked for fewer; and it has taken nothing since this worker has fewer.
        self.asked_for_less = self.is_on_probation = False
        self.provider = provider
        self.clock = clock
        self.limit_clock = limit_clock
        self.dice = dice
        self.holder = holder or holder_name()
        self.recorders = recorders
        self.recorder: FlightRecorder | None = None
        self.ledger = Ledger()
        self.stopping = asyncio.Event()
        self.lease: Lease | None = None
        self.held_until: datetime | None = None
        self.policy = RetryPolicy(settings.retry_after, settings.max_attempts, settings.max_age)

    # ------------------------------------------------------------------ the slice

    async def run_slice(self) -> Slice:
        """Works until the slice is over, nothing is due, or the provider closes."""
        async with Bridge() as bridge:
            self.lease = await bridge.call(self._take_lease)
            if self.lease is None:
                return Slice(lease_was_free=False)
            self._start_recorder()
            heartbeat = asyncio.create_task(self._heartbeat(bridge))
            try:
                with self._graceful_stop():
                    return await self._work(bridge)
            finally:
                heartbeat.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await heartbeat
                await self.provider.close()
                await bridge.call(self._leave)
                if self.recorder is not None:
                    self.recorder.close(remove=not self.ledger.pending())

    async def _work(self, bridge: Bridge) -> Slice:
        end = self.clock() + self.settings.slice_length
        sent = 0
        mailboxes.guard(self.provider, bridge, self.clock)
        await self.provider.open()
        while True:
            next_look = await self._look(bridge)
            if not await self._hold_connections(bridge):
                return Slice(sent, self.clock() + ALL_CONNECTIONS_HELD)
            batch = await bridge.call(self._claim_and_compose)
            moments = [moment for moment in (batch.retry_at, next_look) if moment is not None]
            if batch.messages:
                sent += await self._send_batch(bridge, batch)
            elif not await self._wait_for(min(moments, default=None), end):
                return Slice(sent, min(moments, default=None))
            if self.stopping.is_set() or self.clock() >= end:
                return Slice(sent, self.clock())

    async def _hold_connections(self, bridge: Bridge) -> bool:
        """As many connections as this worker may have at this time; False when there is none left
        for it. Nothing is on the wire."""
        if self.connections is None or not isinstance(self.provider, KeepsConnections):
            return True
        if monotonic() < self.counted_at + COUNT_CONNECTIONS.total_seconds():
            return True
        assert self.lease is not None
        key = self.lease.claim_key
        # A fair share at once, and one more each time while nobody else wants it.
        share = -(-self.connections.most // self.settings.workers_for(self.alias))
        wanted = min(max(share, self.held + 1), self.provider.connections)
        held = await bridge.call(slots.hold, self.connections, key, wanted)
        self.held = await self.provider.keep_connections(held.allowed)
        self.is_on_probation |= self.asked_for_less
        self.asked_for_less = False
        if held.surplus:
            await bridge.call(slots.keep, self.connections, key, self.held)
        self.counted_at = monotonic()
        return held.allowed > 0

    async def _look(self, bridge: Bridge) -> datetime | None:
        """Looks for letters in doubt, where the provider can; when the next look is due."""
        if not isinstance(self.provider, Confirms):
            return None
        return await resolution.look(bridge, self.provider, self.alias, self.clock)

    async def _send_batch(self, bridge: Bridge, batch: Batch) -> int:
        """Sends a claimed batch wave by wave; each wave's note carries the outcomes before it."""
        sent = 0
        for wave in waves(batch.messages, self.settings.send_batch_size):
            go_on = await self._commit(bridge, batch, [message.reference for message in wave])
            if not go_on:
                break
            results = await self._send_wave([m for m in wave if m.reference in go_on], batch)
            self.ledger.extend(results)
            sent += len(results)
            if self.stopping.is_set() or Ledger.trouble(results):
                break
        await self._commit(bridge, batch, [])
        await bridge.call(self._release)
        await bridge.call(self._settle_permits, batch)
        return sent

    async def _commit(self, bridge: Bridge, batch: Batch, wave: Sequence[int]) -> set[int]:
        """Outcomes and the next note, also when the database goes away for a while.

        Nothing is sent then, and what is known is kept until it is back. Whether a commit that
        broke had reached the disk is unknown: so its wave is not sent, and taken back.
        """
        give_up = self.clock() + DATABASE_PATIENCE
        unsent: Sequence[int] = ()
        while True:
            try:
                return await bridge.call(self._record_and_hand_over, batch, wave, unsent)
            except (OperationalError, InterfaceError):
                if self.clock() >= give_up:
                    raise
                logger.exception("delivery.database_away", extra={"holder": self.holder})
                unsent, wave = [*unsent, *wave], ()
                await bridge.call(connection.close)
                await asyncio.sleep(DATABASE_PAUSE.total_seconds())

    async def _send_wave(self, wave: list[OutgoingMessage], batch: Batch) -> list[Result]:
        results: list[Result] = []
        letters = iter(wave)

        async def runner() -> None:
            for message in letters:
                results.append(await self._send(message, batch))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.provider.concurrency, len(wave))):
                group.create_task(runner())
        return results

    async def _send(self, message: OutgoingMessage, batch: Batch) -> Result:
        assert batch.grant is not None
        permit = batch.permits[message.reference]
        while (wait := batch.grant.opens(permit) - monotonic()) > 0:
            await asyncio.sleep(wait)
        if monotonic() > batch.grant.expires(permit):
            text = "The permit of the provider's limits had run out before the letter left."
            reply = Reply.of(Phase.LOCAL, None, text)
            return Result(
                message.reference, Unavailable(reply, timedelta(0), rule="permit expired")
            )
        try:
            return await self._send_now(message)
        finally:
            batch.answered.append(monotonic())

    async def _send_now(self, message: OutgoingMessage) -> Result:
        if self.recorder is not None:
            self.recorder.leaving(message.reference)
            if not isinstance(self.provider, ReportsFinalDot):
                self.recorder.final_dot(message.reference)
        outcome = await self._outcome_of(message)
        if self.recorder is not None:
            self.recorder.answered(message.reference, outcome)
        return Result(message.reference, outcome)

    async def _outcome_of(self, message: OutgoingMessage) -> Outcome:
        if self.held_until is not None and self.clock() >= self.held_until:
            # The lease ran out unnoticed (a stopped machine): somebody may have reclaimed this
            # letter as doubtful, and a second copy must not leave.
            text = "The worker's lease had run out before the letter left."
            return Unavailable(Reply.of(Phase.LOCAL, None, text), timedelta(0), rule="lease lost")
        try:
            return await self.provider.send(message)
        except Exception as error:
            # A provider must not raise. How far the letter had come is unknown: say so.
            logger.exception("delivery.provider_raised", extra={"delivery": message.reference})
            text = f"{type(error).__name__}: {error}"
            return Unconfirmed(Reply.of(Phase.FINAL_DOT, None, text), rule="provider raised")

    async def _wait_for(self, moment: datetime | None, end: datetime) -> bool:
        """Waits for a moment that is near; False when it is not worth it."""
        now = self.clock()
        if moment is None or moment > end or moment - now > PATIENCE or self.stopping.is_set():
            return False
        seconds = max((moment - now).total_seconds(), 0.01)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
        return True

    # ------------------------------------------------------------------ units of work (sync)

    def _take_lease(self) -> Lease | None:
        now = self.clock()
        places = self.settings.workers_for(self.alias)
        leases.make_places(self.alias, places)
        lease = leases.take(self.alias, places, self.holder, now, self.settings.lease)
        if lease is not None:
            self.held_until = now + self.settings.lease
            if self.connections is not None:
                slots.make(self.connections)
        return lease

    def _claim_and_compose(self) -> Batch:
        """Limits first, then rows, then letters: a permit is wasted rather than a limit broken."""
        assert self.lease is not None
        now = self.clock()
        state = limits.state_of(self.alias)
        closed_until = limits.closed_until(state, now)
        campaign_ids = queue.open_campaigns(self.alias)
        due = queue.next_due(campaign_ids, self.alias)
        if due is None or closed_until is not None:
            return Batch(retry_at=closed_until if due is not None else None)
        if due > now:
            return Batch(retry_at=due)
        grant = limits.take(
            self.limits, self.settings.cycle_batch_size, self.lease.claim_key, self.limit_clock
        )
        if not grant.not_before:
            return Batch(retry_at=grant.retry_at)
        # Another order each time: the share that does not divide evenly goes round.
        self.dice.shuffle(campaign_ids)
        claims = queue.claim(self.lease, campaign_ids, len(grant.not_before), now)
        if not claims:
            limits.settle(grant, [])
            # Suppressed, or other workers were faster: look again at once.
            return Batch(retry_at=now)
        messages, unwritable = compose(claims, now)
        if unwritable:
            self._settle_unwritable(unwritable, now)
        return Batch(
            messages,
            {claimed.id: claimed for claimed in claims},
            grant,
            {message.reference: permit for permit, message in enumerate(messages)},
            retry_at=now,
        )

    def _settle_unwritable(self, unwritable: Sequence[Unwritable], now: datetime) -> None:
        """Unwritable letters go through SENDING like all others, so that each move is permitted."""
        assert self.lease is not None
        with transaction.atomic():
            moved = queue.hand_over(self.lease, [u.claimed.id for u in unwritable], now)
            settled = [
                (u.claimed, u.outcome, self._settlement(u.claimed, u.outcome, now))
                for u in unwritable
                if u.claimed.id in moved
            ]
            queue.settle(self.lease, settled, now)

    def _start_recorder(self) -> None:
        if self.recorders is None or self.lease is None:
            return
        wave = min(self.settings.send_batch_size, self.settings.cycle_batch_size)
        self.recorder = FlightRecorder(
            recording_path(self.recorders, self.lease.claim_key),
            self.lease.claim_key,
            wire=wave,
            outcomes=2 * wave,
        )
        if isinstance(self.provider, ReportsFinalDot):
            self.provider.watch(self.recorder.final_dot)

    def _record_and_hand_over(
        self, batch: Batch, wave: Sequence[int], unsent: Sequence[int]
    ) -> set[int]:
        """One commit: the outcomes known so far, and the note that the next wave is leaving.

        ``unsent``: letters whose note may or may not have been committed and that never left.
        """
        assert self.lease is not None
        now = self.clock()
        results = self.ledger.pending()
        with transaction.atomic():
            settled = [
                (
                    batch.claims[result.reference],
                    result.outcome,
                    self._settlement(batch.claims[result.reference], result.outcome, now),
                )
                for result in results
            ]
            queue.settle(self.lease, settled, now)
            queue.return_unsent(self.lease, unsent)
            state = limits.state_of(self.alias)
            if Ledger.any_accepted(results):
                self.is_on_probation = False
            if trouble := Ledger.trouble(results):
                if self._needs_silence(trouble, results, now):
                    limits.pause(self.alias, trouble, now)
                wave = []
            elif Ledger.any_accepted(results):
                limits.works_again(state)
            if limits.closed_until(state, now) is not None:
                wave = []  # another worker met trouble meanwhile
            if not leases.renew(self.lease, now, self.settings.lease):
                wave = []
            moved = queue.hand_over(self.lease, wave, now)
            self._count_clean(results, now)
        self.held_until = now + self.settings.lease
        self.ledger.written(results)
        if self.recorder is not None:
            self.recorder.committed(result.reference for result in results)
        return set(moved)

    def _needs_silence(
        self, trouble: Unavailable, results: Sequence[Result], now: datetime
    ) -> bool:
        """Whether trouble pauses the provider. Fewer connections may be all that it asks for; but
        one that takes nothing at all after they were halved is asking for silence."""
        if self.connections is None:
            return True
        if not any(slots.asks_for_less(result.outcome) for result in results):
            return True
        self.asked_for_less, self.counted_at = True, float("-inf")
        if slots.fewer(self.connections, now) is slots.Cut.IN_VAIN:
            return True
        return trouble.throttle is not Throttle.SLOW or self.is_on_probation

    def _count_clean(self, results: Sequence[Result], now: datetime) -> None:
        accepted = sum(isinstance(result.outcome, Accepted) for result in results)
        if self.connections is not None and accepted == len(results) > 0:
            slots.went_well(self.connections, accepted, now)

    def _settlement(self, claimed: Claimed, outcome: Outcome, now: datetime) -> Settlement:
        return settle(
            outcome,
            attempts=claimed.attempts,
            queued_at=claimed.queued_at,
            now=now,
            policy=self.policy,
            dice=self.dice,
        )

    def _release(self) -> None:
        assert self.lease is not None
        with transaction.atomic():
            queue.release(self.lease)

    def _settle_permits(self, batch: Batch) -> None:
        assert batch.grant is not None
        limits.settle(batch.grant, batch.answered)

    def _leave(self) -> None:
        """Gives back what is only claimed, and the place, unless letters are still SENDING (their
        outcomes could not be written): then the place runs out, and reclaim finds them."""
        assert self.lease is not None
        self._release()
        slots.give_back(self.lease.claim_key)
        if not queue.holds(self.lease.claim_key):
            leases.give_back(self.lease)

    def _renew(self) -> bool:
        assert self.lease is not None
        now = self.clock()
        if leases.renew(self.lease, now, self.settings.lease):
            self.held_until = now + self.settings.lease
            return True
        return False

    # ------------------------------------------------------------------ signals and time

    async def _heartbeat(self, bridge: Bridge) -> None:
        """Keeps the lease while a slow server thinks over a final dot."""
        while True:
            await asyncio.sleep(self.settings.lease.total_seconds() / 3)
            try:
                if not await bridge.call(self._renew):
                    self.stopping.set()
            except Exception:
                # A database that is away: the lease may run out, and _send looks at it.
                logger.exception("delivery.heartbeat_failed", extra={"holder": self.holder})

    @contextlib.contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """SIGTERM: no new claim, answers to letters on the wire are awaited, the rest released."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, self.stopping.set)
        except (ValueError, RuntimeError):  # not in the main thread: somebody else's signals
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)


def waves(messages: Sequence[OutgoingMessage], size: int) -> Iterator[Sequence[OutgoingMessage]]:
    """The messages in groups of ``size``: one commit each."""
    for start in range(0, len(messages), size):
        yield messages[start : start + size]
