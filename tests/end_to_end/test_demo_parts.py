"""The demo's folder, ports, children and terminal, each by itself."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config.demo.folder import BASE_DIR, INHERITED, Folder, FolderInUseError
from config.demo.ports import free_port, is_free
from config.demo.processes import ChildError, Children
from config.demo.progress import Progress
from config.demo.terminal import Terminal

TOTALS = {"eligible": 200, "sent": 90, "bounced": 0, "rejected": 10, "expired": 0,
          "suppressed": 0, "cancelled": 0, "unconfirmed": 0, "queued": 60, "claimed": 0,
          "sending": 0, "deferred": 40}  # fmt: skip


# ---------------------------------------------------------------------------------- ports


def test_a_port_in_use_gives_the_next_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert port < free_port(port) < port + 50


def test_a_free_port_is_taken_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert free_port(port) == port


def test_two_servers_are_not_given_the_same_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert free_port(port, but_not=port) > port


# ---------------------------------------------------------------------------------- folder


def test_a_second_demo_in_the_same_folder_is_told_who_is_there(tmp_path: Path) -> None:
    with (
        Folder(tmp_path),
        pytest.raises(FolderInUseError, match=rf"demo \(process {os.getpid()}\).*\n.*Ctrl-C"),
    ):
        Folder(tmp_path).__enter__()
    with Folder(tmp_path):
        pass


def test_a_folder_stays_locked_while_a_child_of_a_killed_demo_lives(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with Children({}, tmp_path / "log") as children:
        with Folder(tmp_path) as folder:
            children.kept_open = [folder.lock_descriptor]
            child = children.start("sleeper", "sleeper.log", [sys.executable, "-c", SLEEPER])
            children.wait_for(child, lambda: "ready" in child.log.read_text(), 10)
            folder.note(child.pid, "sleeper")
        with pytest.raises(FolderInUseError, match=rf"sleeper \(process {child.pid}\)"):
            Folder(tmp_path).__enter__()


def test_a_new_run_removes_only_what_a_run_leaves_behind(tmp_path: Path) -> None:
    (tmp_path / "pennypost.sqlite3").write_text("old")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "web.log").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with Folder(tmp_path) as folder:
        folder.make_fresh()
    assert not (tmp_path / "pennypost.sqlite3").exists()
    assert list((tmp_path / "log").iterdir()) == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_that_the_settings_read_comes_from_the_persons_shell(tmp_path: Path) -> None:
    source = (BASE_DIR / "config" / "settings.py").read_text(encoding="utf-8")
    read = set(re.findall(r'(?:environ\.get|flag|words)\(\s*"([A-Z_]+)"', source)) | {
        "DATABASE_URL"
    }
    assert len(read) > 20
    assert read.isdisjoint(INHERITED)


def test_the_environment_leads_to_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://real.example.com/live")
    monkeypatch.setenv("SMTP_HOST", "smtp.example.com")
    folder = Folder(tmp_path)
    environment = folder.environment(8001, 2526, {})
    assert "DATABASE_URL" not in environment
    assert (environment["SMTP_HOST"], environment["SMTP_PORT"]) == ("127.0.0.1", "2526")
    assert environment["BASE_URL"] == "http://localhost:8001"
    assert (tmp_path / "secret-key").stat().st_mode & 0o077 == 0
    assert folder.environment(8001, 2526, {})["SECRET_KEY"] != environment["SECRET_KEY"]


# ---------------------------------------------------------------------------------- children

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(600)']); print(child.pid, flush=True); child.wait()"
)


def is_running(pid: int) -> bool:
    """Whether a process is alive; one that waits to be reaped is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def test_a_child_that_dies_at_the_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Children({}, tmp_path) as children:
        code = "import sys; sys.exit('Address already in use')"
        child = children.start("web server", "web.log", [sys.executable, "-c", code])
        with pytest.raises(ChildError, match=r"(?s)web server ended with status 1.*already in use"):
            children.wait_for(child, lambda: False, 30)


def test_a_child_that_does_not_answer_in_time_is_reported(tmp_path: Path) -> None:
    with Children({}, tmp_path) as children:
        child = children.start("web server", "web.log", [sys.executable, "-c", SLEEPER])
        with pytest.raises(ChildError, match="did not answer within 0 seconds"):
            children.wait_for(child, lambda: False, 0.1)


def test_leaving_the_block_stops_every_child_and_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.demo.processes.GRACE_SECONDS", 1.0)
    with pytest.raises(KeyboardInterrupt), Children({}, tmp_path) as children:
        started = [
            children.start("child", f"{number}.log", [sys.executable, "-c", code])
            for number, code in enumerate([SLEEPER, STUBBORN, PARENT])
        ]
        for child in started:
            children.wait_for(child, lambda child=child: bool(child.log.read_text()), 10)
        grandchild = int(started[2].log.read_text())
        assert all(is_running(pid) for pid in (*(c.pid for c in started), grandchild))
        raise KeyboardInterrupt
    assert not any(is_running(child.pid) for child in started)
    # Nobody waits for a grandchild: it was killed, and is gone in a moment.
    assert gone(grandchild)
    assert [child.process.returncode for child in started[:2]] == [-signal.SIGTERM, -signal.SIGKILL]


def test_the_end_of_the_interpreter_stops_the_children_too(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from config.demo.processes import Children; "
        f"children = Children({{}}, Path({str(tmp_path)!r})); children.__enter__(); "
        f"print(children.start('child', 'log', [sys.executable, '-c', {SLEEPER!r}]).pid)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=30
    )
    assert not is_running(int(ended.stdout))


# ---------------------------------------------------------------------------------- terminal


def test_without_a_terminal_progress_is_plain_lines_at_most_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    terminal = Terminal(out)
    progress = Progress(terminal)
    for _ in range(50):
        progress.show(TOTALS)
    progress.show(TOTALS, at_once=True)
    out.seek(0)
    first, last = out.read().splitlines()
    assert "\x1b" not in first
    assert " 50 %   100 of 200" in first
    assert first.endswith("90 sent, 10 rejected, 60 queued, 40 deferred")
    assert f" {'#' * 28}{'.' * 12} " in last


class FakeTerminal(io.StringIO):
    """A terminal as far as the program can tell."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_in_a_terminal_the_line_is_redrawn_and_fits_its_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = FakeTerminal()
    terminal = Terminal(out)
    Progress(terminal).show(TOTALS)
    Progress(terminal).show(TOTALS)
    terminal.done("campaign finished")
    first, second, done = out.getvalue().split("\r\x1b[K")[1:]
    assert len(first) <= 60
    assert first == second
    assert done == "  ✓ campaign finished\n"
