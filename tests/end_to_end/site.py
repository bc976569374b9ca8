"""A whole running site on the test's database: gunicorn, a task cluster, an SMTP server, a Maildir
for what comes back. Every part is the real one, and is stopped before the database is emptied."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from config.demo.processes import Children, answers
from config.demo.report import deliver, make_maildir
from tests.database_url import database_url
from tests.smtp_server import Letter, SMTPServer

START_SECONDS = 30.0
NAME, PASSWORD = "editor", "a password for the tests"


@dataclass(frozen=True)
class Site:
    """``url``: where it is. ``smtp``: the server that takes its letters."""

    url: str
    smtp: SMTPServer
    maildir: Path
    children: Children

    def letters_to(self, address: str) -> list[EmailMessage]:
        """What the SMTP server took for an address, parsed."""
        return [
            message_from_bytes(letter.content, policy=policy.default)
            for letter in self.taken_for(address)
        ]

    def taken_for(self, address: str) -> list[Letter]:
        return [letter for letter in list(self.smtp.accepted) if letter.rcpt_to == [address]]

    def wait_for_letters(self, number: int) -> None:
        assert self.smtp.wait_until(lambda server: len(server.accepted) >= number, timeout=30), (
            f"{len(self.smtp.accepted)} of {number} letters came"
        )

    def comes_back(self, mail: bytes) -> None:
        """A mail arrives where the site looks for bounces, and is read at once."""
        deliver(mail, self.maildir)
        subprocess.run(manage("poll_bounces"), env=dict(self.children.environment), check=True)


@contextmanager
def running_site(folder: Path, smtp: SMTPServer, **environment: str) -> Iterator[Site]:
    """The site, until the end of the block. ``environment``: what config/settings.py shall read.

    It has a secret key of its own, so a task that this process queues is none of its tasks: what
    shall happen there is asked for on its pages.
    """
    maildir = folder / "bounces"
    make_maildir(maildir)
    log = folder / "log"
    log.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        everything = os.environ | {
            "DATABASE_URL": database_url(),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PENNYPOST_VAR": str(folder),
            "SECRET_KEY": secrets.token_urlsafe(48),
            "BASE_URL": f"http://127.0.0.1:{port}",
            "SMTP_HOST": smtp.host,
            "SMTP_PORT": str(smtp.port),
            "BOUNCE_MAILDIR": str(maildir),
            "DELIVERY_WORKERS": "1",
            "Q_WORKERS": "2",
            "PYTHONUNBUFFERED": "1",
        }
        # The socket listens before gunicorn does: whoever asks early waits instead of failing.
        with Children(everything | environment, log, [listener.fileno()]) as children:
            children.start("task cluster", "qcluster.log", manage("qcluster"))
            web = children.start(
                "web server",
                "web.log",
                [
                    sys.executable, "-m", "gunicorn", "config.wsgi",
                    "--bind", f"fd://{listener.fileno()}",
                    "--worker-class", "gthread", "--threads", "4", "--no-control-socket",
                ],
            )  # fmt: skip
            request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            children.wait_for(web, lambda: answers(port, b"HTTP/1.1 200", request), START_SECONDS)
            yield Site(f"http://127.0.0.1:{port}", smtp, maildir, children)


def manage(*arguments: str) -> Sequence[str]:
    return [sys.executable, "manage.py", *arguments]


def unsubscribe_link(letter: EmailMessage) -> str:
    """The address in List-Unsubscribe, as a mailbox provider reads it (RFC 2369)."""
    found = re.fullmatch(r"<(https?://[^>]+)>(?:, <mailto:[^>]+>)?", letter["List-Unsubscribe"])
    assert found, letter["List-Unsubscribe"]
    return found[1]
