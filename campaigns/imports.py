"""CSV into a list: streamed in constant memory, every refused line named, resumable after a kill.

The file is read in batches. Each batch is one transaction that writes the readers, the refused
lines, the counts and the checkpoint together: whatever dies, the import goes on after the last
whole batch, and no line is counted or refused twice. Two workers on one import do no harm either:
a batch begins by taking the job's row and looking whether the checkpoint is still its own.

An import adds and completes, it never takes away: an empty cell erases nothing, attributes are
merged, who unsubscribed stays so, and a suppression is not touched.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.files import File
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django_q.tasks import async_task

from campaigns.columns import (
    EMAIL,
    ReaderRow,
    RefusedLine,
    RowReader,
    Table,
    check_mapping,
    guess_mapping,
    is_filled,
)
from campaigns.conf import campaign_settings
from campaigns.csv_source import (
    AUTO,
    CsvSource,
    Record,
    UnreadableFileError,
    first_undecodable_line,
    inspect,
    undecodable,
)
from campaigns.models import ImportJob, ImportStatus, MailingList, RefusedRow
from campaigns.readers import (
    Reader,
    add_readers,
    complete_readers,
    hold_readers,
    subscribe_readers,
    suppressed_keys,
)
from campaigns.states import SubscriptionStatus

logger = logging.getLogger(__name__)

# 5,000 lines a batch cost about a fifth less CPU a line, but keep other writers, and Cancel,
# waiting five times as long: this way they get their turn several times a second.
BATCH_LINES = 1000
BATCH_BYTES = 4 * 1024 * 1024
PREVIEW_LINES = 10
# A reader may be added by somebody else between our look and our write: then we look again.
ATTEMPTS = 5
# A worker writes a batch several times a second; one that is silent for so long is dead.
SILENCE = timedelta(minutes=2)
LONGEST_SHOWN = 300  # characters of a refused value and of a reason

UNDER_WAY = {ImportStatus.QUEUED, ImportStatus.RUNNING}
STARTABLE = {ImportStatus.UPLOADED, ImportStatus.FAILED, ImportStatus.CANCELLED}


class LostImportError(Exception):
    """The import was cancelled, deleted, or taken over by another worker. Nothing was written."""


# ---------------------------------------------------------------------- before the import


def uploads() -> Path:
    """Where uploaded files wait: readable by us alone, under names that nobody can guess."""
    folder = Path(settings.MEDIA_ROOT) / "imports"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def keep_upload(upload: File[bytes]) -> Path:
    """Copies an uploaded file, in pieces, to where the background task finds it."""
    path = uploads() / f"{uuid4().hex}.csv"
    with path.open("wb") as kept:
        path.chmod(0o600)
        for piece in upload.chunks():
            kept.write(piece)
    return path


def forget_upload(job: ImportJob) -> None:
    """Removes the uploaded copy: full of addresses, and not needed once it has been imported.

    A file that was imported in place, by the command, is its owner's and stays.
    """
    path = Path(job.path)
    if path.parent == uploads():
        path.unlink(missing_ok=True)


def forget_abandoned_uploads(now: datetime) -> int:
    """Removes the uploaded copies of imports that nobody started, or went on with, for
    UPLOAD_RETENTION_DAYS; how many files. Their reports stay.

    The rows let go of their files first; then every old file goes that no row needs. So a call
    that is killed is finished by the next one, and what a killed upload or import left behind
    goes, too.
    """
    before = now - campaign_settings().upload_retention
    copies = ImportJob.objects.filter(path__startswith=f"{uploads()}/")
    copies.filter(status=ImportStatus.UPLOADED, created_at__lt=before).update(
        status=ImportStatus.CANCELLED, finished_at=now, path=""
    )
    copies.filter(status__in=STARTABLE - {ImportStatus.UPLOADED}, finished_at__lt=before).update(
        path=""
    )
    unfinished = ImportJob.objects.exclude(status=ImportStatus.FINISHED)
    needed = {Path(path).name for path in unfinished.values_list("path", flat=True)}
    return sum(
        _remove_if_older(path, before) for path in uploads().iterdir() if path.name not in needed
    )


def _remove_if_older(path: Path, before: datetime) -> bool:
    try:
        if path.stat().st_mtime >= before.timestamp():
            return False
        path.unlink()
    except FileNotFoundError:  # its import was finished or deleted in this moment
        return False
    return True


def likely_encoding(path: Path) -> str:
    """What to propose for a file: UTF-8 or what its mark says, else Windows-1252.

    A proposal that a person sees in the preview: every text is good ISO 8859-1, and most is good
    Windows-1252, so only eyes can tell. UnreadableFileError when it is no CSV file.
    """
    for encoding in (AUTO, "windows-1252"):
        if first_undecodable_line(path, inspect(path, encoding)) is None:
            return encoding
    return "iso-8859-1"


def new_job(
    mailing_list: MailingList,
    path: Path,
    *,
    file_name: str = "",
    encoding: str = AUTO,
    delimiter: str = "",
    by: Any = None,
) -> ImportJob:
    """An import of this file, not started, its delimiter and columns guessed.

    UnreadableFileError when it is too large or no CSV file.
    """
    size = path.stat().st_size
    largest = campaign_settings().largest_import_bytes
    if size > largest:
        raise UnreadableFileError(_("The file is larger than %d MB.") % (largest // (1024 * 1024)))
    layout = inspect(path, encoding, delimiter)
    with CsvSource(path, layout) as source:
        mapping = guess_mapping(Table(source).columns)
    return ImportJob.objects.create(
        mailing_list=mailing_list,
        file_name=(file_name or path.name)[:255],
        path=str(path),
        encoding=encoding,
        delimiter=layout.delimiter,
        mapping=mapping,
        total_bytes=size,
        created_by=by,
    )


@contextmanager
def opened(job: ImportJob) -> Iterator[Table]:
    """The job's file below its header. UnreadableFileError when it cannot be read as chosen."""
    path = Path(job.path)
    layout = inspect(path, job.encoding, job.delimiter)
    with CsvSource(path, layout) as source:
        yield Table(source)


