"""What every mailbox must keep, as a suite that third parties run against theirs.

from tests.contracts.mailbox import MailboxContract

class TestMyMailbox(MailboxContract):
    def make(self): return MyMailbox(...)          # always onto the same far side
    def deliver(self, raw): ...                    # what the far side's mail server would do
    def kept(self): return number_of_mails_there   # done or not
    def unreachable(self): return MyMailbox(...)   # whose far side cannot be reached
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bounces.mailboxes.base import MAILBOX_METHODS, Mailbox, MailGoneError


def mail(number: int) -> bytes:
    return f"From: <a@example.org>\r\nSubject: {number}\r\n\r\nBody {number}\r\n".encode()


class MailboxContract:
    """Inherit, and give ``make``, ``deliver``, ``kept`` and ``unreachable``."""

    def make(self) -> Mailbox:
        raise NotImplementedError

    def deliver(self, raw: bytes) -> None:
        raise NotImplementedError

    def kept(self) -> int:
        raise NotImplementedError

    def unreachable(self) -> Mailbox:
        raise NotImplementedError

    @contextmanager
    def opened(self) -> Iterator[Mailbox]:
        mailbox = self.make()
        mailbox.open()
        try:
            yield mailbox
        finally:
            mailbox.close()

    def test_it_has_every_method(self) -> None:
        assert all(callable(getattr(self.make(), name)) for name in MAILBOX_METHODS)

    def test_an_empty_mailbox_lists_nothing(self) -> None:
        with self.opened() as mailbox:
            assert list(mailbox.uids()) == []

    def test_each_mail_is_listed_and_fetched_as_it_came(self) -> None:
        for number in range(3):
            self.deliver(mail(number))
        with self.opened() as mailbox:
            fetched = [mailbox.fetch(uid, 10_000) for uid in mailbox.uids()]
        assert sorted(fetched) == [mail(number) for number in range(3)]

    def test_a_mail_that_was_only_fetched_is_listed_again(self) -> None:
        self.deliver(mail(1))
        with self.opened() as mailbox:
            (uid,) = mailbox.uids()
            mailbox.fetch(uid, 10_000)
        with self.opened() as mailbox:
            assert list(mailbox.uids()) == [uid]

    def test_a_mail_that_is_done_is_listed_no_more_and_never_deleted(self) -> None:
        self.deliver(mail(1))
        self.deliver(mail(2))
        with self.opened() as mailbox:
            first, second = mailbox.uids()
            mailbox.done([first])
        with self.opened() as mailbox:
            assert list(mailbox.uids()) == [second]
        assert self.kept() == 2

    def test_mails_may_be_done_while_they_are_listed(self) -> None:
        for number in range(5):
            self.deliver(mail(number))
        with self.opened() as mailbox:
            taken = []
            for uid in mailbox.uids():
                taken.append(mailbox.fetch(uid, 10_000))
                mailbox.done([uid])
            assert sorted(taken) == [mail(number) for number in range(5)]
            assert list(mailbox.uids()) == []

    def test_done_twice_is_done(self) -> None:
        self.deliver(mail(1))
        with self.opened() as mailbox:
            (uid,) = mailbox.uids()
            mailbox.done([uid])
            mailbox.done([uid])

    def test_no_more_is_fetched_than_was_asked_for(self) -> None:
        self.deliver(mail(1) + b"x" * 100_000)
        with self.opened() as mailbox:
            (uid,) = mailbox.uids()
            assert mailbox.fetch(uid, 50) == (mail(1) + b"x" * 50)[:50]

    def test_a_mail_that_is_gone_says_so(self) -> None:
        with self.opened() as mailbox, pytest.raises(MailGoneError):
            mailbox.fetch("4711", 10_000)

    def test_uids_keep_their_meaning_between_sessions(self) -> None:
        self.deliver(mail(1))
        with self.opened() as mailbox:
            before = (mailbox.uid_validity(), list(mailbox.uids()))
        self.deliver(mail(2))
        with self.opened() as mailbox:
            after = (mailbox.uid_validity(), list(mailbox.uids()))
        assert after[0] == before[0]
        assert set(before[1]) < set(after[1])

    def test_names_fit_into_their_columns(self) -> None:
        self.deliver(mail(1))
        with self.opened() as mailbox:
            assert len(mailbox.uid_validity()) <= 100
            assert all(0 < len(uid) <= 255 for uid in mailbox.uids())

    def test_a_far_side_that_cannot_be_reached_raises_and_can_be_closed(self) -> None:
        mailbox = self.unreachable()
        with pytest.raises(Exception):  # noqa: B017  (whatever the library raises: the poller backs off)
            mailbox.open()
        mailbox.close()
