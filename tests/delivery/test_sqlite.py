"""What is SQLite's own: the process beside a worker, and filling without a look at each reader."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.utils import IntegrityError, OperationalError

from campaigns.models import Campaign, CampaignTotals, Subscriber, Subscription, Suppression
from delivery import claiming, filling, queue, queue_pages, sqlite_session
from delivery.bridge import Bridge
from delivery.models import Claim, Delivery, ProviderState, QueuePage
from delivery.outcomes import Accepted, Phase, Reply
from delivery.settlement import Settlement
from delivery.sql import Statement, Steps
from delivery.sqlite_server import Server
from delivery.sqlite_session import SQLiteSession
from delivery.states import IN_HAND, DeliveryStatus
from tests.delivery.conftest import (
    in_session,
    make_campaign,
    make_readers,
    make_unfilled,
    make_worker,
    statuses,
    units_called,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.one_database]

S = DeliveryStatus
OK = Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 1A2B")


def opening(now: datetime) -> Steps[Any]:
    return claiming.opening("default", ["default"], now, 5)


def pid_of(session: SQLiteSession) -> int:
    assert session._process is not None
    return session._process.pid


def is_there(pid: int) -> bool:
    """Whether a process runs. One that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# ------------------------------------------------------------------------------ the procedures


def everything() -> list[Any]:
    """All that a claim or an exchange may change. Notes of claims by their letters, and where these
    are in hand: of several smaller ones some are forgotten sooner."""
    letters = Delivery.objects.order_by("pk").values_list()
    pages = QueuePage.objects.order_by("pk").values_list()
    totals = [CampaignTotals.of([pk])[pk] for pk in Campaign.objects.values_list("pk", flat=True)]
    claims = Claim.objects.values_list("claim_key", "provider", "delivery_ids")
    noted = {(key, pk): name for key, name, ids in claims for pk in json.loads(ids)}
    held = Delivery.objects.filter(status__in=IN_HAND).values_list("claim_key", "pk")
    return [*letters, *pages, *totals, {one: noted[one] for one in held}]


def holds_something(claim: Claim) -> bool:
    of_it = Delivery.objects.filter(pk__in=json.loads(claim.delivery_ids))
    return of_it.filter(status__in=IN_HAND, claim_key=claim.claim_key).exists()


