"""What may happen to a worker between a letter's note and its outcome. Whatever it is, the letter
is neither lost nor doubled, and no letter leaves without its note."""

import asyncio
import contextlib
import fcntl
import threading
from collections import Counter
from datetime import timedelta
from random import Random

import pytest
from django.db import InternalError, OperationalError, connections

from delivery import claiming, leases, queue, worker
from delivery.audit import audit_campaign
from delivery.composing import _letter, letter_of
from delivery.models import Delivery, WorkerLease
from delivery.outcomes import Accepted, Deferred, Phase, Rejected, Reply, Unavailable, Unconfirmed
from delivery.providers.memory import MemoryProvider
from delivery.recorder import FlightRecorder, is_being_written, read_recording
from delivery.worker import Worker
from tests.delivery.conftest import (
    coordinate,
    delivery_to,
    hand_over,
    interfere,
    make_campaign,
    make_readers,
    make_worker,
    run_slice,
    statuses,
)

pytestmark = pytest.mark.django_db(transaction=True)

TAKEN = Accepted(Reply(Phase.LOCAL, 250, "kept"))
AWAY = OperationalError("server closed the connection unexpectedly")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(worker, "DATABASE_PAUSE", timedelta(0))
    monkeypatch.setattr(worker, "LONGEST_UNWRITTEN", 0.02)


def in_a_thread(unit, *arguments):
    """The event loop may not touch the ORM, and whoever does it is somebody else anyway."""

    def run():
        try:
            unit(*arguments)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def recorded_worker(clock, recorders, provider=None) -> Worker:
    made = make_worker(clock, provider)
    made.recorders = recorders
    return made


def addresses(letters):
    return [letter.envelope.rcpt_to for letter in letters]


# ------------------------------------------------------------------------- the database is away


@pytest.mark.parametrize("reached_the_disk", [True, False])
def test_a_commit_that_broke_is_made_again_and_its_wave_goes_back_unsent(
    campaign, clock, monkeypatch, reached_the_disk
):
    calls = Counter()

    def break_every_third(is_done):
        calls["begun"] += not is_done
        if calls["begun"] % 3 == 0 and is_done is reached_the_disk:
            raise AWAY

    interfere(
        monkeypatch, "commit", lambda: break_every_third(False), lambda: break_every_third(True)
    )
    for _ in range(6):
        run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert len(set(addresses(MemoryProvider.outbox))) == len(MemoryProvider.outbox) == 12


def test_outcomes_are_kept_while_even_giving_back_fails(campaign, alone, clock, monkeypatch):
    failures = [AWAY, InternalError("cannot execute UPDATE in a read-only transaction")]
    real = queue.release

    def fail_first(*arguments):
        if failures:
            raise failures.pop()
        return real(*arguments)

    def pause_at_the_third(message):
        if len(MemoryProvider.outbox) == 2:
            in_a_thread(campaign.pause)
        return TAKEN

    monkeypatch.setattr(queue, "release", fail_first)
    MemoryProvider.answer = pause_at_the_third
    run_slice(clock)
    assert not failures
    assert statuses(campaign) == {"sent": 5, "queued": 7}
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def test_a_place_that_cannot_be_given_back_is_reclaimed_at_once_with_all_that_was_known(
    campaign, clock, monkeypatch, tmp_path
):
    def fail(*arguments):
        raise AWAY

    def lose_the_database(message):
        if len(MemoryProvider.outbox) == 3:
            interfere(monkeypatch, "commit", fail)
            monkeypatch.setattr(queue, "release", fail)
            clock.advance(minutes=11)
        return TAKEN

    MemoryProvider.answer = lose_the_database
    monkeypatch.setattr(worker, "DATABASE_PATIENCE", timedelta(0))
    made = recorded_worker(clock, tmp_path)
    with pytest.raises(OperationalError):
        asyncio.run(made.run_slice())
    # Nobody writes it any more, though the process and all that it knows are still there.
    assert is_being_written(made.recorder.path) is False
    monkeypatch.undo()
    MemoryProvider.answer = None
    coordinate(clock, tmp_path)
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()
    # The fifth was noted, and stayed: the lease had run out meanwhile.
    assert statuses(campaign) == {"sent": 4, "queued": 8}
    assert len(MemoryProvider.outbox) == 4
    assert not list(tmp_path.iterdir())


def test_answers_that_came_while_a_slice_failed_are_written_before_it_ends(
    mailing_list, clock, monkeypatch
):
    make_readers(mailing_list, 30)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    claims = []

    def a_bug_in_the_second_claim():
        claims.append(1)
        if len(claims) == 2:
            raise ValueError("a bug")

    interfere(monkeypatch, "claim", a_bug_in_the_second_claim)
    with pytest.raises(ValueError, match="a bug"):
        run_slice(clock)
    assert set(statuses(campaign)) == {"sent", "queued"}
    assert statuses(campaign)["sent"] == len(MemoryProvider.outbox)
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


