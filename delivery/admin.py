"""What a person may see of the machine: letters, providers, schedules. Machine rows are read-only.

Replies come from outside and are shown verbatim: templates and format_html escape them, and
nothing here marks a string as safe.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import SEARCH_VAR
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import InvalidPage, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django_q.admin import FailAdmin as QFailAdmin
from django_q.admin import QueueAdmin as QQueueAdmin
from django_q.admin import ScheduleAdmin as QScheduleAdmin
from django_q.admin import TaskAdmin as QTaskAdmin
from django_q.models import Failure, OrmQ, Schedule, Success
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import (
    AutocompleteSelectFilter,
    ChoicesDropdownFilter,
    RadioFilter,
)
from unfold.decorators import display
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminEmailInputWidget

from campaigns.addresses import address_key, normalise_address
from campaigns.models import Campaign
from delivery import (
    admin_alerts,  # noqa: F401  (it registers itself)
    admin_groups,  # noqa: F401  (so does it)
    limits,
    mailboxes,
    setup_test,
    slots,
)
from delivery.admin_doubts import DoubtDecisions, mark_where_it_broke, where_it_broke
from delivery.admin_parts import Button, OwnPageAdmin, ReadOnlyAdmin, Said, moment, on_one_line
from delivery.clocks import database_now
from delivery.composing import envelope_of, message_id_of
from delivery.conf import delivery_settings
from delivery.forecast import gauge
from delivery.listing import Selection, pages_of
from delivery.models import Delivery, ProviderState, UnclassifiedReply
from delivery.rates import in_words
from delivery.states import DeliveryStatus
from delivery.story import story_of, unconfirmed_in_words
from delivery.why import asked_campaigns, why

STATUS_COLOURS = {
    DeliveryStatus.QUEUED.value: "default",
    DeliveryStatus.CLAIMED.value: "info",
    DeliveryStatus.SENDING.value: "info",
    DeliveryStatus.DEFERRED.value: "warning",
    DeliveryStatus.SENT.value: "success",
    DeliveryStatus.UNCONFIRMED.value: "warning",
    DeliveryStatus.REJECTED.value: "danger",
    DeliveryStatus.EXPIRED.value: "danger",
    DeliveryStatus.BOUNCED.value: "danger",
    DeliveryStatus.SUPPRESSED.value: "default",
    DeliveryStatus.CANCELLED.value: "default",
}
PROVIDER_COLOURS = {"open": "success", "paused": "warning", "stopped": "danger"}
CAMPAIGN_PARAMETER = "campaign__id__exact"
STATUS_PARAMETER = "status__exact"
TEST_PARAMETER = "test"
LONGEST_REPLY_IN_A_LIST = 70


# ---------------------------------------------------------------------------------- deliveries


class KindFilter(RadioFilter):
    """Letters to readers, or test letters; see Selection for why never both."""

    title = _("kind")
    parameter_name = TEST_PARAMETER
    all_option = ["", _("Letters to readers")]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("Test letters"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        return queryset.filter(is_test=self.value() == "yes")


class DeliveryChangeList(ChangeList):
    """Django's, but it always asks the paginator for one page: a wrong count must never make it
    load the whole table."""

    def get_results(self, request: HttpRequest) -> None:
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        try:
            page = self.paginator.page(self.page_num)
        except InvalidPage as error:
            raise IncorrectLookupParameters from error
        self.result_list = page.object_list
        self.result_count = self.paginator.count
        # Equal, so that no "show all" is offered.
        self.full_result_count = self.result_count
        self.show_full_result_count = False
        # Only letters in doubt can be decided about.
        self.show_admin_actions = in_doubt_only(request)
        if in_doubt_only(request):
            mark_where_it_broke(self.result_list)
        self.can_show_all = False
        self.multi_page = self.paginator.num_pages > 1


def selection_of(request: HttpRequest) -> Selection:
    """The filters of a request; what is no filter of ours does not count."""
    campaign = request.GET.get(CAMPAIGN_PARAMETER, "")
    status = request.GET.get(STATUS_PARAMETER, "")
    search = address_key(request.GET.get(SEARCH_VAR, ""))
    return Selection(
        campaign_id=int(campaign) if campaign.isdecimal() else None,
        status=status if status in DeliveryStatus.values else None,
        is_test=request.GET.get(TEST_PARAMETER) == "yes",
        # No address has a NUL, and PostgreSQL takes none; the list says so.
        search="" if "\0" in search else search,
    )


def in_doubt_only(request: HttpRequest) -> bool:
    """Whether the list shows letters in doubt and no others."""
    return selection_of(request).status == DeliveryStatus.UNCONFIRMED


@admin.register(Delivery)
class DeliveryAdmin(DoubtDecisions, OwnPageAdmin):
    """The list of letters, a letter's story, and the question why."""

    page_template = "admin/delivery/story.html"
    list_display = ["address", "campaign_name", "state", "tries", "last_reply", "settled"]
    list_filter = [
        ("campaign", AutocompleteSelectFilter),
        ("status", ChoicesDropdownFilter),
        KindFilter,
    ]
    list_filter_submit = True
    list_filter_sheet = False
    list_fullwidth = True
    list_per_page = 50
    show_full_result_count = False
    # Facets would count the table once for each choice of each filter.
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()
    actions = ["treat_as_sent", "send_again"]
    search_fields = ["address_key"]
    search_help_text = _("An address, or its beginning")

    # ------------------------------------------------------------------------------- the list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return DeliveryChangeList

    def get_ordering(self, request: HttpRequest) -> list[str]:
        return selection_of(request).order

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        return super().get_actions(request) if in_doubt_only(request) else {}

    def get_list_display(self, request: HttpRequest) -> list[str]:
        columns = list(super().get_list_display(request))
        if in_doubt_only(request):
            columns.insert(columns.index("state") + 1, "broke")
        return columns

    @display(description=_("the connection broke"))
    def broke(self, delivery: Any) -> str:
        return where_it_broke(delivery.doubted)

    def get_paginator(
        self, request: HttpRequest, queryset: QuerySet[Delivery], per_page: int, *args: Any,
        **kwargs: Any,
    ) -> Paginator:  # type: ignore[type-arg]  # fmt: skip
        return pages_of(selection_of(request), per_page)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        selection = selection_of(request)
        return (queryset.filter(selection.searched()) if selection.search else queryset), False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        # Any other lookup would be one that no index holds and no total counts.
        return lookup in {CAMPAIGN_PARAMETER, STATUS_PARAMETER, TEST_PARAMETER}

    @display(description=_("address"))
    def address(self, delivery: Delivery) -> str:
        return delivery.rcpt_to

    @display(description=_("campaign"))
    def campaign_name(self, delivery: Delivery) -> str:
        return on_one_line(Truncator(delivery.campaign.name).chars(40))

    @display(description=_("status"), label=STATUS_COLOURS)
    def state(self, delivery: Delivery) -> tuple[str, str]:
        # get_status_display() translates all of the states, for each row.
        return delivery.status, str(DeliveryStatus(delivery.status).label)

    @display(description=_("attempts"))
    def tries(self, delivery: Delivery) -> int:
        return delivery.attempts

    @display(description=_("last reply"))
    def last_reply(self, delivery: Delivery) -> str | None:
        reply = replied(delivery.code, delivery.reply)
        return Truncator(reply).chars(LONGEST_REPLY_IN_A_LIST) or None

    @display(description=_("settled"))
    def settled(self, delivery: Delivery) -> str | None:
        return moment(delivery.settled_at)

    # ------------------------------------------------------------------------------- own pages

    def get_urls(self) -> list[URLPattern]:
        own = [
            path("why/", self.admin_site.admin_view(self.why_view), name="delivery_why"),
        ]
        return own + self.decision_urls() + super().get_urls()

    def page_title(self, delivery: Delivery) -> str:
        return delivery.rcpt_to

    def page_context(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        """One letter's whole story."""
        return {
            "delivery": delivery,
            "words": delivery.get_status_display(),
            "colour": STATUS_COLOURS[delivery.status],
            "lines": story_of(delivery),
            "now": timezone.now(),
            **self._doubt_about(request, delivery),
            "envelope": envelope_of(delivery.pk, delivery.rcpt_to, delivery.edition.from_email),
            "message_id": message_id_of(delivery.pk, delivery.campaign_id),
            "may_ask_why": may_ask_why(request),
        }

    def _doubt_about(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        """What the page says of a doubt, and whether this person may end it; {} without one."""
        if delivery.status != DeliveryStatus.UNCONFIRMED:
            return {}
        attempts = [a for a in delivery.attempt_log.all() if a.status == DeliveryStatus.UNCONFIRMED]
        return {
            "in_doubt": unconfirmed_in_words(),
            "doubted": attempts[-1] if attempts else None,
            "where_it_broke": where_it_broke(attempts[-1] if attempts else None),
            "may_resolve": self.has_resolve_doubt_permission(request),
        }

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        queryset: QuerySet[Delivery] = super().get_queryset(request)
        # Not for the list: it fetches the letters of one page (delivery/listing.py).
        match = request.resolver_match
        if match and match.url_name == "delivery_delivery_change":
            return queryset.select_related(
                "campaign", "edition", "subscriber", "mailing_list"
            ).prefetch_related("attempt_log", "resolutions__by")
        return queryset

    def why_view(self, request: HttpRequest) -> HttpResponse:
        """Type an address, read an answer for each campaign."""
        if not may_ask_why(request):
            raise PermissionDenied
        form = WhyForm(request.GET if "address" in request.GET else None)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Why did X (not) get it?"),
            "form": form,
        }
        if form.is_bound and form.is_valid():
            address = form.cleaned_data["address"]
            campaigns = (
                Campaign.objects.filter(status__in=asked_campaigns())
                .defer("html", "text")
                .order_by("-id")
            )
            page = Paginator(campaigns, 20).get_page(request.GET.get("p"))
            context |= {
                "address": address,
                "page": page,
                "answers": why(address, list(page.object_list), timezone.now()),
            }
        return TemplateResponse(request, "admin/delivery/why.html", context)


class WhyForm(forms.Form):
    address = forms.CharField(
        label=_("address"),
        max_length=320,
        widget=UnfoldAdminEmailInputWidget({"placeholder": "reader@example.org"}),
    )

    def clean_address(self) -> str:
        return normalise_address(self.cleaned_data["address"])


def may_ask_why(request: HttpRequest) -> bool:
    return request.user.has_perm("delivery.ask_why") or request.user.has_perm(
        "delivery.view_delivery"
    )


def replied(code: int | None, reply: str) -> str:
    """A reply on one line, as the server gave it."""
    text = " ".join(reply.split())
    return f"{code} {text}" if code is not None else text


# ---------------------------------------------------------------------------------- providers


@admin.register(ProviderState)
class ProviderStateAdmin(OwnPageAdmin):
    """The providers of the settings file, and what holds them up. Options are never shown: they
    hold passwords."""

    page_template = "admin/delivery/provider.html"
    list_display = ["alias", "state", "until", "reason", "since", "backend"]
    list_display_links = ["alias"]
    sortable_by = ()
    actions = ["open_again"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ProviderState]:
        # A provider that never had trouble has no row yet, and a person looks for it here.
        for alias in delivery_settings().providers:
            limits.state_of(alias)
        queryset: QuerySet[ProviderState] = super().get_queryset(request)
        return queryset.order_by("alias")

    def has_resume_provider_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.resume_provider")

    @admin.action(description=_("Open again"), permissions=["resume_provider"])
    def open_again(self, request: HttpRequest, queryset: QuerySet[ProviderState]) -> None:
        opened = [state.alias for state in queryset if self._open(request, state)]
        if opened:
            self.message_user(
                request,
                _("Opened again: %(providers)s.") % {"providers": ", ".join(opened)},
                messages.SUCCESS,
            )
        else:
            self.message_user(request, _("They were open already."), messages.INFO)

    def _open(self, request: HttpRequest, state: ProviderState) -> bool:
        opened = limits.resume(state.alias, timezone.now())
        if opened:
            self.log_change(request, state, "Opened again.")
        return opened

    @display(description=_("state"), label=PROVIDER_COLOURS)
    def state(self, state: ProviderState) -> tuple[str, Any]:
        return state_in_words(state)

    @display(description=_("paused until"))
    def until(self, state: ProviderState) -> str | None:
        return moment(state.paused_until) if state_in_words(state)[0] == "paused" else None

    @display(description=_("because"))
    def reason(self, state: ProviderState) -> str | None:
        if state_in_words(state)[0] == "open":
            return None
        return Truncator(replied(None, state.because)).chars(LONGEST_REPLY_IN_A_LIST)

    @display(description=_("since"))
    def since(self, state: ProviderState) -> str | None:
        return moment(state.paused_at) if state_in_words(state)[0] != "open" else None

    @display(description=_("backend"))
    def backend(self, state: ProviderState) -> Any:
        provider = delivery_settings().providers.get(state.alias)
        return provider.backend.rpartition(".")[2] if provider else _("no longer in the settings")

    # ----------------------------------------------------------------------------- one provider

    def has_test_provider_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.test_provider")

    def buttons(self) -> list[Button]:
        return [
            Button("resume", "delivery.resume_provider", self.resume),
            Button("test", "delivery.test_provider", self.test),
        ]

    def test(self, request: HttpRequest, state: ProviderState) -> Said | None:
        """One letter to an address of one's own, and what was kept of it."""
        provider = delivery_settings().providers.get(state.alias)
        if provider is None:
            return None
        try:
            sender = normalise_address(request.POST.get("sender", ""))
            to = normalise_address(request.POST.get("to", "") or sender)
        except ValidationError:
            return [(messages.ERROR, _("Which addresses? Give both."))]
        report = setup_test.run(
            provider, sender, to, database_now, waits=setup_test.WAITS_ON_A_PAGE
        )
        self.log_change(request, state, "Tested." if report.ok else "Tested in vain.")
        return [
            *((messages.SUCCESS, finding) for finding in report.findings),
            *((messages.WARNING, warning) for warning in report.warnings),
        ]

    def resume(self, request: HttpRequest, state: ProviderState) -> Said:
        if self._open(request, state):
            return [(messages.SUCCESS, _("The provider is open again."))]
        if silent_until(state) is not None:
            return [(messages.INFO, _("Its mailbox rests, and nobody can end that early."))]
        return [(messages.INFO, _("It was open already."))]

    def page_title(self, state: ProviderState) -> str:
        return state.alias

    def page_context(self, request: HttpRequest, state: ProviderState) -> dict[str, Any]:
        """What holds a provider up, verbatim."""
        condition, words = state_in_words(state)
        provider = delivery_settings().providers.get(state.alias)
        return {
            "state": state,
            "condition": condition,
            "words": words,
            "colour": PROVIDER_COLOURS[condition],
            "provider": provider,
            "gauges": [
                (gauge(limit, timezone.now()), in_words(limit))
                for limit in (provider.limits if provider else ())
            ],
            "may_test": provider is not None and self.has_test_provider_permission(request),
            "sender": setup_test.sender_of(provider) if provider else "",
            "pools": delivery_settings().names_of(state.alias)[1:],
            "connections": slots.view(state.alias, provider.connections if provider else None),
            "may_resume": condition != "open"
            and self.has_resume_provider_permission(request)
            and silent_until(state) is None,
            "silent_until": silent_until(state),
        }


def state_in_words(state: ProviderState) -> tuple[str, Any]:
    """open, paused or stopped; and the word for it."""
    if state.stopped:
        return "stopped", _("Stopped")
    if limits.closed_until(state, timezone.now()) is not None:
        return "paused", _("Paused")
    return "open", _("Open")


def silent_until(state: ProviderState) -> datetime | None:
    """When the provider's mailbox may be touched again; None when it may be now."""
    provider = delivery_settings().providers.get(state.alias)
    return mailboxes.resting_until(provider.mailbox, timezone.now()) if provider else None


# ---------------------------------------------------------------------------------- replies


@admin.register(UnclassifiedReply)
class UnclassifiedReplyAdmin(ReadOnlyAdmin):
    """Replies that no rule knows, the commonest first: what docs/replies.md says how to mend."""

    list_display = ["text", "code", "phase", "rule", "count", "first", "last"]
    list_display_links = None
    list_fullwidth = True
    list_per_page = 50
    ordering = ["-count", "id"]
    sortable_by = ()
    actions = None
    search_fields = ["text"]
    search_help_text = _("Words of a reply")

    @display(description=_("first seen"))
    def first(self, reply: UnclassifiedReply) -> str | None:
        return moment(reply.first_seen)

    @display(description=_("last seen"))
    def last(self, reply: UnclassifiedReply) -> str | None:
        return moment(reply.last_seen)


# ---------------------------------------------------------------------------------- django-q2

# django-q2 registers its models with Django's own ModelAdmin, whose pages look broken inside
# Unfold's frame. Its classes keep their behaviour and get Unfold's looks; lists of finished tasks
# are filtered by typing, because a filter would look through all of them for its choices.
for model in (Schedule, Success, Failure, OrmQ):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


@admin.register(Schedule)
class ScheduleAdmin(QScheduleAdmin, ModelAdmin):
    """When the machine wakes up. Which function it calls is not for a page to say: a schedule
    may name any function of Python, so that writing one would be the right to run anything."""

    list_display = ["name", "func", "schedule_type", "next_run", "last_run", "went_well"]
    list_display_links = ["name"]
    list_filter: list[Any] = []
    fields = ["name", "func", "schedule_type", "minutes", "repeats", "next_run"]
    readonly_fields = ["name", "func"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    @display(description=_("last run"))
    def last_run(self, schedule: Schedule) -> Any:
        return self.get_last_run(schedule)

    @display(description=_("went well"), boolean=True)
    def went_well(self, schedule: Schedule) -> Any:
        return self.get_success(schedule)


@admin.register(Success)
class SuccessAdmin(QTaskAdmin, ModelAdmin):
    list_filter: list[Any] = []
    show_full_result_count = False


@admin.register(Failure)
class FailureAdmin(QFailAdmin, ModelAdmin):
    list_filter: list[Any] = []
    show_full_result_count = False


@admin.register(OrmQ)
class QueueAdmin(QQueueAdmin, ModelAdmin):
    list_filter: list[Any] = []
