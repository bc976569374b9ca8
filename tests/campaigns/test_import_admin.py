"""Importing in the admin: upload, columns, progress and report, for those who may."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ

from campaigns import imports
from campaigns.admin.imports import PAGES, PATIENCE_SECONDS, REFUSED_PER_PAGE
from campaigns.csv_source import CsvSource, inspect
from campaigns.formula_guard import unguard
from campaigns.models import ImportJob, ImportStatus, MailingList, RefusedRow, Subscriber

pytestmark = pytest.mark.django_db

GERMAN = "E-Mail;Vorname;Sprache;Ort\nada@example.org;Ada;en;Zürich\nkein@;Bob;de;Köln\n"


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, settings: Any) -> Path:
    settings.MEDIA_ROOT = tmp_path
    return imports.uploads()


@pytest.fixture
def weekly() -> MailingList:
    return MailingList.objects.create(name="Weekly", label="weekly")


@pytest.fixture
def importer(client: Client) -> Client:
    """Signed in as somebody who may import, and nothing else."""
    user = User.objects.create_user("importer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="import_subscribers"))
    client.force_login(user)
    return client


Upload = Callable[..., ImportJob]


@pytest.fixture
def upload(importer: Client, weekly: MailingList) -> Upload:
    """Uploads this text as the importer and gives back the import."""

    def send(text: str | bytes, name: str = "readers.csv") -> ImportJob:
        content = text if isinstance(text, bytes) else text.encode()
        answer = importer.post(
            reverse("admin:campaigns_importjob_add"),
            {"mailing_list": weekly.pk, "file": SimpleUploadedFile(name, content)},
        )
        job = ImportJob.objects.latest("id")
        assert answer.status_code == 302
        assert answer["Location"] == page(job, "columns")
        return job

    return send


def page(job: ImportJob, name: str = "change") -> str:
    return reverse(f"admin:campaigns_importjob_{name}", args=[job.pk])


def choices(*fields: str, encoding: str = "auto", delimiter: str = ";") -> dict[str, str]:
    """The page of columns as posted: "" | email | name | language | attribute:<key> each."""
    posted = {"encoding": encoding, "delimiter": delimiter}
    for index, field in enumerate(fields):
        kind, colon, key = field.partition(":")
        posted |= {f"field-{index}": kind + colon, f"key-{index}": key}
    return posted


def finished(job: ImportJob) -> ImportJob:
    assert imports.carry_on(job.pk)
    job.refresh_from_db()
    return job


def test_from_upload_to_report(
    importer: Client, upload: Upload, django_capture_on_commit_callbacks: Any
) -> None:
    job = upload(GERMAN)
    shown = importer.get(page(job, "columns")).content.decode()
    assert "Zürich" in shown
    assert "There must be something after the @-sign." in shown

    with django_capture_on_commit_callbacks(execute=True):
        answer = importer.post(
            page(job, "start"), choices("email", "name", "language", "attribute:city")
        )
    assert answer["Location"] == page(job)
    assert OrmQ.objects.get().task["args"] == (job.pk,)
    assert "of the file has been read" in importer.get(page(job)).content.decode()

    finished(job)
    shown = importer.get(page(job)).content.decode()
    assert "2 lines were read" in shown
    assert "kein@" in shown
    ada = Subscriber.objects.get()
    assert (ada.name, ada.language, ada.attributes) == ("Ada", "en", {"city": "Zürich"})
    assert job.created_by.username == "importer"


def test_the_columns_are_guessed_after_the_upload(upload: Upload) -> None:
    job = upload(GERMAN)
    assert job.delimiter == ";"
    assert job.mapping == {
        "E-Mail": "email",
        "Vorname": "attribute:first_name",
        "Sprache": "language",
        "Ort": "attribute:ort",
    }
    assert job.status == ImportStatus.UPLOADED
    assert not OrmQ.objects.exists()


def test_the_list_is_chosen_already_when_one_comes_from_its_page(
    importer: Client, weekly: MailingList
) -> None:
    url = f"{reverse('admin:campaigns_importjob_add')}?mailing_list={weekly.pk}"
    assert f'<option value="{weekly.pk}" selected>' in importer.get(url).content.decode()


def test_the_preview_follows_the_choices_and_imports_nothing(
    importer: Client, upload: Upload
) -> None:
    job = upload("a,b\nada@example.org,Ada\n")
    shown = importer.post(page(job, "columns"), choices("email", "", delimiter=","))
    rows = shown.context["rows"]
    assert [(row["email"], row["attributes"]) for row in rows] == [("ada@example.org", [])]
    shown = importer.post(page(job, "columns"), choices("email", "attribute:pet", delimiter=","))
    assert shown.context["rows"][0]["attributes"] == ["Ada"]
    job.refresh_from_db()
    assert job.mapping == {"a": "email", "b": "attribute:pet"}
    assert not Subscriber.objects.exists()


def test_the_preview_shows_ten_lines_as_they_will_be_imported(
    importer: Client, upload: Upload
) -> None:
    lines = "".join(f"R{number}@EXAMPLE.org\n" for number in range(50))
    rows = importer.get(page(upload("email\n" + lines), "columns")).context["rows"]
    assert [row["email"] for row in rows] == [f"R{number}@example.org" for number in range(10)]
    assert [row["line"] for row in rows] == list(range(2, 12))


def test_another_delimiter_makes_other_columns(importer: Client, upload: Upload) -> None:
    job = upload("email,name;city\nada@example.org,Ada;London\n")
    importer.post(page(job, "columns"), choices("email", "name", delimiter=";"))
    job.refresh_from_db()
    assert job.mapping == {"email,name": "attribute:email_name", "city": "attribute:city"}


def test_a_western_file_is_proposed_as_windows_1252_with_a_warning(
    importer: Client, upload: Upload
) -> None:
    job = upload(GERMAN.encode("windows-1252"))
    assert job.encoding == "windows-1252"
    shown = importer.get(page(job, "columns")).content.decode()
    assert "Zürich" in shown
    assert "whether letters such as é and ü are right" in shown


def test_a_wrong_encoding_says_in_which_line_and_can_be_put_right(
    importer: Client, upload: Upload
) -> None:
    job = upload("email;name\na@example.org;Zoë\n".encode("windows-1252"))
    shown = importer.post(page(job, "columns"), choices("email", "name", encoding="utf-8"))
    assert "Line 2 is not UTF-8" in shown.content.decode()
    shown = importer.post(page(job, "columns"), choices("email", "name", encoding="windows-1252"))
    assert "Zoë" in shown.content.decode()


def test_an_encoding_that_the_file_cannot_be_in_leaves_a_way_back(
    importer: Client, upload: Upload
) -> None:
    job = upload(GERMAN)
    shown = importer.post(page(job, "columns"), choices("email", encoding="utf-16"))
    assert "begins with a byte-order mark" in shown.content.decode()
    assert importer.post(page(job, "start"), choices("email", encoding="utf-16")).status_code == 200
    shown = importer.post(page(job, "columns"), choices(encoding="auto"))
    assert shown.context["rows"][0]["email"] == "ada@example.org"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (("", "name", "", ""), "Say which column holds the addresses."),
        (("email", "name", "name", ""), "would both be imported as name"),
        (("email", "attribute:1st", "", ""), "cannot be the name of an attribute"),
        (("email", "attribute:", "", ""), "cannot be the name of an attribute"),
    ],
)
def test_columns_that_cannot_be_meant_do_not_start(
    importer: Client, upload: Upload, fields: tuple[str, ...], words: str
) -> None:
    job = upload(GERMAN)
    shown = importer.post(page(job, "start"), choices(*fields))
    assert words in shown.content.decode()
    job.refresh_from_db()
    assert job.status == ImportStatus.UPLOADED
    assert not OrmQ.objects.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PK\x03\x04zip", "workbook"), (b" \n", "file is empty"), (b"a\0b\n", "NUL")],
)
def test_what_is_no_csv_is_refused_at_the_upload_and_not_kept(
    importer: Client, weekly: MailingList, uploads: Path, content: bytes, words: str
) -> None:
    answer = importer.post(
        reverse("admin:campaigns_importjob_add"),
        {"mailing_list": weekly.pk, "file": SimpleUploadedFile("x.csv", content)},
    )
    assert words in answer.content.decode()
    assert not ImportJob.objects.exists()
    assert not list(uploads.iterdir())


def test_a_file_that_is_too_large_is_refused_at_the_upload(
    importer: Client, weekly: MailingList, uploads: Path, settings: Any
) -> None:
    settings.CAMPAIGNS = {**settings.CAMPAIGNS, "LARGEST_IMPORT_MB": 1}
    content = b"email\n" + b"a@example.org\n" * 80_000
    answer = importer.post(
        reverse("admin:campaigns_importjob_add"),
        {"mailing_list": weekly.pk, "file": SimpleUploadedFile("x.csv", content)},
    )
    assert "larger than 1 MB" in answer.content.decode()
    assert not list(uploads.iterdir())


def test_an_upload_is_kept_under_a_name_of_ours_for_us_alone(upload: Upload, uploads: Path) -> None:
    job = upload(GERMAN, name="../../etc/passwd.csv")
    assert Path(job.path).parent == uploads
    assert Path(job.path).stat().st_mode & 0o077 == 0
    assert job.file_name == "passwd.csv"


def test_what_a_file_says_is_text_on_every_page(
    importer: Client, upload: Upload, django_capture_on_commit_callbacks: Any
) -> None:
    evil = "<script>alert(1)</script>"
    job = upload(f"email,{evil}\n{evil},{evil}\n", name=f"{evil[:20]}.csv")
    pages = [importer.get(page(job, "columns")).content.decode()]
    importer.post(page(job, "start"), choices("email", "", delimiter=","))
    pages.append(importer.get(page(job)).content.decode())
    finished(job)
    pages += [
        importer.get(page(job)).content.decode(),
        importer.get(reverse("admin:campaigns_importjob_changelist")).content.decode(),
    ]
    assert not any("<script>alert" in shown for shown in pages)
    assert "&lt;script&gt;alert" in pages[0]
    assert "&lt;script&gt;alert" in pages[2]


def test_the_progress_page_is_told_how_far_it_is(
    importer: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    job = upload("email\na@example.org\nbad\nc@example.org\nd@example.org\n")
    importer.post(page(job, "start"), choices("email", delimiter=","))
    assert importer.get(page(job, "progress")).json()["status"] == "queued"

    batches = iter([False, True])
    imports.carry_on(job.pk, is_time_up=lambda: next(batches))
    state = importer.get(page(job, "progress")).json()
    assert (state["status"], state["is_under_way"], state["lines"]) == ("running", True, 2)
    assert state["counts"]["new"] == state["counts"]["refused"] == 1
    assert 0 < state["percent"] < 100
    assert not state["nobody_there"]

    finished(job)
    state = importer.get(page(job, "progress")).json()
    assert (state["percent"], state["is_under_way"]) == (100, False)


def test_the_progress_page_says_when_no_worker_is_there(importer: Client, upload: Upload) -> None:
    job = upload("email\na@example.org\n")
    importer.post(page(job, "start"), choices("email", delimiter=","))
    past = timezone.now() - timedelta(seconds=PATIENCE_SECONDS + 1)
    ImportJob.objects.update(alive_at=past)
    assert importer.get(page(job, "progress")).json()["nobody_there"]


def test_cancel_and_go_on(
    importer: Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    job = upload("email\na@example.org\nb@example.org\n")
    importer.post(page(job, "start"), choices("email", delimiter=","))
    imports.carry_on(job.pk, is_time_up=lambda: True)
    assert importer.post(page(job, "cancel")).status_code == 302
    assert imports.carry_on(job.pk)
    assert Subscriber.objects.count() == 1
    assert "Cancelled after line 2" in importer.get(page(job)).content.decode()

    importer.post(page(job, "resume"))
    assert finished(job).new == 2


def test_an_import_that_was_discarded_can_still_be_started(
    importer: Client, upload: Upload
) -> None:
    job = upload("email\na@example.org\n")
    importer.post(page(job, "cancel"))
    assert "before anything was imported" in importer.get(page(job)).content.decode()
    importer.post(page(job, "start"), choices("email", delimiter=","))
    assert finished(job).new == 1


def test_an_import_whose_file_was_forgotten_keeps_its_report_and_offers_no_way_on(
    importer: Client, upload: Upload
) -> None:
    job = upload("email\na@example.org\n")
    imports.forget_abandoned_uploads(timezone.now() + timedelta(days=91))

    shown = importer.get(page(job)).content.decode()
    assert "before anything was imported" in shown
    assert "Its file was forgotten" in shown
    assert page(job, "columns") not in shown
    assert page(job, "resume") not in shown
    assert importer.get(page(job, "columns"))["Location"] == page(job)
    for name in ("columns", "start", "resume"):
        answer = importer.post(page(job, name), choices("email", delimiter=","))
        assert answer["Location"] == page(job)
    job.refresh_from_db()
    assert job.status == ImportStatus.CANCELLED


def test_columns_cannot_be_changed_once_it_runs(importer: Client, upload: Upload) -> None:
    job = upload("email,name\na@example.org,A\n")
    importer.post(page(job, "start"), choices("email", "name", delimiter=","))
    for name in ("columns", "start"):
        answer = importer.post(page(job, name), choices("email", "", delimiter=","))
        assert answer["Location"] == page(job)
    job.refresh_from_db()
    assert job.mapping["name"] == "name"


def test_columns_chosen_in_a_second_window_do_not_change_an_import_that_has_begun(
    upload: Upload,
) -> None:
    job = upload(GERMAN)
    second_window = ImportJob.objects.get(pk=job.pk)
    assert imports.start(job, now=timezone.now())
    second_window.mapping = {"Ort": "email"}
    assert not imports.choose(second_window)
    job.refresh_from_db()
    assert job.mapping["E-Mail"] == "email"


def test_the_report_pages_through_the_refused_lines(importer: Client, upload: Upload) -> None:
    job = upload("email\n" + "bad\n" * (REFUSED_PER_PAGE * 2 + 1))
    importer.post(page(job, "start"), choices("email", delimiter=","))
    finished(job)
    assert len(importer.get(page(job)).context["page"]) == REFUSED_PER_PAGE
    last = importer.get(page(job) + "?page=3").context["page"]
    assert [row.line for row in last] == [REFUSED_PER_PAGE * 2 + 2]
    assert importer.get(page(job) + "?page=x").status_code == 200


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'=1", "a"]


def test_the_downloaded_report_runs_no_formula_and_is_read_back_as_it_was(
    importer: Client, upload: Upload, tmp_path: Path
) -> None:
    job = upload("email\na@example.org\n")
    RefusedRow.objects.bulk_create(
        RefusedRow(job=job, line=line, value=value, reason="because")
        for line, value in enumerate(FORMULAS, start=2)
    )
    answer = importer.get(page(job, "refused"))
    assert answer["Content-Disposition"] == (f'attachment; filename="refused-lines-{job.pk}.csv"')
    content = b"".join(answer.streaming_content)
    text = content.decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["line", "value", "reason"]
    for row in rows[1:]:
        assert row[1].lstrip()[:1] not in set("=+-@＝")
    assert all(line.startswith('"') for line in text.split("\r\n")[:-1])

    path = tmp_path / "report.csv"
    path.write_bytes(content)
    with CsvSource(path, inspect(path)) as source:
        read_back = [unguard(record.cells[1]) for record in source][1:]
    assert read_back == FORMULAS


def test_what_was_refused_can_be_imported_from_the_report(importer: Client, upload: Upload) -> None:
    # As after mending the suppressing cause: the addresses themselves are sound.
    job = upload("email\na@example.org\n")
    values = ["+1@example.org", "-x@example.org", "=y@example.org", "'z@example.org"]
    RefusedRow.objects.bulk_create(
        RefusedRow(job=job, line=line, value=value, reason="because")
        for line, value in enumerate(values, start=2)
    )
    again = upload(b"".join(importer.get(page(job, "refused")).streaming_content))
    importer.post(page(again, "start"), choices("", "email", "", delimiter=","))
    assert finished(again).new == len(values)
    assert sorted(Subscriber.objects.values_list("email", flat=True)) == sorted(values)


def test_the_list_of_imports_tells_what_came_of_each(importer: Client, upload: Upload) -> None:
    job = upload(GERMAN)
    importer.post(page(job, "start"), choices("email", "", "", ""))
    finished(job)
    shown = importer.get(reverse("admin:campaigns_importjob_changelist")).content.decode()
    assert "1 new, 1 refused" in shown


def test_deleting_an_import_deletes_its_file(
    admin_client: Client,
    upload: Upload,
    admin_user: User,
    django_capture_on_commit_callbacks: Any,
) -> None:
    job = upload(GERMAN)
    admin_client.force_login(admin_user)
    with django_capture_on_commit_callbacks(execute=True):
        admin_client.post(page(job, "delete"), {"post": "yes"})
    assert not ImportJob.objects.exists()
    assert not Path(job.path).exists()


def test_the_file_goes_with_the_list_that_it_was_for(
    upload: Upload, weekly: MailingList, uploads: Path, django_capture_on_commit_callbacks: Any
) -> None:
    upload(GERMAN)
    assert list(uploads.iterdir())
    with django_capture_on_commit_callbacks(execute=True):
        weekly.delete()
    assert not list(uploads.iterdir())


def test_an_import_under_way_is_not_deleted(
    admin_client: Client, upload: Upload, admin_user: User
) -> None:
    job = upload(GERMAN)
    admin_client.post(page(job, "start"), choices("email", "", "", ""))
    admin_client.force_login(admin_user)
    assert admin_client.post(page(job, "delete"), {"post": "yes"}).status_code == 403
    admin_client.post(
        reverse("admin:campaigns_importjob_changelist"),
        {"action": "delete_selected", "_selected_action": job.pk, "post": "yes"},
    )
    assert ImportJob.objects.exists()


# --------------------------------------------------------------------------- who may

ALL_PAGES = [*PAGES, "change", "add", "changelist", "delete"]


@pytest.mark.parametrize("name", ALL_PAGES)
def test_nobody_imports_without_the_permission(client: Client, upload: Upload, name: str) -> None:
    job = upload(GERMAN)
    user = User.objects.create_user("editor", is_staff=True)
    # Seeing and changing readers is not importing them, nor is Django's own right to add imports.
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="campaigns").exclude(
            codename="import_subscribers"
        )
    )
    client.force_login(user)
    args = [] if name in {"add", "changelist"} else [job.pk]
    url = reverse(f"admin:campaigns_importjob_{name}", args=args)
    assert client.get(url).status_code == 403
    assert client.post(url).status_code == 403
    job.refresh_from_db()
    assert job.status == ImportStatus.UPLOADED


@pytest.mark.parametrize("name", ALL_PAGES)
def test_who_is_not_signed_in_is_asked_to(client: Client, upload: Upload, name: str) -> None:
    job = upload(GERMAN)
    client.logout()
    args = [] if name in {"add", "changelist"} else [job.pk]
    answer = client.get(reverse(f"admin:campaigns_importjob_{name}", args=args))
    assert answer.status_code == 302
    assert "/login/" in answer["Location"]


@pytest.mark.parametrize("name", [name for name, at in PAGES.items() if "GET" not in at.methods])
def test_what_changes_something_is_a_post(importer: Client, upload: Upload, name: str) -> None:
    job = upload(GERMAN)
    assert importer.get(page(job, name)).status_code == 405
    job.refresh_from_db()
    assert job.status == ImportStatus.UPLOADED


def test_a_forged_post_from_elsewhere_is_refused(importer: Client, upload: Upload) -> None:
    job = upload(GERMAN)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="importer"))
    assert strict.post(page(job, "start"), choices("email", "", "", "")).status_code == 403


def test_an_import_that_is_not_there_is_not_found(importer: Client) -> None:
    assert importer.get(reverse("admin:campaigns_importjob_change", args=[99])).status_code == 404
    assert importer.get("/admin/campaigns/importjob/99/progress/").status_code == 404
    assert importer.get("/admin/campaigns/importjob/x/change/").status_code == 404