# --------------------------------------------------------------------------- the provider


def test_a_provider_that_answers_nonsense_leaves_its_letter_unconfirmed_and_the_rest_goes_on(
    campaign, clock, tmp_path
):
    answers = {"reader1@example.org": None, "reader2@example.org": asyncio.CancelledError()}

    class Odd(MemoryProvider):
        async def send(self, message):
            answer = answers.get(message.envelope.rcpt_to, TAKEN)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    asyncio.run(recorded_worker(clock, tmp_path, Odd()).run_slice())
    assert statuses(campaign) == {"sent": 10, "unconfirmed": 2}


def test_a_reply_that_no_database_takes_is_cleaned_and_written(campaign, clock):
    odd = Reply(Phase.HTTP, 250, "kept\x00\udcff")
    MemoryProvider.answer = lambda message: Accepted(odd)
    run_slice(clock)
    assert statuses(campaign) == {"sent": 12}
    assert delivery_to("reader1@example.org").reply == "kept  "


def test_a_provider_that_cannot_close_keeps_no_place(campaign, clock):
    class Stuck(MemoryProvider):
        async def close(self):
            raise RuntimeError("a bug in a provider")

    run_slice(clock, Stuck())
    assert statuses(campaign) == {"sent": 12}
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def test_after_trouble_no_noted_letter_leaves_and_none_of_them_was_tried(campaign, clock):
    asked = []

    def refuse(message):
        asked.append(message)
        return Unavailable(Reply(Phase.AUTH, 535, "5.7.8 Credentials invalid"), needs_a_person=True)

    MemoryProvider.answer = refuse
    run_slice(clock, MemoryProvider(concurrency=1))
    assert len(asked) == 1
    assert statuses(campaign) == {"queued": 12}
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()


def test_an_edition_that_cannot_be_compiled_stops_no_other_campaign(
    campaign, mailing_list, clock, monkeypatch
):
    other = make_campaign(mailing_list, clock(), name="June")
    coordinate(clock)
    real = letter_of

    def odd(edition):
        if edition.campaign_id == campaign.pk:
            raise RecursionError("a template of a thousand levels")
        return real(edition)

    monkeypatch.setattr("delivery.composing.letter_of", odd)
    _letter.cache_clear()
    run_slice(clock)
    _letter.cache_clear()
    assert statuses(other) == {"sent": 12}
    unwritable = Delivery.objects.filter(campaign=campaign, status="rejected")
    assert "could not be written" in unwritable[0].reply


# ----------------------------------------------------------------------------------- the place


def test_letters_in_the_hands_of_nobody_go_back_or_into_doubt(campaign, clock, tmp_path):
    leases.make_places("default", 3)
    frozen = leases.take("default", 3, "host:1", clock(), timedelta(seconds=60))
    leases.give_back(frozen)  # another host took it for dead
    claims = claiming.claim(frozen, [campaign.pk], 5, clock())
    hand_over(frozen, [claims[0].id], clock())
    coordinate(clock, tmp_path)
    assert statuses(campaign) == {"queued": 11, "unconfirmed": 1}
    assert audit_campaign(campaign.pk).imbalances == []


def test_what_one_dead_worker_left_keeps_the_coordinator_from_nothing_else(
    campaign, clock, monkeypatch
):
    leases.make_places("default", 3)
    for number in range(2):
        lease = leases.take("default", 3, f"host:{number}", clock(), timedelta(seconds=60))
        claiming.claim(lease, [campaign.pk], 5, clock())
    real = queue.release

    def fail_for_the_first(lease):
        if lease.holder == "host:0":
            raise ValueError("a row that nobody can write")
        return real(lease)

    monkeypatch.setattr(queue, "release", fail_for_the_first)
    clock.advance(seconds=61)
    coordinate(clock)
    assert statuses(campaign) == {"queued": 7, "claimed": 5}


def test_a_recording_has_no_name_before_it_is_locked(tmp_path, monkeypatch):
    path = tmp_path / "7.rec"
    found, real = [], fcntl.flock

    def look(file, how):
        found.append(is_being_written(path) if how & fcntl.LOCK_EX else None)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", look)
    recorder = FlightRecorder(path, 7, letters=1)
    assert found == [None]
    recorder.close(remove=True)


def test_two_who_look_at_once_do_not_take_each_other_for_the_worker(tmp_path):
    path = tmp_path / "7.rec"
    FlightRecorder(path, 7, letters=1).close(remove=False)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert is_being_written(path) is False


