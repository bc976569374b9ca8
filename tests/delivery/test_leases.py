"""Places in the pool of workers."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connections

from delivery import leases
from delivery.models import WorkerLease

LENGTH = timedelta(seconds=60)


@pytest.mark.django_db
def test_the_pool_is_never_larger_than_the_setting(now):
    leases.make_places("x", 2)
    held = [leases.take("x", 2, "host:1", now, LENGTH) for _ in range(3)]
    assert [lease is not None for lease in held] == [True, True, False]
    assert held[0].slot != held[1].slot
    assert held[0].claim_key != held[1].claim_key
    assert leases.free_places("x", 2) == 0


@pytest.mark.django_db(transaction=True)
def test_thirty_askers_at_once_get_five_places(now):
    leases.make_places("x", 5)

    def ask(number):
        try:
            return leases.take("x", 5, f"host:{number}", now, LENGTH)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(30) as pool:
        held = [lease for lease in pool.map(ask, range(30)) if lease]
    assert len(held) == 5
    assert len({lease.slot for lease in held}) == 5


@pytest.mark.django_db
def test_a_place_is_free_again_after_it_was_given_back(now):
    leases.make_places("x", 1)
    lease = leases.take("x", 1, "host:1", now, LENGTH)
    leases.give_back(lease)
    assert leases.take("x", 1, "host:2", now, LENGTH) is not None
    assert not leases.renew(lease, now, LENGTH)


@pytest.mark.django_db
def test_a_place_whose_time_ran_out_is_not_free_before_it_is_reclaimed(now):
    leases.make_places("x", 1)
    lease = leases.take("x", 1, "host:1", now, LENGTH)
    later = now + LENGTH + timedelta(seconds=1)
    assert leases.held() == [(lease, now + LENGTH)]
    assert leases.take("x", 1, "host:2", later, LENGTH) is None


@pytest.mark.django_db
def test_a_smaller_pool_loses_its_free_places(now):
    leases.make_places("x", 5)
    leases.make_places("x", 2)
    assert WorkerLease.objects.count() == 2
