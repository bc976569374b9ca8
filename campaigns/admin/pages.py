"""A campaign's own pages: preview, test, send, watch, and the verbs behind their buttons.

Each page is a function of the admin, the request and the campaign. ``Page`` says how it is
reached: by which method, and with which permission.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.formats import date_format
from django.utils.html import escape
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from campaigns.admin.forms import ReaderForm, ScheduleForm, SendForm, SendTestForm
from campaigns.audience import audience, audience_count
from campaigns.conf import campaign_settings
from campaigns.editions import draft_edition, freeze
from campaigns.letter import Addressee, letter_of
from campaigns.merge import LetterError
from campaigns.models import (
    Campaign,
    CampaignEvent,
    CampaignTotals,
    Edition,
    MailingList,
    Subscriber,
)
from campaigns.preflight import preflight
from campaigns.progress import ALWAYS_SHOWN, Progress
from campaigns.signals import forecast_asked, test_requested, waiting_asked
from campaigns.states import CampaignStatus
from campaigns.unsubscribe import NOBODY, unsubscribe_url

# The author's HTML meets no script, no cookie and no host but those of its images. It must not
# be sanitised and shown inline instead: every newsletter product that tried has a CVE for it.
LETTER_HEADERS = {
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; img-src https: data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

View = Callable[..., HttpResponse]


@dataclass(frozen=True, slots=True)
class Page:
    """``permission``: codename, or "view" for whoever may see campaigns."""

    route: str
    view: View
    permission: str = "view"
    methods: tuple[str, ...] = ("GET",)

    def __call__(self, model_admin: Any, request: HttpRequest, pk: int) -> HttpResponse:
        if request.method not in self.methods:
            return HttpResponseNotAllowed(self.methods)
        campaign = get_object_or_404(Campaign, pk=pk)
        if not self.is_allowed(model_admin, request, campaign):
            raise PermissionDenied
        request.current_app = model_admin.admin_site.name  # type: ignore[attr-defined]
        return self.view(model_admin, request, campaign)

    def is_allowed(self, model_admin: Any, request: HttpRequest, campaign: Campaign) -> bool:
        # Whoever may act on a campaign must be allowed to see it as well.
        if not model_admin.has_view_permission(request, campaign):
            return False
        if self.permission == "view":
            return True
        return request.user.has_perm(f"campaigns.{self.permission}")  # type: ignore[union-attr]


def url_of(campaign: Campaign, page: str = "change") -> str:
    """The address of one of the campaign's pages."""
    return reverse(f"admin:campaigns_campaign_{page}", args=[campaign.pk])


def context_of(model_admin: Any, request: HttpRequest, campaign: Campaign, page: str) -> dict:
    """What every page of a campaign shows: its name, its state and the way to the others."""
    user: Any = request.user
    return {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "original": campaign,
        "campaign": campaign,
        "title": campaign.name,
        "page": page,
        "media": model_admin.media,
        "may": {
            verb: user.has_perm(f"campaigns.{verb}_campaign")
            for verb in ("add", "test", "schedule", "send", "pause", "resume", "cancel")
        },
        # A tested draft is part of the record: it is cancelled, not deleted.
        "may_discard": campaign.is_draft and page != "cancel" and campaign.editions.exists(),
        "has_view_permission": True,
    }


def show(
    model_admin: Any, request: HttpRequest, campaign: Campaign, page: str, **context: Any
) -> TemplateResponse:
    return TemplateResponse(
        request,
        f"admin/campaigns/campaign/{page}.html",
        context_of(model_admin, request, campaign, page) | context,
    )


# ------------------------------------------------------------------------------- the preview


