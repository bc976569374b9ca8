"""The mailbox that the demo's reports come back to: a Maildir, or a real server in front of one.

The SMTP server always delivers into a Maildir, as mail servers do. For imap and pop3 a Dovecot of
the distribution serves it; for graph the emulator of Microsoft Graph takes its mails in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.demo import dovecot
from config.demo.ports import free_port
from config.demo.processes import Child, Children, answers
from config.demo.world import Fate

KINDS = ("maildir", "imap", "pop3", "graph")
IMAP_PORT, POP3_PORT, GRAPH_PORT = 2143, 2110, 8365
if "DEMO_MAILBOX_PORT" in os.environ:  # for demos that begin at the same moment
    IMAP_PORT = POP3_PORT = GRAPH_PORT = int(os.environ["DEMO_MAILBOX_PORT"])
ACCOUNT = "letter@news.example.org"
START_SECONDS = 30.0
NO_DOVECOT = (
    "For imap and pop3 the demo needs Dovecot: install dovecot-imapd and dovecot-pop3d (apt), "
    "dovecot (dnf, brew). Its service need not run."
)

# Starts a process of the demo: name, log, arguments.
Start = Callable[..., Child]


class MailboxError(Exception):
    """The mailbox cannot be had. The text is for the person at the terminal."""


class DemoMailbox:
    """A Maildir that is read as it lies on the disk, and what the others have in common with it.

    ``maildir``: where the SMTP server delivers reports.
    """

    def __init__(self, maildir: Path) -> None:
        self.maildir = maildir

    @property
    def entry(self) -> dict[str, Any]:
        """The mailbox as BOUNCES has it."""
        backend = "bounces.mailboxes.maildir.MaildirMailbox"
        return {"BACKEND": backend, "OPTIONS": {"path": str(self.maildir)}}

    @property
    def told(self) -> str:
        """What is said of it when the processes have started; "" for nothing."""
        return ""

    # The provider as DELIVERY has it, where this mailbox sends too; None: the SMTP server sends.
    provider: dict[str, Any] | None = None

    def start(self, children: Children, start: Start) -> None:
        """Starts what serves the mailbox, and waits until it answers; a Maildir needs nobody."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What differs between IMAP and POP3."""

    backend: str
    greeting: bytes


PROTOCOLS = {
    "imap": Protocol("bounces.mailboxes.imap.IMAPMailbox", b"* OK"),
    "pop3": Protocol("bounces.mailboxes.pop3.POP3Mailbox", b"+OK"),
}


class ServedByDovecot(DemoMailbox):
    """Behind IMAP or POP3. ``folder`` is Dovecot's own."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(dovecot.inbox(folder, "bounces"))
        self.name, self.protocol, self.folder = name, PROTOCOLS[name], folder
        self.imap = free_port(IMAP_PORT)
        self.pop3 = free_port(POP3_PORT, but_not=self.imap)

    @property
    def port(self) -> int:
        return self.imap if self.name == "imap" else self.pop3

    @property
    def entry(self) -> dict[str, Any]:
        options = {"host": "127.0.0.1", "port": self.port, "security": "none"}
        login = {"username": "bounces", "password": dovecot.PASSWORD}
        return {"BACKEND": self.protocol.backend, "OPTIONS": options | login}

    @property
    def told(self) -> str:
        return f"Dovecot ({self.name.upper()}) on {self.port}"

    def start(self, children: Children, start: Start) -> None:
        config = self.folder / "dovecot.conf"
        config.write_text(dovecot.configuration(self.folder, self.imap, self.pop3))
        assert dovecot.BINARY
        child = start("Dovecot", "dovecot.log", dovecot.BINARY, "-F", "-c", str(config))
        greeting = self.protocol.greeting
        children.wait_for(child, lambda: answers(self.port, greeting), START_SECONDS)


class ServedByGraph(DemoMailbox):
    """Behind the emulator of Microsoft Graph, whose mailbox takes in what the Maildir gets."""

    def __init__(self, maildir: Path, log: Path | None = None) -> None:
        super().__init__(maildir)
        self.port = free_port(GRAPH_PORT)
        self.log = log
        if log is not None:
            self.provider = {
                "PROFILE": "microsoft365-graph",
                "OPTIONS": self.entry["OPTIONS"],
                # Microsoft's 28 letters a minute would make an hour's show.
                "LIMITS": [],
            }

    @property
    def entry(self) -> dict[str, Any]:
        emulator = f"http://127.0.0.1:{self.port}"
        identity = {"tenant_id": "demo.example", "client_id": "demo", "client_secret": "right"}
        options = {"mailbox": ACCOUNT, "identity": identity, "emulator": emulator}
        return {"BACKEND": "bounces.mailboxes.graph.GraphMailbox", "OPTIONS": options}

    @property
    def told(self) -> str:
        return f"emulator of Microsoft Graph on {self.port}"

    def start(self, children: Children, start: Start) -> None:
        # Graph refuses no reader at once: who is gone comes back, as who bounces.
        gone = [part for fate in (Fate.REFUSED, Fate.REPORTED) for part in ("--gone", fate)]
        child = start(
            "Graph emulator", "graph-emulator.log", sys.executable, "manage.py", "graph_emulator",
            "--port", str(self.port), "--mailbox", ACCOUNT,
            *(["--log", str(self.log), *gone] if self.log else ["--take-in", str(self.maildir)]),
        )  # fmt: skip
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        children.wait_for(child, lambda: answers(self.port, b"HTTP/1.1 ", request), START_SECONDS)


@contextmanager
def chosen_mailbox(kind: str, maildir: Path, sends_to: Path | None = None) -> Iterator[DemoMailbox]:
    """The mailbox of this kind; MailboxError when this machine cannot have it. What it needs on the
    disk is gone after the block. ``sends_to``: with kind "graph", the log of the letters that it
    sends as well."""
    if kind in PROTOCOLS:
        if not dovecot.BINARY:
            raise MailboxError(NO_DOVECOT)
        with dovecot.folder_for_dovecot() as folder:
            yield ServedByDovecot(kind, folder)
    elif kind == "graph":
        yield ServedByGraph(maildir, sends_to)
    else:
        yield DemoMailbox(maildir)
