"""Lists, readers, their subscriptions, and the addresses that get nothing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Count, Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from unfold.admin import ModelAdmin, TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminTextareaWidget

from campaigns.addresses import address_key, normalise_address
from campaigns.admin.long_lists import LongList, is_changelist
from campaigns.models import (
    Campaign,
    ImportJob,
    MailingList,
    RefusedRow,
    Subscriber,
    Subscription,
    SubscriptionEvent,
    Suppression,
)
from campaigns.states import SubscriptionStatus, SuppressionReason

SUBSCRIPTION_COLOURS = {
    SubscriptionStatus.SUBSCRIBED.value: "success",
    SubscriptionStatus.PENDING.value: "warning",
    SubscriptionStatus.UNSUBSCRIBED.value: "default",
}
SOURCE = "admin"
SHORT_TEXT: dict[Any, Any] = {
    field: {"widget": UnfoldAdminTextareaWidget({"rows": 4})}
    for field in (models.TextField, models.JSONField)
}


def subscribed_counts(list_ids: list[int]) -> dict[int, int]:
    """How many readers are subscribed to each list: one query for all of them."""
    rows = (
        Subscription.objects.filter(
            mailing_list_id__in=list_ids, status=SubscriptionStatus.SUBSCRIBED
        )
        .order_by()
        .values("mailing_list_id")
        .annotate(readers=Count("subscriber_id"))
    )
    return {row["mailing_list_id"]: row["readers"] for row in rows}


def readers_url(list_id: int) -> str:
    """The page with the subscriptions of a list."""
    return f"{reverse('admin:campaigns_subscription_changelist')}?mailing_list__id__exact={list_id}"


@admin.register(MailingList)
class MailingListAdmin(ModelAdmin):
    list_display = ["title", "readers", "label", "created_at"]
    search_fields = ["name", "label"]
    fields = ["name", "label", "description"]
    formfield_overrides = SHORT_TEXT
    prepopulated_fields = {"label": ["name"]}
    actions_detail = ["show_readers", "import_readers"]
    warn_unsaved_form = True

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        changelist = super().get_changelist_instance(request)
        rows = list(changelist.result_list)
        counts = subscribed_counts([row.pk for row in rows])
        for row in rows:
            row.readers = counts.get(row.pk, 0)
        changelist.result_list = rows
        return changelist

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # List-Id is what readers' filters know a list by (RFC 2919 section 3).
        return ["label"] if obj else []

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        return {} if obj else self.prepopulated_fields

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Readers' consent hangs on a list; one that nobody was ever on may go.
        return super().has_delete_permission(request, obj) and (
            obj is None or not obj.subscriptions.exists()
        )

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Django's own would load each refused line of each import, up to a million of them.
        jobs = list(ImportJob.objects.filter(mailing_list__in=objs))
        may_delete = self.admin_site.get_model_admin(ImportJob).has_delete_permission
        needed = {ImportJob._meta.verbose_name for job in jobs if not may_delete(request, job)}
        counts: Counter[Any] = Counter()
        for model, count in [
            (MailingList, len(objs)),
            (ImportJob, len(jobs)),
            (RefusedRow, sum(job.refused for job in jobs)),
            *(
                (through, through.objects.filter(mailinglist__in=objs).count())
                for through in (Campaign.include_lists.through, Campaign.exclude_lists.through)
            ),
        ]:
            counts[model._meta.verbose_name_plural] += count
        return [*map(str, objs), [str(job) for job in jobs]], +counts, needed, []

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def has_import_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # A method: Unfold's system check looks a dotted permission up in the database, which has
        # no tables yet when it is migrated for the first time.
        return request.user.has_perm("campaigns.import_subscribers")

    @display(description=_("list"), ordering="name", header=True)
    def title(self, mailing_list: MailingList) -> list[str]:
        return [mailing_list.name, mailing_list.description[:80]]

    @display(description=_("subscribed readers"))
    def readers(self, mailing_list: MailingList) -> str:
        return format_html(
            '<a class="pp-link pp-number" href="{}">{}</a>',
            f"{readers_url(mailing_list.pk)}&status__exact={SubscriptionStatus.SUBSCRIBED}",
            f"{mailing_list.readers:,}",  # type: ignore[attr-defined]
        )

    @action(description=_("Readers"), icon="group", url_path="readers", permissions=["view"])
    def show_readers(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return redirect(readers_url(object_id))

    @action(
        description=_("Import readers"),
        icon="upload_file",
        url_path="import",
        permissions=["import"],
    )
    def import_readers(self, request: HttpRequest, object_id: int) -> HttpResponse:
        return redirect(f"{reverse('admin:campaigns_importjob_add')}?mailing_list={object_id}")


# ------------------------------------------------------------------------------ subscriptions


class SubscriptionForm(forms.ModelForm):
    """A subscription whose status moves from the state that the person saw, or not at all.

    Without the hidden initial value a page that was opened before the reader unsubscribed
    would subscribe him again when somebody saves a corrected name.
    """

    class Meta:
        model = Subscription
        fields = ["subscriber", "mailing_list", "status"]
        labels = {"subscriber": _("Reader"), "mailing_list": _("List")}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "status" in self.fields:
            self.fields["status"].show_hidden_initial = True
        if "mailing_list" in self.fields and self.instance.pk:
            self.fields["mailing_list"].disabled = True  # another list is another subscription

    @property
    def seen_status(self) -> str:
        """The status that the page showed."""
        return self.data.get(self.add_initial_prefix("status"), self.initial.get("status", ""))


def save_subscription(
    request: HttpRequest, form: SubscriptionForm, subscription: Subscription
) -> None:
    """Creates the subscription or moves it, each with its history and with who did it."""
    by: Any = request.user  # the admin lets nobody in who is anonymous
    if subscription._state.adding:
        subscription.source = SOURCE
        subscription.save()
        SubscriptionEvent.objects.create(
            subscription=subscription,
            to_status=subscription.status,
            source=SOURCE,
            by=by,
        )
        return
    wanted = subscription.status
    if "status" not in form.changed_data:
        return
    subscription.status = form.seen_status
    if not subscription.move(wanted, source=SOURCE, by=by):
        messages.warning(
            request,
            _("The subscription had changed meanwhile and was left as it is. Please look again."),
        )


def history_of(subscription: Subscription) -> str:
    """The subscription's past, newest first, as a list."""
    return format_html(
        '<ul class="pp-history">{}</ul>',
        format_html_join(
            "",
            "<li><span>{}</span> {}{}<em>{}{}</em></li>",
            (
                (
                    date_format(timezone.localtime(event.at), "j M Y, H:i"),
                    f"{event.get_from_status_display()} → " if event.from_status else "",
                    event.get_to_status_display(),
                    f"{event.source}, {event.by}" if event.by else event.source,
                    f": {event.note}" if event.note else "",
                )
                for event in sorted(
                    subscription.events.all(), key=lambda event: event.pk, reverse=True
                )
            ),
        ),
    )


