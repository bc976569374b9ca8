"""The groups of receiving domains that wait, and why; a person may open one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from delivery import groups
from delivery.admin_parts import OwnPageAdmin, moment
from delivery.models import GroupState, ReceivingDomain
from delivery.tasks import wake_coordinator

LONGEST_REPLY_IN_A_LIST = 70
LONGEST_LIST_OF_DOMAINS = 30


@admin.register(GroupState)
class GroupStateAdmin(OwnPageAdmin):
    """What readers' servers asked of us, for all that they take in."""

    list_display = ["group", "provider", "state", "until", "reason", "rule", "begun"]
    list_display_links = ["group"]
    list_per_page = 50
    search_fields = ["group"]
    search_help_text = _("A group or a domain of its own")
    ordering = ["-since", "id"]
    sortable_by = ()
    actions = ["open_again"]

    def has_resume_group_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.resume_group")

    @display(description=_("state"), label={"open": "success", "paused": "warning", "slow": "info"})
    def state(self, state: GroupState) -> tuple[str, Any]:
        return state_in_words(state)

    @display(description=_("until"))
    def until(self, state: GroupState) -> str | None:
        return moment(groups.held_until(state, timezone.now()))

    @display(description=_("because"))
    def reason(self, state: GroupState) -> str:
        return Truncator(" ".join(state.because.split())).chars(LONGEST_REPLY_IN_A_LIST)

    @display(description=_("since"))
    def begun(self, state: GroupState) -> str | None:
        return moment(state.since)

    @admin.action(description=_("Open again"), permissions=["resume_group"])
    def open_again(self, request: HttpRequest, queryset: QuerySet[GroupState]) -> None:
        opened = [state.group for state in queryset if self._open(request, state)]
        if opened:
            text = _("Opened again: %(groups)s.") % {"groups": ", ".join(opened)}
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(request, _("They were open already."), messages.INFO)

    def _open(self, request: HttpRequest, state: GroupState) -> bool:
        opened = groups.resume(state, timezone.now())
        if opened:
            self.log_change(request, state, "Opened again.")
            wake_coordinator()
        return opened

    # ------------------------------------------------------------------------------- own pages

    def get_urls(self) -> list[URLPattern]:
        own = [
            path(
                "<int:pk>/resume/",
                self.admin_site.admin_view(self.resume_view),
                name="delivery_groupstate_resume",
            ),
        ]
        return own + super().get_urls()

    def resume_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The button "Open again" on a group's page."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_resume_group_permission(request):
            raise PermissionDenied
        state = GroupState.objects.filter(pk=pk).first()
        if state is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, str(pk))
        if self._open(request, state):
            self.message_user(request, _("The group is open again."), messages.SUCCESS)
        else:
            self.message_user(request, _("It was open already."), messages.INFO)
        return HttpResponseRedirect(reverse("admin:delivery_groupstate_change", args=[pk]))

    page_template = "admin/delivery/group.html"

    def page_title(self, state: GroupState) -> str:
        return state.group

    def page_context(self, request: HttpRequest, state: GroupState) -> dict[str, Any]:
        """What a group's servers said, verbatim."""
        condition, words = state_in_words(state)
        # By index: one more than is shown tells that there are more.
        known = ReceivingDomain.objects.filter(group=state.group).order_by("name")
        domains = list(known[: LONGEST_LIST_OF_DOMAINS + 1])
        return {
            "state": state,
            "condition": condition,
            "words": words,
            "until": _until(state),
            "domains": domains[:LONGEST_LIST_OF_DOMAINS],
            "has_more_domains": len(domains) > LONGEST_LIST_OF_DOMAINS,
            "may_resume": condition != "open" and self.has_resume_group_permission(request),
        }


def _until(state: GroupState) -> datetime | None:
    return groups.held_until(state, timezone.now())


def state_in_words(state: GroupState) -> tuple[str, Any]:
    """open, paused or slow; and the word for it."""
    now = timezone.now()
    if state.paused_until is not None and state.paused_until > now:
        return "paused", _("Paused")
    if state.slow_until is not None and state.slow_until > now:
        return "slow", _("Slow")
    return "open", _("Open")
