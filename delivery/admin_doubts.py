"""Deciding about letters in doubt: one by one on a letter's page, or many of them in the list.

Each decision is asked for once more, says what it may cost, and is on record (Resolution).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from delivery import doubts
from delivery.models import Attempt, Delivery
from delivery.states import DeliveryStatus

# The name of the field by which the page that asks says that it was asked.
CONFIRMED = "confirmed"
MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Decision:
    """One of the two ways out of a doubt. ``act`` returns a sentence about what was done."""

    name: str
    verb: Any
    icon: str
    warning: Any
    act: Callable[[Iterable[int], Any], str]


def _treat_as_sent(ids: Iterable[int], by: Any) -> str:
    moved = doubts.treat_as_sent(ids, timezone.now(), by=by)
    return ngettext(
        "%(n)d letter counts as sent now.", "%(n)d letters count as sent now.", moved
    ) % {"n": moved}


def _send_again(ids: Iterable[int], by: Any) -> str:
    done = doubts.send_again(ids, timezone.now(), by=by)
    said = ngettext(
        "%(n)d letter is on its way again.", "%(n)d letters are on their way again.", done.queued
    ) % {"n": done.queued}
    if done.cancelled:
        said += " " + _("%(n)d stay in doubt: their campaign was cancelled.") % {
            "n": done.cancelled
        }
    return said


DECISIONS = {
    decision.name: decision
    for decision in (
        Decision(
            "treat_as_sent",
            gettext_lazy("Treat as sent"),
            "done_all",
            gettext_lazy("If the letter was not taken after all, its reader gets none."),
            _treat_as_sent,
        ),
        Decision(
            "send_again",
            gettext_lazy("Send again"),
            "forward_to_inbox",
            gettext_lazy(
                "If the letter was taken after all, its reader gets two copies. Both have the same "
                "Message-ID, so that some servers drop the second. Readers who have unsubscribed "
                "or were suppressed since get nothing, and a finished campaign is opened again."
            ),
            _send_again,
        ),
    )
}


class DoubtDecisions:
    """What DeliveryAdmin can decide; mixed into it."""

    admin_site: Any
    opts: Any
    message_user: Any

    def has_resolve_doubt_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("delivery.resolve_doubt") and request.user.has_perm(
            "delivery.view_delivery"
        )

    # Django checks the permission of an action before it offers and before it runs it.

    @admin.action(description=DECISIONS["treat_as_sent"].verb, permissions=["resolve_doubt"])
    def treat_as_sent(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> Any:
        return self._decide_for_many(request, queryset, DECISIONS["treat_as_sent"])

    @admin.action(description=DECISIONS["send_again"].verb, permissions=["resolve_doubt"])
    def send_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> Any:
        return self._decide_for_many(request, queryset, DECISIONS["send_again"])

    def _decide_for_many(
        self, request: HttpRequest, queryset: QuerySet[Delivery], decision: Decision
    ) -> TemplateResponse | None:
        """The page that asks, and then the act. None: back to the list."""
        letters = queryset.filter(status=DeliveryStatus.UNCONFIRMED)
        if CONFIRMED in request.POST:
            said = decision.act(letters.order_by("id").values_list("pk", flat=True), request.user)
            self.message_user(request, said, messages.SUCCESS)
            return None
        across = request.POST.get("select_across") == "1"
        # For "all of them" the filters in the address say which; one id keeps Django content.
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        return self._ask(
            request,
            letters,
            decision,
            selected=selected[:1] if across else selected,
            across=across,
            back=request.get_full_path(),
        )

    def decision_urls(self) -> list[URLPattern]:
        return [
            path(
                f"<int:pk>/{name.replace('_', '-')}/",
                self.admin_site.admin_view(self._view_of(decision)),
                name=f"delivery_delivery_{name}",
            )
            for name, decision in DECISIONS.items()
        ]

    def _view_of(self, decision: Decision) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, pk: int) -> HttpResponse:
            if request.method not in {"GET", "POST"}:
                return HttpResponseNotAllowed(["GET", "POST"])
            if not self.has_resolve_doubt_permission(request):
                raise PermissionDenied
            page = reverse("admin:delivery_delivery_change", args=[pk])
            letters = Delivery.objects.filter(pk=pk, status=DeliveryStatus.UNCONFIRMED)
            if not letters.exists():
                self.message_user(request, _("This letter is not in doubt."), messages.INFO)
                return HttpResponseRedirect(page)
            if request.method == "POST":
                self.message_user(request, decision.act([pk], request.user), messages.SUCCESS)
                return HttpResponseRedirect(page)
            return self._ask(request, letters, decision, back=page)

        return view

    def _ask(
        self,
        request: HttpRequest,
        letters: QuerySet[Delivery],
        decision: Decision,
        *,
        back: str,
        selected: Iterable[str] = (),
        across: bool = False,
    ) -> TemplateResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": decision.verb,
            "decision": decision,
            "count": letters.count(),
            "letters": letters.order_by("id")[:MOST_SHOWN],
            "campaigns": letters.order_by("campaign")
            .values("campaign__name", "campaign__status")
            .annotate(letters=Count("pk")),
            "selected": selected,
            "across": across,
            "back": back,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "confirmed": CONFIRMED,
        }
        return TemplateResponse(request, "admin/delivery/decide.html", context)


def mark_where_it_broke(letters: Iterable[Delivery]) -> None:
    """Gives each letter in doubt its ``doubted``: the attempt that ended without an answer."""
    found = {
        attempt.delivery_id: attempt
        for attempt in Attempt.objects.filter(
            delivery__in=[letter.pk for letter in letters], status=DeliveryStatus.UNCONFIRMED
        ).order_by("id")
    }
    for letter in letters:
        letter.doubted = found.get(letter.pk)  # type: ignore[attr-defined]


def where_it_broke(attempt: Attempt | None) -> str:
    """The phase in which the connection broke, in words; "–" where nothing is on record."""
    if attempt is None:
        return "–"
    words = {
        "final dot": _("after the final dot"),
        "http": _("after the request had left"),
        "local": _("while it was written to disk"),
    }
    return str(words.get(attempt.phase, attempt.phase))
