"""A real django-q2 cluster whose processes are killed at random moments while it sends a campaign;
and the same with everything else in trouble too: connections that break in each phase, final
answers that are lost, PostgreSQL stopped in the middle.

Short runs in the suite; `make soak` runs twenty of each with 20,000 letters and ten kills
(PENNYPOST_SOAK=1; PENNYPOST_SEEDS="5" or "3-7" chooses among them). The SMTP server answers after
0 to 20 ms, and what it noted is what counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from django.core.management import call_command
from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from campaigns.models import Campaign, MailingList
from delivery import limits, tasks
from delivery.conf import delivery_settings
from delivery.models import ConnectionSlot, WorkerLease
from delivery.reclaim import reclaim_all
from tests.delivery.conftest import make_campaign, make_readers, statuses
from tests.end_to_end.clusters import Cluster, Killed, cluster_environment
from tests.end_to_end.server_log import prove
from tests.end_to_end.soak_settings import UNDER_KILLS
from tests.postgresql import RestartableServer
from tests.smtp_server import At, Drop, Rule, Session, SMTPServer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("cluster_key")]
logger = logging.getLogger(__name__)

LONG = os.environ.get("PENNYPOST_SOAK") == "1"
LETTERS, KILLS = (20_000, 10) if LONG else (1_500, 4)
WORKERS, CONNECTIONS = 4, 5
PATIENCE = 1_200 if LONG else 240  # seconds until a run has failed
# After so many seconds without a letter the cluster is started anew, and the log says so: one that
# was killed in the middle of a system call may have left a lock of multiprocessing's behind.
WATCHDOG = 60
# Of all letters: final answers that are lost, and connections that break in each phase.
LOST_ANSWERS, BREAKS = 0.01, 0.002


def seeds(short: int) -> list[int]:
    """The seeds of this run."""
    first, _, last = os.environ.get("PENNYPOST_SEEDS", "").partition("-")
    if first:
        return list(range(int(first), int(last or first) + 1))
    return list(range(20 if LONG else short))


@pytest.fixture
def real_settings(settings, tmp_path, monkeypatch):
    """What the cluster's processes read from the environment, for the coordinator in this one."""
    settings.DELIVERY = UNDER_KILLS | {
        "WORKERS": WORKERS,
        "RETURN_PATH": "bounce+{token}@bounces.example.org",
        "RECORDERS": tmp_path / "recorders",
        "PROVIDERS": {"default": {"BACKEND": "delivery.providers.memory.MemoryProvider"}},
    }
    monkeypatch.setenv("PENNYPOST_VAR", str(tmp_path))


@pytest.fixture
def restartable(request, monkeypatch) -> Iterator[RestartableServer | None]:
    """On PostgreSQL a server of this test's own, which stands behind the connection of this test
    meanwhile; nothing on SQLite, which is no process that could be stopped."""
    request.getfixturevalue("transactional_db")
    if connection.vendor != "postgresql":
        yield None
        return
    with RestartableServer() as server:
        suites = connection.settings_dict
        connection.close()
        connection.settings_dict = suites | server.django_settings()
        monkeypatch.setenv("DATABASE_URL", server.url)
        try:
            call_command("migrate", verbosity=0)
            yield server
        finally:
            connection.close()
            connection.settings_dict = suites


@pytest.mark.parametrize("seed", seeds(3))
def test_whatever_is_killed_nothing_is_lost_or_doubled(tmp_path, seed, real_settings):
    dice = Random(seed)
    campaign = a_large_campaign()
    with SMTPServer(rules=delays(dice)) as server, a_cluster(server, tmp_path) as cluster:
        kills = send_and_kill(campaign, cluster, server, dice, {})
    check(campaign, server, kills, set())


@pytest.mark.parametrize("seed", seeds(1))
def test_with_everything_in_trouble_nothing_is_lost_or_doubled(
    tmp_path, seed, real_settings, restartable
):
    dice = Random(seed)
    campaign = a_large_campaign()
    lost: set[str] = set()
    half = LETTERS // 2
    events = {half: restartable.crash_and_start_again} if restartable else {}
    with (
        SMTPServer(rules=[*troubles(dice, lost), *delays(dice)]) as server,
        a_cluster(server, tmp_path) as cluster,
    ):
        kills = send_and_kill(campaign, cluster, server, dice, events)
    check(campaign, server, kills, lost)
    assert lost


# ---------------------------------------------------------------------------------- the run


def a_large_campaign() -> Campaign:
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(weekly, LETTERS)
    return make_campaign(weekly, timezone.now())


def delays(dice: Random) -> list[Rule]:
    """0 to 20 ms before the final answer."""
    return [
        Rule(At.FINAL_DOT, delay=seconds, when=_in(dice, share))
        for seconds, share in ((0.02, 0.2), (0.01, 0.4), (0.005, 0.6))
    ]


