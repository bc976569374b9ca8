"""The admin's own pages about what came back. Changes are made by POST, with a permission; every
word of a mail is hostile and is escaped, or shown in a frame that may do nothing."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldAdminTextareaWidget

from bounces import charts, examination
from bounces.conf import bounce_settings
from bounces.detectors.mime import own_parts
from bounces.detectors.returned import words_of
from bounces.intake import CAUSE_OF_FORGERY
from bounces.models import Bounce, Breaker, ReceivedMail
from bounces.reading import ask_everybody, incoming, read_whole
from bounces.reading_process import ReadingProcess, UnreadableError
from delivery.alerts import resolve

# A page of a megabyte is enough to see what a mail is.
MOST_SHOWN_OCTETS = 1024 * 1024
# No script, no cookie, no host at all: not even an image, which would tell the sender who looks.
MAIL_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class WhichForm(forms.Form):
    """A mail, pasted or as a file."""

    text = forms.CharField(
        label=gettext_lazy("The raw mail, with its header"),
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 12, "spellcheck": "false"}),
        required=False,
        strip=False,
    )
    file = forms.FileField(
        label=gettext_lazy("or a file"), widget=UnfoldAdminFileFieldWidget, required=False
    )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if not cleaned.get("text") and not cleaned.get("file"):
            raise forms.ValidationError(_("Paste a mail, or choose a file."))
        return cleaned

    def raw(self) -> bytes:
        largest = bounce_settings().largest_mail_bytes
        if file := self.cleaned_data["file"]:
            return bytes(file.read(largest))
        return str(self.cleaned_data["text"]).encode("utf-8", "replace")[:largest]


def which_detector(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """Each detector's answer to a mail that is pasted or uploaded. Nothing is stored."""
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    form = WhichForm(request.POST, request.FILES) if request.method == "POST" else WhichForm()
    answers: list[dict[str, Any]] = []
    problem = ""
    if form.is_valid():
        with ReadingProcess(ask_everybody) as reader:
            try:
                asked = reader.read(form.raw())
            except UnreadableError as error:
                asked, problem = [], str(error)
        taken = False
        for answer, because in asked:
            takes = answer.reports is not None and not taken
            taken = taken or takes
            answers.append({"answer": answer, "because": because, "takes": takes})
    return show(
        model_admin, request, "which.html", _("Which detector would take this?"),
        form=form, answers=answers, problem=problem,
    )  # fmt: skip


def chart_page(model_admin: Any, request: HttpRequest) -> HttpResponse:
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    now = timezone.now()
    return show(
        model_admin, request, "charts.html", _("Bounces of the last 30 days"),
        charts=[
            (_("By class"), charts.by_class(now)),
            (_("By the reader's domain"), charts.by_domain(now)),
            (_("By campaign"), charts.by_campaign(now)),
        ],
    )  # fmt: skip


def examine_again(model_admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
    """GET shows what the detectors of today make of a stored mail; POST records it."""
    mail = get_object_or_404(ReceivedMail, pk=pk)
    if not request.user.has_perm("bounces.examine_again"):
        raise PermissionDenied
    page = reverse("admin:bounces_receivedmail_change", args=[pk])
    if mail.raw is None:
        model_admin.message_user(request, _("The mail itself is forgotten."), messages.WARNING)
        return redirect(page)
    try:
        with ReadingProcess(read_whole) as reader:
            reading = reader.read(bytes(mail.raw))
    except UnreadableError as error:
        model_admin.message_user(request, str(error), messages.ERROR)
        return redirect(page)
    found = examination.difference(mail, reading)
    if request.method == "POST":
        if not found.is_none:
            examination.apply_again(pk, reading, timezone.now(), request.user)
            model_admin.message_user(request, _("The new reading is recorded."), messages.SUCCESS)
        return redirect(page)
    return show(model_admin, request, "again.html", _("Examine again"), mail=mail, difference=found)


def mail_document(model_admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
    """What a mail program would show of a mail: the document inside a sandboxed frame."""
    mail = get_object_or_404(ReceivedMail, pk=pk)
    if not model_admin.has_view_permission(request, mail):
        raise PermissionDenied
    parts = [part for part, _containers in own_parts(incoming(bytes(mail.raw or b"")).parts)]
    page = next((part for part in parts if part.content_type == "text/html"), None)
    text = next((part for part in parts if part.content_type == "text/plain"), None)
    if page is not None:
        body = words_of(page, MOST_SHOWN_OCTETS)
    else:
        words = words_of(text, MOST_SHOWN_OCTETS) if text else _("The mail has no text.")
        body = (
            '<!doctype html><meta charset="utf-8"><pre style="white-space:pre-wrap;margin:16px">'
            f"{escape(words)}</pre>"
        )
    return HttpResponse(body, headers=MAIL_HEADERS)


def undo_suppression(model_admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    if not request.user.has_perm("campaigns.lift_suppression"):
        raise PermissionDenied
    bounce = get_object_or_404(Bounce.objects.select_related("received_mail"), pk=pk)
    if examination.undo(bounce, timezone.now(), request.user):
        done = _("The suppression is lifted: the next campaign reaches this reader again.")
        model_admin.message_user(request, done, messages.SUCCESS)
    else:
        nothing = _("No suppression in force comes from this bounce.")
        model_admin.message_user(request, nothing, messages.INFO)
    return redirect(reverse("admin:bounces_bounce_change", args=[pk]))


def reset_breaker(model_admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    if not request.user.has_perm("bounces.reset_breaker"):
        raise PermissionDenied
    if get_object_or_404(Breaker, pk=pk).reset(timezone.now()):
        resolve(CAUSE_OF_FORGERY, timezone.now())
        done = _("The breaker is closed: what was held back is examined by the next poll.")
        model_admin.message_user(request, done, messages.SUCCESS)
    return redirect(reverse("admin:bounces_breaker_change", args=[pk]))


def show(
    model_admin: Any, request: HttpRequest, template: str, title: str, **context: Any
) -> TemplateResponse:
    request.current_app = model_admin.admin_site.name  # type: ignore[attr-defined]
    return TemplateResponse(
        request,
        f"admin/bounces/{template}",
        {
            **model_admin.admin_site.each_context(request),
            "opts": model_admin.opts,
            "title": title,
            **context,
        },
    )