def preview_page(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """The letter as one reader gets it: HTML and text, wide and narrow, in sandboxed frames."""
    reader = chosen_reader(request, campaign)
    subject, problem = campaign.subject, ""
    try:
        subject = letter_of(edition_of(campaign)).render_subject(addressee_of(campaign, reader))
    except LetterError as error:
        problem = str(error)
    return show(
        model_admin,
        request,
        campaign,
        "preview",
        sender=campaign.edition or campaign,
        subject=subject,
        problem=problem,
        reader=reader,
        may_choose=may_see_readers(request),
        reader_form=ReaderForm(initial={"reader": reader}),
        media=model_admin.media + ReaderForm().media,
        letter_url=f"{url_of(campaign, 'letter')}?reader={reader.pk if reader else ''}",
    )


def letter_document(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """The document inside the preview's frame; ``?part=text`` for the text part."""
    reader = chosen_reader(request, campaign)
    is_text = request.GET.get("part") == "text"
    try:
        letter = letter_of(edition_of(campaign))
        addressee = addressee_of(campaign, reader)
        body = letter.render_text(addressee) if is_text else letter.render_html(addressee)
    except LetterError as error:
        body, is_text = _("This letter cannot be made: %(fault)s") % {"fault": error}, True
    if is_text:
        # As HTML, because a browser shows text/plain in its own colours and does not wrap it.
        body = (
            '<!doctype html><meta charset="utf-8"><pre style="white-space:pre-wrap;margin:24px;'
            f'font:14px/1.6 ui-monospace,Menlo,Consolas,monospace">{escape(body)}</pre>'
        )
    return HttpResponse(body, headers=LETTER_HEADERS)


def edition_of(campaign: Campaign) -> Edition:
    """The frozen letter, or what would be frozen now."""
    return campaign.edition or draft_edition(campaign)


def may_see_readers(request: HttpRequest) -> bool:
    return request.user.has_perm("campaigns.view_subscriber")  # type: ignore[union-attr]


def chosen_reader(request: HttpRequest, campaign: Campaign) -> Subscriber | None:
    """The reader whom the page asks for, or else the first of the audience.

    None where the audience is empty, and for those who may not see readers: the letter is then
    filled with example values.
    """
    if not may_see_readers(request):
        return None
    wanted = request.POST.get("reader") or request.GET.get("reader") or ""
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 19:
        return get_object_or_404(Subscriber, pk=int(wanted))
    return audience(campaign).order_by("pk").first()


def addressee_of(campaign: Campaign, reader: Subscriber | None) -> Addressee:
    """The reader as the letter knows one. Its unsubscribe link is a test letter's: whoever looks
    at a preview must not be able to unsubscribe a reader from it."""
    mailing_list = list_of(campaign, reader)
    now = timezone.now()
    return Addressee(
        rcpt_to=reader.email if reader else "ada@example.org",
        name=reader.name if reader else "Ada Example",
        language=reader.language if reader else "en",
        attributes=reader.attributes if reader else {"first_name": "Ada"},
        campaign_id=campaign.pk,
        list_name=mailing_list.name if mailing_list else "",
        list_label=mailing_list.label if mailing_list else "",
        message_id=f"<preview@{campaign_settings().message_id_domain}>",
        unsubscribe_url=unsubscribe_url(campaign.pk, NOBODY),
        date=now,
    )


def list_of(campaign: Campaign, reader: Subscriber | None) -> MailingList | None:
    """The list through which the reader gets it; the first of the campaign's for nobody, and for
    who does not get it."""
    lists = campaign.include_lists.order_by("pk")
    chosen: Any = audience(campaign).filter(pk=reader.pk).first() if reader else None
    return (lists.filter(pk=chosen.through_list) if chosen else lists).first()


# ---------------------------------------------------------------------------- the test letter


def test_page(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """Sends the draft to up to ten addresses, through the same path as the real thing."""
    if not campaign.is_draft:
        messages.info(request, _("Test letters belong to drafts; this campaign is under way."))
        return redirect(url_of(campaign))
    reader = chosen_reader(request, campaign)
    form = SendTestForm(request.POST or None, initial={"addresses": request.user.email})  # type: ignore[union-attr]
    if request.method == "POST" and form.is_valid():
        addresses = form.cleaned_data["addresses"]
        try:
            send_test(campaign, addresses, reader, by=request.user)
        except LetterError as error:
            form.add_error(None, _("This letter cannot be made: %(fault)s") % {"fault": error})
        else:
            messages.success(
                request,
                ngettext(
                    "%(n)d test letter is on its way.",
                    "%(n)d test letters are on their way.",
                    len(addresses),
                )
                % {"n": len(addresses)},
            )
            return redirect(url_of(campaign, "test"))
    return show(
        model_admin,
        request,
        campaign,
        "test",
        form=form,
        reader=reader,
        may_choose=may_see_readers(request),
        reader_form=ReaderForm(initial={"reader": reader}),
        media=model_admin.media + ReaderForm().media,
        sent=campaign.events.filter(action=TESTED).select_related("by").order_by("-id")[:5],
    )


TESTED = "tested"


@transaction.atomic
def send_test(
    campaign: Campaign, addresses: list[str], reader: Subscriber | None, *, by: Any
) -> None:
    """Freezes the draft as it is, and asks delivery for one letter to each address."""
    edition = freeze(campaign)
    test_requested.send(
        sender=Campaign, campaign=campaign, edition=edition, addresses=addresses, reader=reader
    )
    note = _("to %(addresses)s") % {"addresses": ", ".join(addresses)}
    CampaignEvent.objects.create(campaign=campaign, action=TESTED, note=note[:500], by=by)


# ------------------------------------------------------------------------ sending it, for real


def send_page(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """What stands between the draft and its readers: the audience, fails, warnings, two buttons."""
    if not campaign.is_draft:
        return redirect(url_of(campaign))
    return show_send_page(model_admin, request, campaign)


def show_send_page(
    model_admin: Any,
    request: HttpRequest,
    campaign: Campaign,
    form: SendForm | None = None,
    status: int = 200,
) -> HttpResponse:
    findings = preflight(campaign)
    now = timezone.localtime()
    readers = audience_count(campaign)
    answers = forecast_asked.send_robust(sender=Campaign, campaign=campaign, readers=readers)
    response = show(
        model_admin,
        request,
        campaign,
        "send",
        fails=[finding for finding in findings if finding.level == "fail"],
        warnings=[finding for finding in findings if finding.level == "warn"],
        warning_codes=",".join(finding.code for finding in findings if finding.level == "warn"),
        readers=readers,
        forecasts=[answer for _receiver, answer in answers if isinstance(answer, str)],
        include_lists=campaign.include_lists.all(),
        exclude_lists=campaign.exclude_lists.all(),
        form=form,
        time_zone=timezone.get_current_timezone_name(),
        utc_offset=now.isoformat()[-6:],
        now=now,
        suggested=now + timedelta(hours=1),
    )
    response.status_code = status
    return response


def send_now(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    return put_on_the_way(model_admin, request, campaign, SendForm)


def schedule(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    return put_on_the_way(model_admin, request, campaign, ScheduleForm)


@transaction.atomic
def put_on_the_way(
    model_admin: Any, request: HttpRequest, campaign: Campaign, form_class: type[SendForm]
) -> HttpResponse:
    """DRAFT -> SCHEDULED, if nothing fails and every warning was seen."""
    # Locked: nobody changes the words between the check, the freezing and the move.
    campaign = Campaign.objects.select_for_update().get(pk=campaign.pk)
    if not campaign.is_draft:
        messages.warning(request, too_late(campaign))
        return redirect(url_of(campaign))
    findings = preflight(campaign)
    form = form_class(
        request.POST, warnings=[finding.code for finding in findings if finding.level == "warn"]
    )
    if any(finding.level == "fail" for finding in findings) or not form.is_valid():
        return show_send_page(model_admin, request, campaign, form, status=422)
    at = form.cleaned_data.get("at") or timezone.now()
    try:
        edition = freeze(campaign)
    except LetterError as error:
        messages.error(request, _("This letter cannot be made: %(fault)s") % {"fault": error})
        return show_send_page(model_admin, request, campaign, form, status=422)
    if not campaign.schedule(at, edition=edition, by=request.user):
        messages.warning(request, too_late(campaign))
    elif form_class is ScheduleForm:
        local = timezone.localtime(at)
        messages.success(
            request,
            _("Scheduled for %(when)s (%(zone)s).")
            % {
                "when": date_format(local, "j F Y, H:i"),
                "zone": timezone.get_current_timezone_name(),
            },
        )
    else:
        messages.success(request, _("It is on its way."))
    return redirect(url_of(campaign))


def too_late(campaign: Campaign) -> str:
    campaign.refresh_from_db()
    return _("Nothing was changed: the campaign is “%(status)s” by now.") % {
        "status": campaign.get_status_display()
    }


def verb(move: Callable[[Campaign, Any], bool], done: Any) -> View:
    """A button that moves the campaign. Zero rows moved is an answer: somebody was faster."""

    def view(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
        if move(campaign, request.user):
            messages.success(request, str(done))
        else:
            messages.warning(request, too_late(campaign))
        return redirect(url_of(campaign))

    return view


def cancel_page(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """Asks once more, and says what will happen; acts on POST."""
    if request.method == "POST":
        cancelled = campaign.cancel(timezone.now(), by=request.user)
        if cancelled:
            messages.success(request, _("Cancelled. What has not left will not leave."))
        else:
            messages.warning(request, too_late(campaign))
        return redirect(url_of(campaign))
    if campaign.is_final:
        messages.warning(request, too_late(campaign))
        return redirect(url_of(campaign))
    progress = progress_of(campaign)
    waiting = progress.left - progress.counts["sending"]
    return show(
        model_admin, request, campaign, "cancel", progress=progress, waiting=max(0, waiting)
    )


@transaction.atomic
def duplicate(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """A new draft with the same words, lists and provider."""
    copied = (
        "from_name",
        "from_email",
        "reply_to",
        "subject",
        "preheader",
        "html",
        "text",
        "provider",
        "priority",
        "on_doubt",
    )
    by: Any = request.user
    name = _("%(name)s (copy)") % {"name": campaign.name[:190]}
    draft = Campaign.objects.create(
        name=name,
        created_by=by,
        **{field: getattr(campaign, field) for field in copied},
    )
    draft.include_lists.set(campaign.include_lists.all())
    draft.exclude_lists.set(campaign.exclude_lists.all())
    note = _("from campaign %(id)d") % {"id": campaign.pk}
    CampaignEvent.objects.create(campaign=draft, action="duplicated", note=note, by=by)
    messages.success(request, _("This is the copy, a new draft."))
    return redirect(url_of(draft))


# --------------------------------------------------------------------------------- watching it


def watch_page(model_admin: Any, request: HttpRequest, campaign: Campaign) -> HttpResponse:
    """The page of a campaign that left DRAFT."""
    progress = progress_of(campaign)
    return show(
        model_admin,
        request,
        campaign,
        "watch",
        progress=progress,
        state=state_of(campaign, progress, timezone.now()),
        always_shown=ALWAYS_SHOWN,
        events=story_of(campaign),
        deliveries_url=deliveries_url(campaign),
        edition=campaign.edition,
        include_lists=campaign.include_lists.all(),
        exclude_lists=campaign.exclude_lists.all(),
    )


ACTIONS = {
    "created": gettext_lazy("Created"),
    "duplicated": gettext_lazy("Duplicated"),
    TESTED: gettext_lazy("Test letters sent"),
    "scheduled": gettext_lazy("Scheduled"),
    "unscheduled": gettext_lazy("Schedule taken back"),
    "held": gettext_lazy("Not started: its time had passed too long ago"),
    "released": gettext_lazy("Sent after all"),
    "started": gettext_lazy("Started"),
    "paused": gettext_lazy("Paused"),
    "resumed": gettext_lazy("Resumed"),
    "cancelled": gettext_lazy("Cancelled"),
    "finished": gettext_lazy("Finished"),
    "reopened": gettext_lazy("Opened again"),
}


def story_of(campaign: Campaign) -> list[dict[str, Any]]:
    """What was done to it, newest first, in words."""
    return [
        {
            "words": ACTIONS.get(event.action, event.action),
            "note": scheduled_note(event) if event.action == "scheduled" else event.note,
            "at": event.at,
            "by": event.by,
        }
        for event in campaign.events.select_related("by").order_by("-id")
    ]


def scheduled_note(event: CampaignEvent) -> str:
    """Campaign.schedule notes an ISO time; a person reads a local one."""
    at = parse_datetime(event.note)
    if at is None:
        return event.note
    return _("for %(when)s") % {"when": date_format(timezone.localtime(at), "j M Y, H:i")}


def progress_json(model_admin: Any, request: HttpRequest, campaign: Campaign) -> JsonResponse:
    """What watch.js asks for each second: a few small queries, whatever the campaign's size."""
    state = state_of(campaign, progress_of(campaign), timezone.now(), seen_speed(request))
    return JsonResponse(state, headers={"Cache-Control": "no-store"})


def seen_speed(request: HttpRequest) -> float:
    """Letters per second as the page saw them lately; 0.0 when it did not say, or nothing known."""
    try:
        speed = float(request.GET.get("per_second", 0))
    except ValueError:
        return 0.0
    return speed if speed > 0 else 0.0  # and not NaN


def progress_of(campaign: Campaign) -> Progress:
    return Progress(CampaignTotals.of([campaign.pk])[campaign.pk])


def state_of(
    campaign: Campaign, progress: Progress, now: datetime, per_second: float = 0.0
) -> dict[str, Any]:
    """The campaign at this moment, as watch.js understands it. Times are seconds since 1970.

    ``per_second`` is the speed of late; without it the average foretells the finish.
    """
    average = progress.average_per_second(campaign.started_at, now, campaign.finished_at)
    return {
        "status": campaign.status,
        "is_final": campaign.is_final,
        "is_filled": campaign.filled_at is not None,
        "at": now.timestamp(),
        "total": progress.total,
        "done": progress.done,
        "left": progress.left,
        "percent": progress.percent,
        "headline": progress.headline,
        "average_per_second": average,
        "finish": expected_finish(campaign, progress, now, per_second or average),
        "counts": {segment.state: segment.count for segment in progress.segments},
        "waiting": waiting_for(campaign, now),
    }


def expected_finish(
    campaign: Campaign, progress: Progress, now: datetime, per_second: float
) -> dict[str, Any] | None:
    """The finish at this speed, in words of the site's time zone as all times of the page; None
    while nobody can say."""
    # While the queue is being filled the total still grows: no finish is foretold.
    if campaign.status != CampaignStatus.SENDING or campaign.filled_at is None:
        return None
    at = progress.expected_finish(now, per_second)
    if at is None:
        return None
    words = "H:i" if at - now < timedelta(days=1) else "j M Y, H:i"
    return {"at": at.timestamp(), "words": date_format(timezone.localtime(at), words)}


def waiting_for(campaign: Campaign, now: datetime) -> list[str]:
    """What the campaign is waiting for, in sentences; empty when letters flow or all is done."""
    if campaign.is_final or campaign.is_draft:
        return []
    own = []
    if campaign.status == CampaignStatus.PAUSED:
        own.append(why_paused(campaign))
    elif campaign.held_at is not None:
        own.append(
            _(
                "It was to start on %(when)s, and nothing was running then. It waits for a person: "
                "send it after all, or take the schedule back."
            )
            % {"when": date_format(timezone.localtime(campaign.scheduled_at), "j F Y, H:i")}
        )
    elif campaign.status == CampaignStatus.SCHEDULED and campaign.scheduled_at:
        if campaign.scheduled_at > now:
            own.append(
                _("Waiting for its time: %(when)s.")
                % {"when": date_format(timezone.localtime(campaign.scheduled_at), "j F Y, H:i")}
            )
        else:
            own.append(_("Due now: the coordinator starts it within a minute."))
    answers = waiting_asked.send_robust(sender=Campaign, campaign=campaign)
    return own + [
        str(answer) for _receiver, answer in answers if isinstance(answer, str) and answer
    ]


def why_paused(campaign: Campaign) -> str:
    """By whom or by what: a campaign that stopped by itself says why."""
    event = campaign.events.filter(action="paused").order_by("-id").first()
    if event is not None and event.note:
        return _("Paused (%(reason)s) Nothing leaves until someone resumes it.") % {
            "reason": event.note
        }
    return _("Paused by a person: nothing leaves until someone resumes it.")


def deliveries_url(campaign: Campaign) -> str | None:
    """The list of this campaign's letters; None in an installation without delivery's pages.

    By the page's name, the one thing that campaigns knows of delivery.
    """
    try:
        url = reverse("admin:delivery_delivery_changelist")
    except NoReverseMatch:
        return None
    return f"{url}?campaign__id__exact={campaign.pk}"
