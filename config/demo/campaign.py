"""What a person does in the admin, done with the product's own functions: an administrator, an
import, a campaign, *Send*. And what the database says afterwards.

Imports models: only after the demo's environment stands and Django is set up.
"""

from __future__ import annotations

import io
import secrets
from collections import Counter
from datetime import datetime
from pathlib import Path

from django.contrib.auth.models import User
from django.core.management import call_command
from django_q.tasks import async_task

from campaigns.editions import freeze
from campaigns.models import Campaign, CampaignTotals, ImportJob, MailingList, Suppression
from campaigns.states import CampaignStatus, SuppressionReason
from config.demo.ledger import Letter
from delivery.composing import envelope_of, message_id_of
from delivery.models import Delivery

LIST_NAME = "The Harbour Letter"
NEWSLETTER = Path(__file__).with_name("newsletter.html")


def migrate() -> None:
    call_command("migrate", interactive=False, verbosity=0)


def make_administrator() -> tuple[User, str]:
    """The user "admin" with a new password."""
    password = secrets.token_urlsafe(9)
    return User.objects.create_superuser("admin", "admin@example.org", password), password


def import_readers(file: Path) -> ImportJob:
    """Imports a CSV file as `manage.py import_subscribers` does; the import as it ended."""
    MailingList.objects.create(
        name=LIST_NAME, label="harbour-letter", description="Four letters a year from the island."
    )
    said = io.StringIO()
    call_command("import_subscribers", str(file), list=LIST_NAME, stdout=said, stderr=said)
    return ImportJob.objects.latest("id")


def write_campaign(by: User) -> Campaign:
    """A campaign as somebody would have written it, not yet scheduled."""
    campaign = Campaign.objects.create(
        name="Harbour Letter 41",
        from_name="The Harbour Letter ⚓",
        from_email="letter@news.example.org",
        reply_to="office@news.example.org",
        subject="The lamps are lit earlier now, {{ first_name | default('dear reader') }}",
        preheader="The last ferry, the new bakery, and what the evenings are for.",
        html=NEWSLETTER.read_text(encoding="utf-8"),
        created_by=by,
    )
    campaign.include_lists.set(MailingList.objects.filter(name=LIST_NAME))
    return campaign


def send(campaign: Campaign, by: User, now: datetime) -> None:
    """*Send*, as the admin's button does it."""
    if not campaign.schedule(now, edition=freeze(campaign), by=by):
        raise RuntimeError(f"{campaign} could not be scheduled: it is {campaign.status}")


def totals_of(campaign: Campaign) -> dict[str, int]:
    return CampaignTotals.of([campaign.pk])[campaign.pk]


def is_finished(campaign: Campaign) -> bool:
    campaign.refresh_from_db(fields=["status"])
    return campaign.status == CampaignStatus.FINISHED


def poll_bounces() -> None:
    """Asks the task cluster to look into the bounce mailbox now, not within a minute."""
    async_task("bounces.tasks.poll_mailboxes")


def letters_of(campaign: Campaign, *, by_message_id: bool = False) -> list[Letter]:
    """Every letter of the campaign, with the return path and the Message-ID that are its own; the
    latter for both where the server knows no envelope."""
    rows = Delivery.objects.filter(campaign=campaign, is_test=False)
    return [
        Letter(
            rcpt_to=rcpt_to,
            status=status,
            return_path=message_id_of(delivery_id, campaign.pk)
            if by_message_id
            else envelope_of(delivery_id, rcpt_to, campaign.from_email).mail_from,
            message_id=message_id_of(delivery_id, campaign.pk),
        )
        for delivery_id, rcpt_to, status in rows.values_list("id", "rcpt_to", "status")
    ]


def suppressed_addresses() -> Counter[str]:
    """The addresses suppressed as hard bounces, each with how often (once, where all is well)."""
    return Counter(
        Suppression.in_force()
        .filter(reason=SuppressionReason.HARD_BOUNCE)
        .values_list("address_key", flat=True)
    )
