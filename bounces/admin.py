"""What came back, to look at. Machine rows are read-only, and every word in them is hostile text:
it is escaped by format_html and by Django's templates, and never marked as safe."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter
from unfold.decorators import display

from bounces import admin_pages
from bounces.detectors.mime import to_text
from bounces.models import (
    Bounce,
    BounceClassChoices,
    Breaker,
    MailboxState,
    ReceivedMail,
    Verdict,
)
from campaigns.admin.long_lists import FarPages, LongList
from campaigns.hostile_text import visible

# Of a mail's 256 KB a person reads the beginning.
MOST_SHOWN_CHARACTERS = 64 * 1024

CLASS_COLOURS = {
    BounceClassChoices.HARD.value: "danger",
    BounceClassChoices.SOFT.value: "warning",
    BounceClassChoices.BLOCKED.value: "info",
}
VERDICT_COLOURS = {
    Verdict.BOUNCE.label: "warning",
    Verdict.WAITING.label: "info",
    Verdict.FAILED.label: "danger",
}


class ReadOnly:
    """Rows that only the machine writes: to look at, for everybody with the view permission."""

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def link_to(row: Model | None, text: str = "") -> SafeString | str:
    """A link to the admin page of a row, "-" without one."""
    if row is None:
        return "-"
    meta = row._meta
    url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}" class="text-primary-600 underline">{}</a>', url, text or row)


def on_one_line(at: datetime) -> SafeString:
    """A moment in a table, whose cell does not break into lines when its neighbour is long."""
    words = date_format(timezone.localtime(at), "DATETIME_FORMAT")
    return format_html('<span class="whitespace-nowrap">{}</span>', words)


class OwnPages:
    """Pages of ours beside Django's: (route, name, view of admin_pages)."""

    pages: tuple[tuple[str, str, Callable[..., HttpResponse]], ...] = ()
    admin_site: Any

    def get_urls(self) -> list[URLPattern]:
        urls: list[URLPattern] = super().get_urls()  # type: ignore[misc]
        return [
            path(route, self.admin_site.admin_view(partial(view, self)), name=name)
            for route, name, view in self.pages
        ] + urls


class MailboxFilter(admin.SimpleListFilter):
    """By mailbox. Those that were ever polled have a row each: Django's own filter would look
    through every received mail for their names."""

    title = _("mailbox")
    parameter_name = "mailbox"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = MailboxState.objects.order_by("name").values_list("name", flat=True)
        return [(name, name) for name in names]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[ReceivedMail]
    ) -> QuerySet[ReceivedMail]:
        return queryset.filter(mailbox=self.value()) if self.value() else queryset


@admin.register(Bounce)
class BounceAdmin(OwnPages, ReadOnly, LongList, ModelAdmin):
    pages = (
        ("charts/", "bounces_charts", admin_pages.chart_page),
        ("<int:pk>/undo/", "bounces_bounce_undo", admin_pages.undo_suppression),
    )
    list_before_template = "admin/bounces/list_head.html"
    change_form_outer_before_template = "admin/bounces/bounce_actions.html"
    list_display = (
        "recipient",
        "campaign",
        "class_label",
        "status",
        "counted",
        "suppressed",
        "letter",
        "when",
    )
    list_display_links = ("recipient",)
    list_fullwidth = True
    list_filter = (
        ("bounce_class", ChoicesDropdownFilter),
        ("kind", ChoicesDropdownFilter),
        "suppressed",
        "counted",
        ("campaign", RelatedDropdownFilter),
    )
    list_filter_submit = True
    list_select_related = ("campaign", "delivery")
    search_fields = ("address_key__startswith",)
    ordering = ("-id",)
    fields = (
        "recipient",
        "letter",
        "campaign_link",
        "mail",
        "kind",
        "bounce_class",
        "because",
        "action",
        "status",
        "diagnostic_as_written",
        "counted",
        "suppressed",
        "replaced",
        "undone_at",
        "undone_by",
        "at",
    )
    readonly_fields = fields

    @display(description=_("class"), label=CLASS_COLOURS, ordering="bounce_class")
    def class_label(self, bounce: Bounce) -> tuple[str, str]:
        """The word before the colon; a bounce's own page has the sentence."""
        words = bounce.get_bounce_class_display() or bounce.get_kind_display()
        return bounce.bounce_class, str(words).partition(":")[0]

    @display(description=_("when"), ordering="at")
    def when(self, bounce: Bounce) -> SafeString:
        return on_one_line(bounce.at)

    @display(description=_("letter"))
    def letter(self, bounce: Bounce) -> SafeString | str:
        return link_to(bounce.delivery, str(_("Letter")))

    @display(description=_("campaign"))
    def campaign_link(self, bounce: Bounce) -> SafeString | str:
        return link_to(bounce.campaign)

    @display(description=_("received mail"))
    def mail(self, bounce: Bounce) -> SafeString | str:
        return link_to(bounce.received_mail)

    @display(description=_("diagnostic"))
    def diagnostic_as_written(self, bounce: Bounce) -> SafeString:
        return as_written(bounce.diagnostic)


