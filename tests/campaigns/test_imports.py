"""An import adds and completes, names what it refuses, and survives whatever kills it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
from django.core.files.base import ContentFile
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ

from campaigns import imports, tasks
from campaigns.addresses import address_key
from campaigns.csv_source import UnreadableFileError
from campaigns.models import (
    ImportJob,
    ImportStatus,
    MailingList,
    RefusedRow,
    Subscriber,
    Subscription,
    SubscriptionEvent,
    Suppression,
)
from campaigns.states import SubscriptionStatus, SuppressionReason

pytestmark = pytest.mark.django_db


@pytest.fixture
def weekly() -> MailingList:
    return MailingList.objects.create(name="Weekly", label="weekly")


Prepare = Callable[..., ImportJob]


@pytest.fixture
def prepare(tmp_path: Path, weekly: MailingList) -> Prepare:
    """Makes an import of this text, ready to be carried on."""

    def make(
        text: str | bytes, mapping: dict[str, str] | None = None, encoding: str = "auto"
    ) -> ImportJob:
        path = tmp_path / "readers.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        job = imports.new_job(weekly, path, encoding=encoding)
        if mapping is not None:
            job.mapping = mapping
            job.save()
        imports.enqueue(job, now=timezone.now())
        return job

    return make


def carried_out(job: ImportJob) -> ImportJob:
    assert imports.carry_on(job.pk)
    job.refresh_from_db()
    return job


def counts(job: ImportJob) -> dict[str, int]:
    """The counts that are not zero."""
    names = ("new", "updated", "unchanged", "kept_unsubscribed", "refused", "suppressed")
    return {name: getattr(job, name) for name in names if getattr(job, name)}


def reader(email: str, **fields: Any) -> Subscriber:
    return Subscriber.objects.create(email=email, address_key=address_key(email), **fields)


# --------------------------------------------------------------------------- what is written


def test_readers_of_a_file_are_on_the_list_with_all_that_the_file_says(
    prepare: Prepare, weekly: MailingList
) -> None:
    job = carried_out(
        prepare("E-Mail;Name;Sprache;Ort\nAda@EXAMPLE.org;Ada;en_GB;Zürich\nbob@example.org;;;\n")
    )
    assert (job.status, counts(job)) == (ImportStatus.FINISHED, {"new": 2})
    ada, bob = Subscriber.objects.order_by("email")
    assert (ada.email, ada.address_key) == ("Ada@example.org", "ada@example.org")
    assert (ada.name, ada.language, ada.attributes) == ("Ada", "en-GB", {"ort": "Zürich"})
    assert (bob.name, bob.language, bob.attributes) == ("", "", {})
    assert ada.created_at.date() == timezone.now().date()
    for subscription in Subscription.objects.all():
        assert subscription.mailing_list == weekly
        assert subscription.status == SubscriptionStatus.SUBSCRIBED
        assert subscription.source == f"import {job.pk}: readers.csv"


def test_each_new_subscription_begins_its_history(prepare: Prepare, admin_user: Any) -> None:
    job = prepare("email\nada@example.org\nbob@example.org\n")
    ImportJob.objects.update(created_by=admin_user)
    carried_out(job)
    assert list(
        SubscriptionEvent.objects.values_list(
            "subscription__subscriber__email", "from_status", "to_status", "source", "by"
        )
    ) == [
        ("ada@example.org", "", "subscribed", f"import {job.pk}: readers.csv", admin_user.pk),
        ("bob@example.org", "", "subscribed", f"import {job.pk}: readers.csv", admin_user.pk),
    ]


def test_the_same_file_again_changes_nothing(prepare: Prepare) -> None:
    text = "email,name,city\nada@example.org,Ada,London\nbob@example.org,Bob,\n"
    carried_out(prepare(text))
    before = list(Subscriber.objects.values())
    job = carried_out(prepare(text))
    assert counts(job) == {"unchanged": 2}
    assert list(Subscriber.objects.values()) == before
    assert SubscriptionEvent.objects.count() == 2


def test_attributes_are_merged_and_empty_cells_erase_nothing(prepare: Prepare) -> None:
    ada = reader(
        "ada@example.org", name="Ada", language="en", attributes={"city": "London", "tags": [1]}
    )
    reader("bob@example.org", name="Bob", attributes={"city": "Rome"})
    job = carried_out(
        prepare(
            "email,name,language,city,shoe_size\nada@example.org,,,Paris,39\nbob@example.org,,,,\n"
        )
    )
    ada.refresh_from_db()
    assert (ada.name, ada.language) == ("Ada", "en")
    assert ada.attributes == {"city": "Paris", "tags": [1], "shoe_size": "39"}
    assert Subscriber.objects.get(name="Bob").attributes == {"city": "Rome"}
    assert counts(job) == {"new": 2}


def test_a_reader_who_is_on_the_list_is_updated(prepare: Prepare) -> None:
    carried_out(prepare("email,name\nada@example.org,Ada\n"))
    job = carried_out(prepare("email,name\nADA@example.org,Ada Lovelace\n"))
    assert counts(job) == {"updated": 1}
    ada = Subscriber.objects.get()
    # How an address was first written is how its reader writes it.
    assert (ada.email, ada.name) == ("ada@example.org", "Ada Lovelace")
    assert ada.updated_at > ada.created_at


def test_an_address_twice_in_a_file_is_one_reader_and_the_last_line_counts(
    prepare: Prepare,
) -> None:
    job = carried_out(
        prepare(
            "email,name,city\n"
            "ada@example.org,Ada,\n"
            "ADA@example.org,Ada L,London\n"
            "ada@example.org,Ada L,London\n"
        )
    )
    assert counts(job) == {"new": 1, "updated": 1, "unchanged": 1}
    ada = Subscriber.objects.get()
    assert (ada.name, ada.attributes) == ("Ada L", {"city": "London"})
    assert Subscription.objects.count() == SubscriptionEvent.objects.count() == 1


def test_an_address_in_two_batches_is_one_reader(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    job = carried_out(prepare("email,name\nada@example.org,Ada\nada@example.org,Ada L\n"))
    assert counts(job) == {"new": 1, "updated": 1}
    assert Subscriber.objects.get().name == "Ada L"


def test_who_unsubscribed_is_not_subscribed_again(prepare: Prepare, weekly: MailingList) -> None:
    ada = reader("ada@example.org", name="Ada")
    gone = Subscription.objects.create(
        subscriber=ada, mailing_list=weekly, status=SubscriptionStatus.UNSUBSCRIBED
    )
    job = carried_out(prepare("email,name\nada@example.org,Ada L\nada@example.org,\n"))
    gone.refresh_from_db()
    assert gone.status == SubscriptionStatus.UNSUBSCRIBED
    assert counts(job) == {"kept_unsubscribed": 2}
    assert not SubscriptionEvent.objects.exists()


def test_who_has_not_confirmed_is_still_asked_to(prepare: Prepare, weekly: MailingList) -> None:
    pending = Subscription.objects.create(
        subscriber=reader("ada@example.org"), mailing_list=weekly, status="pending"
    )
    job = carried_out(prepare("email\nada@example.org\n"))
    pending.refresh_from_db()
    assert (pending.status, counts(job)) == (SubscriptionStatus.PENDING, {"unchanged": 1})


def test_unsubscribing_from_another_list_does_not_count_here(prepare: Prepare) -> None:
    other = MailingList.objects.create(name="Other", label="other")
    Subscription.objects.create(
        subscriber=reader("ada@example.org"), mailing_list=other, status="unsubscribed"
    )
    assert counts(carried_out(prepare("email\nada@example.org\n"))) == {"new": 1}
    assert Subscription.objects.get(mailing_list=other).status == SubscriptionStatus.UNSUBSCRIBED


def test_a_suppression_is_never_lifted_and_is_counted(prepare: Prepare) -> None:
    Suppression.add("Ada@example.org", SuppressionReason.HARD_BOUNCE, source="a bounce")
    Suppression.add("bob@example.org", SuppressionReason.MANUAL, source="a person")
    Suppression.objects.filter(address_key="bob@example.org").update(lifted_at=timezone.now())
    before = list(Suppression.objects.values())
    job = carried_out(prepare("email\nada@example.org\nbob@example.org\n"))
    assert counts(job) == {"new": 2, "suppressed": 1}
    assert list(Suppression.objects.values()) == before


def test_a_reader_added_by_somebody_else_in_that_moment_is_completed(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare("email,city\nada@example.org,London\nbob@example.org,Rome\n")
    look = imports.hold_readers

    def look_just_too_early(*arguments: Any) -> Any:
        monkeypatch.setattr(imports, "hold_readers", look)
        return {}

    reader("ada@example.org", name="Ada", attributes={"shoe_size": "39"})
    monkeypatch.setattr(imports, "hold_readers", look_just_too_early)
    assert counts(carried_out(job)) == {"new": 2}
    ada = Subscriber.objects.get(email="ada@example.org")
    assert (ada.name, ada.attributes) == ("Ada", {"shoe_size": "39", "city": "London"})


def test_letters_of_every_script_arrive_as_they_are(prepare: Prepare) -> None:
    name = "Ü “quoted” \\ ' {{ x }} 🎉 王 \u202bعربي\u202c \""
    cell = name.replace('"', '""')
    carried_out(prepare(f'email,name,city\nada@example.org,"{cell}","{cell}"\n'))
    ada = Subscriber.objects.get()
    assert (ada.name, ada.attributes) == (name, {"city": name})


def test_a_batch_takes_the_same_number_of_queries_whatever_its_size(
    prepare: Prepare, django_assert_max_num_queries: Any
) -> None:
    rows = "".join(f"reader{number}@example.org,{number}\n" for number in range(900))
    job = prepare("email,city\n" + rows)
    with django_assert_max_num_queries(25):
        carried_out(job)
    assert counts(job) == {"new": 900}


# --------------------------------------------------------------------------- what is refused


def test_each_refused_line_is_named_with_its_number_value_and_reason(prepare: Prepare) -> None:
    job = carried_out(
        prepare(
            'email,name,language\nada@example.org,"Ada\nLovelace",en\n'
            "not-an-address,X,\n,Nobody,\nbob@example.org,Bob,German\n\ncleo@example.org,Cleo,de\n"
            '"dan@example.org,Dan,\n'
        )
    )
    assert (job.status, counts(job)) == (ImportStatus.FINISHED, {"new": 2, "refused": 4})
    assert list(job.refused_rows.values_list("line", "value", "reason")) == [
        (4, "not-an-address", "An email address must have an @-sign."),
        (5, "Nobody", "There is no address."),
        (6, "German", "The language is no tag such as en or pt-BR."),
        (9, '"dan@example.org,Dan,', "A quote opens in this line and is not closed."),
    ]
    assert Subscriber.objects.get(email="ada@example.org").name == "Ada Lovelace"


def test_a_refused_value_is_cut_to_what_the_report_shows(prepare: Prepare) -> None:
    job = carried_out(prepare("email\n" + "x" * 5000 + "\n"))
    assert len(job.refused_rows.get().value) == imports.LONGEST_SHOWN


def test_nul_bytes_refuse_their_line_only(prepare: Prepare) -> None:
    job = carried_out(prepare(b"email,name\na@example.org,A\0\nb@example.org,B\n"))
    assert counts(job) == {"new": 1, "refused": 1}
    assert "\0" not in job.refused_rows.get().value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_files_are_read_without_being_told(prepare: Prepare, encoding: str) -> None:
    carried_out(prepare("email,name\nada@example.org,Łucja\n".encode(encoding)))
    assert Subscriber.objects.get().name == "Łucja"


@pytest.mark.parametrize("encoding", ["iso-8859-1", "windows-1252"])
def test_western_files_are_read_by_choice(prepare: Prepare, encoding: str) -> None:
    carried_out(prepare("email,name\nada@example.org,Zoë\n".encode(encoding), encoding=encoding))
    assert Subscriber.objects.get().name == "Zoë"


def test_a_file_in_another_encoding_fails_with_line_and_hint_and_imports_nothing(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    rows = "".join(f"reader{number}@example.org,R\n" for number in range(20))
    job = carried_out(
        prepare(f"email,name\n{rows}".encode() + "z@example.org,Zoë".encode("cp1252"))
    )
    assert job.status == ImportStatus.FAILED
    assert job.failure.startswith("Line 22 is not UTF-8. Choose the encoding")
    assert "Windows-1252" in job.failure
    assert not Subscriber.objects.exists()


def test_a_file_larger_than_the_limit_is_refused(
    weekly: MailingList, tmp_path: Path, settings: Any
) -> None:
    settings.CAMPAIGNS = {**settings.CAMPAIGNS, "LARGEST_IMPORT_MB": 1}
    path = tmp_path / "readers.csv"
    with path.open("wb") as file:
        file.truncate(1024 * 1024 + 1)
    with pytest.raises(UnreadableFileError, match="larger than 1 MB"):
        imports.new_job(weekly, path)
    assert not ImportJob.objects.exists()


def test_a_mapping_without_an_address_fails_before_a_line_is_read(prepare: Prepare) -> None:
    job = carried_out(prepare("email\nada@example.org\n", mapping={"email": "name"}))
    assert (job.status, job.failure) == (
        ImportStatus.FAILED,
        "Say which column holds the addresses.",
    )


def test_a_file_that_changed_meanwhile_fails(prepare: Prepare) -> None:
    job = prepare("email\nada@example.org\n")
    Path(job.path).write_text("email\n")
    assert carried_out(job).failure == "The file has changed since it was chosen."


def test_a_file_that_is_gone_fails(prepare: Prepare) -> None:
    job = prepare("email\nada@example.org\n")
    Path(job.path).unlink()
    assert "cannot be opened" in carried_out(job).failure


# --------------------------------------------------------------------------- slices and kills


class Slices:
    """Says that time is up after each ``every`` batches."""

    def __init__(self, every: int) -> None:
        self.left = self.every = every

    def __call__(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        self.left = self.every
        return True


def test_an_import_in_slices_is_the_import_in_one(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 2)
    rows = "".join(
        f'"r{number}@example.org","a\n\n{number}"\nbad{number}\n\n' for number in range(9)
    )
    job = prepare("email,name\n" + rows)
    slices = 1
    while not imports.carry_on(job.pk, is_time_up=Slices(every=2)):
        slices += 1
    job.refresh_from_db()
    assert slices > 3
    assert (job.status, counts(job)) == (ImportStatus.FINISHED, {"new": 9, "refused": 9})
    assert list(job.refused_rows.values_list("line", flat=True)) == list(range(5, 51, 5))[:9]
    assert job.checkpoint_bytes == job.total_bytes


def test_a_batch_that_fails_writes_nothing_of_itself(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare("email\nada@example.org\nbad\n")
    monkeypatch.setattr(imports, "suppressed_keys", mock.Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        imports.carry_on(job.pk)
    job.refresh_from_db()
    assert (job.checkpoint_bytes, counts(job)) == (0, {})
    assert not Subscriber.objects.exists()
    assert not RefusedRow.objects.exists()


def test_cancelling_stops_after_the_batch_and_starting_again_goes_on(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 2)
    job = prepare("email\n" + "".join(f"r{number}@example.org\n" for number in range(10)))
    assert imports.carry_on(job.pk, after_batch=lambda job: imports.cancel(job, now=now) and None)
    job.refresh_from_db()
    assert (job.status, job.finished_at, counts(job)) == (ImportStatus.CANCELLED, now, {"new": 2})
    assert imports.carry_on(job.pk)  # a task that comes late finds nothing to do
    assert Subscriber.objects.count() == 2

    assert imports.start(job, now=now)
    assert counts(carried_out(job)) == {"new": 10}


def test_two_workers_on_one_import_do_not_count_a_line_twice(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    job = prepare("email\na@example.org\nbad\nb@example.org\n")
    others = iter([lambda: imports.carry_on(job.pk)])

    def let_the_other_do_it_all(_: ImportJob) -> None:
        for other in others:
            other()

    assert imports.carry_on(job.pk, after_batch=let_the_other_do_it_all)
    job.refresh_from_db()
    assert (job.status, counts(job)) == (ImportStatus.FINISHED, {"new": 2, "refused": 1})


def test_a_deleted_import_stops(prepare: Prepare) -> None:
    job = prepare("email\na@example.org\n")
    ImportJob.objects.all().delete()
    assert imports.carry_on(job.pk)
    assert not Subscriber.objects.exists()


def test_a_finished_import_cannot_be_started_again(prepare: Prepare, now: datetime) -> None:
    job = carried_out(prepare("email\na@example.org\n"))
    assert not imports.start(job, now=now)
    assert not imports.cancel(job, now=now)


CHILD = dedent(
    """
    import sys
    import django
    django.setup()
    from campaigns import imports
    imports.BATCH_LINES = 20
    def tell(job):
        print(job.checkpoint_line, flush=True)
    imports.carry_on(int(sys.argv[1]), after_batch=tell)
    """
)


def database_url() -> str:
    """The database of this test, for a child process."""
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


@pytest.mark.django_db(transaction=True)
def test_an_import_that_is_killed_again_and_again_loses_and_doubles_nothing(
    prepare: Prepare,
) -> None:
    lines = 2000
    text = "".join(
        f"bad {number},X\n" if number % 10 == 9 else f'r{number}@example.org,"A\nB {number}"\n'
        for number in range(lines)
    )
    job = prepare("email,name\n" + text)
    command = [sys.executable, "-c", CHILD, str(job.pk)]
    environment = os.environ | {
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "config.settings"),
        "LOG_LEVEL": "ERROR",
    }
    for batches_before_the_kill in (1, 7, 20):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2]
        ) as child:
            assert child.stdout is not None
            for _ in range(batches_before_the_kill):
                assert child.stdout.readline()
            child.kill()
        job.refresh_from_db()
        assert job.status == ImportStatus.RUNNING
        # Whatever moment it was: what is counted is what is written.
        assert job.new == Subscription.objects.count() == SubscriptionEvent.objects.count()
        assert job.refused == job.refused_rows.count()
    assert 0 < job.checkpoint_bytes < job.total_bytes

    carried_out(job)
    assert job.status == ImportStatus.FINISHED
    assert counts(job) == {"new": lines * 9 // 10, "refused": lines // 10}
    assert Subscriber.objects.count() == Subscription.objects.count() == job.new
    # Nine readers of two physical lines each, then the refused one.
    expected = [20 + 19 * number for number in range(lines // 10)]
    assert list(job.refused_rows.values_list("line", flat=True)) == expected


# --------------------------------------------------------------------------- the queue's side


def test_starting_queues_a_task_that_does_it(
    prepare: Prepare, now: datetime, django_capture_on_commit_callbacks: Any
) -> None:
    job = prepare("email\na@example.org\n")
    ImportJob.objects.update(status=ImportStatus.UPLOADED)
    job.refresh_from_db()
    with django_capture_on_commit_callbacks(execute=True):
        assert imports.start(job, now=now)
    task = OrmQ.objects.get().task
    assert (task["func"], task["args"]) == ("campaigns.tasks.run_import", (job.pk,))
    tasks.run_import(*task["args"])
    job.refresh_from_db()
    assert job.status == ImportStatus.FINISHED


def test_a_slice_that_ran_out_of_time_queues_its_successor(
    prepare: Prepare,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    monkeypatch.setattr(tasks, "SLICE_SECONDS", -1.0)
    job = prepare("email\na@example.org\nb@example.org\n")
    with django_capture_on_commit_callbacks(execute=True):
        tasks.run_import(job.pk)
    job.refresh_from_db()
    assert (job.status, counts(job)) == (ImportStatus.RUNNING, {"new": 1})
    assert OrmQ.objects.get().task["args"] == (job.pk,)


def test_a_fault_of_ours_fails_the_import_and_is_not_hidden(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare("email\na@example.org\n")
    monkeypatch.setattr(imports, "import_batch", mock.Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        tasks.run_import(job.pk)
    job.refresh_from_db()
    assert job.status == ImportStatus.FAILED
    assert "log" in job.failure


def test_an_import_whose_worker_was_lost_is_taken_up_once(
    prepare: Prepare, now: datetime, django_capture_on_commit_callbacks: Any
) -> None:
    job = prepare("email\na@example.org\n")
    ImportJob.objects.update(status=ImportStatus.RUNNING, alive_at=now)
    soon, late = now + imports.SILENCE, now + imports.SILENCE + timedelta(seconds=1)
    with django_capture_on_commit_callbacks(execute=True):
        assert imports.take_up_orphans(soon) == []
        assert imports.take_up_orphans(late) == [job.pk]
        assert imports.take_up_orphans(late) == []
    assert OrmQ.objects.count() == 1


def test_an_uploaded_copy_is_removed_when_it_has_been_imported(
    weekly: MailingList, tmp_path: Path, settings: Any
) -> None:
    settings.MEDIA_ROOT = tmp_path
    copy = imports.uploads() / "upload.csv"
    copy.write_text("email\na@example.org\n")
    job = imports.new_job(weekly, copy)
    imports.enqueue(job, now=timezone.now())
    carried_out(job)
    assert not copy.exists()


def test_a_file_that_is_not_our_copy_is_left(prepare: Prepare) -> None:
    assert Path(carried_out(prepare("email\na@example.org\n")).path).exists()


# ------------------------------------------------------------------------- abandoned uploads


@pytest.fixture
def uploaded(weekly: MailingList, tmp_path: Path, settings: Any) -> Callable[[], ImportJob]:
    """Makes an import of an uploaded copy, its columns not chosen yet."""
    settings.MEDIA_ROOT = tmp_path
    settings.CAMPAIGNS = settings.CAMPAIGNS | {"UPLOAD_RETENTION_DAYS": 30}

    def make() -> ImportJob:
        copy = imports.keep_upload(ContentFile(b"email\na@example.org\nb@example.org\n"))
        return imports.new_job(weekly, copy, file_name="readers.csv")

    return make


@pytest.mark.parametrize("ending", ["never started", "cancelled", "failed"])
def test_the_file_of_an_abandoned_import_is_forgotten_and_its_report_is_not(
    uploaded: Callable[[], ImportJob], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    job, now = uploaded(), timezone.now()
    copy = Path(job.path)
    if ending != "never started":
        imports.enqueue(job, now=now)
        imports.carry_on(job.pk, is_time_up=lambda: True)
    if ending == "cancelled":
        imports.cancel(job, now=now)
    elif ending == "failed":
        imports.fail(job, "The disk is full.")

    assert imports.forget_abandoned_uploads(now + timedelta(days=29)) == 0
    assert copy.exists()
    assert imports.forget_abandoned_uploads(now + timedelta(days=31)) == 1
    assert not copy.exists()

    job.refresh_from_db()
    assert job.is_forgotten
    assert job.status == (ImportStatus.FAILED if ending == "failed" else ImportStatus.CANCELLED)
    assert job.new == (0 if ending == "never started" else 1)
    assert not imports.start(job, now=now)
    assert not imports.choose(job)


def test_the_file_of_an_import_that_is_under_way_is_kept_however_old_it_is(
    uploaded: Callable[[], ImportJob],
) -> None:
    job, now = uploaded(), timezone.now()
    imports.enqueue(job, now=now)
    assert imports.forget_abandoned_uploads(now + timedelta(days=31)) == 0
    assert counts(carried_out(job)) == {"new": 2}


def test_an_import_that_was_gone_on_with_is_kept_from_then_on(
    uploaded: Callable[[], ImportJob],
) -> None:
    job, now = uploaded(), timezone.now()
    imports.cancel(job, now=now)
    later = now + timedelta(days=29)
    imports.enqueue(job, now=later)
    imports.cancel(job, now=later)
    assert imports.forget_abandoned_uploads(now + timedelta(days=31)) == 0
    assert imports.enqueue(job, now=later)


def test_a_file_that_no_import_needs_is_removed_once_it_is_old(
    uploaded: Callable[[], ImportJob],
) -> None:
    # Killed between the file and the row, or between the last line and the removal.
    stray = imports.keep_upload(ContentFile(b"email\nc@example.org\n"))
    left_over, now = uploaded(), timezone.now()
    ImportJob.objects.update(status=ImportStatus.FINISHED, finished_at=now)
    assert imports.forget_abandoned_uploads(now + timedelta(days=29)) == 0
    assert imports.forget_abandoned_uploads(now + timedelta(days=31)) == 2
    assert not stray.exists()
    assert not Path(left_over.path).exists()


def test_a_file_that_is_not_our_copy_is_never_forgotten(
    prepare: Prepare, uploaded: Callable[[], ImportJob]
) -> None:
    job, now = prepare("email\na@example.org\n"), timezone.now()
    imports.cancel(job, now=now)
    assert imports.forget_abandoned_uploads(now + timedelta(days=31)) == 0
    assert Path(job.path).exists()
    assert imports.enqueue(job, now=now)


def test_house_keeping_forgets_abandoned_uploads(uploaded: Callable[[], ImportJob]) -> None:
    job = uploaded()
    long_ago = timezone.now() - timedelta(days=31)
    ImportJob.objects.update(created_at=long_ago)
    os.utime(job.path, (long_ago.timestamp(), long_ago.timestamp()))
    assert tasks.keep_house() == "1 uploads forgotten"
    assert not Path(job.path).exists()
