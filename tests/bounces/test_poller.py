"""A poll takes in what lies in the mailbox, and can be killed at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django_q.models import OrmQ

from bounces import poller
from bounces.conf import bounce_settings
from bounces.mailboxes.base import MailGoneError
from bounces.models import Bounce, MailboxState, ReceivedMail, Verdict
from bounces.poller import pause_after, poll
from bounces.tasks import poll_mailbox, poll_mailboxes
from campaigns.models import Suppression
from delivery.alerts import open_alerts
from delivery.models import Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, report, return_path
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import raw_sample
from tests.bounces.test_maildir import put

pytestmark = pytest.mark.django_db


@pytest.fixture
def maildir(settings) -> Path:
    return Path(settings.BOUNCES["MAILBOXES"]["default"]["OPTIONS"]["path"])


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


def a_poller_that_dies_examining(monkeypatch: pytest.MonkeyPatch, now: datetime) -> None:
    """What it took is stored, and nothing of it is examined."""

    def kill(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("bounces.intake.examine", kill)
        with pytest.raises(Killed):
            poll("default", now)


def test_mails_are_taken_in_and_flagged_and_never_deleted(maildir, deliver: Deliver, now) -> None:
    letter = deliver()
    put(maildir, report(delivered_to=return_path(letter)))
    put(maildir, raw_sample("a-letter-of-a-reader"))
    result = poll("default", now)
    assert result.verdicts == {"bounce": 1, "unrecognised": 1}
    assert list((maildir / "new").iterdir()) == []
    assert all(path.name.endswith(":2,S") for path in (maildir / "cur").iterdir())
    assert ReceivedMail.objects.count() == 2
    assert poll("default", now).taken == 0


def test_a_mail_beyond_the_size_is_fetched_no_further_and_says_so(settings, maildir, db, now):
    settings.BOUNCES = settings.BOUNCES | {"LARGEST_MAIL_BYTES": 16 * 1024}
    put(maildir, b"Subject: whole\n\n".ljust(16 * 1024))
    put(maildir, b"Subject: cut\n\n".ljust(16 * 1024 + 1))
    poll("default", now)
    kept = {mail.subject: (mail.truncated, len(mail.raw)) for mail in ReceivedMail.objects.all()}
    assert kept == {"whole": (False, 16 * 1024), "cut": (True, 16 * 1024)}


def test_a_mail_that_cannot_be_examined_does_not_stop_the_next(maildir, deliver, now, monkeypatch):
    first, second = deliver("a@example.net"), deliver("b@example.net")
    put(maildir, report(delivered_to=return_path(first)))
    put(maildir, report(delivered_to=return_path(second)))
    real = Suppression.add_many.__func__

    def fails_for_the_first(cls, rows: Iterable[Suppression]) -> set[str]:
        rows = list(rows)
        if any(row.address_key == "a@example.net" for row in rows):
            raise ValueError
        return real(cls, rows)

    monkeypatch.setattr(Suppression, "add_many", classmethod(fails_for_the_first))
    assert poll("default", now).verdicts == {"failed": 1, "bounce": 1}
    second.refresh_from_db()
    assert second.status == DeliveryStatus.BOUNCED


def test_t13_after_hostile_mail_the_next_is_processed(maildir, deliver: Deliver, now) -> None:
    letter = deliver()
    for raw in HOSTILE.values():
        put(maildir, raw)
    put(maildir, report(delivered_to=return_path(letter)))
    result = poll("default", now)
    assert (result.taken, result.error) == (len(HOSTILE) + 1, "")
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED


@pytest.mark.parametrize("moment", ["store", "examine", "_record", "mark_all_bounced", "done"])
def test_a_poller_killed_at_any_moment_neither_loses_nor_counts_twice(
    moment: str, maildir, deliver: Deliver, now, monkeypatch
) -> None:
    letter = deliver()
    put(maildir, report(delivered_to=return_path(letter)))

    def kill(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "done":
            patch.setattr("bounces.mailboxes.maildir.MaildirMailbox.done", kill)
        else:
            patch.setattr(f"bounces.intake.{moment}", kill)
        with pytest.raises(Killed):
            poll("default", now)
    later = now + poller.LEASE
    poll("default", later)
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert (ReceivedMail.objects.count(), Bounce.objects.count()) == (1, 1)
    assert Suppression.objects.count() == 1
    assert poll("default", later).taken == 0


def test_a_mail_that_was_stored_and_then_vanished_is_examined_all_the_same(
    maildir, deliver: Deliver, now, monkeypatch
) -> None:
    letter = deliver()
    path = put(maildir, report(delivered_to=return_path(letter)))
    a_poller_that_dies_examining(monkeypatch, now)
    path.unlink()
    assert poll("default", now + poller.LEASE).verdicts == {"bounce": 1}
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED


def test_a_report_that_came_too_early_is_taken_up_by_the_next_poll(maildir, deliver, now) -> None:
    letter = deliver(status=DeliveryStatus.SENDING)
    put(maildir, report(delivered_to=return_path(letter)))
    assert poll("default", now).verdicts == {Verdict.WAITING: 1}
    assert poll("default", now).taken == 0
    Delivery.objects.update(status=DeliveryStatus.SENT)
    assert poll("default", now).verdicts == {"bounce": 1}


def test_a_mail_whose_examiner_died_does_not_wait_behind_those_that_came_too_early(
    maildir, deliver: Deliver, now, monkeypatch
) -> None:
    monkeypatch.setattr(poller, "MOST_OPEN_MAILS", 2)
    early = deliver(status=DeliveryStatus.SENDING)
    for _ in range(3):
        put(maildir, report(delivered_to=return_path(early)))
    assert poll("default", now).verdicts == {Verdict.WAITING: 3}
    letter = deliver("bob@example.net")
    put(maildir, report(delivered_to=return_path(letter)))
    a_poller_that_dies_examining(monkeypatch, now)
    for path in (maildir / "new").iterdir():
        path.unlink()  # so that nothing but the rows left over tells of it

    assert poll("default", now + poller.LEASE).verdicts == {"bounce": 1}


def test_two_pollers_do_not_poll_one_mailbox(db, now) -> None:
    MailboxState.objects.create(
        name="default", lease_key="another", leased_until=now + timedelta(minutes=1)
    )
    assert "another poller" in poll("default", now).skipped
    assert MailboxState.objects.get().lease_key == "another"
    assert poll("default", now + timedelta(minutes=1)).skipped == ""


def test_a_poller_that_lost_its_lease_does_not_give_back_the_new_owners(db, now) -> None:
    MailboxState.objects.create(name="default", lease_key="new owner")
    poller._end_lease("default", "old owner", poller.Poll("default"), now)
    assert MailboxState.objects.get().lease_key == "new owner"


def test_the_budget_ends_a_poll_between_two_mails(maildir, now) -> None:
    put(maildir, report())
    result = poll("default", now, budget=timedelta(seconds=-1))
    assert (result.taken, result.error) == (0, "")
    assert poll("default", now).taken == 1


class BrokenMailbox:
    """Its server does not answer."""

    def open(self) -> None:
        raise ConnectionRefusedError("111, connection refused")

    def uid_validity(self) -> str:
        return ""

    def uids(self) -> Iterator[str]:
        return iter(())

    def fetch(self, uid: str, largest: int) -> bytes:
        raise MailGoneError(uid)

    def done(self, uids: Sequence[str]) -> None: ...

    def close(self) -> None: ...


class SomeUnreadable(BrokenMailbox):
    """Mails of these uids; every word "bad" cannot be fetched, and "gone" is gone."""

    uid_list = ("bad", "gone", "good", "bad2", "good2")

    def open(self) -> None: ...

    def uids(self) -> Iterator[str]:
        return iter(self.uid_list)

    def fetch(self, uid: str, largest: int) -> bytes:
        if uid.startswith("bad"):
            raise PermissionError(uid)
        if uid == "gone":
            raise MailGoneError(uid)
        return report()


class AllUnreadable(SomeUnreadable):
    uid_list = ("bad1", "bad2", "bad3", "bad4", "good")


def use(settings, **mailboxes: type) -> None:
    settings.BOUNCES = settings.BOUNCES | {
        "MAILBOXES": {
            name: {"BACKEND": f"{backend.__module__}.{backend.__qualname__}"}
            for name, backend in mailboxes.items()
        }
    }
    assert set(bounce_settings().mailboxes) == set(mailboxes)


def test_a_mailbox_that_fails_is_left_alone_for_a_while(settings, db, now: datetime) -> None:
    use(settings, broken=BrokenMailbox)
    assert "ConnectionRefusedError" in poll("broken", now).error
    state = MailboxState.objects.get()
    assert (state.failures, state.due_at) == (1, now + timedelta(minutes=1))
    assert "connection refused" in state.last_error
    assert poll("broken", now + timedelta(seconds=59)).skipped
    assert poll("broken", now + timedelta(minutes=1)).error
    assert MailboxState.objects.get().due_at == now + timedelta(minutes=1 + 2)


def test_a_mailbox_that_answers_again_is_forgiven(settings, db, now: datetime) -> None:
    MailboxState.objects.create(name="default", failures=3, last_error="down")
    poll("default", now)
    state = MailboxState.objects.get()
    assert (state.failures, state.last_error, state.due_at) == (0, "", None)
    assert state.last_succeeded_at == now


def test_the_pause_grows_to_an_hour() -> None:
    assert [pause_after(n) for n in (1, 2, 3)] == [timedelta(minutes=m) for m in (1, 2, 4)]
    assert pause_after(7) == pause_after(5000) == timedelta(hours=1)


def test_each_mailbox_is_polled_by_a_task_of_its_own(settings, db) -> None:
    use(settings, broken=BrokenMailbox, some=SomeUnreadable)
    assert poll_mailboxes() == "broken, some"
    queued = [task.task for task in OrmQ.objects.order_by("id")]
    assert [(task["func"], task["args"]) for task in queued] == [
        ("bounces.tasks.poll_mailbox", ("broken",)),
        ("bounces.tasks.poll_mailbox", ("some",)),
    ]
    assert "stopped by ConnectionRefusedError" in poll_mailbox("broken")
    assert "some: 2 mails (2 bounce), 2 could not be fetched" in poll_mailbox("some")
    assert "no mailbox is called 'gone'" in poll_mailbox("gone")


def test_a_mailbox_that_keeps_failing_is_told_to_a_person_until_it_answers(settings, db, now):
    use(settings, default=BrokenMailbox)
    for minute in range(poller.FAILURES_THAT_ALERT - 1):
        poll("default", now + timedelta(minutes=minute), at_once=True)
    assert not open_alerts().exists()
    poll("default", now, at_once=True)
    poll("default", now, at_once=True)
    alert = open_alerts().get()
    assert alert.title == "The bounce mailbox default fails"
    assert "connection refused" in alert.text
    use(settings, default=SomeUnreadable)
    poll("default", now, at_once=True)
    assert not open_alerts().exists()


def test_one_mail_that_cannot_be_fetched_is_passed_over(settings, db, now) -> None:
    use(settings, some=SomeUnreadable)
    result = poll("some", now)
    assert (result.taken, result.unreadable, result.error) == (2, 2, "")


def test_several_in_a_row_are_the_mailboxs_trouble(settings, db, now) -> None:
    use(settings, all=AllUnreadable)
    result = poll("all", now)
    assert (result.taken, result.unreadable) == (0, 3)
    assert "PermissionError" in result.error


def test_the_command_polls_at_once_and_prints_a_line_for_each_mailbox(maildir, deliver, now):
    put(maildir, report(delivered_to=return_path(deliver())))
    MailboxState.objects.create(name="default", due_at=now + timedelta(days=3650))
    out = StringIO()
    call_command("poll_bounces", stdout=out)
    assert out.getvalue() == "default: 1 mails (1 bounce)\n"


def test_the_command_fails_when_a_mailbox_does(settings, db) -> None:
    use(settings, broken=BrokenMailbox)
    with pytest.raises(CommandError, match="broken"):
        call_command("poll_bounces", mailbox="broken", stdout=StringIO())


def test_the_command_names_the_mailboxes_there_are(db) -> None:
    with pytest.raises(CommandError, match="the settings name default"):
        call_command("poll_bounces", mailbox="nowhere", stdout=StringIO())
