"""Limits hold in every trailing window, and pauses keep a provider still."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from random import Random
from time import monotonic

import pytest
from django.db import connection, connections, transaction

from delivery import leases, limits
from delivery.clocks import database_now, shared_clock
from delivery.limits import Grant
from delivery.models import ProviderState, QuotaWindow, RateBucket
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.permits import STEPS
from delivery.rates import Limit, LimitKind
from tests.delivery.sending_hosts import World, most_in_any, three_hosts

pytestmark = pytest.mark.django_db

REPLY = Reply(Phase.MAIL, 451, "4.7.500 Server busy")
ME = 1  # a claim key


class InDatabase:
    """What the simulated hosts share, through the real functions and tables."""

    def __init__(self, all_limits: tuple[Limit, ...]) -> None:
        self.limits = all_limits

    def take(self, wanted: int, worker: int, now: datetime, asked: float, got: float) -> Grant:
        grant = limits.take(self.limits, wanted, worker, lambda: now)
        return Grant(grant.limits, grant.not_before, grant.retry_at, now, asked, got, grant.key)

    def settle(self, grant: Grant, answered: Sequence[float]) -> None:
        limits.settle(grant, answered)

    def worker_is_dead(self, worker: int, now: datetime) -> None:
        QuotaWindow.objects.filter(claim_key=worker).update(at=now, grant=None, claim_key=None)


def permits(grant: Grant) -> int:
    return len(grant.not_before)


def answer(grant: Grant) -> None:
    """Every letter of the grant is answered at once."""
    limits.settle(grant, [grant.asked] * permits(grant))


@pytest.mark.parametrize("kind", list(LimitKind))
def test_a_limit_is_never_exceeded_in_any_window_and_is_used(kind, now):
    limit = Limit(kind, 50, timedelta(minutes=5), "provider:x")
    world = World(InDatabase((limit,)), now, Random(1), three_hosts())
    world.run(timedelta(minutes=30))
    assert most_in_any(limit.window, world.arrivals) <= 50
    assert len(world.arrivals) >= 0.95 * 300


def test_dead_workers_break_no_limit(now):
    smooth = Limit(LimitKind.SMOOTH, 60, timedelta(minutes=1), "provider:x")
    cap = Limit(LimitKind.CAP, 50, timedelta(seconds=90), "tenant:contoso")
    world = World(InDatabase((smooth, cap)), now, Random(2), three_hosts(), deaths_per_grant=0.03)
    world.run(timedelta(minutes=10))
    assert most_in_any(smooth.window, world.arrivals) <= 60
    assert most_in_any(cap.window, world.arrivals) <= 50


def test_all_limits_hold_at_once_and_none_is_spent_in_vain(now):
    smooth = Limit(LimitKind.SMOOTH, 600, timedelta(minutes=1), "provider:x")
    cap = Limit(LimitKind.CAP, 7, timedelta(hours=1), "tenant:contoso")
    for second in range(7):
        grant = limits.take((smooth, cap), 5, ME, lambda: now + timedelta(seconds=second))  # noqa: B023
        assert permits(grant) == 1
        answer(grant)
    refused = limits.take((smooth, cap), 5, ME, lambda: now + timedelta(seconds=20))
    assert refused.not_before == ()
    step = cap.window / STEPS
    assert timedelta(hours=1) - step <= refused.retry_at - now <= timedelta(hours=1) + 2 * step
    # The smooth limit was not touched by the refusal: its next permit is free at once.
    alone = limits.take((smooth,), 1, ME, lambda: now + timedelta(seconds=20))
    assert alone.not_before == (now + timedelta(seconds=20),)


def test_two_providers_that_name_a_scope_share_its_limit(now):
    cap = Limit(LimitKind.CAP, 10, timedelta(days=1), "tenant:contoso")
    mine = Limit(LimitKind.SMOOTH, 600, timedelta(minutes=1), "provider:x")
    granted = [permits(limits.take((cap,), 1, ME, lambda: now)) for _ in range(8)]
    granted += [permits(limits.take((mine, cap), 1, ME, lambda: now)) for _ in range(8)]
    assert sum(granted) == 10


def test_the_log_of_a_cap_is_swept(now):
    cap = Limit(LimitKind.CAP, 5, timedelta(seconds=1), "x")
    for second in range(0, 100, 5):
        answer(limits.take((cap,), 1, ME, lambda: now + timedelta(seconds=second)))  # noqa: B023
    assert QuotaWindow.objects.count() <= 2


def test_a_limit_that_is_lowered_in_the_middle_of_a_day_still_counts_what_was_sent(now):
    def day(number):
        return (Limit(LimitKind.CAP, number, timedelta(days=1), "x"),)

    grant = limits.take(day(100), 10, ME, lambda: now)
    answer(grant)
    assert permits(grant) == 10
    assert permits(limits.take(day(10), 1, ME, lambda: now)) == 0
    assert permits(limits.take(day(20), 10, ME, lambda: now)) == 2


def test_a_permit_that_no_letter_used_is_free_again(now):
    cap = (Limit(LimitKind.CAP, 1, timedelta(days=1), "x"),)
    grant = limits.take(cap, 1, ME, lambda: now)
    assert permits(limits.take(cap, 1, ME, lambda: now)) == 0
    limits.settle(grant, [])
    assert permits(limits.take(cap, 1, ME, lambda: now)) == 1


def test_permits_of_a_worker_that_is_gone_count_from_the_end_of_its_lease(now):
    cap = (Limit(LimitKind.CAP, 1, timedelta(minutes=1), "x"),)
    leases.make_places("x", 2)
    lease = leases.take("x", 2, "dead:1", now, timedelta(seconds=60))
    grant = limits.take(cap, 1, lease.claim_key, lambda: now)
    later = now + timedelta(hours=2)
    assert limits.close_orphans(later) == 0
    assert permits(limits.take(cap, 1, ME, lambda: later)) == 0
    leases.give_back(lease)
    assert limits.close_orphans(later) == 1
    almost = later + limits.AFTERMATH + timedelta(seconds=59)
    assert permits(limits.take(cap, 1, ME, lambda: almost)) == 0
    # Should it not be dead after all, its answer changes nothing any more.
    limits.settle(grant, [grant.asked])
    assert QuotaWindow.objects.count() == 1
    again = almost + timedelta(seconds=2)
    assert permits(limits.take(cap, 1, ME, lambda: again)) == 1


def test_without_limits_everything_is_granted_at_once_and_nothing_is_written(now):
    grant = limits.take((), 3, ME, lambda: now)
    assert (grant.not_before, grant.retry_at) == ((now, now, now), None)
    limits.settle(grant, [monotonic()])
    assert not RateBucket.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_many_askers_at_once_get_no_more_than_there_is():
    cap = (Limit(LimitKind.CAP, 40, timedelta(hours=1), "x"),)

    def ask(number):
        try:
            return sum(permits(limits.take(cap, 3, number, database_now)) for _ in range(3))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(12) as pool:
        granted = list(pool.map(ask, range(1, 25)))
    assert sum(granted) == 40


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_an_asker_who_had_to_wait_reads_the_clock_after_its_turn_came():
    limit = (Limit(LimitKind.CAP, 10, timedelta(minutes=1), "x"),)
    answer(limits.take(limit, 1, ME, database_now))

    def ask():
        try:
            return limits.take(limit, 1, ME, database_now)
        finally:
            connections.close_all()

    def somebody_waits():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_locks WHERE NOT granted")
            return cursor.fetchone() is not None

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            list(RateBucket.objects.select_for_update())
            waiting = pool.submit(ask)
            while not somebody_waits():
                pass
            before = database_now()
        assert waiting.result().granted_at > before


def test_a_hosts_own_clock_does_not_matter(monkeypatch):
    clock = shared_clock()
    before = clock()
    # A step of this host's clock by an hour, while the process runs.
    monkeypatch.setattr("django.utils.timezone.now", lambda: before + timedelta(hours=1))
    assert clock() - before < timedelta(minutes=1)


def test_trouble_pauses_for_thirty_seconds_and_then_doubles(now):
    waits = []
    for _ in range(8):
        limits.pause("x", Unavailable(REPLY, rule="server too busy"), now)
        until = limits.closed_until(limits.state_of("x"), now)
        waits.append((until - now).total_seconds())
        now = until + timedelta(seconds=1)
    assert waits == [30, 60, 120, 240, 480, 900, 900, 900]


def test_one_burst_of_trouble_counts_once(now):
    for _ in range(5):
        limits.pause("x", Unavailable(REPLY), now)
    assert limits.state_of("x").failures == 1
    assert limits.state_of("x").paused_until == now + limits.FIRST_PAUSE


def test_a_pause_tells_why_verbatim_and_by_which_rule(now):
    limits.pause("x", Unavailable(REPLY, rule="server too busy"), now)
    state = limits.state_of("x")
    assert (state.because, state.rule) == ("451 4.7.500 Server busy", "server too busy")


def test_a_longer_pause_is_not_shortened(now):
    limits.pause("x", Unavailable(REPLY, retry_after=timedelta(hours=1)), now)
    limits.pause("x", Unavailable(REPLY, retry_after=timedelta(minutes=1)), now)
    assert limits.closed_until(limits.state_of("x"), now) == now + timedelta(hours=1)


def test_a_configuration_error_closes_until_a_person_opens(now):
    limits.pause("x", Unavailable(REPLY, needs_a_person=True), now)
    later = now + timedelta(days=400)
    assert limits.closed_until(limits.state_of("x"), later) > later
    assert limits.resume("x", later)
    assert limits.closed_until(limits.state_of("x"), later) is None
    assert not limits.resume("x", later)


def test_an_accepted_letter_ends_the_doubling(now):
    limits.pause("x", Unavailable(REPLY), now)
    limits.works_again(limits.state_of("x"))
    assert ProviderState.objects.get(alias="x").failures == 0
