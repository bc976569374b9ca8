"""The seam for mailboxes: where bounces lie until their result is committed.

A mailbox is any class with the methods below; its constructor takes the OPTIONS as keywords and
opens nothing. What goes wrong with the mailbox as a whole is raised as it comes: the poller backs
off and tells a person. A mailbox deletes nothing that is not done, and even then only where an
option asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from delivery.outcomes import Unavailable


class MailGoneError(LookupError):
    """A mail that was listed is not there: somebody else moved it. It is passed over."""


class MailboxRestsError(Exception):
    """The far side asks to be left alone for ``trouble.retry_after``. No failure, and told to
    nobody: what was fetched is taken in, and the next poll comes when the rest is over."""

    def __init__(self, trouble: Unavailable) -> None:
        super().__init__(str(trouble.reply))
        self.trouble = trouble

    @property
    def wait(self) -> timedelta:
        return self.trouble.retry_after or timedelta(minutes=1)


class Mailbox(Protocol):
    """A place that mails are taken from one by one."""

    def open(self) -> None:
        """Connects, so that the rest may be called."""

    def uid_validity(self) -> str:
        """What makes uids comparable (RFC 3501 section 2.3.1.1): uids under another value are
        those of other mails. A constant where uids are never used again. Up to 100 characters."""

    def uids(self) -> Iterator[str]:
        """The mails that are not done, the oldest first; each up to 255 characters. The poller may
        call ``fetch`` and ``done`` before it asks for the next one."""

    def fetch(self, uid: str, largest: int) -> bytes:
        """The mail's first ``largest`` octets, and not more than that over the wire.

        MailGoneError where it is no longer there."""

    def done(self, uids: Sequence[str]) -> None:
        """The results are committed: ``uids`` gives these mails no more. Calling it again, or for
        a mail that is gone, does no harm."""

    def close(self) -> None:
        """Disconnects. Never raises after a failed ``open``."""


class UidStore(Protocol):
    """Remembers which mails are done, for a far side that cannot."""

    def done(self, uids: Collection[str]) -> set[str]:
        """Those of the uids that are done."""

    def add(self, uids: Collection[str]) -> None:
        """They are done now."""


@runtime_checkable
class Remembering(Protocol):
    """What a mailbox has besides when its far side keeps no flags (POP3). The poller calls it
    once, after ``open``."""

    def remember_in(self, store: UidStore) -> None: ...


@runtime_checkable
class Resuming(Protocol):
    """What a mailbox has besides when its far side tells only what came since a certain point
    (Microsoft Graph). The point is kept in the database, and moves in the transaction that writes
    down what the mails before it came to."""

    def resume_at(self, position: str) -> None:
        """Called once, after ``open``: the last committed position, "" before the first."""

    def position_after(self, uids: Collection[str]) -> str:
        """Where the next poll goes on, once these mails are done as well. Changes nothing: it is
        asked before the results are committed, and that may fail."""


@dataclass(slots=True)
class AccountRequest:
    """A request under way. ``silence`` is set to the answer after which nobody may touch the
    account for a while."""

    silence: str = ""


Gate = Callable[[], AbstractContextManager[AccountRequest]]


@runtime_checkable
class OfAccount(Protocol):
    """What a mailbox has besides when its far side counts our requests together with those of a
    provider. It enters the gate for each request; the gate may raise MailboxRestsError."""

    @property
    def account(self) -> str:
        """The address of the account, as in the provider's option ``mailbox``."""

    def guard(self, gate: Gate) -> None:
        """Called once, before ``open``."""


@runtime_checkable
class Notifying(Protocol):
    """What a mailbox has besides when its far side can call us as soon as a mail arrives."""

    @property
    def places(self) -> Sequence[str]:
        """What is to be watched, one by one."""

    def watch(self, place: str, url: str, secret: str, until: datetime) -> str:
        """Asks for calls to ``url`` that bear the secret; the key of the watch. The far side may
        try the address before it answers."""

    def renew(self, key: str, until: datetime) -> bool:
        """Prolongs a watch; False when there is none of that key any more."""


MAILBOX_METHODS = ("open", "uid_validity", "uids", "fetch", "done", "close")
