"""A Maildir that a local mail server writes to.

Unread mail lies in ``new``, and in ``cur`` without the flag S where another program has looked at
it. Done is: in ``cur`` with S, by one atomic rename. Read here and not with the standard library's
mailbox module, which parses and lists everything at once and gives no way to read half a file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from bounces.mailboxes.base import MailGoneError

SEEN = "S"


class MaildirMailbox:
    """``path``: the folder with cur, new and tmp in it; made by the mail server or by ``open``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise ValueError("path is empty")
        self._path = Path(path)

    def open(self) -> None:
        """Makes the folders where they are missing, so that a poll may come before the first mail.

        OSError when that cannot be.
        """
        for name in ("cur", "new", "tmp"):
            (self._path / name).mkdir(parents=True, exist_ok=True)

    def uid_validity(self) -> str:
        """A constant: a Maildir's unique names are never used again."""
        return "maildir"

    def uids(self) -> Iterator[str]:
        """Unique names, without flags. They begin with the second of arrival."""
        waiting = {
            _unique(entry.name)
            for folder in ("new", "cur")
            for entry in os.scandir(self._path / folder)
            if not entry.name.startswith(".") and SEEN not in _flags(entry.name)
        }
        yield from sorted(waiting, key=_by_arrival)

    def fetch(self, uid: str, largest: int) -> bytes:
        """No symbolic link, no pipe, no device: only a file of this folder is a mail."""
        try:
            descriptor = os.open(
                self._find(uid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError as error:
            raise MailGoneError(uid) from error
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{uid} is no regular file")
            return file.read(largest)

    def done(self, uids: Sequence[str]) -> None:
        """``new/x`` or ``cur/x:2,F`` becomes ``cur/x:2,FS``."""
        for uid in uids:
            self._flag(uid)

    def close(self) -> None:
        """Nothing is held open."""

    def _flag(self, uid: str) -> None:
        try:
            found = self._find(uid)
            flags = "".join(sorted({*_flags(found.name), SEEN}))
            found.rename(self._path / "cur" / f"{uid}:2,{flags}")
        except (MailGoneError, FileNotFoundError):
            return  # another program was quicker; the mail is no longer ours to flag

    def _find(self, uid: str) -> Path:
        """Where the mail is now; another program may have moved it or set flags meanwhile."""
        if "/" in uid or uid.startswith("."):
            raise MailGoneError(uid)
        for candidate in (self._path / "new" / uid, self._path / "cur" / f"{uid}:2,"):
            if candidate.is_symlink() or candidate.exists():
                return candidate
        for folder in ("cur", "new"):
            for entry in os.scandir(self._path / folder):
                if _unique(entry.name) == uid:
                    return Path(entry.path)
        raise MailGoneError(uid)


def _unique(name: str) -> str:
    return name.partition(":")[0]


def _flags(name: str) -> str:
    """The flags of ``unique:2,flags``."""
    return name.partition(":2,")[2]


def _by_arrival(uid: str) -> tuple[int, str]:
    second = uid.partition(".")[0]
    return (int(second) if second.isascii() and second.isdigit() else 0, uid)
