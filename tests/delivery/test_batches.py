"""What a claim brings: messages composed a few at a time, each letter's own."""

import asyncio
from collections.abc import Callable

import pytest

from delivery import batches, limits
from delivery.batches import Batch
from delivery.bridge import Bridge
from tests.delivery.conftest import coordinate, make_unfilled, make_worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the letters that are composed, in order."""
    addresses: list[str] = []
    real = batches.compose

    def compose(claims, letters, now):
        for claimed, message in zip(claims, real(claims, letters, now), strict=True):
            addresses.append(claimed.rcpt_to)
            yield message

    monkeypatch.setattr(batches, "compose", compose)
    return addresses


@pytest.fixture
def claim(mailing_list, clock, settings) -> Callable[[list[dict[str, str]]], Batch]:
    """Claims all of 30 letters under these limits."""

    def claimed(limits: list[dict[str, str]]) -> Batch:
        providers = {"default": settings.DELIVERY["PROVIDERS"]["default"] | {"LIMITS": limits}}
        settings.DELIVERY = settings.DELIVERY | {"CYCLE_BATCH_SIZE": 30, "PROVIDERS": providers}
        make_unfilled(mailing_list, clock(), readers=30)
        coordinate(clock)
        worker = make_worker(clock)
        assert worker.place.take()
        batch = worker.batches.claim()
        assert len(batch.claims) == 30
        return batch

    return claimed


def test_the_next_few_letters_are_composed_with_one(claim, composed, clock):
    batch = claim([])
    addresses = [claimed.rcpt_to for claimed in batch.claims]
    messages = [batch.message(0, clock)]
    assert composed == addresses[:20]
    messages += [batch.message(place, clock) for place in range(1, 20)]
    assert composed == addresses[:20]
    messages += [batch.message(place, clock) for place in range(20, 30)]
    assert composed == addresses
    assert [message.envelope.rcpt_to for message in messages] == addresses


def test_large_letters_are_composed_in_smaller_numbers(claim, composed, clock, monkeypatch):
    batch = claim([])
    size = len(batch.message(29, clock).content)
    composed.clear()
    monkeypatch.setattr(batches, "OCTETS_TOGETHER", 2 * size + size // 2)
    batch.message(0, clock)
    assert len(composed) == 3


def test_under_limits_each_letter_is_composed_when_it_leaves(claim, composed, clock):
    batch = claim([{"cap": "1000/day"}])
    batch.message(0, clock)
    assert len(composed) == 1


def test_a_number_that_fits_in_no_token_stops_its_own_letter_only(claim, clock):
    batch = claim([])
    batch.claims[1] = batch.claims[1]._replace(subscriber_id=2**40)
    messages = [batch.message(place, clock) for place in range(3)]
    assert messages[1].reply.text == "The letter could not be written: OverflowError"
    for place in (0, 2):
        assert messages[place].envelope.rcpt_to == batch.claims[place].rcpt_to


def test_a_letter_that_is_passed_over_is_in_nobodys_way(claim, composed, clock):
    """A paused campaign's letters stay behind between those of others."""
    batch = claim([])
    addresses = [claimed.rcpt_to for claimed in batch.claims]
    for place in (0, 3, 25):
        assert batch.message(place, clock).envelope.rcpt_to == addresses[place]


# ---------------------------------------------------------------- claims without the thread


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("workers", "sizes"),
    [
        (1, [20, 20, 20, 20, 20, 0]),
        (2, [20, 20, 15, 12, 9, 6, 5, 4, 3, 3, 3, 0]),
    ],
)
def test_claims_grow_smaller_towards_the_end_of_the_queue(
    mailing_list, clock, settings, workers, sizes
):
    """Whoever takes the last letters leaves some to the others."""
    own = {"WORKERS": workers, "CYCLE_BATCH_SIZE": 20, "SEND_BATCH_SIZE": 3}
    settings.DELIVERY = settings.DELIVERY | own
    make_unfilled(mailing_list, clock(), readers=100)
    coordinate(clock)
    limits.state_of("default")
    worker = make_worker(clock)
    assert worker.place.take()

    async def claims() -> list[int]:
        async with Bridge() as bridge:
            return [len((await worker.batches.next(bridge)).claims) for _ in sizes]

    assert asyncio.run(claims()) == sizes
