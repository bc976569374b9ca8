"""IMAP and POP3 against a real Dovecot keep the mailbox contract."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from imapclient import IMAPClient

from bounces.mailboxes.base import Mailbox
from bounces.mailboxes.imap import DONE_KEYWORD, IMAPMailbox
from bounces.mailboxes.pop3 import POP3Mailbox
from bounces.models import ReceivedMail
from bounces.poller import poll
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, report, return_path
from tests.contracts.mailbox import MailboxContract, mail
from tests.dovecot import BINARY, PASSWORD, Dovecot, dovecot, token_of
from tests.free_ports import free_ports

NAMES = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    """Without one these tests are skipped, but in CI they fail."""
    if not BINARY:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("No Dovecot is installed.")
    with dovecot() as running:
        yield running


@pytest.fixture
def user() -> str:
    """An account of its own for each test."""
    return f"reader{next(NAMES)}"


def deliver_to(server: Dovecot, user: str, raw: bytes) -> None:
    """As a mail server does it, under the account that Dovecot runs as."""
    inbox, number = server.maildir(user), next(NAMES)
    owner = server.mail.stat()
    for folder in (inbox, *(inbox / name for name in ("cur", "new", "tmp"))):
        folder.mkdir(exist_ok=True)
        os.chown(folder, owner.st_uid, owner.st_gid)
    name = f"{1795255200 + number}.M{number}P7.mx"
    (inbox / "tmp" / name).write_bytes(raw)
    os.chown(inbox / "tmp" / name, owner.st_uid, owner.st_gid)
    (inbox / "tmp" / name).rename(inbox / "new" / name)


class OnDovecot(MailboxContract):
    @pytest.fixture(autouse=True)
    def _account(self, server: Dovecot, user: str) -> None:
        self.server, self.user = server, user
        self.store = Remembered()

    def deliver(self, raw: bytes) -> None:
        deliver_to(self.server, self.user, raw)

    def kept(self) -> int:
        inbox = self.server.maildir(self.user)
        return sum(
            len(list(path.glob("*")))
            for folder in (inbox, inbox / ".Bounces done")
            for path in (folder / "new", folder / "cur")
        )


class Remembered:
    """A store of unique ids, as the poller's is in the database."""

    def __init__(self) -> None:
        self.uids: set[str] = set()

    def done(self, uids) -> set[str]:
        return self.uids & set(uids)

    def add(self, uids) -> None:
        self.uids |= set(uids)


class TestIMAPWithKeyword(OnDovecot):
    def make(self) -> Mailbox:
        return IMAPMailbox(
            "localhost", self.user, PASSWORD, port=self.server.imaps,
            ca_file=str(self.server.ca_file),
        )  # fmt: skip

    def unreachable(self) -> Mailbox:
        return IMAPMailbox("localhost", "x", PASSWORD, port=free_ports(1)[0], security="none")

    def test_what_is_done_bears_our_keyword_and_is_unread_as_before(self) -> None:
        self.deliver(mail(1))
        with self.opened() as mailbox:
            mailbox.fetch("1", 10_000)
            mailbox.done(["1"])
        with IMAPClient("localhost", self.server.imap, ssl=False) as client:
            client.login(self.user, PASSWORD)
            client.select_folder("INBOX")
            flags = client.get_flags([1])[1]
        assert DONE_KEYWORD.encode() in flags
        assert b"\\Seen" not in flags

    def test_a_mail_that_a_person_has_read_is_not_lost(self) -> None:
        self.deliver(mail(1))
        with IMAPClient("localhost", self.server.imap, ssl=False) as client:
            client.login(self.user, PASSWORD)
            client.select_folder("INBOX")
            client.add_flags([1], [b"\\Seen"])
        with self.opened() as mailbox:
            assert list(mailbox.uids()) == ["1"]


class TestIMAPThatMoves(OnDovecot):
    def make(self) -> Mailbox:
        return IMAPMailbox(
            "localhost", self.user, PASSWORD, port=self.server.imap, security="starttls",
            ca_file=str(self.server.ca_file), done="move",
        )  # fmt: skip

    def unreachable(self) -> Mailbox:
        return IMAPMailbox("localhost", "x", "wrong", port=self.server.imap, security="none")

    def test_without_the_move_extension_it_copies_first(self, monkeypatch) -> None:
        monkeypatch.setattr(IMAPClient, "has_capability", lambda self, name: name != "MOVE")
        self.deliver(mail(1))
        with self.opened() as mailbox:
            mailbox.done(["1"])
            assert list(mailbox.uids()) == []
        assert self.kept() == 1

    def test_a_server_that_can_neither_move_nor_expunge_by_uid_gives_no_mail_twice(
        self, monkeypatch
    ) -> None:
        lacking = {"MOVE", "UIDPLUS"}
        monkeypatch.setattr(IMAPClient, "has_capability", lambda self, name: name not in lacking)
        self.deliver(mail(1))
        with self.opened() as mailbox:
            mailbox.done(["1"])
        with self.opened() as mailbox:
            assert list(mailbox.uids()) == []


class TestIMAPWithSeenAndXOAuth2(OnDovecot):
    def make(self) -> Mailbox:
        return IMAPMailbox(
            "localhost", self.user, token_source=lambda: token_of(self.user),
            port=self.server.imaps, ca_file=str(self.server.ca_file), flag="\\Seen",
        )  # fmt: skip

    def unreachable(self) -> Mailbox:
        return IMAPMailbox(
            "localhost", self.user, token_source=lambda: "stale", port=self.server.imaps,
            ca_file=str(self.server.ca_file),
        )  # fmt: skip


