"""People, lists and campaigns for the tests of the admin's pages."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from campaigns.editions import freeze
from campaigns.models import (
    Campaign,
    CampaignTotals,
    MailingList,
    Subscriber,
    Subscription,
)

HTML = (
    '<p>Dear {{ first_name | default("reader") }},</p>'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p>'
)
TEXT = 'Dear {{ first_name | default("reader") }}, stop: {{ unsubscribe_url }}'
# What an attacker writes into every field that he reaches.
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def person(*permissions: str, name: str = "editor", is_superuser: bool = False) -> User:
    """A user of the admin with these permissions of the campaigns app."""
    user = User.objects.create_user(
        name, f"{name}@example.org", is_staff=True, is_superuser=is_superuser
    )
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="campaigns", codename__in=permissions)
    )
    return user


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def mailing_list(label: str = "news", readers: int = 0) -> MailingList:
    found = MailingList.objects.create(name=label.title(), label=label)
    for number in range(readers):
        reader = Subscriber.objects.create(
            email=f"{label}{number}@example.org", attributes={"first_name": f"Ada{number}"}
        )
        Subscription.objects.create(subscriber=reader, mailing_list=found)
    return found


def draft(to: MailingList | None = None, **fields: Any) -> Campaign:
    campaign = Campaign.objects.create(
        **{
            "name": "November",
            "subject": "Three concerts",
            "preheader": "And a thank-you",
            "from_name": "The Orchestra",
            "from_email": "news@example.org",
            "html": HTML,
            "text": TEXT,
        }
        | fields
    )
    if to:
        campaign.include_lists.add(to)
    return campaign


def scheduled(to: MailingList | None = None, **fields: Any) -> Campaign:
    campaign = draft(to, **fields)
    assert campaign.schedule(timezone.now(), edition=freeze(campaign))
    return campaign


def sending(to: MailingList | None = None, **fields: Any) -> Campaign:
    campaign = scheduled(to, **fields)
    assert campaign.start(timezone.now())
    return campaign


def count(campaign: Campaign, **counts: int) -> None:
    CampaignTotals.add(campaign.pk, 0, counts)


def url(campaign: Campaign, page: str = "change") -> str:
    return reverse(f"admin:campaigns_campaign_{page}", args=[campaign.pk])
