"""A Maildir keeps the mailbox contract, and shows only files of its own."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from bounces.mailboxes.base import Mailbox
from bounces.mailboxes.maildir import MaildirMailbox
from tests.contracts.mailbox import MailboxContract

COUNTER = itertools.count()


def put(maildir: Path, raw: bytes, name: str = "", folder: str = "new") -> Path:
    """As a mail server does it: written in tmp, then moved."""
    for part in ("cur", "new", "tmp"):
        (maildir / part).mkdir(parents=True, exist_ok=True)
    number = next(COUNTER)
    name = name or f"{1795255200 + number}.M{number}P7.mx"
    (maildir / "tmp" / name).write_bytes(raw)
    return (maildir / "tmp" / name).rename(maildir / folder / name)


class TestMaildirMailbox(MailboxContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "Maildir"

    def make(self) -> Mailbox:
        return MaildirMailbox(self.folder)

    def deliver(self, raw: bytes) -> None:
        put(self.folder, raw)

    def kept(self) -> int:
        return sum(1 for folder in ("new", "cur") for _ in (self.folder / folder).iterdir())

    def unreachable(self) -> Mailbox:
        self.folder.mkdir()
        (self.folder / "cur").write_text("in the way")
        return MaildirMailbox(self.folder)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    return tmp_path / "Maildir"


def test_what_another_program_has_looked_at_is_not_lost(maildir: Path) -> None:
    put(maildir, b"x", "1.a.mx:2,F", folder="cur")
    mailbox = MaildirMailbox(maildir)
    assert list(mailbox.uids()) == ["1.a.mx"]
    mailbox.done(["1.a.mx"])
    assert [path.name for path in (maildir / "cur").iterdir()] == ["1.a.mx:2,FS"]


def test_a_mail_that_is_moved_between_listing_and_fetching_is_found(maildir: Path) -> None:
    path = put(maildir, b"content", "1.a.mx")
    mailbox = MaildirMailbox(maildir)
    (uid,) = mailbox.uids()
    path.rename(maildir / "cur" / "1.a.mx:2,R")
    assert mailbox.fetch(uid, 100) == b"content"


def test_the_oldest_comes_first_whatever_the_length_of_its_number(maildir: Path) -> None:
    for name in ("1000.b", "999.a", "odd"):
        put(maildir, b"x", name)
    assert list(MaildirMailbox(maildir).uids()) == ["odd", "999.a", "1000.b"]


def test_a_link_out_of_the_folder_is_not_followed(maildir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    put(maildir, b"x", "1.a")
    (maildir / "new" / "2.b").symlink_to(secret)
    with pytest.raises(OSError):
        MaildirMailbox(maildir).fetch("2.b", 100)


def test_a_pipe_in_the_folder_does_not_make_the_poller_hang(maildir: Path) -> None:
    put(maildir, b"x", "1.a")
    os.mkfifo(maildir / "new" / "2.b")
    with pytest.raises(OSError, match="no regular file"):
        MaildirMailbox(maildir).fetch("2.b", 100)


def test_a_uid_is_no_path(maildir: Path) -> None:
    put(maildir, b"x", "1.a")
    with pytest.raises(LookupError):
        MaildirMailbox(maildir).fetch("../new/1.a", 100)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        MaildirMailbox("")
