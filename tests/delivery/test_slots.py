"""Connections over all hosts: never more than allowed, and fewer when the provider asks for it."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connections as databases

from delivery import leases, slots
from delivery.models import ConnectionPool, ConnectionSlot
from delivery.outcomes import Accepted, Deferred, Phase, Reply, Throttle, Unavailable
from delivery.rates import Connections
from delivery.slots import Cut, Held

pytestmark = pytest.mark.django_db

FOUR = Connections(4, "provider:x")
STRETCH = timedelta(seconds=31)
A, B = 1, 2  # claim keys


@pytest.fixture
def four(db) -> Connections:
    slots.make(FOUR)
    return FOUR


def test_no_more_are_held_than_the_setting_says(four):
    assert slots.hold(four, A, 3) == Held(3)
    assert slots.hold(four, B, 3) == Held(1)
    assert slots.hold(four, 3, 1) == Held(0)
    # Asking again takes no second row for the same connection.
    assert slots.hold(four, A, 3) == Held(3)


@pytest.mark.django_db(transaction=True)
def test_thirty_askers_at_once_get_four_connections():
    slots.make(FOUR)

    def ask(key):
        try:
            return slots.hold(FOUR, key, 2).allowed
        finally:
            databases.close_all()

    with ThreadPoolExecutor(30) as pool:
        assert sum(pool.map(ask, range(1, 31))) == 4


def test_what_was_given_back_is_free_for_others(four):
    slots.hold(four, A, 4)
    slots.keep(four, A, 1)
    assert slots.hold(four, B, 4) == Held(3)
    slots.give_back(B)
    assert slots.hold(four, A, 4) == Held(4)


def test_what_a_dead_worker_held_is_free_with_the_end_of_its_lease(four, now):
    leases.make_places("x", 1)
    lease = leases.take("x", 1, "dead:1", now, timedelta(seconds=60))
    slots.hold(four, lease.claim_key, 4)
    assert slots.free_orphans() == 0
    assert slots.hold(four, B, 1) == Held(0)
    leases.give_back(lease)
    assert slots.free_orphans() == 4
    assert slots.hold(four, B, 4) == Held(4)


def test_a_smaller_setting_is_kept_at_once(four):
    slots.hold(four, A, 4)
    two = Connections(2, four.scope)
    assert slots.hold(two, A, 4) == Held(2, surplus=2)
    assert slots.hold(two, B, 1) == Held(0)
    slots.keep(two, A, 2)
    assert ConnectionSlot.objects.filter(claim_key=A).count() == 2


def test_providers_that_name_a_scope_share_its_connections():
    one = Connections(3, "tenant:contoso")
    slots.make(one)
    assert slots.hold(one, A, 2) == Held(2)
    assert slots.hold(Connections(3, "tenant:contoso"), B, 2) == Held(1)


def test_trouble_halves_the_connections_once_for_a_burst(four, now):
    slots.hold(four, A, 4)
    assert slots.fewer(four, now) is Cut.MADE
    for second in range(1, 30):
        assert slots.fewer(four, now + timedelta(seconds=second)) is Cut.MADE_BEFORE
    assert slots.hold(four, A, 4) == Held(2, surplus=2)
    # The two above are open until they are closed: nobody gets them meanwhile.
    assert slots.hold(four, B, 4) == Held(0)


def test_19_the_three_of_a_mailbox_become_two_and_then_one(now):
    three = slots.Connections(3, "smtp:news@example.org")
    slots.make(three)
    for minute, left in ((0, 2), (1, 1), (2, 1)):
        slots.fewer(three, now + timedelta(minutes=minute))
        assert slots.limit_of(three) == left


def test_a_clean_stretch_gives_back_one_connection_at_a_time(four, now):
    slots.fewer(four, now)
    assert slots.limit_of(four) == 2
    slots.went_well(four, 100, now + timedelta(seconds=29))
    assert slots.limit_of(four) == 2
    slots.went_well(four, 1, now + STRETCH)
    assert slots.limit_of(four) == 3
    # The next one needs as many letters as connections, and its own thirty seconds.
    slots.went_well(four, 2, now + 2 * STRETCH)
    assert slots.limit_of(four) == 3
    slots.went_well(four, 1, now + 2 * STRETCH)
    assert slots.limit_of(four) == 4
    assert ConnectionPool.objects.get(scope=four.scope).reduced_to is None


def test_trouble_with_one_connection_twice_in_a_row_asks_for_silence(four, now):
    answers = [slots.fewer(four, now + n * STRETCH) for n in range(6)]
    # 4 -> 2 -> 1, then twice in vain.
    assert answers == [Cut.MADE, Cut.MADE, Cut.MADE, Cut.IN_VAIN, Cut.MADE, Cut.IN_VAIN]
    assert slots.limit_of(four) == 1


def test_success_between_two_troubles_with_one_connection_needs_no_silence(four, now):
    for n in range(3):
        slots.fewer(four, now + n * STRETCH)
    slots.went_well(four, 1, now + 3 * STRETCH)
    assert slots.fewer(four, now + 4 * STRETCH) is Cut.MADE


def refusal(code, text, phase=Phase.MAIL, **more):
    return Unavailable(Reply(phase, code, text), **more)


@pytest.mark.parametrize(
    ("outcome", "less"),
    [
        (refusal(421, "4.3.2 Service not available"), True),
        (refusal(432, "4.3.2 Concurrent connections limit exceeded"), True),
        (refusal(451, "4.7.500 Server busy"), True),
        (refusal(429, "Too Many Requests", Phase.HTTP), True),
        (refusal(None, "Connection lost: timed out"), True),
        (refusal(450, "4.3.0 Try again", throttle=Throttle.SLOW), True),
        (refusal(421, "4.7.0 messages per connection", retry_after=timedelta(seconds=3)), False),
        (refusal(452, "4.3.1 Insufficient system storage"), False),
        (refusal(535, "5.7.8 Bad credentials", Phase.AUTH, needs_a_person=True), False),
        (refusal(None, "The permit had run out", Phase.LOCAL), False),
        (Deferred(Reply(Phase.RCPT, 421, "4.7.0 the reader's own trouble")), False),
        (Accepted(Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok")), False),
    ],
)
def test_which_answers_ask_for_fewer_connections(outcome, less):
    assert slots.asks_for_less(outcome) is less
