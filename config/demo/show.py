"""The demo in its order: processes, import, campaign, bounces, ledger."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import django
from django.utils import timezone

from config.demo import ledger
from config.demo.folder import Folder, shown
from config.demo.mailboxes import DemoMailbox
from config.demo.processes import Child, Children, answers
from config.demo.progress import Progress
from config.demo.readers import fates, readers, write_file
from config.demo.terminal import BOLD, GREEN, RED, Terminal
from config.demo.world import Fate, fate_of

if TYPE_CHECKING:
    from campaigns.models import Campaign, ImportJob

START_SECONDS = 30.0
# Nothing has changed for so long: something is wrong, and is said. Greylisting takes 3 s, and the
# coordinator comes every minute in any case.
PATIENCE_SECONDS = 75.0
POLL_AGAIN_SECONDS = 3.0
LOOK_AGAIN_SECONDS = 0.2
DIFFERENCES_SHOWN = 20


class ShowError(Exception):
    """The demo cannot go on. The text is for the person at the terminal."""


class Show:
    """One run. ``perform`` is all of it; ``stay_open`` waits for Ctrl-C afterwards."""

    def __init__(
        self,
        terminal: Terminal,
        folder: Folder,
        children: Children,
        mailbox: DemoMailbox,
        web_port: int,
        smtp_port: int,
    ) -> None:
        self.terminal = terminal
        self.folder = folder
        self.children = children
        self.mailbox = mailbox
        self.web_port = web_port
        self.smtp_port = smtp_port
        self.cluster: Child
        self.password = ""
        # Whether the ledger held; None until it was drawn up.
        self.holds: bool | None = None

    @property
    def address(self) -> str:
        return f"http://localhost:{self.web_port}/admin/"

    @property
    def server(self) -> str:
        """Who takes the letters."""
        return "emulator of Microsoft Graph" if self.mailbox.provider else "SMTP server"

    def fates(self) -> Counter[Fate]:
        """What the world does to the letters. Graph takes all, and some come back."""
        fate = fates()
        if self.mailbox.provider:
            fate[Fate.REPORTED] += fate.pop(Fate.REFUSED, 0)
            fate[Fate.TAKEN] += fate.pop(Fate.DEFERRED_ONCE, 0)
        return fate

    def perform(self) -> None:
        """The campaign from import to bounce, and the ledger."""
        self._set_up_django()
        # Models can be imported from here on.
        from config.demo import campaign as acts

        with self.terminal.step("SQLite database migrated"):
            acts.migrate()
        self.start_processes()
        admin, self.password = acts.make_administrator()
        self.terminal.done(f"{self.address}  user admin, password {self.password}")
        with self.terminal.step(f"{write_file(self.folder.readers):,} readers imported"):
            job = acts.import_readers(self.folder.readers)
        campaign = acts.write_campaign(admin)
        acts.send(campaign, admin, timezone.now())
        self.terminal.done(f"campaign “{campaign.name}” written and scheduled for now")
        self.watch(campaign)
        self.collect_bounces(campaign)
        self.holds = self.show_ledger(job, campaign)

    def _set_up_django(self) -> None:
        django.setup()
        # What Django and django-q2 log in this process belongs beside the children's logs.
        logging.basicConfig(
            filename=self.folder.log / "demo.log",
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
            level=logging.INFO,
            force=True,
        )

    # ------------------------------------------------------------------ processes

    def start_processes(self) -> None:
        """Web server, SMTP server and task cluster, each known to answer or to live."""
        names = [
            f"web server on {self.web_port}",
            *([] if self.mailbox.provider else [f"SMTP server on {self.smtp_port}"]),
            *filter(None, [self.mailbox.told]),
            "task cluster",
        ]
        with self.terminal.step(f"started: {', '.join(names)}"):
            self.folder.smtp_log.touch()
            self.mailbox.start(self.children, self._start)
            smtp = None if self.mailbox.provider else self._start(
                "SMTP server", "smtp-server.log", sys.executable, "-m", "config.demo.smtp_server",
                "--port", str(self.smtp_port),
                "--maildir", str(self.mailbox.maildir),
                "--log", str(self.folder.smtp_log),
            )  # fmt: skip
            self.cluster = self._start(
                "task cluster", "qcluster.log", sys.executable, "manage.py", "qcluster"
            )
            web = self._start(
                "web server", "web.log", sys.executable, "-m", "gunicorn", "config.wsgi",
                "--bind", f"127.0.0.1:{self.web_port}",
                "--worker-class", "gthread", "--workers", "1", "--threads", "8",
                "--no-control-socket",
            )  # fmt: skip
            if smtp is not None:
                self.children.wait_for(
                    smtp, lambda: answers(self.smtp_port, b"220 "), START_SECONDS
                )
            request = b"GET /admin/login/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            self.children.wait_for(
                web, lambda: answers(self.web_port, b"HTTP/1.1 200", request), START_SECONDS
            )

    def _start(self, name: str, log: str, *arguments: str) -> Child:
        child = self.children.start(name, log, arguments)
        self.folder.note(child.pid, name)
        return child

    # ------------------------------------------------------------------ sending

    def watch(self, campaign: Campaign) -> None:
        """Draws the progress until the campaign is finished."""
        from config.demo import campaign as acts

        progress = Progress(self.terminal)

        def look() -> tuple[bool, object]:
            finished = acts.is_finished(campaign)
            totals = acts.totals_of(campaign)
            progress.show(totals, at_once=finished)
            return finished, totals

        self._wait_until(look, lambda: "The campaign stands still.")
        self.terminal.keep()
        self.terminal.done("campaign finished", time.monotonic() - progress.began)

    def collect_bounces(self, campaign: Campaign) -> None:
        """Polls until every report that the SMTP server wrote has marked its letter."""
        from config.demo import campaign as acts

        expected = self.fates()[Fate.REPORTED]
        began = time.monotonic()
        polled_at = -POLL_AGAIN_SECONDS
        reported = bounced = 0

        def look() -> tuple[bool, object]:
            nonlocal polled_at, reported, bounced
            events = Counter(line.event for line in ledger.read_log(self.folder.smtp_log))
            reported, bounced = events["reported"], acts.totals_of(campaign)["bounced"]
            self.terminal.live(f"    {reported} reports written, {bounced} of {expected} read")
            if reported >= expected and time.monotonic() - polled_at > POLL_AGAIN_SECONDS:
                polled_at = time.monotonic()
                acts.poll_bounces()
            return bounced >= expected, (reported, bounced)

        self._wait_until(
            look,
            lambda: (
                f"Of {expected} bounces the SMTP server has reported {reported}, "
                f"and {bounced} letters are marked."
            ),
        )
        self.terminal.done(f"{expected} bounces read", time.monotonic() - began)

    def _wait_until(
        self, look: Callable[[], tuple[bool, object]], failure: Callable[[], str]
    ) -> None:
        """Looks until it is done; ShowError when what is seen does not change any more.

        ``look`` tells whether it is done, and what it saw.
        """
        before: object = None
        changed_at = time.monotonic()
        while True:
            done, seen = look()
            if done:
                return
            if seen != before:
                before, changed_at = seen, time.monotonic()
            self.children.must_live()
            if time.monotonic() - changed_at > PATIENCE_SECONDS:
                raise ShowError(
                    f"{failure()} Nothing has changed for {PATIENCE_SECONDS:.0f} s. "
                    f"{self.cluster.ending()}"
                )
            time.sleep(LOOK_AGAIN_SECONDS)

    # ------------------------------------------------------------------ the ledger

    def show_ledger(self, job: ImportJob, campaign: Campaign) -> bool:
        """Prints the ledger and every difference; whether there is none."""
        from config.demo import campaign as acts

        lines = ledger.read_log(self.folder.smtp_log)
        letters = acts.letters_of(campaign, by_message_id=self.mailbox.provider is not None)
        totals = acts.totals_of(campaign)
        suppressed = acts.suppressed_addresses()
        entries = ledger.entries_of(
            job.new, totals, lines, sum(suppressed.values()), self.fates(), self.server
        )
        differences = [
            *ledger.differences(letters, lines),
            *ledger.differences_of_totals(totals, Counter(letter.status for letter in letters)),
            *ledger.differences_of_suppressions(suppressed),
        ]
        self.terminal.line()
        for line in ledger.table(entries):
            self.terminal.line(f"  {line}")
        self.terminal.line()
        if not differences:
            self.terminal.done(
                f"{len(letters):,} letters compared with the {self.server}'s own log: no difference"
            )
        for difference in differences[:DIFFERENCES_SHOWN]:
            self.terminal.line(self.terminal.paint(f"  ✗ {difference}", RED))
        if len(differences) > DIFFERENCES_SHOWN:
            self.terminal.line(f"  ... and {len(differences) - DIFFERENCES_SHOWN:,} more")
        holds = not differences and all(entry.holds for entry in entries)
        verdict = "The ledger balances." if holds else "The ledger does NOT balance."
        self.terminal.line(f"  {self.terminal.paint(verdict, GREEN if holds else RED)}")
        return holds

    # ------------------------------------------------------------------ afterwards

    def stay_open(self) -> None:
        """Says what can be tried, and waits for Ctrl-C; ChildError when a child dies."""
        address = self.terminal.paint(self.address, BOLD)
        examples = {fate: next(r for r in readers() if fate_of(r.email) is fate) for fate in Fate}
        self.terminal.line()
        self.terminal.line(f"  {address}  user admin, password {self.password}")
        self.terminal.line()
        self.terminal.line("  Worth a try:")
        for suggestion in (
            "the campaign's page, and a delivery's: each attempt in the server's words",
            "“Why did X (not) get it?” for one of these:",
            *(f"    {examples[fate].email}" for fate in Fate if fate),
            "a campaign to the same list: who bounced is left out",
            f"the SMTP server's own log: {shown(self.folder.smtp_log)}",
        ):
            self.terminal.line(f"    {suggestion}")
        self.terminal.line()
        self.terminal.line("  All is running. Ctrl-C stops everything.")
        while True:
            self.children.must_live()
            time.sleep(0.5)
