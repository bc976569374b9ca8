"""When a campaign will be done, and which limit decides: before it starts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from delivery.conf import delivery_settings
from delivery.forecast import Gauge, forecast, forecast_of, gauge
from delivery.models import QuotaWindow
from delivery.rates import Limit, LimitKind, in_words

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
PACE = Limit(LimitKind.SMOOTH, 28, MINUTE, "mailbox:a")
CAP = Limit(LimitKind.CAP, 10_000, DAY, "mailbox:a")
TENANT = Limit(LimitKind.CAP, 12_000, DAY, "tenant:t")


def ends(letters: int, now, *gauges: Gauge):
    gauges = gauges or (Gauge(PACE, 0), Gauge(CAP, 0))
    found = forecast(
        {one.limit: one for one in gauges}, {one.limit: letters for one in gauges}, now
    )
    return found.ends_at - now, found.limit


def test_a_small_list_is_a_matter_of_the_pace(now):
    assert ends(2_800, now) == (timedelta(minutes=100), PACE)


def test_fifty_thousand_through_one_mailbox_take_five_days_because_of_the_cap(now):
    took, limit = ends(50_000, now)
    assert limit == CAP
    # Four whole days are waited for, and the last 10,000 leave in six hours.
    assert timedelta(days=4, hours=5.9) < took < timedelta(days=4, hours=6)


def test_what_is_spent_already_is_not_there_again_before_its_time(now):
    spent = Gauge(CAP, 9_000, now + timedelta(hours=5))
    took, limit = ends(1_500, now, Gauge(PACE, 0), spent)
    assert limit == CAP
    assert timedelta(hours=5) < took < timedelta(hours=5.5)


def test_the_limit_that_ends_last_decides(now):
    took, limit = ends(13_000, now, Gauge(PACE, 0), Gauge(CAP, 0), Gauge(TENANT, 11_999))
    assert limit == TENANT
    assert took > timedelta(days=2)


def test_without_limits_nothing_is_said(now):
    assert forecast({}, {}, now).limit is None


@pytest.mark.django_db
def test_a_pool_shares_the_letters_and_what_its_members_have_in_common(settings, now):
    def mailbox(name: str) -> dict:
        backend = "delivery.providers.memory.MemoryProvider"
        own = {"cap": "100/day", "scope": f"mailbox:{name}"}
        return {"BACKEND": backend, "LIMITS": [own, {"cap": "150/day", "scope": "tenant:t"}]}

    providers = {"default": mailbox("a"), "b": mailbox("b")}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": providers}
    members = ("default", "b")
    assert forecast_of(delivery_settings(), members, 150, now).ends_at == now
    later = forecast_of(delivery_settings(), members, 151, now)
    assert later.limit is not None
    assert later.limit.scope == "tenant:t"
    assert later.ends_at == now + DAY


@pytest.mark.django_db
def test_a_gauge_says_what_is_spent_and_when_it_comes_back(now):
    QuotaWindow.objects.create(key=CAP.key, at=now - timedelta(hours=20), permits=6_120)
    found = gauge(CAP, now)
    assert (found.used, found.room) == (6_120, 3_880)
    assert found.free_at == now + timedelta(hours=4)
    assert gauge(TENANT, now).free_at is None


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (CAP, "10,000 a day"),
        (PACE, "28 a minute"),
        (Limit(LimitKind.SMOOTH, 50, 5 * MINUTE, "x"), "50 in 5 minutes"),
    ],
)
def test_a_limit_in_words(limit, words):
    assert in_words(limit) == words