class BouncesOfMail(ReadOnly, TabularInline):
    model = Bounce
    fields = readonly_fields = (
        "recipient",
        "letter",
        "bounce_class",
        "status",
        "counted",
        "suppressed",
    )
    extra = 0
    tab = False
    hide_title = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[Bounce]:
        return super().get_queryset(request).select_related("delivery")

    @display(description=_("letter"))
    def letter(self, bounce: Bounce) -> SafeString | str:
        return link_to(bounce.delivery)


@admin.register(ReceivedMail)
class ReceivedMailAdmin(OwnPages, ReadOnly, ModelAdmin):
    pages = (
        ("which/", "bounces_which", admin_pages.which_detector),
        ("<int:pk>/again/", "bounces_receivedmail_again", admin_pages.examine_again),
        ("<int:pk>/document/", "bounces_receivedmail_document", admin_pages.mail_document),
    )
    list_before_template = "admin/bounces/list_head.html"
    change_form_outer_before_template = "admin/bounces/mail_actions.html"
    change_form_outer_after_template = "admin/bounces/mail_frame.html"
    list_display = ("title", "sender", "mailbox", "verdict_label", "remark", "when")
    list_fullwidth = True
    list_filter = (("verdict", ChoicesDropdownFilter), MailboxFilter)
    list_filter_submit = True
    search_fields = ("subject", "sender")
    show_full_result_count = False
    paginator = FarPages
    ordering = ("-id",)
    fields = (
        "subject",
        "sender",
        "mailbox",
        "uid",
        "received_at",
        "verdict_label",
        "remark",
        "detector",
        "detector_version",
        "examined_at",
        "truncated",
        "raw_as_written",
    )
    readonly_fields = fields
    inlines = (BouncesOfMail,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ReceivedMail]:
        """Lists do not carry the mails themselves along."""
        return super().get_queryset(request).defer("raw")

    @display(description=_("subject"), ordering="id")
    def title(self, mail: ReceivedMail) -> str:
        return mail.subject or str(_("(no subject)"))

    @display(description=_("taken in"), ordering="received_at")
    def when(self, mail: ReceivedMail) -> SafeString:
        return on_one_line(mail.received_at)

    @display(description=_("verdict"), label=VERDICT_COLOURS, ordering="verdict")
    def verdict_label(self, mail: ReceivedMail) -> str:
        return mail.get_verdict_display()

    @display(description=_("the mail"))
    def raw_as_written(self, mail: ReceivedMail) -> SafeString | str:
        if mail.raw is None:
            return str(_("Forgotten: its retention is over."))
        return as_written(to_text(bytes(mail.raw)[:MOST_SHOWN_CHARACTERS]))


@admin.register(MailboxState)
class MailboxStateAdmin(ReadOnly, ModelAdmin):
    list_display = ("name", "last_polled_at", "last_succeeded_at", "failures", "last_error")
    ordering = ("name",)
    fields = readonly_fields = (
        "name",
        "last_polled_at",
        "last_succeeded_at",
        "failures",
        "last_error",
        "due_at",
        "leased_until",
    )


@admin.register(Breaker)
class BreakerAdmin(OwnPages, ReadOnly, ModelAdmin):
    pages = (("<int:pk>/reset/", "bounces_breaker_reset", admin_pages.reset_breaker),)
    change_form_outer_before_template = "admin/bounces/breaker_actions.html"
    list_display = ("name", "count", "counting_since", "tripped_at")
    fields = readonly_fields = ("name", "count", "counting_since", "tripped_at")


def as_written(text: str) -> SafeString:
    """Hostile text for a page: escaped, line by line as it was."""
    return format_html(
        '<pre class="overflow-auto whitespace-pre-wrap break-words text-xs max-h-96">{}</pre>',
        visible(text),
    )
