"""What a worker claims: the letters of one claim, with the permits to send them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import count, repeat
from random import Random
from typing import NamedTuple, cast

from delivery import claiming, groups, limits, queue_pages
from delivery.bridge import Bridge
from delivery.claiming import Claimed
from delivery.clocks import Timer
from delivery.composing import Letters, compose, letters_of
from delivery.conf import DeliverySettings
from delivery.groups import Held
from delivery.limits import Grant
from delivery.message import OutgoingMessage
from delivery.models import ProviderState
from delivery.outcomes import Rejected
from delivery.place import Place
from delivery.rates import Limit
from delivery.session import Session
from delivery.sqlite_session import SQLiteSession

# So many letters are composed at a time, or as many as have so many octets.
COMPOSED_TOGETHER = 20
OCTETS_TOGETHER = 256 * 1024
# When to look again where nothing waits and the next page of the queue is being written.
NEXT_PAGE = timedelta(milliseconds=20)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one claim brought: the claims in order, their letters, and the permits to send them.

    ``answered``: the monotonic moments at which answers came, under limits.
    """

    claims: list[Claimed] = field(default_factory=list)
    letters: Letters = field(default_factory=dict)
    grant: Grant | None = None
    # The provider's count of held groups before they were claimed.
    groups_held: int = 0
    answered: list[float] = field(default_factory=list)
    # Why it is empty: when to ask again, None when nothing is waiting at all.
    retry_at: datetime | None = None
    lease_is_lost: bool = False
    # Messages that nobody has asked for yet, by the places of their claims.
    _composed: dict[int, OutgoingMessage | Rejected] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def message(self, place: int, clock: Callable[[], datetime]) -> OutgoingMessage | Rejected:
        """The message of the claim at this place, or why it cannot be written; asked for once.

        The next few are composed with it: alone, each would find the processor's caches full of
        other code, and take 22 µs longer. Not under limits, where letters wait for their permits.
        """
        assert self.grant is not None
        if place not in self._composed:
            octets = 0
            claims = self.claims[place : place + (1 if self.grant.limits else COMPOSED_TOGETHER)]
            for at, message in enumerate(compose(claims, self.letters, clock()), place):
                self._composed[at] = message
                octets += message.octets if isinstance(message, OutgoingMessage) else 0
                if octets >= OCTETS_TOGETHER:
                    break
        return self._composed.pop(place)

    def turns(self) -> Iterator[Turn]:
        """Its letters, in order."""
        return map(_AS_TURN, zip(self.claims, repeat(self), count()))


class Turn(NamedTuple):
    """A claimed letter in this worker's hands; ``place``: the claim's and its permit's in the
    batch."""

    claimed: Claimed
    batch: Batch
    place: int


# Without a call in Python for each letter, as its own constructor would be.
_AS_TURN = cast(Callable[[tuple[Claimed, Batch, int]], Turn], partial(tuple.__new__, Turn))