def undone(move: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What it returns and what it changes; nothing of that stays."""
    with transaction.atomic():
        result = move()
        after = everything()
        transaction.set_rollback(True)
    return result, after


@pytest.mark.parametrize("seed", range(8))
def test_procedures_do_what_the_single_statements_do(mailing_list, lease, clock, monkeypatch, seed):
    """A queue in disorder: letters that wait alone, now or later, holes, test letters or several
    campaigns, and readers who left: then claims take all, for the usual one looks for others in
    their place. What single statements would do is done and undone before each move."""
    monkeypatch.setattr(queue_pages, "SIZE", 4)
    dice = Random(seed)
    first = make_unfilled(mailing_list, clock(), 40)
    campaigns = [first]
    if seed % 2:
        campaigns += [make_campaign(mailing_list, clock(), name="Other") for _ in range(2)]
        for campaign, priority in zip(campaigns, (5, 0, 5), strict=True):
            campaign.start(clock())
            Campaign.objects.filter(pk=campaign.pk).update(priority=priority)
    for campaign in campaigns:
        while filling.fill_page(campaign, dice.randint(5, 15), clock()) is not None:
            pass
    letters = list(Delivery.objects.order_by("pk"))
    dice.shuffle(letters)
    alone, later, removed = letters[4:12], letters[12:16], letters[16:26]
    gone = letters[:4] if seed % 4 > 1 else []
    Subscription.objects.filter(subscriber__in=[one.subscriber_id for one in gone[:2]]).update(
        status="unsubscribed"
    )
    for one in gone[2:]:
        Suppression.objects.get_or_create(address_key=one.address_key)
    for some, due_at in ((alone, clock()), (later, clock() + timedelta(minutes=1))):
        ids = [one.pk for one in some]
        Delivery.objects.filter(pk__in=ids).update(
            status=dice.choice(["queued", "deferred"]), waits_alone=True, due_at=due_at
        )
    Delivery.objects.filter(pk__in=[one.pk for one in removed]).delete()
    in_hand: list[claiming.Claimed] = []
    noted: list[claiming.Claimed] = []
    for step in range(14):
        clock.advance(seconds=dice.randint(0, 15))
        now, wanted, ids = clock(), dice.randint(1, 12), [one.pk for one in campaigns]
        wanted = 1000 if gone else wanted
        if not seed % 2 and step % 4 == 0:
            filling.queue_tests(first, first.edition_id, [(f"{step}@example.org",) * 2], None, now)
        expected, after = undone(lambda: claiming.claim(lease, ids, wanted, now))  # noqa: B023
        turns = claiming._in_turn(ids)
        steps = claiming.usual_claim(lease, turns, wanted, now, ["default"])
        claims = in_session(lambda session: session.run(steps))  # noqa: B023
        assert claims == expected
        assert everything() == after
        assert not claims or all(map(holds_something, Claim.objects.all()))
        in_hand += claims
        wave, in_hand = in_hand[: dice.randint(0, 9)], in_hand[dice.randint(0, 9) :]
        wave = [one for one in wave if one not in in_hand]
        usual = queue.Exchange(lease, [(one, Accepted(OK)) for one in noted], wave, now, 0)
        settled = [(one, Accepted(OK), Settlement(S.SENT, OK)) for one in noted]
        moved, after = undone(
            lambda: queue.record_and_hand_over(lease, settled, [], usual.ids, now, 0)  # noqa: B023
        )
        exchanged = in_session(lambda session: session.run(queue.exchanging(usual)))  # noqa: B023
        assert exchanged is not None
        assert sorted(exchanged.moved) == sorted(moved)
        assert everything() == after
        noted = wave
        if dice.random() < 0.4:
            queue.release(lease)
            in_hand = []
    assert Delivery.objects.filter(status=S.SUPPRESSED).exists() == bool(gone)


def test_a_reader_whose_attributes_hold_anything_is_claimed(mailing_list, lease, now):
    """A megabyte, and half a surrogate pair, which is no text but comes out of JSON."""
    (reader,) = make_readers(mailing_list, 1)
    attributes = {"long": "x" * 1_000_000, "half": "\ud83d", "none": None, "deep": [{"a": [1.5]}]}
    Subscriber.objects.filter(pk=reader.pk).update(attributes=attributes)
    campaign = make_unfilled(mailing_list, now, 0)
    filling.fill_page(campaign, 10, now)
    steps = claiming.usual_claim(lease, [(campaign.pk, 1)], 5, now, ["default"])
    (claimed,) = in_session(lambda session: session.run(steps))
    assert claimed.attributes == attributes


def test_an_opening_is_none_where_there_is_trouble(campaign, now):
    make_campaign(campaign.include_lists.get(), now, name="Not started")
    state = ProviderState.objects.get_or_create(alias="default")[0]
    opened = in_session(lambda session: session.run(opening(now)))
    assert opened == claiming.Opening(0, {campaign.pk: campaign.priority}, 12)
    for trouble in (
        {"stopped": True},
        {"failures": 1},
        {"paused_until": now + timedelta(seconds=1)},
        {"groups_held": 1, "groups_held_until": now + timedelta(seconds=1)},
    ):
        ProviderState.objects.filter(pk=state.pk).update(**trouble)
        assert in_session(lambda session: session.run(opening(now))) is None
        state.save()
    assert in_session(lambda session: session.run(opening(now))) is not None


def test_a_usual_campaign_is_claimed_and_written_beside_the_loop(campaign, clock, monkeypatch):
    in_loop = units_called(monkeypatch)
    assert asyncio.run(make_worker(clock).run_slice()).sent == 12
    assert statuses(campaign) == {"sent": 12}
    assert not {"_record_and_hand_over", "exchange", "make_up", "claim"} & {*in_loop}


# ------------------------------------------------------------------------------ the process


def test_its_connection_is_made_as_djangos_is(monkeypatch):
    options = {
        **connection.settings_dict["OPTIONS"],
        "timeout": 7,
        "init_command": "PRAGMA synchronous=FULL; PRAGMA cache_size=-1234;",
    }
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    server = Server(sqlite_session._opened())
    try:
        asked = {
            name: server.connect().execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("foreign_keys", "synchronous", "cache_size", "busy_timeout")
        }
    finally:
        server.close()
    assert asked == {
        "foreign_keys": 1, "synchronous": 2, "cache_size": -1234, "busy_timeout": 7000,
    }  # fmt: skip


def test_an_error_is_djangos_changes_nothing_and_the_process_stays(
    campaign, lease, now, monkeypatch
):
    options = {**connection.settings_dict["OPTIONS"], "timeout": 0.05}
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)

    async def use(session: SQLiteSession) -> None:
        await session.open()
        pid = pid_of(session)

        def steps() -> Steps[list[claiming.Claimed]]:
            return claiming.usual_claim(lease, [(campaign.pk, 1)], 5, now, ["default"])

        async with Bridge() as bridge:
            await bridge.call(connection.ensure_connection)
            raw = connection.connection
            raw.execute("BEGIN IMMEDIATE")
            try:
                with pytest.raises(OperationalError, match="locked"):
                    await session.run(steps())
            finally:
                raw.execute("ROLLBACK")
            assert len(await session.run(steps())) == 5
        assert pid_of(session) == pid

    in_session(use)
    assert statuses(campaign) == {"claimed": 5, "queued": 7}


def test_a_process_that_is_gone_is_an_error_of_the_database_and_the_next_one_is_new(now):
    async def use(session: SQLiteSession) -> None:
        await session.run(opening(now))
        before = pid_of(session)
        os.kill(before, signal.SIGSTOP)
        asked = asyncio.create_task(session.run(opening(now)))
        await asyncio.sleep(0.05)
        os.kill(before, signal.SIGKILL)
        with pytest.raises(OperationalError, match="ended"):
            await asked
        await session.run(opening(now))
        assert pid_of(session) != before
        assert not is_there(before)

    in_session(use)


def test_who_asks_while_another_is_served_is_next(now):
    async def use(session: SQLiteSession) -> None:
        answers = await asyncio.gather(*(session.run(opening(now)) for _ in range(20)))
        assert len({str(answer) for answer in answers}) == 1

    in_session(use)


def test_when_a_caller_is_cancelled_its_claim_does_not_go_on(campaign, lease, now):
    """No claim may be made after its worker has given back its place."""

    async def use(session: SQLiteSession) -> None:
        await session.open()
        pid = pid_of(session)
        steps = claiming.usual_claim(lease, [(campaign.pk, 1)], 5, now, ["default"])
        os.kill(pid, signal.SIGSTOP)
        claiming_task = asyncio.create_task(session.run(steps))
        await asyncio.sleep(0.05)
        claiming_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming_task
        assert not is_there(pid)

    in_session(use)
    assert statuses(campaign) == {"queued": 12}


def test_what_a_terminal_tells_the_whole_group_is_the_workers_to_decide(now):
    async def use(session: SQLiteSession) -> None:
        await session.open()
        pid = pid_of(session)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        await session.run(opening(now))
        assert pid_of(session) == pid

    in_session(use)


def test_a_closed_session_leaves_no_process(now):
    seen: list[int] = []

    async def use(session: SQLiteSession) -> None:
        await session.run(opening(now))
        seen.append(pid_of(session))

    in_session(use)
    assert not is_there(seen[0])


OWNER = """
import asyncio, django
django.setup()
from delivery.sqlite_session import SQLiteSession

async def own():
    session = SQLiteSession()
    await session.open()
    print(session._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(own())
"""


def test_it_ends_with_its_worker_however_that_ends():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_there(pid)
    finally:
        owner.kill()
        owner.wait()
    until(lambda: not is_there(pid))


def test_one_that_cannot_be_started_leaves_the_error_to_the_first_statement(monkeypatch, now):
    async def use(session: SQLiteSession) -> None:
        await session.open()
        with pytest.raises(OperationalError, match="could not be started"):
            await session.run(opening(now))

    monkeypatch.setattr(sqlite_session, "_COMMAND", ("/nonexistent/python",))
    in_session(use)


def test_a_database_that_cannot_be_opened_is_djangos_error_too(monkeypatch, tmp_path, now):
    async def use(session: SQLiteSession) -> None:
        await session.open()
        with pytest.raises(OperationalError, match="unable to open"):
            await session.run(opening(now))

    nowhere = tmp_path / "no such folder" / "pennypost.sqlite3"
    monkeypatch.setitem(connection.settings_dict, "NAME", nowhere)
    in_session(use)


def test_an_error_of_ours_is_none_of_the_databases(capfd):
    """A worker that took it for one would ask again and again."""

    def unknown() -> Steps[None]:
        yield Statement("", {}, "no such procedure")

    with pytest.raises(RuntimeError, match="no such procedure"):
        in_session(lambda session: session.run(unknown()))
    assert "Traceback" in capfd.readouterr().err


def test_a_database_in_memory_is_nobody_elses(monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "NAME", ":memory:")

    async def session() -> object:
        async with Bridge() as bridge:
            return bridge.session

    assert asyncio.run(session()) is None


def test_without_a_process_a_worker_makes_the_moves_itself(campaign, clock, monkeypatch):
    monkeypatch.setattr(SQLiteSession, "is_possible", staticmethod(lambda: False))
    assert asyncio.run(make_worker(clock).run_slice()).sent == 12
    assert statuses(campaign) == {"sent": 12}


# ------------------------------------------------------------------------------ filling


@pytest.mark.parametrize("fails", [False, True])
def test_filling_leaves_readers_looked_up_for_everything_else(
    mailing_list, now, monkeypatch, fails
):
    """It has just read them; whoever else writes a letter must name a reader who exists."""
    unfilled = make_unfilled(mailing_list, now, readers=3)
    if fails:
        monkeypatch.setattr(filling.queue_pages, "write", lambda *page: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            filling.fill_page(unfilled, 10, now)
    else:
        assert filling.fill_page(unfilled, 10, now) == 3
    assert Delivery.objects.filter(campaign=unfilled).count() == (0 if fails else 3)
    filling.queue_tests(unfilled, unfilled.edition_id, [("x@example.org", "x")], None, now)
    with pytest.raises(IntegrityError):
        Delivery.objects.filter(campaign=unfilled, is_test=True).update(subscriber_id=999_999)
