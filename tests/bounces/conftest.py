"""A letter that was sent, and the reports that a server writes about it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.test import Client

from bounces.conf import DEFAULT_DETECTORS, bounce_settings
from campaigns.addresses import address_key
from campaigns.conf import campaign_settings
from campaigns.models import Campaign, CampaignTotals, Edition
from campaigns.tokens import Purpose, TokenSigner
from delivery.models import Delivery
from delivery.states import DeliveryStatus

Deliver = Callable[..., Delivery]


@pytest.fixture(autouse=True)
def _settings(settings, tmp_path: Path) -> None:
    settings.CAMPAIGNS = {
        "TOKEN_KEYS": {1: "a secret for the tests"},
        "MESSAGE_ID_DOMAIN": "news.example.org",
    }
    settings.DELIVERY = {
        "RETURN_PATH": "bounce+{token}@bounces.example.org",
        "PROVIDERS": settings.DELIVERY["PROVIDERS"],
    }
    settings.BOUNCES = {
        "MAILBOXES": {
            "default": {
                "BACKEND": "bounces.mailboxes.maildir.MaildirMailbox",
                "OPTIONS": {"path": str(tmp_path / "maildir")},
            }
        },
        "DETECTORS": list(DEFAULT_DETECTORS),
    }
    assert list(bounce_settings().mailboxes) == ["default"]


@pytest.fixture
def admin(admin_client: Client) -> Client:
    """A browser in which somebody is logged in who may do everything."""
    return admin_client


@pytest.fixture
def campaign(db) -> Campaign:
    return Campaign.objects.create(name="Week 47", from_email="news@example.org", subject="Hello")


@pytest.fixture
def deliver(campaign: Campaign, now: datetime) -> Deliver:
    """Makes a letter that left an hour ago, and counts it."""

    def make(
        rcpt_to: str = "ada@example.net",
        status: str = DeliveryStatus.SENT,
        *,
        ago: timedelta = timedelta(hours=1),
        handed_over: bool = True,
        is_test: bool = False,
    ) -> Delivery:
        edition, _ = Edition.objects.get_or_create(
            campaign=campaign,
            digest="0" * 64,
            defaults={"from_email": "news@example.org", "subject": "Hello", "html": "", "text": ""},
        )
        if not is_test:
            CampaignTotals.add(campaign.pk, 0, {"eligible": 1, str(status): 1})
        left_at = now - ago if handed_over else None
        return Delivery.objects.create(
            campaign=campaign,
            edition=edition,
            rcpt_to=rcpt_to,
            address_key=address_key(rcpt_to),
            **Delivery.of_state(DeliveryStatus(status)),
            is_test=is_test,
            due_at=now - ago,
            queued_at=now - ago,
            handed_over_at=left_at,
            settled_at=left_at,
        )

    return make


def token(purpose: Purpose, delivery_id: int, key: str = "a secret for the tests") -> str:
    return TokenSigner({1: key.encode()}).sign(purpose, delivery_id)


def return_path(delivery: Delivery) -> str:
    assert campaign_settings().signer.keys == {1: b"a secret for the tests"}
    return f"bounce+{token(Purpose.RETURN_PATH, delivery.pk)}@bounces.example.org"


def message_id(delivery: Delivery) -> str:
    return f"<{token(Purpose.MESSAGE_ID, delivery.pk)}.{delivery.campaign_id}@news.example.org>"


def group(
    recipient: str = "ada@example.net",
    *,
    action: str = "failed",
    status: str = "5.1.1",
    diagnostic: str = "smtp; 550 5.1.1 unknown user",
) -> str:
    return (
        f"Final-Recipient: rfc822; {recipient}\nAction: {action}\nStatus: {status}\n"
        f"Diagnostic-Code: {diagnostic}\n"
    )


def report(
    *groups: str,
    delivered_to: str = "bounces@example.org",
    returned: str = "<somebody@else.example>",
    field: str = "Delivered-To",
) -> bytes:
    """An RFC 3464 report to an envelope address, about a letter with this Message-ID."""
    status = "\n".join(groups or (group(),))
    return f"""Return-Path: <>
{field}: {delivered_to}
From: MAILER-DAEMON@mx.example.net
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

It did not arrive.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

{status}
--b
Content-Type: text/rfc822-headers

Message-ID: {returned}
Subject: Hello
--b--
""".encode()