class TestPOP3(OnDovecot):
    def make(self) -> Mailbox:
        mailbox = POP3Mailbox(
            "localhost", self.user, PASSWORD, port=self.server.pop3s,
            ca_file=str(self.server.ca_file),
        )  # fmt: skip
        mailbox.remember_in(self.store)
        return mailbox

    def unreachable(self) -> Mailbox:
        return POP3Mailbox("localhost", "x", "wrong", port=self.server.pop3, security="none")

    def test_a_line_of_any_length_is_fetched(self) -> None:
        raw = b"Subject: x\r\n\r\n" + b"y" * 50_000 + b"\r\n..dot\r\n.\r\n"
        self.deliver(raw)
        with self.opened() as mailbox:
            (uid,) = mailbox.uids()
            assert mailbox.fetch(uid, 100_000) == raw
            assert mailbox.fetch(uid, 20_000) == raw[:20_000]
            assert mailbox.fetch(uid, 100_000) == raw

    def test_a_line_of_megabytes_is_cut_and_the_next_mail_is_fetched(self) -> None:
        long = b"Subject: x\r\n\r\n" + b"y" * (6 * 1024 * 1024) + b"\r\n"
        self.deliver(long)
        self.deliver(mail(2))
        with self.opened() as mailbox:
            first, second = mailbox.uids()
            assert mailbox.fetch(first, 10_000) == long[:10_000]
            assert mailbox.fetch(second, 10_000) == mail(2)


class TestPOP3WithXOAuth2(TestPOP3):
    def make(self) -> Mailbox:
        mailbox = POP3Mailbox(
            "localhost", self.user, token_source=lambda: token_of(self.user),
            port=self.server.pop3, security="starttls", ca_file=str(self.server.ca_file),
        )  # fmt: skip
        mailbox.remember_in(self.store)
        return mailbox


def test_pop3_deletes_what_is_done_where_that_is_asked_for(server: Dovecot, user: str) -> None:
    for number in range(2):
        deliver_to(server, user, mail(number))

    def opened() -> POP3Mailbox:
        mailbox = POP3Mailbox(
            "localhost", user, PASSWORD, port=server.pop3, security="none", delete=True
        )
        mailbox.remember_in(Remembered())
        mailbox.open()
        return mailbox

    mailbox = opened()
    first, second = mailbox.uids()
    mailbox.done([first])
    mailbox._opened.sock.shutdown(socket.SHUT_RDWR)  # the connection breaks off: nothing is deleted
    mailbox.close()
    mailbox = opened()
    assert list(mailbox.uids()) == [first, second]
    mailbox.done([first])
    mailbox.close()
    mailbox = opened()
    assert list(mailbox.uids()) == [second]
    mailbox.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Dovecot) -> None:
    for made in (
        IMAPMailbox("localhost", "x", PASSWORD, port=server.imaps),
        IMAPMailbox("localhost", "x", PASSWORD, port=server.imap, security="starttls"),
        POP3Mailbox("localhost", "x", PASSWORD, port=server.pop3s),
    ):
        with pytest.raises(OSError, match="certificate verify failed"):
            made.open()
        made.close()


def test_a_server_that_keeps_no_keywords_is_refused_with_a_way_out(server: Dovecot, user) -> None:
    mailbox = IMAPMailbox("localhost", user, PASSWORD, port=server.imap, security="none")
    with pytest.raises(ValueError, match="set flag to"):
        mailbox._check_flags((b"\\Seen", b"\\Flagged"))
    IMAPMailbox("localhost", user, PASSWORD, flag="\\Seen")._check_flags((b"\\Seen",))


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["imap", "pop3"])
def test_bounces_are_polled_from_a_real_server(
    kind: str, server: Dovecot, user: str, settings, deliver: Deliver, now
) -> None:
    backend = {"imap": "imap.IMAPMailbox", "pop3": "pop3.POP3Mailbox"}[kind]
    settings.BOUNCES = settings.BOUNCES | {
        "MAILBOXES": {
            "default": {
                "BACKEND": f"bounces.mailboxes.{backend}",
                "OPTIONS": {
                    "host": "localhost",
                    "username": user,
                    "password": PASSWORD,
                    "port": server.imaps if kind == "imap" else server.pop3s,
                    "ca_file": str(server.ca_file),
                },
            }
        }
    }
    letters = [deliver(f"r{number}@example.net") for number in range(3)]
    for letter in letters:
        deliver_to(server, user, report(delivered_to=return_path(letter)))
    assert poll("default", now).verdicts == {"bounce": 3}
    assert poll("default", now).taken == 0
    assert ReceivedMail.objects.count() == 3
    for letter in letters:
        letter.refresh_from_db()
        assert letter.status == DeliveryStatus.BOUNCED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"security": "ssl"}, "security"),
        ({"password": ""}, "either password or token_source"),
        ({"token_source": "config.settings.nothing"}, "either"),
        ({"password": "", "token_source": "config.nowhere.token"}, "token_source"),
        ({"password": "", "token_source": 7}, "cannot be called"),
    ],
)
@pytest.mark.parametrize("backend", [IMAPMailbox, POP3Mailbox])
def test_wrong_options_are_refused_before_anything_is_opened(backend, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        backend(**({"host": "h", "username": "u", "password": "p"} | options))


def test_a_done_folder_that_is_read_is_refused() -> None:
    with pytest.raises(ValueError, match="done_folder"):
        IMAPMailbox("h", "u", "p", done="move", done_folder="INBOX")
    with pytest.raises(ValueError, match="flag"):
        IMAPMailbox("h", "u", "p", done="delete")
