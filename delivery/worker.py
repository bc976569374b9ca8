"""One slice of work: claim, compose, hand over, send, settle, until the time is up.

The order of the writes is the promise. A letter is SENDING in a committed transaction before its
first byte leaves, and never more than SEND_BATCH_SIZE letters of a worker are. A crash therefore
leaves CLAIMED rows, certainly not sent, and at most so many SENDING rows, of which the flight
recorder knows all but those whose final dot was on the wire.

The database and the wire do not wait for each other: while one half of these letters is on the
wire, one commit writes the outcomes of the other half and the note for as many new ones. The next
letters are claimed meanwhile; commits take longer then, so they write less, and more is on the
wire. Letters are composed when they leave, with the few that leave next, so that only these exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

from django.db import InterfaceError, InternalError, OperationalError, transaction

from delivery import groups, limits, mailboxes, queue, resolution, slots
from delivery.batches import Batch, Batches, Turn
from delivery.bridge import Bridge
from delivery.clocks import Timer, database_now
from delivery.conf import DeliverySettings, ProviderSettings
from delivery.ledger import Ledger, Result
from delivery.limits import Grant
from delivery.message import OutgoingMessage
from delivery.outcomes import (
    Accepted,
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Throttle,
    Unavailable,
    Unconfirmed,
    checked,
)
from delivery.place import Place
from delivery.providers.base import Confirms, KeepsConnections, Provider, ReportsFinalDot
from delivery.queue import Exchange
from delivery.recorder import FlightRecorder, recording_path
from delivery.settlement import RetryPolicy, settle

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]
# A wait longer than this ends the slice: no process sleeps through a pause.
PATIENCE = timedelta(seconds=5)
# How often a worker asks how many connections it may have: one that has all that it could use,
# for nothing is on the wire meanwhile; one that has less. When one without any asks again.
COUNT_CONNECTIONS = timedelta(seconds=10)
COUNT_MISSING_CONNECTIONS = timedelta(seconds=1)
ALL_CONNECTIONS_HELD = timedelta(seconds=10)
# A database that went away; the last of them: one that only reads since a failover.
DATABASE_AWAY = (OperationalError, InterfaceError, InternalError)
# How long known outcomes wait for it, and how often it is asked.
DATABASE_PATIENCE = timedelta(minutes=10)
DATABASE_PAUSE = timedelta(seconds=1)
PERMIT_EXPIRED = "permit expired"
# How long answers are awaited after SIGTERM; a server may think over a final dot for ten minutes.
GRACE = timedelta(seconds=60)
# How long a known outcome may wait, in seconds, until others make its commit worth while.
LONGEST_UNWRITTEN = 1.0
# So many outcomes are worth a commit beside a claim, if they are a quarter of what may be SENDING.
ENOUGH_BESIDE_A_CLAIM = 25


@dataclass(frozen=True, slots=True)
class Slice:
    """How a slice ended. ``wait_until``: when there is work again, None when nothing is waiting."""

    sent: int = 0
    wait_until: datetime | None = None
    lease_was_free: bool = True


class Commit(NamedTuple):
    """What one commit writes: outcomes, the note for the wave that leaves next, and ``unsent``:
    letters whose note may or may not have been committed and that never left."""

    results: Sequence[Result]
    wave: Sequence[Turn]
    unsent: Sequence[int]

    @property
    def ids(self) -> list[int]:
        """Of the wave."""
        return [turn.claimed.id for turn in self.wave]

    @property
    def groups_held(self) -> int | None:
        """The provider's count of held groups before any of the wave was claimed."""
        return min((turn.batch.groups_held for turn in self.wave), default=None)


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
        timer: Timer | None = None,
    ) -> None:
        self.settings = settings
        self.alias = provider_settings.alias
        self.names = settings.names_of(self.alias)
        self.limits = provider_settings.limits
        self.connections = slots.connections_of(settings, provider_settings, provider)
        self.count_at = float("-inf")
        self.held = 0
        # The provider asked for fewer; and it has taken nothing since this worker has fewer.
        self.asked_for_less = self.is_on_probation = False
        # Letters of waves without trouble, not yet told to slots.
        self.went_well = 0
        self.provider = provider
        self.clock = clock
        self.timer = timer or Timer()
        self.dice = dice
        self.holder = holder or holder_name()
        self.reports_final_dot = isinstance(provider, ReportsFinalDot)
        self.recorders = recorders
        self.recorder: FlightRecorder | None = None
        # In hand: claimed and not noted; noted (SENDING), with those whose answer is in the ledger.
        self.ready: deque[Turn] = deque()
        self.noted: dict[int, Turn] = {}
        self.ledger = Ledger()
        # An answer asked for silence: what is noted and has not left stays here, and goes back.
        self.is_silent = False
        self.kept_back: list[int] = []
        # So many letters are exchanged together, or more.
        half, quarter = (-(-settings.send_batch_size // part) for part in (2, 4))
        self.wave_size = self.worth_a_commit = half
        # Beside a claim a commit may take more than twice as long: the half that is on the wire
        # would be answered before it is written.
        self.smaller_wave_size = min(half, max(quarter, ENOUGH_BESIDE_A_CLAIM))
        # Noted letters that may leave, and runners that wait for one.
        self.departures: deque[Turn] = deque()
        self.idle: deque[asyncio.Future[None]] = deque()
        self.runners: list[asyncio.Task[None]] = []
        # Something happened that the conducting loop should look at.
        self.progress = asyncio.Event()
        self.is_closing = False
        # Letters of a wave that did not leave: still CLAIMED, and no longer in ``ready``.
        self.has_leftovers = False
        self.sent = 0
        self.stopping = asyncio.Event()
        # After SIGTERM: when no answer is awaited any more, by the timer.
        self.give_up_at: float | None = None
        self.place = Place(settings, self.alias, self.holder, clock)
        self.batches = Batches(
            settings,
            self.place,
            self.limits,
            clock=clock,
            limit_clock=limit_clock,
            timer=self.timer,
            dice=dice,
        )
        self.policy = RetryPolicy(settings.retry_after, settings.max_attempts, settings.max_age)

    # ------------------------------------------------------------------ the slice

    async def run_slice(self) -> Slice:
        """Works until the slice is over, nothing is due, or the provider closes."""
        # The second so that commits do not wait for the next claim.
        async with Bridge() as bridge, bridge.beside() as claims:
            opening = asyncio.gather(bridge.open(), claims.open())
            await asyncio.sleep(0)  # they are on their way, also while SQLite blocks the loop
            try:
                is_free = await bridge.call(self._take_place)
            finally:
                await opening
            if not is_free:
                return Slice(lease_was_free=False)
            heartbeat = asyncio.create_task(self._heartbeat(bridge))
            try:
                self._start_recorder()
                with self._graceful_stop():
                    return await self._work(bridge, claims)
            finally:
                heartbeat.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await heartbeat
                await self._end(bridge)

    async def _end(self, bridge: Bridge) -> None:
        """Closes everything, whatever happens to any of it. The recording ends last, and stays
        where the place was not given back: reclaim reads it, once nobody writes it any more."""
        has_left = False
        try:
            await self.provider.close()
        except Exception:
            logger.exception("delivery.provider_raised", extra={"holder": self.holder})
        try:
            has_left = await self._leave_again(bridge)
        finally:
            if self.recorder is not None:
                self.recorder.close(remove=has_left)

    async def _leave_again(self, bridge: Bridge) -> bool:
        """Whether the place was given back. A broken connection to the database is replaced once;
        after that the place runs out."""
        for _attempt in range(2):
            try:
                return await bridge.call(self.place.leave)
            except DATABASE_AWAY:
                await self._database_is_away(bridge)
        return False

    async def _work(self, bridge: Bridge, claims: Bridge) -> Slice:
        end = self.clock() + self.settings.slice_length
        mailboxes.guard(self.provider, bridge, self.clock)
        await self.provider.open()
        at_once = min(self.provider.concurrency, self.settings.send_batch_size)
        self.runners = [asyncio.create_task(self._run()) for _ in range(at_once)]
        for runner in self.runners:
            runner.add_done_callback(lambda _runner: self.progress.set())
        try:
            while True:
                next_look = await self._look(bridge)
                if not await self._hold_connections(bridge):
                    return Slice(self.sent, self.clock() + ALL_CONNECTIONS_HELD)
                batch = await self.batches.next(claims)
                moments = [moment for moment in (batch.retry_at, next_look) if moment is not None]
                if batch.claims:
                    await self._send_batch(bridge, claims, batch, end)
                elif not await self._wait_for(min(moments, default=None), end):
                    return Slice(self.sent, min(moments, default=None))
                if self._is_over(end):
                    return Slice(self.sent, self.clock())
        finally:
            # Whatever went wrong: the answers to what has left are worth having, and writing.
            while self._on_wire() and not (
                self._gives_up() or any(runner.done() for runner in self.runners)
            ):
                self.progress.clear()
                await self._progress()
            for runner in self.runners:
                runner.cancel()
            await asyncio.gather(*self.runners, return_exceptions=True)
            await self._write_what_is_known(bridge)

    def _is_over(self, end: datetime) -> bool:
        return self.stopping.is_set() or self.clock() >= end

    def _gives_up(self) -> bool:
        """Whether the answers that are still missing are left to reclaim: a letter whose final dot
        was written becomes doubtful, and the others are sent later."""
        return self.give_up_at is not None and self.timer.ticks() >= self.give_up_at

    async def _hold_connections(self, bridge: Bridge) -> bool:
        """As many connections as this worker may have at this time; False when there is none left
        for it. Nothing is on the wire."""
        if self.connections is None or not isinstance(self.provider, KeepsConnections):
            return True
        if self.timer.ticks() < self.count_at:
            return True
        key = self.place.lease.claim_key
        # A fair share at once, and one more each time while nobody else wants it.
        share = -(-self.connections.most // self.settings.workers_for(self.alias))
        wanted = min(max(share, self.held + 1), self.provider.connections)
        held = await bridge.call(slots.hold, self.connections, key, wanted)
        self.held = await self.provider.keep_connections(held.allowed)
        self.is_on_probation |= self.asked_for_less
        self.asked_for_less = False
        if held.surplus:
            await bridge.call(slots.keep, self.connections, key, self.held)
        has_all = self.held == self.provider.connections
        pause = COUNT_CONNECTIONS if has_all else COUNT_MISSING_CONNECTIONS
        self.count_at = self.timer.ticks() + pause.total_seconds()
        return held.allowed > 0

    async def _look(self, bridge: Bridge) -> datetime | None:
        """Looks for letters in doubt, where the provider can; when the next look is due."""
        if not isinstance(self.provider, Confirms):
            return None
        return await resolution.look(bridge, self.provider, self.alias, self.names, self.clock)

    # ------------------------------------------------------------------ the letters in hand

    async def _send_batch(
        self, bridge: Bridge, claims: Bridge, batch: Batch, end: datetime
    ) -> None:
        """Sends a claimed batch, and what else is due meanwhile; nothing is in hand afterwards.

        Under limits it stays at the one batch: permits are asked for when they can be used.
        """
        self.is_closing = self.is_silent = False
        self._take_up(batch)
        ahead: asyncio.Task[Batch] | None = None
        more_is_due, waited_long = not self.limits, False
        # So many are sent while the next are claimed.
        enough = max(self.settings.send_batch_size, self.settings.cycle_batch_size // 2)
        try:
            while self.ready or self.noted or ahead is not None:
                self.progress.clear()
                if self.is_closing or self._is_over(end):
                    more_is_due = False
                    await self._drop_ready(bridge)
                    if ahead is None and (not self.noted or self._gives_up()):
                        break
                elif self.connections is not None and self.timer.ticks() >= self.count_at:
                    more_is_due = False
                if ahead is not None and (ahead.done() or not (self.ready or self.noted)):
                    more, ahead = await self._claimed_ahead(claims, ahead), None
                    more_is_due = more_is_due and bool(more.claims)
                    self._take_up(more)
                    continue
                if ahead is None and more_is_due and len(self.ready) < enough:
                    ahead = asyncio.create_task(self.batches.next(claims))
                    ahead.add_done_callback(lambda _batch: self.progress.set())
                self.worth_a_commit = self.wave_size if ahead is None else self.smaller_wave_size
                if self._is_worth_a_commit() or (waited_long and self._answered()):
                    await self._write(bridge)
                    waited_long = False
                else:
                    waited_long = not await self._progress()
                for runner in self.runners:
                    if runner.done():
                        runner.result()  # it raised, and nobody would answer for its letter
        finally:
            if ahead is not None:
                # It failed here: no claim may come after the place was given back.
                await asyncio.wait([ahead])
        await self._drop_ready(bridge)
        await bridge.call(self.batches.settle, batch)
        await bridge.call(self._tell_what_went_well)

    def _take_up(self, batch: Batch) -> None:
        if batch.lease_is_lost:
            self.stopping.set()
        self.ready.extend(batch.turns())

    async def _drop_ready(self, bridge: Bridge) -> None:
        """Gives back what is claimed and has not been noted."""
        if not self.ready and not self.has_leftovers:
            return
        self.ready.clear()
        try:
            await bridge.call(self.place.release)
            self.has_leftovers = False
        except DATABASE_AWAY:
            # First the letters in hand, whose commit is patient; then this again.
            self.has_leftovers = True
            await self._database_is_away(bridge)

    async def _claimed_ahead(self, claims: Bridge, ahead: asyncio.Task[Batch]) -> Batch:
        try:
            return await ahead
        except DATABASE_AWAY:
            # First the letters in hand, whose commit is patient; the next claim will say it again.
            # What this one had claimed is given back with the rest.
            self.has_leftovers = True
            await self._database_is_away(claims)
            return Batch()

    async def _database_is_away(self, bridge: Bridge) -> None:
        """Says so, while the error is at hand, and has the next unit connect anew."""
        logger.exception("delivery.database_away", extra={"holder": self.holder})
        await bridge.reconnect()

    def _answered(self) -> int:
        """How many letters have an outcome to be written, or were kept back."""
        return len(self.ledger) + len(self.kept_back)

    def _on_wire(self) -> int:
        """How many letters may have left and have no answer."""
        return len(self.noted) - self._answered()

    def _is_worth_a_commit(self) -> bool:
        """When the wire has nothing to do, or there are letters enough to be exchanged."""
        answered = self._answered()
        if not self._on_wire():
            return bool(self.ready or answered)
        room = self.settings.send_batch_size - len(self.noted)
        enough = self.worth_a_commit
        return answered >= enough or (room >= enough and bool(self.ready))

    async def _progress(self) -> bool:
        """Waits until there may be something to do; False after LONGEST_UNWRITTEN."""
        try:
            async with asyncio.timeout(LONGEST_UNWRITTEN):
                await self.progress.wait()
        except TimeoutError:
            return False
        return True

    async def _write(self, bridge: Bridge) -> None:
        """One commit: the outcomes that are known, and the note for the letters that leave next."""
        room = self.settings.send_batch_size - self._on_wire()
        wave = [self.ready.popleft() for _ in range(min(room, len(self.ready)))]
        commit = Commit(self.ledger.pending(), wave, list(self.kept_back))
        go_on = await self._commit(bridge, commit)
        self._forget(commit)
        for turn in wave:
            if turn.claimed.id in go_on:
                self.noted[turn.claimed.id] = turn
                self.departures.append(turn)
        for _ in range(min(len(self.departures), len(self.idle))):
            idle = self.idle.popleft()
            if not idle.done():  # cancelled
                idle.set_result(None)
        # The provider is closed, a campaign was paused, or the lease is lost: claim anew.
        self.has_leftovers |= len(go_on) < len(wave)
        self.is_closing |= self.has_leftovers or Ledger.trouble(commit.results) is not None

    def _forget(self, commit: Commit) -> None:
        """What it has made durable."""
        for result in commit.results:
            del self.noted[result.reference]
        for delivery_id in commit.unsent:
            del self.noted[delivery_id]
        self.ledger.written(commit.results)
        del self.kept_back[: len(commit.unsent)]

    async def _write_what_is_known(self, bridge: Bridge) -> None:
        """At the end of a slice that failed: one attempt. What cannot be written stays in the
        flight recorder, under a lease that runs out."""
        if not self._answered():
            return
        commit = Commit(self.ledger.pending(), (), list(self.kept_back))
        try:
            await bridge.call(self._record_and_hand_over, commit)
        except Exception:
            await self._database_is_away(bridge)
        else:
            self._forget(commit)

    async def _commit(self, bridge: Bridge, commit: Commit) -> set[int]:
        """Outcomes and the next note, also when the database goes away for a while; the letters
        of the wave that may leave.

        No further letter leaves then, and what is known is kept until it is back. Whether a commit
        that broke had reached the disk is unknown: so its wave is not sent, and taken back.
        """
        give_up = self.clock() + DATABASE_PATIENCE
        while True:
            try:
                return await self._commit_once(bridge, commit)
            except DATABASE_AWAY:
                await self._database_is_away(bridge)
                if self.clock() >= give_up:
                    raise
                commit = Commit(commit.results, (), [*commit.unsent, *commit.ids])
                await asyncio.sleep(DATABASE_PAUSE.total_seconds())

    async def _commit_once(self, bridge: Bridge, commit: Commit) -> set[int]:
        """One attempt: in one go where it is the usual commit."""
        now = self.clock()
        answered = self._answers(commit.results)
        is_usual = (
            not commit.unsent
            and self.batches.failing is None
            and self.place.is_certain(now)
            and queue.all_accepted(answered)
        )
        wave = [turn.claimed for turn in commit.wave]
        usual = Exchange(self.place.lease, answered, wave, now, commit.groups_held)
        if not is_usual or (moved := await self._exchange(bridge, usual)) is None:
            return await bridge.call(self._record_and_hand_over, commit)
        self.is_on_probation &= not commit.results
        self._committed(commit, moved)
        return set(moved)

    async def _exchange(self, bridge: Bridge, usual: Exchange) -> list[int] | None:
        """In the session, where there is one; None where nothing was written."""
        if bridge.session is None:
            return await bridge.call(queue.exchange, usual)
        exchanged = await bridge.session.run(queue.exchanging(usual))
        if exchanged is None:
            return None
        if not queue.is_whole(usual, exchanged):
            await bridge.call(queue.make_up, usual, exchanged)
        return exchanged.moved

    # ------------------------------------------------------------------ on the wire

    async def _run(self) -> None:
        """Sends noted letters, one after the other. As many of these as the provider likes."""
        while True:
            # An asyncio.Queue takes ten times as long to hand over a letter that is there.
            while not self.departures:
                self.idle.append(idle := asyncio.get_running_loop().create_future())
                await idle
            turn = self.departures.popleft()
            if self.is_silent:
                self.kept_back.append(turn.claimed.id)
            else:
                outcome = await self._send(turn)
                if not isinstance(outcome, Accepted):
                    self.is_silent |= self._asks_for_silence(outcome)
                self.ledger.append(Result(turn.claimed.id, outcome))
                self.sent += 1
            answered = self._answered()
            if answered == len(self.noted) or answered >= self.worth_a_commit:
                self.progress.set()

    def _asks_for_silence(self, outcome: Outcome) -> bool:
        """Whether the other noted letters should not leave either: the login is refused, a quota is
        spent, the server is gone. Not where fewer connections may be all that is asked for."""
        if isinstance(outcome, Unconfirmed):
            return outcome.rests
        if not isinstance(outcome, Unavailable) or outcome.rule == PERMIT_EXPIRED:
            return False
        may_go_on = outcome.throttle is Throttle.SLOW and slots.asks_for_less(outcome)
        return self.connections is None or self.is_on_probation or not may_go_on

    def _send(self, turn: Turn) -> Coroutine[None, None, Outcome]:
        # No coroutine of its own: it would be one more to resume for each letter.
        grant = turn.batch.grant
        assert grant is not None
        return self._send_when_permitted(turn, grant) if grant.limits else self._send_now(turn)

    async def _send_when_permitted(self, turn: Turn, grant: Grant) -> Outcome:
        while (wait := grant.opens(turn.place) - self.timer.ticks()) > 0:
            await self.timer.sleep(wait)
        if self.timer.ticks() > grant.expires(turn.place):
            text = "The permit of the provider's limits had run out before the letter left."
            reply = Reply.of(Phase.LOCAL, None, text)
            return Unavailable(reply, timedelta(0), rule=PERMIT_EXPIRED)
        try:
            return await self._send_now(turn)
        finally:
            turn.batch.answered.append(self.timer.ticks())

    async def _send_now(self, turn: Turn) -> Outcome:
        message = turn.batch.message(turn.place, self.clock)
        if isinstance(message, Rejected):
            return message
        recorder = self.recorder
        if recorder is not None and not self.reports_final_dot:
            recorder.final_dot(message.reference)
        outcome: Outcome
        # Asked anew after composing: the last thing before the letter leaves.
        if self.place.ran_out(self.clock()):
            # The lease ran out unnoticed (a stopped machine): somebody may have reclaimed this
            # letter as doubtful, and a second copy must not leave.
            text = "The worker's lease had run out before the letter left."
            reply = Reply.of(Phase.LOCAL, None, text)
            outcome = Unavailable(reply, timedelta(0), rule="lease lost")
        else:
            try:
                outcome = checked(await self.provider.send(message))
            except (Exception, asyncio.CancelledError) as error:
                outcome = self._raised(error, message)
        if recorder is not None:
            recorder.answered(message.reference, outcome)
        return outcome

    @staticmethod
    def _raised(error: BaseException, message: OutgoingMessage) -> Unconfirmed:
        """A provider must not raise. How far the letter had come is unknown: this says so."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error  # it is we who are cancelled, not something inside of the provider
        logger.exception("delivery.provider_raised", extra={"delivery": message.reference})
        text = f"{type(error).__name__}: {error}"
        return Unconfirmed(Reply.of(Phase.FINAL_DOT, None, text), rule="provider raised")

    async def _wait_for(self, moment: datetime | None, end: datetime) -> bool:
        """Waits for a moment that is near; False when it is not worth it."""
        now = self.clock()
        if moment is None or moment > end or moment - now > PATIENCE or self.stopping.is_set():
            return False
        seconds = max((moment - now).total_seconds(), 0.01)
        await self.timer.wait(self.stopping, seconds)
        return True

    # ------------------------------------------------------------------ units of work (sync)

    def _take_place(self) -> bool:
        is_free = self.place.take()
        if is_free and self.connections is not None:
            slots.make(self.connections)
        return is_free

    def _start_recorder(self) -> None:
        if self.recorders is None:
            return
        key = self.place.lease.claim_key
        self.recorder = FlightRecorder(
            recording_path(self.recorders, key),
            key,
            letters=self.settings.send_batch_size,
        )
        if isinstance(self.provider, ReportsFinalDot):
            self.provider.watch(self.recorder.final_dot)

    def _record_and_hand_over(self, commit: Commit) -> set[int]:
        """One attempt, whatever there is to write; the letters of the wave that may leave."""
        now = self.clock()
        results = commit.results
        settled = self._settled(results, now)
        trouble = Ledger.trouble(results)
        if Ledger.any_accepted(results):
            self.is_on_probation = False
        if not self.place.hold(now) or trouble is not None:
            commit = commit._replace(wave=())
        of_groups = [
            (claimed.rcpt_to, outcome)
            for claimed, outcome, _settlement in settled
            if isinstance(outcome, Deferred) and outcome.throttle is not None
        ]
        # The claim beside this may read it anew.
        failing = self.batches.failing
        with contextlib.ExitStack() as stack:
            if trouble is not None or failing is not None or of_groups:
                stack.enter_context(transaction.atomic())
            if of_groups:
                groups.hold(self.alias, of_groups, now)
            if trouble is not None and self._needs_silence(trouble, results, now):
                limits.pause(self.alias, trouble, now)
            elif failing is not None and Ledger.any_accepted(results):
                limits.works_again(failing)
                failing.failures = 0
            moved = queue.record_and_hand_over(
                self.place.lease,
                settled,
                commit.unsent,
                commit.ids,
                now,
                commit.groups_held,
            )
        self._committed(commit, moved)
        return set(moved)

    def _committed(self, commit: Commit, moved: Sequence[int]) -> None:
        results = commit.results
        self.place.is_doubtful = len(moved) < len(commit.wave)
        if self.recorder is not None:
            self.recorder.committed(result.reference for result in results)
        accepted = sum(isinstance(result.outcome, Accepted) for result in results)
        self.went_well += accepted if accepted == len(results) else 0

    def _needs_silence(
        self, trouble: Unavailable, results: Sequence[Result], now: datetime
    ) -> bool:
        """Whether trouble pauses the provider. Fewer connections may be all that it asks for; but
        one that takes nothing at all after they were halved is asking for silence."""
        if self.connections is None:
            return True
        if not any(slots.asks_for_less(result.outcome) for result in results):
            return True
        self.asked_for_less, self.count_at = True, float("-inf")
        if slots.fewer(self.connections, now) is slots.Cut.IN_VAIN:
            return True
        return trouble.throttle is not Throttle.SLOW or self.is_on_probation

    def _tell_what_went_well(self) -> None:
        letters, self.went_well = self.went_well, 0
        if self.connections is not None and letters:
            slots.went_well(self.connections, letters, self.clock())

    def _answers(self, results: Sequence[Result]) -> list[queue.Answered]:
        return [(self.noted[reference].claimed, outcome) for reference, outcome in results]

    def _settled(self, results: Sequence[Result], now: datetime) -> list[queue.Settled]:
        settled = []
        for claimed, outcome in self._answers(results):
            settlement = settle(
                outcome,
                attempts=claimed.attempts,
                queued_at=claimed.queued_at,
                now=now,
                policy=self.policy,
                dice=self.dice,
            )
            settled.append((claimed, outcome, settlement))
        return settled

    # ------------------------------------------------------------------ signals and time

    async def _heartbeat(self, bridge: Bridge) -> None:
        """Keeps the lease while a slow server thinks over a final dot."""
        while True:
            await asyncio.sleep(self.settings.lease.total_seconds() / 3)
            try:
                if not await bridge.call(self.place.renew):
                    self.stopping.set()
            except Exception:
                # A database that is away: the lease may run out, and _send looks at it.
                await self._database_is_away(bridge)

    @contextlib.contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """SIGTERM: no new claim, answers to letters on the wire are awaited for GRACE, the rest is
        released."""
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, self._stop_soon)
        except (ValueError, RuntimeError):  # not in the main thread: somebody else's signals
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    def _stop_soon(self) -> None:
        if self.give_up_at is None:
            self.give_up_at = self.timer.ticks() + GRACE.total_seconds()
        self.stopping.set()
        self.progress.set()
