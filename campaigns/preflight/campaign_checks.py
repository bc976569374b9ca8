"""Checks of what a person typed in and chose: no letter needs to be made for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from campaigns.audience import audience
from campaigns.conf import campaign_settings, provider_aliases
from campaigns.document import Link
from campaigns.header_fields import clean
from campaigns.models import Campaign, CampaignTotals
from campaigns.preflight.findings import Finding
from campaigns.preflight.sample import Sample
from campaigns.template_source import UnclosedTagError, split

_ROLES = frozenset(
    {"abuse", "admin", "contact", "info", "office", "postmaster", "sales", "support"}
)
_EMOJI = re.compile(r"[\U0001f000-\U0001faff\u2600-\u27bf]")
# In English, German and the languages that borrow from them.
_REPLY = re.compile(r"\s*(re|fwd?|aw|wg)\s*:", re.IGNORECASE)


def campaign_findings(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    for check in _CHECKS:
        yield from check(campaign, sample)


def _subject(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    subject = campaign.subject
    if not clean(subject):
        yield Finding("fail", "subject_empty", _("The campaign has no subject."))
    if re.search(r"[\r\n\u2028\u2029]", subject):
        yield Finding("fail", "subject_line_break", _("The subject has a line break in it."))
    elif clean(subject) != subject.strip() and "  " not in subject:
        yield Finding(
            "warn",
            "subject_controls",
            _("The subject has invisible characters, which are taken out."),
        )
    letters = [character for character in _words_of(subject) if character.isalpha()]
    if len(letters) > 3 and all(character.isupper() for character in letters):
        yield Finding("warn", "subject_capitals", _("The subject is all capitals."))
    if _REPLY.match(subject):
        yield Finding(
            "warn", "subject_reply", _("The subject pretends to be a reply or a forward.")
        )
    if len(subject) > 150:
        yield Finding("warn", "subject_long", _("The subject is longer than 150 characters."))
    if len(_EMOJI.findall(subject)) > 3:
        yield Finding("warn", "subject_emoji", _("The subject has more than three emoji."))


def _sender(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    if not campaign.from_email:
        yield Finding("fail", "from_missing", _("The campaign has no from address."))
    if "@" in campaign.from_name:
        yield Finding(
            "warn", "from_name_address", _("The from name has an @ in it, as forgers' names have.")
        )
    if _EMOJI.search(campaign.from_name):
        yield Finding("warn", "from_name_emoji", _("The from name has an emoji in it."))
    if campaign.provider not in provider_aliases():
        yield Finding(
            "fail",
            "unknown_provider",
            _("The campaign's provider is not in the settings."),
            campaign.provider,
        )


def _base_url(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    base = Link("a", "href", campaign_settings().base_url)
    if base.scheme != "https" and base.host not in {"localhost", "127.0.0.1", "::1"}:
        yield Finding(
            "warn",
            "base_url_not_https",
            _("One-click unsubscribe needs https, and BASE_URL has none (RFC 8058)."),
            base.address,
        )


def _audience(campaign: Campaign, sample: Sample) -> Iterator[Finding]:
    if not campaign.include_lists.exists():
        yield Finding("fail", "no_lists", _("The campaign goes to no list."))
        return
    if not sample.readers:
        yield Finding("fail", "no_audience", _("The campaign's lists have no reader to write to."))
        return
    roles = [r for r in sample.readers if r.address_key.partition("@")[0] in _ROLES]
    if len(roles) > len(sample.readers) // 20 + 1:
        yield Finding(
            "warn",
            "role_addresses",
            _("Many addresses belong to offices and not to people (info@, sales@)."),
            ", ".join(reader.email for reader in roles[:5]),
        )
    largest = _largest_recent_campaign(campaign)
    if largest and audience(campaign)[: 2 * largest + 1].count() > 2 * largest:
        yield Finding(
            "warn",
            "audience_jump",
            _("The audience is more than twice as large as any of the last 30 days."),
            str(largest),
        )


def _largest_recent_campaign(campaign: Campaign) -> int:
    recent = Campaign.objects.filter(started_at__gte=timezone.now() - timedelta(days=30))
    totals = CampaignTotals.of(list(recent.exclude(pk=campaign.pk).values_list("pk", flat=True)))
    return max((counts["eligible"] for counts in totals.values()), default=0)


def _words_of(template: str) -> str:
    """What a template says in its own words, without its tags."""
    try:
        return " ".join(piece.text for piece in split(template))
    except UnclosedTagError:
        return template  # the letter cannot be made then, and another finding says why


Check = Callable[[Campaign, Sample], Iterable[Finding]]
_CHECKS: tuple[Check, ...] = (_subject, _sender, _base_url, _audience)
