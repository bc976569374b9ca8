from datetime import timedelta

import pytest

from delivery.rates import Limit, LimitKind, parse_rate


@pytest.mark.parametrize(
    ("text", "permits", "window"),
    [
        ("30/minute", 30, timedelta(minutes=1)),
        ("50/5 minutes", 50, timedelta(minutes=5)),
        ("14 / second", 14, timedelta(seconds=1)),
        ("10000/day", 10_000, timedelta(days=1)),
        ("7/2 Hours", 7, timedelta(hours=2)),
    ],
)
def test_a_rate_is_read_as_people_write_it(text, permits, window):
    assert parse_rate(text) == (permits, window)


@pytest.mark.parametrize("text", ["", "30", "0/minute", "5/0 minutes", "-3/day", "30/fortnight"])
def test_a_wrong_rate_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="30/minute"):
        parse_rate(text)


def test_a_changed_number_keeps_the_log_of_what_was_sent():
    old = Limit(LimitKind.CAP, 50, timedelta(minutes=5), "tenant:contoso")
    new = Limit(LimitKind.CAP, 60, timedelta(minutes=5), "tenant:contoso")
    other = Limit(LimitKind.CAP, 50, timedelta(minutes=4), "tenant:contoso")
    assert old.key == new.key != other.key
