"""The arithmetic of limits, over simulated days, hosts whose clocks differ, and slow servers."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.permits import HORIZON, STEPS, Usage, next_at, plan, step_end
from delivery.rates import Limit, LimitKind, parse_rate
from tests.delivery.sending_hosts import InMemory, World, most_in_any, three_hosts

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
TWO_DAYS = timedelta(days=2)


def limit_of(rate: str, kind: LimitKind = LimitKind.CAP, scope: str = "provider:x") -> Limit:
    return Limit(kind, *parse_rate(rate), scope)


@pytest.mark.parametrize(
    ("rate", "kind"),
    [
        ("30/minute", LimitKind.SMOOTH),
        ("50/5 minutes", LimitKind.CAP),
        ("10000/day", LimitKind.CAP),
        pytest.param("30/minute", LimitKind.CAP, marks=pytest.mark.slow),
        pytest.param("50/5 minutes", LimitKind.SMOOTH, marks=pytest.mark.slow),
        pytest.param("10000/day", LimitKind.SMOOTH, marks=pytest.mark.slow),
    ],
)
def test_three_hosts_keep_a_limit_for_two_days_and_use_it(rate, kind):
    limit = limit_of(rate, kind)
    world = World(InMemory((limit,)), NOW, Random(1), three_hosts())
    world.run(TWO_DAYS)
    possible = limit.permits * (TWO_DAYS / limit.window)
    assert most_in_any(limit.window, world.arrivals) <= limit.permits
    assert len(world.arrivals) >= 0.95 * possible


@pytest.mark.parametrize("kind", list(LimitKind))
def test_fifty_in_ten_seconds_is_kept_and_used_for_an_hour(kind):
    limit = limit_of("50/10 seconds", kind)
    world = World(InMemory((limit,)), NOW, Random(2), three_hosts(), slow_answer=1.0)
    world.run(timedelta(hours=1))
    assert most_in_any(limit.window, world.arrivals) <= 50
    assert len(world.arrivals) >= 0.95 * 50 * 360


@pytest.mark.parametrize("kind", list(LimitKind))
@pytest.mark.parametrize("seed", range(2))
def test_a_server_that_takes_seconds_for_a_letter_makes_it_slower_and_never_wrong(kind, seed):
    limit = limit_of("14/second", kind)
    world = World(
        InMemory((limit,)), NOW, Random(seed), three_hosts() * 5, usual_answer=0.8, slow_answer=20
    )
    world.run(timedelta(minutes=10))
    assert most_in_any(limit.window, world.arrivals) <= 14
    assert len(world.arrivals) > 500


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_die_with_permits_in_their_hands_break_no_limit(seed):
    limits = (limit_of("50/10 seconds"), limit_of("200/minute", LimitKind.SMOOTH))
    world = World(InMemory(limits), NOW, Random(seed), three_hosts() * 2, deaths_per_grant=0.02)
    world.run(timedelta(minutes=20))
    for limit in limits:
        assert most_in_any(limit.window, world.arrivals) <= limit.permits
    assert len(world.arrivals) > 500


def test_several_limits_hold_at_once_and_the_strictest_decides():
    limits = (
        limit_of("30/minute", LimitKind.SMOOTH),
        limit_of("50/5 minutes"),
        limit_of("400/hour", scope="tenant:contoso"),
    )
    world = World(InMemory(limits), NOW, Random(3), three_hosts())
    world.run(timedelta(hours=12))
    for limit in limits:
        assert most_in_any(limit.window, world.arrivals) <= limit.permits
    assert len(world.arrivals) >= 0.95 * 400 * 12


@settings(max_examples=30, deadline=None)
@given(
    permits=st.integers(1, 40),
    seconds=st.sampled_from([1, 7, 60, 300]),
    kind=st.sampled_from(list(LimitKind)),
    answer=st.floats(0.001, 5),
    seed=st.integers(0, 10_000),
    deaths=st.sampled_from([0, 0.05]),
)
def test_no_limit_is_ever_exceeded(permits, seconds, kind, answer, seed, deaths):
    limit = Limit(kind, permits, timedelta(seconds=seconds), "x")
    world = World(
        InMemory((limit,)),
        NOW,
        Random(seed),
        three_hosts(),
        usual_answer=answer,
        deaths_per_grant=deaths,
    )
    world.run(timedelta(seconds=min(20 * seconds, 600)))
    assert most_in_any(limit.window, world.arrivals) <= permits


def test_smooth_permits_are_evenly_spaced_however_many_ask():
    limit = limit_of("30/minute", LimitKind.SMOOTH)
    shared = InMemory((limit,))
    moments = []
    for tenth in range(585):
        now = NOW + timedelta(seconds=tenth / 10)
        grant = shared.take(5, tenth % 3, now, 0, 0)
        moments += grant.not_before
        shared.settle(grant, [0.0] * len(grant.not_before))
    assert moments == [NOW + timedelta(seconds=2 * n) for n in range(30)]


def test_an_asker_who_comes_late_catches_up_with_half_a_second_and_no_more():
    limit = limit_of("50/10 seconds", LimitKind.SMOOTH)
    usage = Usage(next_at=NOW - timedelta(seconds=0.3))
    planned = plan({limit: usage}, 10, NOW)
    assert [(moment - NOW).total_seconds() for moment in planned.not_before] == [
        0,
        0,
        0.1,
        0.3,
        0.5,
    ]
    usage = Usage(next_at=NOW - timedelta(hours=5))
    planned = plan({limit: usage}, 10, NOW)
    assert planned.not_before.count(NOW) == 3
    assert next_at(limit, usage, planned.not_before, NOW) == NOW + HORIZON


def test_after_a_silence_a_slow_limit_begins_with_one_letter():
    limit = limit_of("30/minute", LimitKind.SMOOTH)
    usage = Usage(next_at=NOW - timedelta(hours=5))
    planned = plan({limit: usage}, 10, NOW)
    assert planned.not_before == (NOW,)
    assert next_at(limit, usage, planned.not_before, NOW) == NOW + timedelta(seconds=1.5)


def test_a_letter_that_is_still_on_its_way_counts_however_long_it_takes():
    limit = limit_of("5/minute")
    assert plan({limit: Usage(open=5)}, 1, NOW + timedelta(hours=3)).not_before == ()
    assert len(plan({limit: Usage(open=4)}, 1, NOW).not_before) == 1


def test_a_permit_leaves_just_after_the_oldest_answer_left_the_window():
    limit = limit_of("5/minute")
    answered_at = NOW - timedelta(seconds=59, milliseconds=700)
    planned = plan({limit: Usage([(answered_at, 1)], open=4)}, 1, NOW)
    (moment,) = planned.not_before
    assert moment - answered_at == timedelta(minutes=1, microseconds=1)


def test_one_asker_gets_a_tenth_of_a_cap_at_most():
    assert len(plan({limit_of("50/5 minutes"): Usage()}, 100, NOW).not_before) == 5
    assert len(plan({limit_of("10000/day"): Usage()}, 100, NOW).not_before) == 100
    assert len(plan({limit_of("20/second"): Usage()}, 100, NOW).not_before) == 10


def test_a_step_of_the_log_never_ends_before_the_moment_in_it():
    limit, dice = limit_of("10000/day"), Random(4)
    for _ in range(1000):
        moment = NOW + timedelta(seconds=dice.uniform(0, 200_000))
        end = step_end(limit, moment)
        assert timedelta(0) <= end - moment < limit.window / STEPS
        assert step_end(limit, end) == end


def test_the_log_of_a_day_stays_small():
    limit = limit_of("10000/day")
    shared = InMemory((limit,))
    World(shared, NOW, Random(5), three_hosts(), wanted=3).run(timedelta(days=2))
    assert len(shared.answered[limit]) <= STEPS + 1
