"""A worker's place in its provider's pool, as the worker knows it: a lease that may be lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from delivery import leases, queue, slots
from delivery.conf import DeliverySettings
from delivery.leases import Lease


class Place:
    """Taken once, renewed, and given back. Every method but the two questions asks the database.

    Every write of a worker is fenced by its claim key, so no wave needs to ask whether the place
    is still its own; letters that are about to leave have no fence, and look at ``ran_out``.
    """

    def __init__(
        self, settings: DeliverySettings, alias: str, holder: str, clock: Callable[[], datetime]
    ) -> None:
        self.alias = alias
        # A row that should have been ours was not: the lease is asked for before the next move.
        self.is_doubtful = False
        self._holder = holder
        self._settings = settings
        self._clock = clock
        self._lease: Lease | None = None
        self._until: datetime | None = None

    @property
    def lease(self) -> Lease:
        """The lease; only after ``take`` found one."""
        assert self._lease is not None
        return self._lease

    def take(self) -> bool:
        """Whether a place was free."""
        now = self._clock()
        places = self._settings.workers_for(self.alias)
        leases.make_places(self.alias, places)
        self._lease = leases.take(self.alias, places, self._holder, now, self._settings.lease)
        if self._lease is None:
            return False
        self._until = now + self._settings.lease
        return True

    def is_certain(self, now: datetime) -> bool:
        """Whether the lease was asked for a short time ago, and nothing speaks against it."""
        is_recent = self._until is not None and self._until - now > self._settings.lease * 5 / 6
        return is_recent and not self.is_doubtful

    def ran_out(self, now: datetime) -> bool:
        """Whether somebody may have called its letters doubtful."""
        return self._until is not None and now >= self._until

    def hold(self, now: datetime) -> bool:
        """Whether the lease is ours, asked anew where it is not certain."""
        return self.is_certain(now) or self.renew()

    def renew(self) -> bool:
        """Whether the lease is ours, and holds from now on."""
        now = self._clock()
        if leases.renew(self.lease, now, self._settings.lease):
            self._until = now + self._settings.lease
            return True
        # From this moment on: somebody may have called its letters doubtful.
        self._until = now
        return False

    def release(self) -> None:
        """Gives back what is only claimed."""
        queue.release(self.lease)

    def leave(self) -> bool:
        """Gives back what is only claimed, and the place, unless letters are still SENDING (their
        outcomes could not be written): then the place runs out, and reclaim finds them. Whether
        it gave it back."""
        self.release()
        slots.give_back(self.lease.claim_key)
        if queue.holds(self.lease.claim_key):
            return False
        leases.give_back(self.lease)
        return True
