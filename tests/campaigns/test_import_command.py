"""manage.py import_subscribers: the importer in the foreground."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from campaigns import imports
from campaigns.models import ImportJob, ImportStatus, MailingList, Subscriber

pytestmark = pytest.mark.django_db


@pytest.fixture
def weekly() -> MailingList:
    return MailingList.objects.create(name="Weekly letter", label="weekly")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "readers.csv"
    path.write_text("email,name,city\nada@example.org,Ada,London\nbad,Bob,Rome\n")
    return path


def run(*arguments: Any) -> tuple[str, str]:
    """What the command wrote to stdout and to stderr."""
    stdout, stderr = StringIO(), StringIO()
    call_command("import_subscribers", *map(str, arguments), stdout=stdout, stderr=stderr)
    return stdout.getvalue(), stderr.getvalue()


@pytest.mark.parametrize("name", ["Weekly letter", "weekly"])
def test_a_file_is_imported_into_the_list_of_that_name_or_label(
    weekly: MailingList, file: Path, name: str
) -> None:
    stdout, stderr = run(file, "--list", name)
    assert "line 3: An email address must have an @-sign. [bad]" in stdout
    assert "2 lines: 1 new, 0 updated, 0 unchanged, 1 refused" in stdout
    assert "2 lines: 1 new" in stderr  # the progress
    assert weekly.subscriptions.get().subscriber.attributes == {"city": "London"}
    assert file.exists()


def test_a_list_that_is_not_there_is_made_on_request_only(file: Path) -> None:
    with pytest.raises(CommandError, match="no list Members"):
        run(file, "--list", "Members")
    run(file, "--list", "Members", "--create-list")
    assert MailingList.objects.get().label == "members"
    run(file, "--list", "Members", "--create-list")
    assert MailingList.objects.count() == 1


def test_columns_that_are_named_are_not_guessed(weekly: MailingList, tmp_path: Path) -> None:
    path = tmp_path / "readers.csv"
    path.write_text("email,work=mail,name,city\nhome@example.org,ada@example.org,Ada,London\n")
    run(
        path,
        "--list",
        "weekly",
        "--map",
        "work=mail=email",
        "--map",
        "city=",
        "--map",
        "name=attribute:nick",
    )
    ada = Subscriber.objects.get()
    assert (ada.email, ada.name, ada.attributes) == ("ada@example.org", "", {"nick": "Ada"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--map", "mail"], "wants COLUMN=FIELD"),
        (["--map", "shoe=name"], "no column “shoe”.*The columns are: email, name, city"),
        (["--map", "name=shoe"], "no field “shoe”"),
        (["--map", "email="], "which column holds the addresses"),
        (["--delimiter", ",,"], "one character"),
        (["--encoding", "utf-16"], "byte-order mark"),
        (["--encoding", "klingon"], "invalid choice"),
    ],
)
def test_what_cannot_be_meant_fails_and_imports_nothing(
    weekly: MailingList, file: Path, arguments: list[str], words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        run(file, "--list", "weekly", *arguments)
    assert not ImportJob.objects.exists()
    assert not Subscriber.objects.exists()


def test_a_file_that_is_not_there_fails(weekly: MailingList, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="There is no file"):
        run(tmp_path / "nothing.csv", "--list", "weekly")


def test_encoding_and_delimiter_by_choice(weekly: MailingList, tmp_path: Path) -> None:
    path = tmp_path / "readers.csv"
    path.write_bytes("email\tname\nada@example.org\tZoë\n".encode("latin-1"))
    with pytest.raises(CommandError, match="Line 2 is not UTF-8"):
        run(path, "--list", "weekly")
    run(path, "--list", "weekly", "--encoding", "iso-8859-1", "--delimiter", "tab")
    assert Subscriber.objects.get().name == "Zoë"


def test_refused_lines_are_written_to_a_file_that_runs_no_formula(
    weekly: MailingList, tmp_path: Path
) -> None:
    path, refused = tmp_path / "readers.csv", tmp_path / "refused.csv"
    path.write_text("email\n" + "=1+1\n" * 30)
    stdout, _ = run(path, "--list", "weekly", "--refused-to", refused)
    assert "and 10 more refused lines" in stdout
    lines = refused.read_text().splitlines()
    assert lines[:2] == [
        '"line","value","reason"',
        '"2","\'=1+1","An email address must have an @-sign."',
    ]
    assert len(lines) == 31


def test_a_file_for_refused_lines_that_cannot_be_is_found_out_before_the_import(
    weekly: MailingList, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match="cannot be written: No such file or directory"):
        run(file, "--list", "weekly", "--refused-to", tmp_path / "nowhere" / "refused.csv")
    assert not Subscriber.objects.exists()


def test_a_refused_line_gives_no_orders_to_the_terminal(
    weekly: MailingList, tmp_path: Path
) -> None:
    path = tmp_path / "readers.csv"
    path.write_text("email\n\x1b[2Jbad\u202e\n")
    stdout, _ = run(path, "--list", "weekly")
    assert "[2Jbad" in stdout
    assert "\x1b" not in stdout and "\u202e" not in stdout


def test_an_import_that_is_interrupted_says_where_it_stopped(
    weekly: MailingList, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH_LINES", 1)
    carry_on = imports.carry_on

    def interrupted(job_id: int, **options: Any) -> bool:
        carry_on(job_id, is_time_up=lambda: True)
        raise KeyboardInterrupt

    monkeypatch.setattr(imports, "carry_on", interrupted)
    with pytest.raises(CommandError, match="Cancelled after line 2"):
        run(file, "--list", "weekly")
    assert ImportJob.objects.get().status == ImportStatus.CANCELLED
    assert Subscriber.objects.count() == 1
