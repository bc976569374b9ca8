"""Campaigns: the list, the form of a draft, and the way to the pages of each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from campaigns.admin import pages
from campaigns.admin.forms import CampaignForm
from campaigns.admin.long_lists import is_changelist
from campaigns.admin.pages import Page, url_of
from campaigns.models import Campaign, CampaignEvent, CampaignTotals
from campaigns.progress import Progress
from campaigns.states import CampaignStatus

STATUS_COLOURS = {
    CampaignStatus.DRAFT.value: "default",
    CampaignStatus.SCHEDULED.value: "info",
    CampaignStatus.SENDING.value: "primary",
    CampaignStatus.PAUSED.value: "warning",
    CampaignStatus.FINISHED.value: "success",
    CampaignStatus.CANCELLED.value: "danger",
}
GET_AND_POST = ("GET", "POST")
POST = ("POST",)
PAGES = (
    Page("preview", pages.preview_page),
    Page("letter", pages.letter_document),
    Page("test", pages.test_page, "test_campaign", GET_AND_POST),
    Page("send", pages.send_page),
    Page("progress", pages.progress_json),
    Page("send-now", pages.send_now, "send_campaign", POST),
    Page("schedule", pages.schedule, "schedule_campaign", POST),
    Page(
        "unschedule",
        pages.verb(
            lambda campaign, user: campaign.unschedule(by=user),
            _("The schedule is taken back. This is a draft again."),
        ),
        "schedule_campaign",
        POST,
    ),
    Page(
        "send-late",
        pages.verb(
            lambda campaign, user: campaign.send_late(timezone.now(), by=user),
            _("It is on its way."),
        ),
        "send_campaign",
        POST,
    ),
    Page(
        "pause",
        pages.verb(
            lambda campaign, user: campaign.pause(by=user),
            _("Paused. Letters on the wire finish; no new one leaves."),
        ),
        "pause_campaign",
        POST,
    ),
    Page(
        "resume",
        pages.verb(lambda campaign, user: campaign.resume(by=user), _("It goes on.")),
        "resume_campaign",
        POST,
    ),
    Page("cancel", pages.cancel_page, "cancel_campaign", GET_AND_POST),
    Page("duplicate", pages.duplicate, "add_campaign", POST),
)


def starter_html() -> str:
    """The letter that a new campaign begins with."""
    return (Path(settings.BASE_DIR) / "templates/letters/starter.html").read_text("utf-8")


def bar(progress: Progress) -> str:
    """The stacked bar, without its legend."""
    return format_html(
        '<span class="pp-bar pp-bar-small" title="{}">{}</span>',
        progress.headline,
        format_html_join(
            "",
            '<span class="pp-segment pp-state-{}" style="width:{}"></span>',
            ((part.state, part.width) for part in progress.segments if part.count),
        ),
    )


@admin.register(Campaign)
class CampaignAdmin(ModelAdmin):
    form = CampaignForm
    list_display = ["title", "state", "progress", "readers", "sent", "bounced", "moment"]
    list_filter = [("status", ChoicesDropdownFilter)]
    list_filter_submit = True
    search_fields = ["name", "subject"]
    list_per_page = 25
    warn_unsaved_form = True
    change_form_show_cancel_button = True
    fieldsets = [
        (None, {"fields": ["name", "subject", "preheader"]}),
        (_("From"), {"fields": [("from_name", "from_email"), "reply_to"]}),
        (
            _("To"),
            {
                "fields": [
                    ("include_lists", "exclude_lists"),
                    ("provider", "priority"),
                    "on_doubt",
                ]
            },
        ),
        (_("Letter"), {"fields": ["html", "text"]}),
    ]

    class Media:
        js = ["campaigns/write.js"]

    # ------------------------------------------------------------------------------- the list

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        totals = CampaignTotals.of([row.pk for row in rows])
        for row in rows:
            row.progress = Progress(totals[row.pk])
        changelist.result_list = rows
        return changelist

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        queryset = super().get_queryset(request)
        # Bodies are long; a list of 25 campaigns does not show them.
        return queryset.defer("html", "text") if is_changelist(request) else queryset

    @display(description=_("campaign"), ordering="name", header=True)
    def title(self, campaign: Campaign) -> list[str]:
        return [campaign.name, campaign.subject]

    @display(description=_("status"), ordering="status", label=STATUS_COLOURS)
    def state(self, campaign: Campaign) -> tuple[str, str]:
        return campaign.status, campaign.get_status_display()

    @display(description=_("progress"))
    def progress(self, campaign: Any) -> str:
        if campaign.is_draft or not campaign.progress.total:
            return format_html('<span class="pp-quiet">{}</span>', "–")
        return format_html(
            '{}<span class="pp-number pp-quiet">{} %</span>',
            bar(campaign.progress),
            campaign.progress.percent,
        )

    @display(description=_("audience"))
    def readers(self, campaign: Any) -> str:
        return number(campaign.progress.total)

    @display(description=_("sent"))
    def sent(self, campaign: Any) -> str:
        return number(campaign.progress.counts["sent"])

    @display(description=_("bounced"))
    def bounced(self, campaign: Any) -> str:
        return number(campaign.progress.counts["bounced"])

    @display(description=_("when"), ordering="-id")
    def moment(self, campaign: Campaign) -> str:
        at = campaign.finished_at or campaign.started_at or campaign.scheduled_at
        word = {
            CampaignStatus.SCHEDULED: _("starts"),
            CampaignStatus.SENDING: _("since"),
            CampaignStatus.PAUSED: _("since"),
        }.get(CampaignStatus(campaign.status), "")
        if at is None:
            at, word = campaign.updated_at, _("edited")
        return format_html(
            '<span class="pp-quiet">{}</span> <span class="pp-number">{}</span>',
            word,
            date_format(timezone.localtime(at), "j M Y, H:i"),
        )

    # -------------------------------------------------------------------------------- the form

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """The starter letter, from whoever sent the last campaign."""
        last = Campaign.objects.order_by("-id").first()
        sender = ("from_name", "from_email", "reply_to", "provider")
        return (
            {"html": starter_html()}
            | ({field: getattr(last, field) for field in sender} if last else {})
            | super().get_changeform_initial_data(request)
        )

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        campaign = super().get_object(request, object_id, from_field)
        if campaign is not None and request.method == "POST":
            # Locked until the form is saved: a draft that is sent meanwhile is not rewritten.
            # (changeform_view runs in a transaction; so does the deletion.)
            return Campaign.objects.select_for_update().get(pk=campaign.pk)
        return campaign

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or obj.is_draft)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # What was sent, even as a test, is part of the record; such a campaign is cancelled.
        return super().has_delete_permission(request, obj) and (
            obj is None or (obj.is_draft and not obj.editions.exists())
        )

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        by: Any = request.user
        if not change:
            obj.created_by = by
        super().save_model(request, obj, form, change)
        if not change:
            CampaignEvent.objects.create(campaign=obj, action="created", by=by)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        campaign = self.get_object(request, object_id) if request.method == "GET" else None
        if campaign is None:
            return super().change_view(request, object_id, form_url, extra_context)
        if not campaign.is_draft:
            return Page("", pages.watch_page)(self, request, campaign.pk)
        context = pages.context_of(self, request, campaign, "write")
        extra = {name: context[name] for name in ("campaign", "page", "may", "may_discard")}
        return super().change_view(request, object_id, form_url, (extra_context or {}) | extra)

    def response_post_save_add(self, request: HttpRequest, obj: Any) -> HttpResponseRedirect:
        return self._after_saving(request, obj)

    def response_post_save_change(self, request: HttpRequest, obj: Any) -> HttpResponseRedirect:
        return self._after_saving(request, obj)

    def _after_saving(self, request: HttpRequest, campaign: Campaign) -> HttpResponseRedirect:
        """Back to the draft, or on to its preview: saving is no reason to leave what one writes."""
        page = "preview" if "_preview" in request.POST else "change"
        return HttpResponseRedirect(url_of(campaign, page))

    # ------------------------------------------------------------------------------- the pages

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                f"<int:pk>/{page.route}/",
                self.admin_site.admin_view(partial(page, self)),
                name=f"campaigns_campaign_{page.route.replace('-', '_')}",
            )
            for page in PAGES
        ]
        return own + super().get_urls()


def number(count: int) -> str:
    return format_html('<span class="pp-number">{}</span>', f"{count:,}" if count else "–")