def test_a_recording_that_a_disk_has_spoilt_is_none(tmp_path):
    path = tmp_path / "7.rec"
    recorder = FlightRecorder(path, 7, letters=1)
    recorder.answered(3, TAKEN)
    recorder.close(remove=False)
    content = bytearray(path.read_bytes())
    content[-477:-467] = b"\xee" * 10
    path.write_bytes(content)
    assert read_recording(path) is None


# ----------------------------------------------------------------------------- all of it at once


class Moody(MemoryProvider):
    """Answers late, in any order, and everything that can be answered."""

    def __init__(self, dice, happens):
        super().__init__(concurrency=4)
        self.dice, self.happens = dice, happens
        self.taken: Counter[int] = Counter()
        self.doubtful: set[int] = set()
        self.without_note: list[int] = []

    async def send(self, message):
        dice, number = self.dice, message.reference
        in_a_thread(self.look, number)
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
        self.happens()
        roll = dice.random()
        if roll < 0.03:
            self.doubtful.add(number)
            self.taken[number] += dice.random() < 0.5
            raise RuntimeError("a bug in a provider")
        if roll < 0.06:
            self.doubtful.add(number)
            self.taken[number] += dice.random() < 0.5
            return Unconfirmed(Reply(Phase.FINAL_DOT, None, "lost"), rests=dice.random() < 0.5)
        if roll < 0.10:
            return Unavailable(Reply(Phase.MAIL, 421, "4.3.2 Busy"), timedelta(seconds=6))
        if roll < 0.14:
            return Deferred(Reply(Phase.RCPT, 450, "4.2.0 Greylisted"))
        if roll < 0.16:
            return Rejected(Reply(Phase.RCPT, 550, "5.7.1 Not wanted"))
        self.taken[number] += 1
        return TAKEN

    def look(self, number):
        if Delivery.objects.get(pk=number).status not in {"sending", "unconfirmed"}:
            self.without_note.append(number)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_in_any_order_of_events_nothing_is_lost_or_doubled_or_sent_without_a_note(
    mailing_list, clock, settings, monkeypatch, tmp_path, seed, size
):
    dice = Random(seed * 100 + size)
    settings.DELIVERY = settings.DELIVERY | {
        "CYCLE_BATCH_SIZE": 2 * size,
        "SEND_BATCH_SIZE": size,
        "GUARD_RAILS": dict.fromkeys(("UNCONFIRMED", "DEFERRED", "ALIKE", "IN_A_ROW")),
    }
    make_readers(mailing_list, 40)
    campaign = make_campaign(mailing_list, clock())
    coordinate(clock)
    is_calm = False

    def sometimes():
        if not is_calm and dice.random() < 0.03:
            raise AWAY

    def sometimes_away(function):
        def unit(*arguments, **keywords):
            sometimes()
            result = function(*arguments, **keywords)
            sometimes()
            return result

        return unit

    for module, name in ((queue, "release"), (leases, "renew")):
        monkeypatch.setattr(module, name, sometimes_away(getattr(module, name)))
    for move in ("commit", "claim"):
        interfere(monkeypatch, move, sometimes, sometimes)

    def taken_for_dead():
        with contextlib.suppress(OperationalError):  # the database may be away for him, too
            for lease, _expires_at in leases.held():
                queue.release(lease)
                queue.doubt(lease, clock())
                leases.give_back(lease)

    def something_happens():
        roll = dice.random()
        if roll < 0.02:
            made.stopping.set()
        elif roll < 0.04:
            slice_task.cancel()
        elif roll < 0.05:
            in_a_thread(taken_for_dead)
        elif roll < 0.07:
            in_a_thread(campaign.pause)
        elif roll < 0.09:
            clock.advance(seconds=15)

    provider = Moody(dice, something_happens)

    async def one_slice():
        nonlocal slice_task
        slice_task = asyncio.create_task(made.run_slice())
        await slice_task

    for round_ in range(200):
        is_calm = round_ > 40
        made, slice_task = recorded_worker(clock, tmp_path, provider), None
        with contextlib.suppress(OperationalError, asyncio.CancelledError):
            asyncio.run(one_slice())
        clock.advance(minutes=20)
        is_calm = True
        campaign.refresh_from_db()
        if campaign.status == "paused":
            campaign.resume()
        coordinate(clock, tmp_path)
        campaign.refresh_from_db()
        if campaign.status == "finished":
            break

    assert campaign.status == "finished"
    assert audit_campaign(campaign.pk).imbalances == []
    assert not provider.without_note
    assert max(provider.taken.values()) == 1, "doubled"
    by_status = {
        status: set(Delivery.objects.filter(status=status).values_list("pk", flat=True))
        for status in statuses(campaign)
    }
    taken = {number for number, times in provider.taken.items() if times}
    sent, in_doubt = by_status["sent"], by_status.get("unconfirmed", set())
    assert sent <= taken
    assert taken <= sent | in_doubt
    assert provider.doubtful <= in_doubt