class Batches:
    """The claims of one worker."""

    def __init__(
        self,
        settings: DeliverySettings,
        place: Place,
        provider_limits: tuple[Limit, ...],
        *,
        clock: Callable[[], datetime],
        limit_clock: Callable[[], datetime],
        timer: Timer,
        dice: Random,
    ) -> None:
        """``limit_clock`` is read under the locks of the limits: it must be the database's."""
        # The provider at the last claim; None where nothing was to be known of it.
        self._state: ProviderState | None = None
        self._settings = settings
        self._place = place
        self._names = settings.names_of(place.alias)
        self._limits = provider_limits
        self._clock = clock
        self._limit_clock = limit_clock
        self._timer = timer
        self._dice = dice
        workers = settings.workers_for(place.alias)
        # Into so many parts the end of the queue is divided; so many pages are more than that end.
        self._shares = 2 * workers if workers > 1 else 1
        self._pages = workers + self._shares * settings.cycle_batch_size // queue_pages.SIZE
        # Of the editions of this slice, for claims that ask for nothing else.
        self._letters: Letters = {}

    @property
    def failing(self) -> ProviderState | None:
        """The provider, where it had failed and not worked again when the last claim looked."""
        state = self._state
        return state if state is not None and state.failures > 0 else None

    async def next(self, bridge: Bridge) -> Batch:
        """The next claim: without the thread where it is the usual one."""
        if bridge.session is not None and not self._limits:
            batch = await self._usual(bridge, bridge.session)
            if batch is not None:
                return batch
        return await bridge.call(self.claim)

    async def _usual(self, bridge: Bridge, session: Session | SQLiteSession) -> Batch | None:
        """The next claim of a provider without limits and without trouble; None where there is
        trouble."""
        now = self._clock()
        if not self._place.is_certain(now):
            return None
        opening = await session.run(
            claiming.opening(self._place.alias, self._names, now, self._pages)
        )
        if opening is None:
            return None
        campaigns = list(opening.priorities.items())
        self._dice.shuffle(campaigns)
        turns = claiming.in_turn(dict(campaigns))
        wanted = self._share(opening.in_pages)
        claims = await session.run(
            claiming.usual_claim(self._place.lease, turns, wanted, now, self._names)
        )
        self._state = None
        if not claims:
            return await bridge.call(self._nothing_claimed, list(opening.priorities), now)
        unknown = [claimed for claimed in claims if claimed.edition_id not in self._letters]
        if unknown:
            self._letters |= await bridge.call(letters_of, unknown)
        grant = limits.no_limits(len(claims), now, self._timer.ticks)
        return Batch(claims, self._letters, grant, opening.groups_held)

    def _share(self, in_pages: int) -> int:
        """How many to claim: fewer towards the end of the queue, and at its beginning, so that no
        worker has letters while the others have none (guided self-scheduling, Polychronopoulos and
        Kuck 1987)."""
        fair = -(-in_pages // self._shares)
        least, most = self._settings.send_batch_size, self._settings.cycle_batch_size
        return min(max(fair, least), most) if in_pages else most

    def claim(self) -> Batch:
        """Limits first, then rows: a permit is wasted rather than a limit broken."""
        now = self._clock()
        if not self._place.hold(now):
            return Batch(lease_is_lost=True)
        self._state = limits.state_of(self._place.alias)
        campaign_ids = claiming.open_campaigns(self._names)
        closed_until = limits.closed_until(self._state, now)
        if closed_until is not None:
            due = claiming.next_due(campaign_ids, self._names)
            return Batch(retry_at=closed_until if due is not None else None)
        if self._limits and (waits := self._nothing_due(campaign_ids, now)):
            return waits
        grant = limits.take(
            self._limits,
            self._settings.cycle_batch_size,
            self._place.lease.claim_key,
            self._limit_clock,
            self._timer.ticks,
        )
        if not grant.not_before:
            return Batch(retry_at=grant.retry_at)
        # Another order each time: the share that does not divide evenly goes round.
        self._dice.shuffle(campaign_ids)
        held = Held.of(self._state, self._settings.members_of, now)
        claims = claiming.claim(
            self._place.lease, campaign_ids, len(grant.not_before), now, self._names, held
        )
        if not claims:
            limits.settle(grant, [])
            pause = groups.PATIENCE if held is not None and held.left_to_others else timedelta(0)
            return self._nothing_claimed(campaign_ids, now, pause)
        return Batch(claims, letters_of(claims), grant, self._state.groups_held)

    def _nothing_claimed(
        self, campaign_ids: Sequence[int], now: datetime, pause: timedelta = timedelta(0)
    ) -> Batch:
        """An empty batch after a claim that brought nothing. What is due was suppressed, or other
        workers were faster: then after a pause."""
        return self._nothing_due(campaign_ids, now) or Batch(retry_at=now + pause)

    def _nothing_due(self, campaign_ids: Sequence[int], now: datetime) -> Batch | None:
        """An empty batch that says when a letter will be due; None when one is."""
        due = claiming.next_due(campaign_ids, self._names)
        if due is None and claiming.is_being_filled(campaign_ids):
            due = now + NEXT_PAGE
        return Batch(retry_at=due) if due is None or due > now else None

    def settle(self, batch: Batch) -> None:
        """Its permits are done with: all its letters were answered, or go back."""
        assert batch.grant is not None
        limits.settle(batch.grant, batch.answered)