@dataclass(frozen=True, slots=True)
class Preview:
    """What an import would begin with. ``samples``: the first filled cell of each column.

    ``bad_line``: the first line that is not in the encoding; None when the whole file is.
    """

    columns: list[str]
    samples: list[str]
    rows: list[ReaderRow | RefusedLine]
    has_header: bool
    bad_line: int | None


def preview(job: ImportJob) -> Preview:
    """The first lines as they would be imported, the mapping being as it is in ``job``.

    Without a column for the address, no rows. UnreadableFileError as for ``opened``.
    """
    path = Path(job.path)
    layout = inspect(path, job.encoding, job.delimiter)
    bad_line = first_undecodable_line(path, layout)
    with CsvSource(path, layout) as source:
        table = Table(source)
        try:
            records = list(islice(filter(is_filled, table.source), PREVIEW_LINES))
        except UnreadableFileError:  # the line that bad_line tells of
            records = []
    samples = [_first_filled(records, column) for column in range(len(table.columns))]
    rows: list[ReaderRow | RefusedLine] = []
    if EMAIL in job.mapping.values():
        read = RowReader(table.columns, job.mapping)
        rows = [read(record) for record in records]
    return Preview(table.columns, samples, rows, table.has_header, bad_line)


def _first_filled(records: Sequence[Record], column: int) -> str:
    cells = (record.cells[column].strip() for record in records if column < len(record.cells))
    return next(filter(None, cells), "")


def choose(job: ImportJob) -> bool:
    """Keeps how the file of ``job`` is to be read; False when it is being imported already: what
    another window says then must not change the columns in the middle. Or its file is gone."""
    untouched = ImportJob.objects.filter(
        ~Q(path=""), pk=job.pk, status__in=STARTABLE, checkpoint_bytes=0
    )
    return bool(
        untouched.update(encoding=job.encoding, delimiter=job.delimiter, mapping=job.mapping)
    )


def start(job: ImportJob, *, now: datetime) -> bool:
    """Gives the import to the background; False when it is under way or finished, or when its file
    was forgotten.

    One that failed or was cancelled goes on after its last checkpoint.
    """
    if not enqueue(job, now=now):
        return False
    hand_on(job.pk)
    return True


