"""The start page: what is running, what ran last, and how many readers there are."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from campaigns.admin.lists import subscribed_counts
from campaigns.models import Campaign, CampaignTotals, MailingList
from campaigns.progress import Progress
from campaigns.states import CampaignStatus

MOST_LISTS = 8
MOST_CAMPAIGNS = 6


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """UNFOLD["DASHBOARD_CALLBACK"]: adds what this person may see to the start page's context."""
    user: Any = request.user
    context["title"] = _("Overview")
    if user.has_perm("campaigns.view_campaign"):
        context |= campaigns_shown()
    if user.has_perm("campaigns.view_mailinglist"):
        context["lists"] = lists_shown()
    if user.has_perm("campaigns.import_subscribers"):
        context["import_url"] = url_or_none("campaigns_importjob_add")
    context["may_add_campaign"] = user.has_perm("campaigns.add_campaign")
    context["may_add_list"] = user.has_perm("campaigns.add_mailinglist")
    return context


def campaigns_shown() -> dict[str, Any]:
    """Open campaigns and the latest of the others, with their counts: three queries."""
    brief = Campaign.objects.defer("html", "text")
    open_states = [CampaignStatus.SENDING, CampaignStatus.PAUSED, CampaignStatus.SCHEDULED]
    running = list(brief.filter(status__in=open_states)[:MOST_CAMPAIGNS])
    latest = list(brief.exclude(status__in=open_states)[:MOST_CAMPAIGNS])
    totals = CampaignTotals.of([campaign.pk for campaign in running + latest])
    for campaign in running + latest:
        campaign.progress = Progress(totals[campaign.pk])  # type: ignore[attr-defined]
    return {"running": running, "latest": latest}


def lists_shown() -> list[MailingList]:
    """The newest lists with their sizes: two queries."""
    lists = list(MailingList.objects.order_by("-id")[:MOST_LISTS])
    counts = subscribed_counts([mailing_list.pk for mailing_list in lists])
    for mailing_list in lists:
        mailing_list.readers = counts.get(mailing_list.pk, 0)  # type: ignore[attr-defined]
    return lists


def url_or_none(name: str) -> str | None:
    """A page of the admin that may not be installed."""
    try:
        return reverse(f"admin:{name}")
    except NoReverseMatch:
        return None
