"""Simulated hosts that send under shared limits, and a server that notes when letters arrive.

Each host has a monotonic clock of its own, far from the others and not quite of their speed. What
happens between a grant and an answer takes random times, now and then very long ones; a worker may
die with a grant in its hand. The limits are asked through ``Shared``: kept in memory, or in the
database (tests/delivery/test_limits.py).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Protocol

from delivery.limits import SHELF_LIFE, Grant
from delivery.permits import Usage, next_at, plan, step_end
from delivery.rates import Limit, LimitKind

LEASE = timedelta(seconds=60)


class Shared(Protocol):
    """What the hosts share. Moments are those of the database's clock."""

    def take(self, wanted: int, worker: int, now: datetime, asked: float, got: float) -> Grant: ...

    def settle(self, grant: Grant, answered: Sequence[float]) -> None: ...

    def worker_is_dead(self, worker: int, now: datetime) -> None: ...


class InMemory:
    """What limits.py keeps in tables, without a database: two days pass in seconds."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self.answered: dict[Limit, Counter[datetime]] = {limit: Counter() for limit in limits}
        self.next_at: dict[Limit, datetime] = {}
        self.open: dict[int, tuple[int, int]] = {}
        self._keys = count(1)

    def take(self, wanted: int, worker: int, now: datetime, asked: float, got: float) -> Grant:
        open_permits = sum(permits for _worker, permits in self.open.values())
        for limit, log in self.answered.items():
            begins = now - limit.window
            for at in [at for at in log if at < begins]:
                del log[at]
        usages = {
            limit: Usage(sorted(log.items()), open_permits, self.next_at.get(limit))
            for limit, log in self.answered.items()
        }
        planned = plan(usages, wanted, now)
        key = next(self._keys)
        if planned.not_before:
            self.open[key] = worker, len(planned.not_before)
            for limit, usage in usages.items():
                if limit.kind is LimitKind.SMOOTH:
                    self.next_at[limit] = next_at(limit, usage, planned.not_before, now)
        return Grant(
            self.limits, planned.not_before, planned.retry_at, now, asked=asked, got=got, key=key
        )

    def settle(self, grant: Grant, answered: Sequence[float]) -> None:
        if self.open.pop(grant.key, None) is None:
            return
        for limit, log in self.answered.items():
            log.update(step_end(limit, grant.by_database(moment)) for moment in answered)

    def worker_is_dead(self, worker: int, now: datetime) -> None:
        for key, (holder, permits) in list(self.open.items()):
            if holder == worker:
                del self.open[key]
                for limit, log in self.answered.items():
                    log[step_end(limit, now)] += permits


@dataclass
class Host:
    """A host's monotonic clock: so many seconds at the beginning, and its speed."""

    offset: float
    speed: float

    def monotonic(self, elapsed: float) -> float:
        return self.offset + elapsed * self.speed

    def elapsed(self, monotonic: float) -> float:
        return (monotonic - self.offset) / self.speed


@dataclass
class World:
    """Workers on hosts, and what the server saw: ``arrivals``, in seconds since the beginning."""

    shared: Shared
    began: datetime
    dice: Random
    hosts: Sequence[Host]
    wanted: int = 10
    # Seconds from the moment at which a letter leaves to its answer: usually, and one in a hundred.
    usual_answer: float = 0.05
    slow_answer: float = 4.0
    deaths_per_grant: float = 0.0
    arrivals: list[float] = field(default_factory=list)

    def run(self, length: timedelta) -> None:
        """Sends without end until ``length`` is over."""
        end = length.total_seconds()
        # A heap of moments at which something happens, whatever worker it happens to.
        workers = count(1)
        turns: list[tuple[float, int, Iterator[float]]] = []
        for host in self.hosts:
            number = next(workers)
            heapq.heappush(turns, (0.0, number, self.work(number, host, 0.0)))
        while turns and turns[0][0] < end:
            elapsed, number, steps = heapq.heappop(turns)
            try:
                heapq.heappush(turns, (next(steps), number, steps))
            except StopIteration:  # it died: another takes its place on the same host
                number, host = next(workers), self.dice.choice(self.hosts)
                heapq.heappush(turns, (elapsed, number, self.work(number, host, elapsed)))
        self.arrivals = sorted(arrival for arrival in self.arrivals if arrival < end)

    def at(self, elapsed: float) -> datetime:
        return self.began + timedelta(seconds=elapsed)

    def work(self, number: int, host: Host, elapsed: float) -> Iterator[float]:
        """One worker; yields the moment of its next step."""
        dice = self.dice
        while True:
            asked = host.monotonic(elapsed)
            elapsed += dice.uniform(0, 0.01)  # the way to the database, and its locks
            yield elapsed
            now = self.at(elapsed)
            back = dice.uniform(0, 0.01)
            grant = self.shared.take(
                self.wanted, number, now, asked, host.monotonic(elapsed + back)
            )
            elapsed += back
            if not grant.not_before:
                assert grant.retry_at is not None
                retry = (grant.retry_at - self.began).total_seconds()
                elapsed = max(elapsed, retry) + dice.uniform(0, 0.01)
                yield elapsed
                continue
            answered = []
            dies = dice.random() < self.deaths_per_grant
            last_letter = dice.randrange(len(grant.not_before)) if dies else -1
            for permit in range(len(grant.not_before)):
                leaves = max(elapsed, host.elapsed(grant.opens(permit))) + dice.uniform(0, 0.005)
                if host.monotonic(leaves) > grant.expires(permit):
                    continue
                slow = dice.random() < 0.01
                answer = leaves + dice.expovariate(
                    1 / (self.slow_answer if slow else self.usual_answer)
                )
                # The server counts it at some moment on the way.
                self.arrivals.append(dice.uniform(leaves, answer))
                answered.append(host.monotonic(answer))
                elapsed = answer
                if permit == last_letter:
                    break
            elapsed += dice.uniform(0, 0.02)  # the commit
            yield elapsed
            if dies:
                elapsed += LEASE.total_seconds()
                yield elapsed
                self.shared.worker_is_dead(number, self.at(elapsed))
                return
            self.shared.settle(grant, answered)


def three_hosts() -> list[Host]:
    """Their clocks stand thirty seconds and more apart, and run up to 200 ppm too fast or slow."""
    return [Host(1_000.0, 1.0), Host(1_030.0, 1.0002), Host(-30.0, 0.9998)]


def most_in_any(window: timedelta, arrivals: Sequence[float]) -> int:
    """The most arrivals that any window of that length holds, both ends counted."""
    seconds, first, most = window.total_seconds(), 0, 0
    for last, arrival in enumerate(arrivals):
        while arrival - arrivals[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


__all__ = ["LEASE", "SHELF_LIFE", "Host", "InMemory", "World", "most_in_any", "three_hosts"]
