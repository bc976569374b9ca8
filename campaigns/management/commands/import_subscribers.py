"""Imports a CSV file into a list, in the foreground, with the importer of the admin pages."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.text import slugify

from campaigns import imports
from campaigns.columns import check_mapping
from campaigns.csv_source import AUTO, ENCODINGS, UnreadableFileError
from campaigns.formula_guard import csv_lines
from campaigns.hostile_text import visible
from campaigns.models import ImportJob, ImportStatus, MailingList

REFUSED_SHOWN = 20
TAB_WORDS = {"tab", "\\t", "\t"}


class Command(BaseCommand):
    help = (
        "Imports a CSV file into a list. Lines that are refused are listed with the reason and do "
        "not make the command fail; running it again with a mended file is safe."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--list", required=True, metavar="NAME", help="name or label")
        parser.add_argument("--create-list", action="store_true", help="when there is none yet")
        parser.add_argument("--encoding", choices=ENCODINGS, default=AUTO)
        parser.add_argument(
            "--delimiter", default="", help="one character, or tab; guessed when left out"
        )
        parser.add_argument(
            "--map",
            action="append",
            default=[],
            metavar="COLUMN=FIELD",
            help="email, name, language, attribute:<key>, or nothing to leave the column out; "
            "may be repeated, and columns that are not named are guessed",
        )
        parser.add_argument(
            "--refused-to", type=Path, metavar="FILE", help="write refused lines to this CSV file"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"].resolve()
        if not path.is_file():
            raise CommandError(f"There is no file {options['file']}.")
        if options["refused_to"]:
            check_writable(options["refused_to"])
        job = self.prepared(path, options)
        imports.enqueue(job, now=timezone.now())
        try:
            imports.carry_on(job.pk, after_batch=self.show_progress)
        except KeyboardInterrupt:
            imports.cancel(job, now=timezone.now())
        job.refresh_from_db()
        self.stderr.write("")
        if options["refused_to"]:
            write_refused(job, options["refused_to"])
        self.report(job, options["refused_to"])

    def prepared(self, path: Path, options: dict[str, Any]) -> ImportJob:
        """The import, ready to start. CommandError when list, file or mapping do not do."""
        delimiter = options["delimiter"]
        if delimiter in TAB_WORDS:
            delimiter = "\t"
        if len(delimiter) > 1 or delimiter in {'"', "\r", "\n"}:
            raise CommandError("The delimiter is one character, or the word tab.")
        asked = dict(self.asked_columns(options["map"]))
        mailing_list = self.mailing_list(options["list"], create=options["create_list"])
        try:
            job = imports.new_job(
                mailing_list, path, encoding=options["encoding"], delimiter=delimiter
            )
        except UnreadableFileError as error:
            raise CommandError(str(error)) from error
        columns = list(job.mapping)
        # A field that was asked for is not guessed for another column as well.
        job.mapping = {
            column: "" if field in asked.values() else field
            for column, field in job.mapping.items()
        } | asked
        try:
            check_mapping(job.mapping, columns)
        except ValidationError as error:
            job.delete()
            known = ", ".join(columns)
            raise CommandError(f"{' '.join(error.messages)} The columns are: {known}.") from error
        job.save(update_fields=["mapping"])
        return job

    def mailing_list(self, name: str, *, create: bool) -> MailingList:
        by_name = MailingList.objects.filter(name=name).first()
        found = by_name or MailingList.objects.filter(label=name).first()
        if found:
            return found
        if not create:
            raise CommandError(f"There is no list {name}. --create-list makes it.")
        label = slugify(name)[:60]
        if not label or MailingList.objects.filter(label=label).exists():
            raise CommandError(f"No label can be made from {name}: create the list in the admin.")
        return MailingList.objects.create(name=name, label=label)

    def asked_columns(self, pairs: list[str]) -> Iterator[tuple[str, str]]:
        for pair in pairs:
            # From the right: a column's title may hold an equals sign, a field does not.
            column, equals, field = pair.rpartition("=")
            if not equals:
                raise CommandError(f"--map wants COLUMN=FIELD, not {pair}.")
            yield column, field

    def show_progress(self, job: ImportJob) -> None:
        ending = "\r" if self.stderr.isatty() else "\n"
        self.stderr.write(f"{job.percent:3d} %  {counts_in_words(job)}", ending=ending)
        self.stderr.flush()

    def report(self, job: ImportJob, refused_to: Path | None) -> None:
        for row in job.refused_rows.all()[:REFUSED_SHOWN]:
            self.stdout.write(visible(f"line {row.line}: {row.reason} [{row.value}]"))
        if job.refused > REFUSED_SHOWN:
            rest = job.refused - REFUSED_SHOWN
            where = refused_to or "--refused-to FILE writes them all"
            self.stdout.write(f"and {rest:,} more refused lines ({where})")
        if job.status == ImportStatus.FINISHED:
            self.stdout.write(self.style.SUCCESS(counts_in_words(job)))
            return
        if job.status == ImportStatus.CANCELLED:
            raise CommandError(f"Cancelled after line {job.checkpoint_line:,}.")
        raise CommandError(job.failure or f"The import did not end: it is {job.status}.")


def counts_in_words(job: ImportJob) -> str:
    words = [
        f"{job.lines:,} lines: {job.new:,} new",
        f"{job.updated:,} updated",
        f"{job.unchanged:,} unchanged",
    ]
    if job.kept_unsubscribed:
        words.append(f"{job.kept_unsubscribed:,} had unsubscribed and stay so")
    words.append(f"{job.refused:,} refused")
    if job.suppressed:
        words.append(f"of these {job.suppressed:,} get nothing (suppressed)")
    return ", ".join(words)


def check_writable(path: Path) -> None:
    """CommandError where refused lines could not be written; better than behind an import."""
    try:
        path.touch()
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def write_refused(job: ImportJob, path: Path) -> None:
    """The refused lines as CSV that a spreadsheet can open without running anything."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(csv_lines(imports.refused_table(job)))
