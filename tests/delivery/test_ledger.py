"""What of a wave's outcomes closes the provider."""

from datetime import timedelta

import pytest

from delivery.ledger import Ledger, Result
from delivery.outcomes import Accepted, Phase, Reply, Unavailable, Unconfirmed

REPLY = Reply(Phase.HTTP, None, "")
SOON = Unavailable(REPLY, timedelta(seconds=1), rule="soon")
LATE = Unavailable(REPLY, timedelta(minutes=35), rule="late")
DEFAULT = Unavailable(REPLY, rule="default")
NOT_AT_ALL = Unavailable(REPLY, timedelta(0), rule="lease lost")
PERSON = Unavailable(REPLY, needs_a_person=True, rule="person")
RESTS = Unconfirmed(REPLY, "rests", rests=True)
GOES_ON = Unconfirmed(REPLY, "goes on")


@pytest.mark.parametrize(
    ("outcomes", "rule"),
    [
        ([SOON, LATE, SOON], "late"),
        ([LATE, PERSON], "person"),
        ([NOT_AT_ALL, DEFAULT], "default"),
        ([SOON, DEFAULT], "default"),
        ([RESTS, Accepted(REPLY)], "rests"),
        ([RESTS, LATE], "late"),
    ],
)
def test_the_gravest_trouble_of_a_wave_counts(outcomes, rule):
    results = [Result(number, outcome) for number, outcome in enumerate(outcomes)]
    assert Ledger.trouble(results).rule == rule


def test_a_doubt_about_one_letter_alone_closes_nothing():
    assert Ledger.trouble([Result(1, GOES_ON), Result(2, Accepted(REPLY))]) is None
