"""Three clusters as three hosts, whose clocks differ by 30 s, under one limit, in real time.

The server notes when each letter and each connection arrives; nothing else is believed. The short
form only asserts that nothing is exceeded; `make limits` takes a minute for each kind of limit and
asserts as well that it is used, which needs a machine with little else to do.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from campaigns.models import MailingList
from delivery import tasks
from delivery.rates import parse_rate
from tests.delivery.conftest import make_campaign, make_readers
from tests.delivery.sending_hosts import most_in_any
from tests.end_to_end.clusters import Cluster, cluster_environment
from tests.smtp_server import At, Rule, SMTPServer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("cluster_key")]
logger = logging.getLogger(__name__)
CONNECTIONS = 3


@pytest.fixture
def real_settings(settings, tmp_path, monkeypatch):
    """What the clusters read from the environment, for the coordinator in this process."""
    settings.DELIVERY = {
        "WORKERS": 4,
        "RECORDERS": tmp_path / "recorders",
        "INSTALLATIONS": tmp_path / "installations",
        "PROVIDERS": {"default": {"BACKEND": "delivery.providers.memory.MemoryProvider"}},
    }
    monkeypatch.setenv("PENNYPOST_VAR", str(tmp_path))


@contextmanager
def three_hosts(
    server: SMTPServer, folder: Path, *rates: dict[str, str]
) -> Iterator[list[Cluster]]:
    """Three clusters that send a campaign, under these limits and three connections."""
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    make_readers(weekly, 1000)
    make_campaign(weekly, timezone.now())
    environment = cluster_environment(
        server,
        folder,
        DJANGO_SETTINGS_MODULE="tests.end_to_end.limited_settings",
        DELIVERY_WORKERS=4,
        Q_WORKERS=2,
        SMTP_CONNECTIONS=CONNECTIONS,
        LIMITS=json.dumps([*rates, {"connections": CONNECTIONS}]),
    )
    # SQLite is on one host, whose clock is the only one.
    clocks = (-15, 0, 15) if connection.vendor == "postgresql" else (0, 0, 0)
    hosts = [
        Cluster(environment | {"HOST_CLOCK_AHEAD": str(ahead)}, folder / f"{number}.log")
        for number, ahead in enumerate(clocks)
    ]
    try:
        for host in hosts:
            host.start()
        tasks.coordinate()
        yield hosts
    finally:
        for host in hosts:
            host.stop()


def kill_and_start_again(hosts: list[Cluster], server: SMTPServer) -> None:
    """All at once, without a warning. The coordinator's minute is called at once."""
    for host in hosts:
        host.stop()
    assert server.wait_until(lambda server: server.open_connections == 0)
    for host in hosts:
        host.start()
    tasks.coordinate()


def wait_for(letters: int, server: SMTPServer, hosts: list[Cluster]) -> None:
    """A task in a killed process's hands is lost: so the coordinator is called now and then."""
    for _ in range(30):
        if server.wait_until(lambda server: len(server.accepted) >= letters, timeout=3):
            return
        tasks.coordinate()
    raise AssertionError(f"{len(server.accepted)} of {letters} came\n{hosts[0].last_words()}")


def most_of(server: SMTPServer, window: timedelta) -> int:
    return most_in_any(window, [letter.at for letter in server.accepted])


def test_three_hosts_that_are_killed_and_started_again_exceed_no_limit(tmp_path, real_settings):
    permits, window = parse_rate("10/2 seconds")
    limits = {"rate": "10/2 seconds"}, {"cap": "10/2 seconds"}
    with (
        SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.01)]) as server,
        three_hosts(server, tmp_path, *limits) as hosts,
    ):
        wait_for(2 * permits, server, hosts)
        kill_and_start_again(hosts, server)
        wait_for(len(server.accepted) + 3 * permits, server, hosts)
    assert most_of(server, window) <= permits
    assert server.most_connections <= CONNECTIONS


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("kind", ["rate", "cap"])
def test_three_hosts_never_exceed_a_limit_and_use_it(tmp_path, kind, real_settings):
    permits, window = parse_rate("50/10 seconds")
    measured = timedelta(seconds=40)
    with (
        SMTPServer(rules=[Rule(At.FINAL_DOT, delay=0.01)]) as server,
        three_hosts(server, tmp_path, {kind: "50/10 seconds"}) as hosts,
    ):
        wait_for(1, server, hosts)
        began = server.accepted[0].at
        for number, host in enumerate(hosts):
            sleep_until(began + 8 + 10 * number)
            host.restart()
        sleep_until(began + measured.total_seconds())
        end = began + measured.total_seconds()
        used = sum(letter.at < end for letter in server.accepted)
        kill_and_start_again(hosts, server)
        wait_for(len(server.accepted) + 2 * permits, server, hosts)
    logger.warning(
        "%s: %d letters in 40 s, at most %d in 10 s", kind, used, most_of(server, window)
    )
    assert most_of(server, window) <= permits
    assert server.most_connections <= CONNECTIONS
    assert used >= 0.95 * permits * (measured / window)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
