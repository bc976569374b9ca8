"""The groups of receiving domains that wait, and why; a person may open one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display

from delivery import groups
from delivery.admin_parts import Button, OwnPageAdmin, Said, moment
from delivery.models import GroupState, ReceivingDomain
from delivery.tasks import wake_coordinator

STATE_COLOURS = {"open": "success", "paused": "warning", "slow": "info"}
LONGEST_REPLY_IN_A_LIST = 70
LONGEST_LIST_OF_DOMAINS = 30


@admin.register(GroupState)
class GroupStateAdmin(OwnPageAdmin):
    """What readers' servers asked of us, for all that they take in."""

    page_template = "admin/delivery/group.html"
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

    @display(description=_("state"), label=STATE_COLOURS)
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

    # ------------------------------------------------------------------------------- one group

    def buttons(self) -> list[Button]:
        return [Button("resume", "delivery.resume_group", self.resume)]

    def resume(self, request: HttpRequest, state: GroupState) -> Said:
        if self._open(request, state):
            return [(messages.SUCCESS, _("The group is open again."))]
        return [(messages.INFO, _("It was open already."))]

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
            "colour": STATE_COLOURS[condition],
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
