"""`make demo` as a person starts it: a program of its own, with real processes under it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.demo.ports import free_port
from tests.end_to_end.test_demo_parts import gone
from tests.free_ports import free_ports

LONGEST = 240  # seconds; a tenth of it is usual


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports that nobody else prefers; other demos may run beside this one."""
    web, smtp = free_ports(2)
    return web, smtp


@contextmanager
def demo(
    var: Path, ports: tuple[int, int], *options: str, readers: int = 2000
) -> Iterator[subprocess.Popen[str]]:
    """A running demo with its output in a pipe; killed at the end when it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "config.demo", *options]
        + ["--web-port", str(ports[0]), "--smtp-port", str(ports[1])],
        env=os.environ
        | {
            "PENNYPOST_VAR": str(var),
            "DATABASE_URL": "postgres://nowhere.invalid/",
            "DEMO_READERS": str(readers),
            "DEMO_MAILBOX_PORT": str(free_ports(1)[0]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Ctrl-C at a terminal reaches the foreground group: here, this one.
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], sentence: str) -> str:
    """The output up to the line with ``sentence``; fails when it ends before."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if sentence in line:
            return seen
    pytest.fail(f"the demo ended without {sentence!r}:\n{seen}")


def pids(var: Path) -> list[int]:
    """All processes of the demo in this folder, as its lock has them."""
    return [int(line.split()[0]) for line in (var / "demo" / "lock").read_text().splitlines()]


def group_is_empty(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def assert_the_ledger_balances(output: str, numbers: dict[str, str]) -> None:
    """Each expected number was found; ``numbers`` by the label of their line."""
    assert "The ledger balances." in output
    assert "✗" not in output
    for label, number in numbers.items():
        assert re.search(rf"^ +{re.escape(label)} +{number} +{number}  ✓$", output, re.M), label


def assert_all_gone(numbers: list[int], processes: int = 4) -> None:
    assert len(numbers) == processes  # the demo, SMTP server, task cluster, web server
    assert all(gone(pid) for pid in numbers)
    # A killed grandchild stays in its group until init has taken note.
    until = time.monotonic() + 10
    while not all(group_is_empty(pid) for pid in numbers[1:]):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.05)


def test_once_ends_with_0_when_ledger_and_log_agree_and_a_second_run_does_so_too(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    labels = "sent", "sent, then bounced", "rejected", "deferred once (450)", "Addresses suppressed"
    for readers, numbers in (
        (2000, ["1,920", "60", "20", "40", "80"]),
        (200, ["192", "6", "2", "4", "8"]),
    ):
        with demo(tmp_path, ports, "--once", readers=readers) as process:
            output, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, output
        assert f"{readers:,} letters compared with the SMTP server's own log" in output
        assert_the_ledger_balances(output, dict(zip(labels, numbers, strict=True)))
        assert_all_gone(pids(tmp_path))


def test_a_port_in_use_gives_another_port_and_ctrl_c_stops_every_child(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    with (
        socket.create_server(("127.0.0.1", ports[0])),
        demo(tmp_path, ports, readers=200) as process,
    ):
        output = read_until(process, "Ctrl-C stops everything")
        said = re.search(rf"Port {ports[0]} is in use: the web server takes (\d+)", output)
        assert said, output
        address = f"http://localhost:{said[1]}/admin/"
        assert f"{address}  user admin, password " in output
        with urllib.request.urlopen(f"{address}login/", timeout=30) as page:
            assert page.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_all_gone(pids(tmp_path))
    assert free_port(int(said[1])) == int(said[1])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_ended_in_the_middle_stops_every_child(
    tmp_path: Path, ports: tuple[int, int], number: signal.Signals, status: int
) -> None:
    with demo(tmp_path, ports, readers=200) as process:
        read_until(process, "written and scheduled")
        process.send_signal(number)
        assert process.wait(60) == status
    assert_all_gone(pids(tmp_path))


def test_a_child_that_dies_ends_the_demo_with_the_end_of_its_log(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    with demo(tmp_path, ports, readers=200) as process:
        read_until(process, "readers imported")
        smtp_server = pids(tmp_path)[1]
        os.kill(smtp_server, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
    assert "The SMTP server ended with status -9." in output
    assert f"listens on 127.0.0.1:{ports[1]}" in output
    assert_all_gone(pids(tmp_path))


def test_a_demo_whose_output_nobody_reads_any_more_ends_and_stops_every_child(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    with demo(tmp_path, ports, readers=200) as process:
        read_until(process, "readers imported")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1
    assert_all_gone(pids(tmp_path))