def enqueue(job: ImportJob, *, now: datetime) -> bool:
    """Makes the import ready for ``carry_on``; False when it is under way or finished, or when its
    file was forgotten."""
    return job.move(
        STARTABLE, ImportStatus.QUEUED, ~Q(path=""), failure="", finished_at=None, alive_at=now
    )


def hand_on(job_id: int) -> None:
    """Queues the next slice of an import, once the caller's transaction is committed."""
    transaction.on_commit(
        lambda: async_task(
            "campaigns.tasks.run_import", job_id, task_name=f"import {job_id}", group="imports"
        )
    )


def cancel(job: ImportJob, *, now: datetime) -> bool:
    """Ends it after the batch that is being written; False when it was not under way."""
    return job.move(UNDER_WAY | {ImportStatus.UPLOADED}, ImportStatus.CANCELLED, finished_at=now)


def take_up_orphans(now: datetime) -> list[int]:
    """Queues the imports whose worker or task was lost: under way, and silent for too long."""
    silent = ImportJob.objects.filter(status__in=UNDER_WAY, alive_at__lt=now - SILENCE)
    taken_up = [
        job_id
        for job_id in silent.order_by("id").values_list("id", flat=True)
        # Said to be alive until the task has had its chance: not queued again each minute.
        if silent.filter(pk=job_id).update(alive_at=now)
    ]
    for job_id in taken_up:
        hand_on(job_id)
    return taken_up


def refused_table(job: ImportJob) -> Iterator[Sequence[object]]:
    """The refused lines below a header, for a CSV file; in constant memory."""
    yield "line", "value", "reason"
    yield from job.refused_rows.values_list("line", "value", "reason").iterator(chunk_size=2000)


# ---------------------------------------------------------------------- the import itself


def carry_on(
    job_id: int,
    *,
    is_time_up: Callable[[], bool] = lambda: False,
    after_batch: Callable[[ImportJob], None] = lambda job: None,
) -> bool:
    """Imports from the checkpoint on until the end or until time is up; True: no more to do.

    A file that cannot be read fails the import, with the reason in ``failure``.
    """
    job = _take(job_id, timezone.now())
    if job is None:
        return True
    try:
        if not _import_file(job, is_time_up, after_batch):
            return False
    except LostImportError:
        return True
    except UnreadableFileError as error:
        fail(job, str(error))
        return True
    if job.move({ImportStatus.RUNNING}, ImportStatus.FINISHED, finished_at=timezone.now()):
        forget_upload(job)
        logger.info("import.finished", extra={"job": job.pk, "lines": job.lines})
    return True


def fail(job: ImportJob, reason: str) -> None:
    """Ends an import that cannot go on, with the reason for a person."""
    job.move(UNDER_WAY, ImportStatus.FAILED, failure=reason, finished_at=timezone.now())
    logger.warning("import.failed", extra={"job": job.pk})


def _take(job_id: int, now: datetime) -> ImportJob | None:
    """The import, RUNNING and said to be alive; None when there is nothing to do on it."""
    job = ImportJob.objects.select_related("mailing_list").filter(pk=job_id).first()
    if job is None:
        return None
    started = job.started_at or now
    if not job.move(UNDER_WAY, ImportStatus.RUNNING, started_at=started, alive_at=now):
        return None
    return job


def _import_file(
    job: ImportJob, is_time_up: Callable[[], bool], after_batch: Callable[[ImportJob], None]
) -> bool:
    path = Path(job.path)
    if path.exists() and path.stat().st_size != job.total_bytes:
        raise UnreadableFileError(_("The file has changed since it was chosen."))
    with opened(job) as table:
        if job.checkpoint_bytes:
            table.source.resume(offset=job.checkpoint_bytes, line=job.checkpoint_line)
        else:
            _check_before(job, table)
        read = RowReader(table.columns, job.mapping)
        for records in _batches(table.source):
            batch = [read(record) for record in records if is_filled(record)]
            import_batch(job, batch, line=table.source.line, offset=table.source.offset)
            after_batch(job)
            if is_time_up():
                return False
    return True


def _batches(source: CsvSource) -> Iterator[list[Record]]:
    """The records in pieces that are small in lines and in bytes, whatever the lines hold."""
    while True:
        batch: list[Record] = []
        begun = source.offset
        for record in source:
            batch.append(record)
            if len(batch) == BATCH_LINES or source.offset - begun > BATCH_BYTES:
                break
        if not batch:
            return
        yield batch


