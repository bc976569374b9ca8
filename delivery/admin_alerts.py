"""Alerts in the admin: the banner, the list, and what a person can decide about each.

An alert ends by itself when its cause is gone. A person can put its banner away for herself, say
that it is dealt with, and decide about suppressions that were held back or a host that is off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from delivery import alerts, guard_rails, installation
from delivery.admin_parts import Button, OwnPageAdmin, Said, moment
from delivery.models import Alert

STATE_COLOURS = {"open": "danger", "over": "default"}
MOST_IN_THE_BANNER = 3


def banner(request: HttpRequest) -> dict[str, Any]:
    """Context processor: the open alerts that this person has not put away. Asked only by pages
    that show them."""

    def unseen() -> list[Alert]:
        user = getattr(request, "user", None)
        if user is None or not user.is_active or not user.has_perm("delivery.view_alert"):
            return []
        return list(alerts.unseen_by(user)[:MOST_IN_THE_BANNER])

    return {"banner_alerts": SimpleLazyObject(unseen)}


@admin.register(Alert)
class AlertAdmin(OwnPageAdmin):
    page_template = "admin/delivery/alert.html"
    list_display = ["title", "state", "kind", "when", "over"]
    list_display_links = ["title"]
    list_filter = [("kind", ChoicesDropdownFilter)]
    list_filter_submit = True
    sortable_by = ()
    actions = None

    @display(description=_("state"), label=STATE_COLOURS)
    def state(self, alert: Alert) -> tuple[str, Any]:
        return state_in_words(alert)

    @display(description=_("when"))
    def when(self, alert: Alert) -> str | None:
        return moment(alert.at)

    @display(description=_("over since"))
    def over(self, alert: Alert) -> str | None:
        return moment(alert.resolved_at)

    # ------------------------------------------------------------------------------ one alert

    def page_title(self, alert: Alert) -> str:
        return alert.title

    def page_context(self, request: HttpRequest, alert: Alert) -> dict[str, Any]:
        user: Any = request.user
        condition, words = state_in_words(alert)
        return {
            "alert": alert,
            "words": words,
            "colour": STATE_COLOURS[condition],
            "seen_by": list(alert.seen_by.all()),
            "is_seen": alert.seen_by.filter(pk=user.pk).exists(),
            "held": guard_rails.held_back(alert.campaign_id).count() if alert.campaign_id else 0,
            "may_decide": user.has_perm("delivery.decide_suppressions"),
            "host": is_off(alert) and installation.host_of(alert),
            "may_adopt": user.has_perm("delivery.adopt_installation"),
        }

    def buttons(self) -> list[Button]:
        return [
            Button("see", "delivery.view_alert", self._recorded(see)),
            Button("dealt-with", "delivery.change_alert", self._recorded(dealt_with)),
            Button("suppress", "delivery.decide_suppressions", self._recorded(suppress)),
            Button("let-be", "delivery.decide_suppressions", self._recorded(let_be)),
            Button("adopt", "delivery.adopt_installation", self._recorded(adopt)),
        ]

    def may_press(self, request: HttpRequest, button: Button, row: Any) -> bool:
        return super().may_press(request, button, row) and self.has_view_permission(request, row)

    def _recorded(self, decide: Callable[[Alert, Any], Any]) -> Callable[..., Said]:
        """The decision as a button's act: what is said of it is also the alert's history."""

        def act(request: HttpRequest, alert: Alert) -> Said:
            said = decide(alert, request.user)
            self.log_change(request, alert, str(said))
            return [(messages.SUCCESS, said)]

        return act


def state_in_words(alert: Alert) -> tuple[str, Any]:
    """open or over; and the word for it."""
    return ("over", _("Over")) if alert.resolved_at else ("open", _("Open"))


def is_off(alert: Alert) -> bool:
    """Whether it says that sending is off on a host, and still holds."""
    return alert.kind == Alert.Kind.INSTALLATION and alert.resolved_at is None


def see(alert: Alert, user: Any) -> Any:
    alerts.see(alert, user)
    return _("Put away for you. The alert stays until its cause is gone.")


def dealt_with(alert: Alert, user: Any) -> Any:
    alerts.resolve(alert.cause, timezone.now())
    return _("The alert is over.")


def suppress(alert: Alert, user: Any) -> Any:
    count = guard_rails.suppress_held(alert.campaign_id, by=user) if alert.campaign_id else 0
    return ngettext("%(n)d address was suppressed.", "%(n)d addresses were suppressed.", count) % {
        "n": count
    }


def let_be(alert: Alert, user: Any) -> Any:
    count = guard_rails.drop_held(alert.campaign_id) if alert.campaign_id else 0
    return ngettext("%(n)d address was let be.", "%(n)d addresses were let be.", count) % {
        "n": count
    }


def adopt(alert: Alert, user: Any) -> Any:
    if not is_off(alert):
        return _("Nothing was changed: this is over.")
    installation.promise_adoption(installation.host_of(alert), timezone.now())
    return _("Sending is turned on there within a minute.")