def troubles(dice: Random, lost: set[str]) -> list[Rule]:
    """Connections break in each phase; ``lost`` gets the readers whose letters had no answer."""

    def without_answer(share: float) -> Callable[[Session], bool]:
        def happens(session: Session) -> bool:
            if dice.random() >= share:
                return False
            lost.update(session.rcpt_to)
            return True

        return happens

    before = [At.GREETING, At.EHLO, At.MAIL, At.RCPT, At.DATA]
    return [
        *(Rule(at, drop=Drop.BEFORE_REPLY, when=_in(dice, BREAKS)) for at in before),
        Rule(At.RCPT, drop=Drop.HALF_REPLY, when=_in(dice, BREAKS)),
        Rule(At.BODY, drop=Drop.BEFORE_REPLY, when=without_answer(BREAKS)),
        Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, when=without_answer(LOST_ANSWERS / 2)),
        Rule(
            At.FINAL_DOT,
            drop=Drop.BEFORE_REPLY,
            keeps_letter=False,
            reset=True,
            when=without_answer(LOST_ANSWERS / 2),
        ),
        Rule(At.FINAL_DOT, drop=Drop.HALF_REPLY, when=without_answer(BREAKS)),
        # The answer arrives, and behind it the end of the connection.
        Rule(At.FINAL_DOT, drop=Drop.AFTER_REPLY, when=_in(dice, BREAKS)),
    ]


def _in(dice: Random, share: float) -> Callable[[Session], bool]:
    return lambda session: dice.random() < share


@contextmanager
def a_cluster(server: SMTPServer, folder: Path) -> Iterator[Cluster]:
    """A cluster, until the end of the block; afterwards nobody is connected any more."""
    environment = cluster_environment(
        server,
        folder,
        DJANGO_SETTINGS_MODULE="tests.end_to_end.soak_settings",
        DELIVERY_WORKERS=WORKERS,
        Q_WORKERS=WORKERS + 2,
        SMTP_CONNECTIONS=CONNECTIONS,
    )
    cluster = Cluster(environment, folder / "cluster.log")
    try:
        yield cluster
    finally:
        cluster.stop()
    assert server.wait_until(lambda server: server.open_connections == 0, timeout=30)


def send_and_kill(
    campaign: Campaign,
    cluster: Cluster,
    server: SMTPServer,
    dice: Random,
    events: dict[int, Callable[[], None]],
) -> list[Killed]:
    """Until the campaign is finished; what was killed. ``events``: what else happens after so many
    letters. The coordinator is called each second, as its schedule would each minute: tasks in a
    killed process's hands are lost. And where a provider was paused, a person opens it."""
    killed: list[Killed] = []
    kills, taken, progress_at = 0, 0, time.monotonic()

    def kill() -> None:
        nonlocal kills
        if one := cluster.kill_one(dice):
            killed.append(one)
            kills += 1

    plan = [(goal, kill) for goal in dice.sample(range(LETTERS // 50, LETTERS * 9 // 10), KILLS)]
    plan = sorted([*plan, *events.items()], key=lambda event: event[0])
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        cluster.keep_running()
        try:
            tasks.coordinate()
            limits.resume("default", timezone.now())
            campaign.refresh_from_db()
        except (OperationalError, InterfaceError):
            connection.close()
        if campaign.status == "finished":
            assert kills == KILLS
            return killed
        if len(server.accepted) > taken:
            taken, progress_at = len(server.accepted), time.monotonic()
        elif time.monotonic() > progress_at + WATCHDOG:
            logger.warning("the watchdog starts the cluster anew")
            killed += cluster.kill_all()
            progress_at = time.monotonic()
        if not plan:
            time.sleep(0.5)
        elif server.wait_until(
            lambda server, goal=plan[0][0]: len(server.accepted) >= goal, timeout=1
        ):
            plan.pop(0)[1]()
    with suppress(OperationalError, InterfaceError):
        logger.error("not finished: %s", statuses(campaign))
    raise AssertionError(f"not finished after {PATIENCE} s\n{cluster.last_words()}")


def check(campaign: Campaign, server: SMTPServer, killed: list[Killed], lost: set[str]) -> None:
    assert server.faults == []
    # The end of the run was a kill as well: of workers that had begun a slice with nothing to do.
    settings = delivery_settings()
    reclaim_all(settings, timezone.now() + settings.lease, dice=Random(1), recorders=None)
    verdict = prove(campaign, server, killed, lost)
    # Exit 1, and so SystemExit, where anything does not balance.
    call_command("audit_deliveries", verbosity=0)
    assert not WorkerLease.objects.filter(claim_key__isnull=False).exists()
    assert not ConnectionSlot.objects.filter(claim_key__isnull=False).exists()
    logger.warning(
        "%s: %d processes killed, lost 0, doubled 0, %s, %d answers lost",
        connection.vendor, len(killed), verdict, len(lost),
    )  # fmt: skip
