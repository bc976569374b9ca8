"""Importing a file into a list, step by step: upload, columns, progress, report.

Every page and every verb needs ``campaigns.import_subscribers``; what changes something is a
POST. The work itself is campaigns/imports.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    JsonResponse,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from campaigns import imports
from campaigns.columns import (
    ATTRIBUTE,
    EMAIL,
    LANGUAGE,
    LONGEST_ATTRIBUTE_KEY,
    NAME,
    ReaderRow,
    RefusedLine,
    attribute_key,
    check_mapping,
    guess_mapping,
)
from campaigns.conf import campaign_settings
from campaigns.csv_source import AUTO, DELIMITERS, UnreadableFileError
from campaigns.formula_guard import csv_lines
from campaigns.models import ImportJob, ImportStatus, MailingList

PERMISSION = "campaigns.import_subscribers"
REFUSED_PER_PAGE = 25
# A task is taken within a second or two; after this long nobody seems to be there.
PATIENCE_SECONDS = 15

STATUS_COLOURS = {
    ImportStatus.UPLOADED.value: "default",
    ImportStatus.QUEUED.value: "info",
    ImportStatus.RUNNING.value: "info",
    ImportStatus.FINISHED.value: "success",
    ImportStatus.FAILED.value: "danger",
    ImportStatus.CANCELLED.value: "warning",
}
# Count of the job, word, what it means to a person: in the order of the bar and of the report.
COUNTS: tuple[tuple[str, Any, Any], ...] = (
    ("new", gettext_lazy("New"), gettext_lazy("Were not on this list and are now.")),
    (
        "updated",
        gettext_lazy("Updated"),
        gettext_lazy("Were on the list; name, language or attributes are new."),
    ),
    ("unchanged", gettext_lazy("Unchanged"), gettext_lazy("The file says nothing new of them.")),
    (
        "kept_unsubscribed",
        gettext_lazy("Kept unsubscribed"),
        gettext_lazy("Have left this list. An import never brings them back."),
    ),
    ("refused", gettext_lazy("Refused"), gettext_lazy("Were not imported; see below why.")),
)
FIELD_CHOICES = (
    ("", gettext_lazy("Do not import")),
    (EMAIL, gettext_lazy("Address")),
    (NAME, gettext_lazy("Name")),
    (LANGUAGE, gettext_lazy("Language")),
    (ATTRIBUTE, gettext_lazy("Attribute")),
)
ENCODING_CHOICES = (
    (AUTO, gettext_lazy("Automatic (UTF-8, or by its mark)")),
    ("utf-8", "UTF-8"),
    ("utf-16", "UTF-16"),
    ("windows-1252", gettext_lazy("Windows-1252 (Excel in Western Europe)")),
    ("iso-8859-1", gettext_lazy("ISO 8859-1 (Latin-1)")),
)
DELIMITER_CHOICES = tuple(
    zip(
        DELIMITERS,
        (gettext_lazy("Comma"), gettext_lazy("Semicolon"), gettext_lazy("Tab")),
        strict=True,
    )
)

View = Callable[["ImportJobAdmin", HttpRequest, ImportJob], HttpResponseBase]


@dataclass(frozen=True, slots=True)
class Page:
    """One page or verb of an import. ``methods``: how it may be asked for."""

    route: str
    view: View
    methods: tuple[str, ...] = ("GET",)


class UploadForm(forms.Form):
    mailing_list = forms.ModelChoiceField(
        MailingList.objects.all(),
        label=gettext_lazy("Into the list"),
        empty_label=gettext_lazy("Choose a list"),
        widget=UnfoldAdminSelectWidget(),
    )
    file = forms.FileField(label=gettext_lazy("CSV file"), max_length=255)

    def clean_file(self) -> Any:
        file = self.cleaned_data["file"]
        largest = campaign_settings().largest_import_bytes
        if file.size > largest:
            raise ValidationError(
                _("The file is larger than %d MB. Split it.") % (largest // (1024 * 1024))
            )
        return file


class ReadingForm(forms.Form):
    """How the file is to be read."""

    encoding = forms.ChoiceField(
        label=gettext_lazy("Encoding"),
        choices=ENCODING_CHOICES,
        widget=UnfoldAdminSelectWidget(),
    )
    delimiter = forms.ChoiceField(
        label=gettext_lazy("Cells are parted by"),
        choices=DELIMITER_CHOICES,
        widget=UnfoldAdminSelectWidget(),
    )


@admin.register(ImportJob)
class ImportJobAdmin(ModelAdmin):
    list_display = ["file", "state", "results", "started_by", "created_at"]
    list_select_related = ["mailing_list", "created_by"]
    list_filter = [
        ("mailing_list", RelatedDropdownFilter),
        ("status", ChoicesDropdownFilter),
    ]
    list_filter_submit = True
    search_fields = ["file_name"]

    # ------------------------------------------------------------------------ who may

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(PERMISSION)  # type: ignore[union-attr]

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # steps, not a form

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if obj is not None and obj.is_under_way:
            return False
        return self.has_view_permission(request) and super().has_delete_permission(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # The refused lines, up to a million of them, go with their import: not listed one by one.
        return [str(job) for job in objs], {self.opts.verbose_name_plural: len(objs)}, set(), []

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet) -> None:
        for job in queryset:
            if not job.is_under_way:
                self.delete_model(request, job)

    # ------------------------------------------------------------------------ the list of them

    @display(description=gettext_lazy("file"), ordering="file_name", header=True)
    def file(self, job: ImportJob) -> list[str]:
        return [job.file_name, _("into %s") % job.mailing_list.name]

    @display(description=gettext_lazy("status"), ordering="status", label=STATUS_COLOURS)
    def state(self, job: ImportJob) -> tuple[str, str]:
        return job.status, job.get_status_display()

    @display(description=gettext_lazy("result"))
    def results(self, job: ImportJob) -> str:
        if job.status == ImportStatus.RUNNING:
            return f"{job.percent} %"
        words = [
            f"{number_format(getattr(job, name), use_l10n=True, force_grouping=True)} {word}"
            for name, word, _meaning in COUNTS
            if getattr(job, name)
        ]
        return ", ".join(words).capitalize() or "–"

    @display(description=gettext_lazy("by"))
    def started_by(self, job: ImportJob) -> str:
        return str(job.created_by or _("command"))

    # ------------------------------------------------------------------------ the pages

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                page.route,
                self.admin_site.admin_view(self.serve(page)),
                name=f"campaigns_importjob_{name}",
            )
            for name, page in PAGES.items()
        ]
        return own + super().get_urls()

    def serve(self, page: Page) -> Callable[..., HttpResponseBase]:
        """The page as a view: of an import that is there, for who may import."""

        def view(request: HttpRequest, pk: int) -> HttpResponseBase:
            if not self.has_view_permission(request):
                raise PermissionDenied
            if request.method not in page.methods:
                return HttpResponseNotAllowed(page.methods)
            jobs = ImportJob.objects.select_related("mailing_list", "created_by")
            return page.view(self, request, get_object_or_404(jobs, pk=pk))

        return view

    def show(
        self, request: HttpRequest, template: str, step: int, title: str, **context: Any
    ) -> TemplateResponse:
        request.current_app = self.admin_site.name  # type: ignore[attr-defined]
        return TemplateResponse(
            request,
            f"admin/campaigns/importjob/{template}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": title,
                "media": self.media,
                "step": step,
                "steps": [_("Upload"), _("Columns"), _("Import"), _("Report")],
                **context,
            },
        )

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Step 1: a list and a file."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = UploadForm(initial={"mailing_list": request.GET.get("mailing_list")})
        if request.method == "POST":
            form = UploadForm(request.POST, request.FILES)
            job = self.uploaded(request, form) if form.is_valid() else None
            if job:
                return redirect(url_of(job, "columns"))
        return self.show(
            request,
            "upload",
            1,
            _("Import readers"),
            form=form,
            largest_mb=campaign_settings().largest_import_bytes // (1024 * 1024),
            may_add_list=request.user.has_perm("campaigns.add_mailinglist"),  # type: ignore[union-attr]
        )

    def uploaded(self, request: HttpRequest, form: UploadForm) -> ImportJob | None:
        """The import of the uploaded file; None, with an error in the form, if it is no CSV."""
        upload = form.cleaned_data["file"]
        kept = imports.keep_upload(upload)
        job = None
        try:
            job = imports.new_job(
                form.cleaned_data["mailing_list"],
                kept,
                file_name=upload.name,
                encoding=imports.likely_encoding(kept),
                by=request.user,
            )
        except UnreadableFileError as error:
            form.add_error("file", str(error))
        finally:
            if job is None:
                kept.unlink()
        return job

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Whatever step the import is at."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = self.get_object(request, object_id)
        if job is None:
            raise Http404
        if job.status == ImportStatus.UPLOADED:
            return redirect(url_of(job, "columns"))
        return progress_page(self, request, job) if job.is_under_way else report(self, request, job)


def url_of(job: ImportJob, page: str = "change") -> str:
    return reverse(f"admin:campaigns_importjob_{page}", args=[job.pk])


# ---------------------------------------------------------------------- step 2: the columns


def columns(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    """What each column is, and the first lines as they would be imported."""
    if not (take_over(request, job) if request.method == "POST" else job.is_untouched):
        return redirect(url_of(job))
    return show_columns(model_admin, request, job)


def start(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    """Starts the import with the columns as chosen, or shows what is wrong with them."""
    if not take_over(request, job):
        return redirect(url_of(job))
    try:
        with imports.opened(job) as table:
            check_mapping(job.mapping, table.columns)
    except ValidationError as error:
        return show_columns(model_admin, request, job, error.messages)
    except UnreadableFileError:
        return show_columns(model_admin, request, job)
    imports.start(job, now=timezone.now())
    return redirect(url_of(job))


def take_over(request: HttpRequest, job: ImportJob) -> bool:
    """Keeps what was chosen on the page of columns; False when the import has begun or its file
    is gone. A choice that is not on the page is left out."""
    if job.is_forgotten:
        return False
    reading = ReadingForm(request.POST)
    if not reading.is_valid():
        return job.is_untouched
    read_anew = job.delimiter != reading.cleaned_data["delimiter"]
    job.encoding = reading.cleaned_data["encoding"]
    job.delimiter = reading.cleaned_data["delimiter"]
    try:
        with imports.opened(job) as table:
            titles = table.columns
    except UnreadableFileError:
        titles = []
    chosen = list(chosen_fields(request, len(titles)))
    # Parted otherwise, the columns are others: what was chosen for the old ones means nothing.
    if read_anew or not chosen:
        job.mapping = guess_mapping(titles)
    else:
        job.mapping = dict(zip(titles, chosen, strict=True))
    return imports.choose(job)


def chosen_fields(request: HttpRequest, count: int) -> Iterator[str]:
    """The field chosen for each column of the posted page; none when it had no columns."""
    if "field-0" not in request.POST:
        return
    for index in range(count):
        field = request.POST.get(f"field-{index}", "")
        if field == ATTRIBUTE:
            field += request.POST.get(f"key-{index}", "").strip()
        yield field


def show_columns(
    model_admin: ImportJobAdmin,
    request: HttpRequest,
    job: ImportJob,
    errors: list[str] | None = None,
) -> HttpResponse:
    errors = list(errors or [])
    preview = None
    try:
        preview = imports.preview(job)
        check_mapping(job.mapping, preview.columns)
        if preview.bad_line:
            errors.append(str(imports.undecodable(preview.bad_line, job.encoding)))
    except UnreadableFileError as error:
        errors = [str(error)]
    except ValidationError as error:
        errors = error.messages
    fields = set(job.mapping.values())
    keys = [key for _choice, key in map(split_field, job.mapping.values()) if key]
    return model_admin.show(
        request,
        "columns",
        2,
        job.file_name,
        job=job,
        errors=errors,
        reading=ReadingForm(initial={"encoding": job.encoding, "delimiter": job.delimiter}),
        field_choices=FIELD_CHOICES,
        longest_key=LONGEST_ATTRIBUTE_KEY,
        columns=[
            column_context(index, title, sample, job.mapping.get(title, ""))
            for index, (title, sample) in enumerate(
                zip(preview.columns, preview.samples, strict=True) if preview else ()
            )
        ],
        has_name=NAME in fields,
        has_language=LANGUAGE in fields,
        attribute_keys=keys,
        preview_width=1 + (NAME in fields) + (LANGUAGE in fields) + len(keys),
        rows=[row_context(row, keys) for row in (preview.rows if preview else ())],
        has_header=preview is None or preview.has_header,
        is_western=job.encoding in {"windows-1252", "iso-8859-1"},
    )


def split_field(field: str) -> tuple[str, str]:
    """The choice of a column and, for an attribute, its key."""
    kind, colon, key = field.partition(":")
    return kind + colon, key


def column_context(index: int, title: str, sample: str, field: str) -> dict[str, Any]:
    choice, key = split_field(field)
    return {
        "index": index,
        "title": title,
        "sample": sample,
        "field": choice,
        # Proposed as soon as somebody chooses "Attribute".
        "key": key or attribute_key(title),
        "is_attribute": choice == ATTRIBUTE,
    }


def row_context(row: ReaderRow | RefusedLine, keys: list[str]) -> dict[str, Any]:
    if isinstance(row, RefusedLine):
        return {"line": row.line, "refused": row.reason, "value": row.value}
    return {
        "line": row.line,
        "email": row.email,
        "name": row.name,
        "language": row.language,
        "attributes": [row.attributes.get(key, "") for key in keys],
    }


# ---------------------------------------------------------------------- step 3: the import


def progress_page(
    model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob
) -> HttpResponse:
    return model_admin.show(
        request, "progress", 3, job.file_name, job=job, state=state_of(job), counts=counts_of(job)
    )


def progress(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    """What the page of progress asks for each second."""
    return JsonResponse(state_of(job), headers={"Cache-Control": "no-store"})


def state_of(job: ImportJob) -> dict[str, Any]:
    now = timezone.now()
    seconds = ((job.finished_at or now) - job.started_at).total_seconds() if job.started_at else 0
    silent = (now - job.alive_at).total_seconds() if job.alive_at else 0
    return {
        "status": job.status,
        "status_word": job.get_status_display(),
        "is_under_way": job.is_under_way,
        "percent": job.percent,
        "lines": job.lines,
        "counts": {name: getattr(job, name) for name, _word, _meaning in COUNTS},
        "seconds": round(seconds),
        "nobody_there": job.is_under_way and silent > PATIENCE_SECONDS,
    }


def counts_of(job: ImportJob) -> list[dict[str, Any]]:
    """The counts with their words, and with their share of all lines for the bar."""
    return [
        {
            "name": name,
            "word": word,
            "meaning": meaning,
            "count": getattr(job, name),
            "width": f"{100 * getattr(job, name) / job.lines:.3f}%" if job.lines else "0",
        }
        for name, word, meaning in COUNTS
    ]


def cancel(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    if imports.cancel(job, now=timezone.now()):
        messages.success(request, _("Cancelled. What had been imported stays."))
    else:
        messages.warning(request, _("The import had already ended."))
    return redirect(url_of(job))


def resume(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    """Goes on with an import that failed or was cancelled, after the last line it imported."""
    if not imports.start(job, now=timezone.now()):
        messages.warning(request, _("The import is under way or has ended."))
    return redirect(url_of(job))


# ---------------------------------------------------------------------- step 4: the report


def report(model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob) -> HttpResponse:
    pages = Paginator(job.refused_rows.all(), REFUSED_PER_PAGE)
    page = pages.get_page(request.GET.get("page"))
    return model_admin.show(
        request,
        "report",
        4,
        job.file_name,
        job=job,
        counts=counts_of(job),
        seconds=state_of(job)["seconds"],
        page=page,
        page_numbers=pages.get_elided_page_range(page.number, on_each_side=2, on_ends=1),
        may_delete=model_admin.has_delete_permission(request, job),
    )


def refused(
    model_admin: ImportJobAdmin, request: HttpRequest, job: ImportJob
) -> StreamingHttpResponse:
    """The refused lines as CSV, streamed; formulas are text in it, and importing undoes that."""

    def content() -> Iterator[str]:
        yield "\ufeff"  # without the mark Excel takes UTF-8 for Windows-1252
        yield from csv_lines(imports.refused_table(job))

    return StreamingHttpResponse(
        content(),
        content_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="refused-lines-{job.pk}.csv"',
            "Cache-Control": "no-store",
        },
    )


PAGES: dict[str, Page] = {
    "columns": Page("<int:pk>/columns/", columns, ("GET", "POST")),
    "start": Page("<int:pk>/start/", start, ("POST",)),
    "progress": Page("<int:pk>/progress/", progress),
    "cancel": Page("<int:pk>/cancel/", cancel, ("POST",)),
    "resume": Page("<int:pk>/resume/", resume, ("POST",)),
    "refused": Page("<int:pk>/refused.csv", refused),
}