EVENTS = Prefetch("events", SubscriptionEvent.objects.select_related("by"))


class SubscriptionInline(TabularInline):
    model = Subscription
    form = SubscriptionForm
    fields = ["mailing_list", "status", "source", "history"]
    readonly_fields = ["source", "history"]
    extra = 0
    can_delete = False  # unsubscribing keeps the history, deleting would lose it
    hide_title = True
    verbose_name = _("list")
    verbose_name_plural = _("Lists of this reader")

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "mailing_list" and field:
            field.widget = field.widget.widget  # lists are made and renamed on their own pages
        return field

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request).prefetch_related(EVENTS)

    @display(description=_("history"))
    def history(self, subscription: Subscription) -> str:
        return history_of(subscription) if subscription.pk else ""


@admin.register(Subscription)
class SubscriptionAdmin(LongList, ModelAdmin):
    list_display = ["reader", "on_list", "state", "source", "changed_at"]
    list_filter = [
        ("mailing_list", RelatedDropdownFilter),
        ("status", ChoicesDropdownFilter),
    ]
    list_filter_submit = True
    search_fields = ["subscriber__address_key__startswith"]
    form = SubscriptionForm
    autocomplete_fields = ["subscriber", "mailing_list"]
    actions = ["unsubscribe"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        base = ["subscriber", "mailing_list", "status"]
        return [*base, "source", "created_at", "history"] if obj else base

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        fixed = ["source", "created_at", "history"]
        return ["subscriber", "mailing_list", *fixed] if obj else fixed

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        queryset = super().get_queryset(request).select_related("subscriber", "mailing_list")
        return queryset if is_changelist(request) else queryset.prefetch_related(EVENTS)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # its history is the proof of consent; it goes with the reader only

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        save_subscription(request, form, obj)

    @display(description=_("reader"), ordering="subscriber__address_key", header=True)
    def reader(self, subscription: Subscription) -> list[str]:
        return [subscription.subscriber.email, subscription.subscriber.name]

    @display(description=_("list"), ordering="mailing_list__name")
    def on_list(self, subscription: Subscription) -> str:
        return subscription.mailing_list.name

    @display(description=_("status"), ordering="status", label=SUBSCRIPTION_COLOURS)
    def state(self, subscription: Subscription) -> tuple[str, str]:
        # get_status_display() translates all of the states, for each row.
        return subscription.status, str(SubscriptionStatus(subscription.status).label)

    @display(description=_("history"))
    def history(self, subscription: Subscription) -> str:
        return history_of(subscription)

    @action(description=_("Unsubscribe the selected readers"), permissions=["change"])
    def unsubscribe(self, request: HttpRequest, queryset: QuerySet) -> None:
        moved = Subscription.move_all(
            queryset, SubscriptionStatus.UNSUBSCRIBED, source=SOURCE, by=request.user
        )
        self.message_user(
            request,
            ngettext("%(n)d reader unsubscribed.", "%(n)d readers unsubscribed.", moved)
            % {"n": moved},
            messages.SUCCESS if moved else messages.WARNING,
        )


class SubscriberForm(forms.ModelForm):
    """A reader; an address that another reader has is refused in whatever spelling."""

    class Meta:
        model = Subscriber
        fields = ["email", "name", "language", "attributes"]

    def clean_email(self) -> str:
        address = normalise_address(self.cleaned_data["email"])
        others = Subscriber.objects.exclude(pk=self.instance.pk)
        if others.filter(address_key=address_key(address)).exists():
            raise ValidationError(_("There is a reader with this address already."))
        return address

    def clean_attributes(self) -> dict[str, Any]:
        attributes = self.cleaned_data["attributes"]
        if not isinstance(attributes or {}, dict):
            raise ValidationError(_('Merge fields have names: {"first_name": "Ada"}.'))
        # PostgreSQL takes neither within jsonb: NUL is refused, half a character becomes "?".
        written = json.dumps(attributes or {}, ensure_ascii=False)
        if "\\u0000" in written:
            raise ValidationError(_("A NUL character cannot be stored."))
        return json.loads(written.encode("utf-8", "replace"))


@admin.register(Subscriber)
class SubscriberAdmin(LongList, ModelAdmin):
    list_display = ["reader", "language", "created_at"]
    search_fields = ["address_key__startswith"]
    form = SubscriberForm
    fieldsets = [
        (None, {"fields": ["standing", "email", ("name", "language"), "attributes"]}),
    ]
    readonly_fields = ["standing"]
    actions_detail = ["ask_why"]
    inlines = [SubscriptionInline]
    formfield_overrides = SHORT_TEXT
    warn_unsaved_form = True

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj:
            return self.fieldsets
        return [(None, {"fields": ["email", ("name", "language"), "attributes"]})]

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        return self.inlines

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        if formset.model is not Subscription:
            super().save_formset(request, form, formset, change)
            return
        formset.save(commit=False)
        for row in formset.forms:
            if row.has_changed() and row.instance.mailing_list_id:
                row.instance.subscriber = form.instance
                save_subscription(request, row, row.instance)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        deleted, counts, needed, protected = super().get_deleted_objects(objs, request)
        # A reader who wants to be erased takes his subscriptions along; nobody deletes them singly.
        needed.discard(Subscription._meta.verbose_name)
        return deleted, counts, needed, protected

    def has_ask_why_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("delivery.ask_why")

    @action(
        description=_("What did they get?"),
        icon="contact_support",
        url_path="why",
        permissions=["ask_why"],
    )
    def ask_why(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """Delivery knows; its page is known here by name only."""
        subscriber = get_object_or_404(Subscriber, pk=object_id)
        query = urlencode({"address": subscriber.email})
        return redirect(f"{reverse('admin:delivery_why')}?{query}")

    @display(description=_("reader"), ordering="address_key", header=True)
    def reader(self, subscriber: Subscriber) -> list[str]:
        return [subscriber.email, subscriber.name]

    @display(description=_("May we write?"))
    def standing(self, subscriber: Subscriber) -> str:
        suppression = Suppression.in_force().filter(address_key=subscriber.address_key).first()
        if suppression is None:
            return format_html(
                '<span class="pp-ok">{}</span>', _("Yes, the address is not suppressed.")
            )
        return format_html(
            '<a class="pp-bad" href="{}">{}</a>',
            reverse("admin:campaigns_suppression_change", args=[suppression.pk]),
            _("No. Suppressed since %(date)s: %(reason)s")
            % {
                "date": date_format(timezone.localtime(suppression.created_at), "j M Y"),
                "reason": suppression.get_reason_display(),
            },
        )


# ------------------------------------------------------------------------------- suppressions


class SuppressionForm(forms.ModelForm):
    """An address that a person suppresses by hand."""

    class Meta:
        model = Suppression
        fields = ["address_key", "evidence"]
        labels = {"evidence": _("Why")}
        help_texts = {"evidence": _("For those who ask later: a letter, a call, a complaint.")}

    def clean_address_key(self) -> str:
        key = address_key(normalise_address(self.cleaned_data["address_key"]))
        if Suppression.in_force().filter(address_key=key).exists():
            raise ValidationError(_("This address is suppressed already."))
        return key


class InForceFilter(admin.SimpleListFilter):
    title = _("in force")
    parameter_name = "in_force"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("1", _("In force")), ("0", _("Lifted"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() in {"0", "1"}:
            return queryset.filter(lifted_at__isnull=self.value() == "1")
        return queryset


@admin.register(Suppression)
class SuppressionAdmin(LongList, ModelAdmin):
    list_display = ["address", "why", "state", "source", "created_at"]
    list_filter = [InForceFilter, ("reason", ChoicesDropdownFilter)]
    list_filter_submit = True
    list_select_related = ["lifted_by"]
    search_fields = ["address_key__startswith"]
    formfield_overrides = SHORT_TEXT
    actions = ["lift_selected"]
    actions_detail = ["lift"]

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        return super().get_form(request, obj, **kwargs | ({} if obj else {"form": SuppressionForm}))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None:
            return ["address_key", "evidence"]
        return ["address_key", "reason", "source", "evidence", "created_at", "created_by", "state"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["state"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Evidence is not rewritten; the list keeps its actions.
        return obj is None and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_lift_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("campaigns.lift_suppression")

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        Suppression.add(
            obj.address_key,
            SuppressionReason.MANUAL,
            source=SOURCE,
            evidence=obj.evidence,
            by=request.user,
        )
        obj.pk = Suppression.in_force().get(address_key=obj.address_key).pk

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        is_in_force = Suppression.in_force().filter(pk=object_id).exists()
        return super().get_actions_detail(request, object_id) if is_in_force else []

    @display(description=_("address"), ordering="address_key")
    def address(self, suppression: Suppression) -> str:
        return suppression.address_key

    @display(description=_("reason"), ordering="reason")
    def why(self, suppression: Suppression) -> str:
        return suppression.get_reason_display()

    @display(description=_("state"))
    def state(self, suppression: Suppression) -> str:
        if suppression.lifted_at is None:
            return format_html('<span class="pp-badge pp-badge-bad">{}</span>', _("In force"))
        return format_html(
            '<span class="pp-badge">{}</span> <span class="pp-quiet">{}</span>',
            _("Lifted"),
            f"{date_format(timezone.localtime(suppression.lifted_at), 'j M Y')}, "
            f"{suppression.lifted_by or _('somebody')}",
        )

    @action(description=_("Lift the selected suppressions"), permissions=["lift"])
    def lift_selected(self, request: HttpRequest, queryset: QuerySet) -> None:
        assert request.user.pk is not None  # whoever has the permission has an account
        lifted = 0
        for page in Suppression.lift_all(queryset, now=timezone.now(), by=request.user):
            lifted += len(page)
            LogEntry.objects.log_actions(request.user.pk, page, CHANGE, "Lifted.")
        self.message_user(
            request,
            ngettext("%(n)d suppression lifted.", "%(n)d suppressions lifted.", lifted)
            % {"n": lifted},
            messages.SUCCESS if lifted else messages.WARNING,
        )

    @action(
        description=_("Lift"),
        icon="lock_open",
        url_path="lift",
        permissions=["lift"],
        dialog={
            "title": _("Lift this suppression?"),
            "description": _(
                "The address gets letters again, from the next campaign on. "
                "The suppression stays here, marked as lifted by you."
            ),
            "form_submit_text": _("Lift it"),
        },
    )
    def lift(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        self.lift_selected(request, Suppression.objects.filter(pk=object_id))
        # The dialog posts by htmx, which would swallow a plain redirect.
        url = reverse("admin:campaigns_suppression_change", args=[object_id])
        return HttpResponse(headers={"HX-Redirect": url})