def _check_before(job: ImportJob, table: Table) -> None:
    """What would fail in the middle fails before the first reader is written."""
    layout = table.source.layout
    if bad_line := first_undecodable_line(Path(job.path), layout):
        raise undecodable(bad_line, layout.codec)
    try:
        check_mapping(job.mapping, table.columns)
    except ValidationError as error:
        raise UnreadableFileError(" ".join(error.messages)) from error


def import_batch(
    job: ImportJob, lines: Sequence[ReaderRow | RefusedLine], *, line: int, offset: int
) -> None:
    """Writes one batch and moves the checkpoint to (line, offset), in one transaction.

    LostImportError when the import is no longer ours; nothing is written then.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with transaction.atomic():
                _import_batch(job, lines, line, offset, timezone.now())
        except IntegrityError:
            # Somebody added one of these readers between our look and our write. All of the
            # batch is undone; the second look sees that reader.
            if attempt == ATTEMPTS:
                raise
        else:
            job.refresh_from_db()
            return


def _import_batch(
    job: ImportJob,
    lines: Sequence[ReaderRow | RefusedLine],
    line: int,
    offset: int,
    now: datetime,
) -> None:
    ours = ImportJob.objects.filter(
        pk=job.pk, status=ImportStatus.RUNNING, checkpoint_bytes=job.checkpoint_bytes
    )
    held = ours.select_for_update().first()
    if held is None:
        raise LostImportError
    rows = [row for row in lines if isinstance(row, ReaderRow)]
    refused = [row for row in lines if isinstance(row, RefusedLine)]
    counts = _write_readers(job, rows, now)
    counts["refused"] = len(refused)
    RefusedRow.objects.bulk_create(
        RefusedRow(
            job=job,
            line=row.line,
            value=row.value[:LONGEST_SHOWN],
            reason=row.reason[:LONGEST_SHOWN],
        )
        for row in refused
    )
    ours.update(
        checkpoint_line=line,
        checkpoint_bytes=offset,
        alive_at=now,
        **{name: getattr(held, name) + count for name, count in counts.items()},
    )


def _write_readers(job: ImportJob, rows: Sequence[ReaderRow], now: datetime) -> Counter[str]:
    """Adds and completes the readers of a batch; how many of its lines were what."""
    # In the order of the keys, as all that readers.py does: two imports that meet wait for each
    # other in one direction only.
    keys = sorted({row.key for row in rows})
    readers = hold_readers(job.mailing_list_id, keys)
    added: dict[str, Reader] = {}
    completed: dict[str, Reader] = {}
    joined: set[str] = set()
    counts: Counter[str] = Counter()
    for row in rows:
        reader = readers.get(row.key)
        if reader is None:
            reader = readers[row.key] = added[row.key] = Reader(row.key, row.email)
        news = _learn(reader, row)
        if news and row.key not in added:
            completed[row.key] = reader
        if reader.status == SubscriptionStatus.UNSUBSCRIBED:
            counts["kept_unsubscribed"] += 1
        elif not reader.status:
            reader.status = SubscriptionStatus.SUBSCRIBED
            joined.add(row.key)
            counts["new"] += 1
        else:
            counts["updated" if news else "unchanged"] += 1

    add_readers(list(added.values()), now)
    complete_readers(list(completed.values()), now)
    source = f"import {job.pk}: {job.file_name}"[:200]
    subscribe_readers(
        job.mailing_list_id, sorted(joined), source=source, by_id=job.created_by_id, now=now
    )
    suppressed = suppressed_keys(keys)
    counts["suppressed"] = sum(row.key in suppressed for row in rows)
    return counts


def _learn(reader: Reader, row: ReaderRow) -> bool:
    """Takes over what the line says and is news; False when nothing is. Empty says nothing."""
    before = (reader.name, reader.language, reader.attributes)
    reader.name = row.name or reader.name
    reader.language = row.language or reader.language
    reader.attributes = (reader.attributes or {}) | row.attributes
    return before != (reader.name, reader.language, reader.attributes)
