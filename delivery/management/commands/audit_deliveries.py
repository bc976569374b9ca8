"""Proves the ledger: manage.py audit_deliveries [--campaign ID]."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from campaigns.models import Campaign
from campaigns.states import CampaignStatus
from delivery.audit import CampaignAudit, Imbalance, audit_campaign, audit_leases
from delivery.states import DeliveryStatus

COLUMNS = ("sent", "bounced", "unconfirmed", "rejected", "expired", "suppressed", "cancelled")


class Command(BaseCommand):
    help = (
        "Counts every letter and proves that none is lost, doubled or without its history. "
        "Exits 1 on any imbalance. May run while campaigns do."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--campaign", type=int, metavar="ID", help="one campaign; else all")

    def handle(self, *args: Any, **options: Any) -> None:
        audits = [audit_campaign(pk) for pk in campaign_ids(options["campaign"])]
        self.show(audits)
        held = audit_leases(timezone.now())
        for imbalance in held:
            self.complain("leases", imbalance)
        found = len(held)
        for audit in audits:
            for imbalance in audit.imbalances:
                self.complain(f"campaign {audit.campaign.pk}", imbalance)
            found += len(audit.imbalances)
        if found:
            self.stdout.write(self.style.ERROR(f"Out of balance: {found} findings."))
            sys.exit(1)
        letters = sum(audit.eligible for audit in audits)
        self.stdout.write(
            self.style.SUCCESS(f"Balanced: {letters:,} letters of {len(audits)} campaigns.")
        )

    def show(self, audits: Iterable[CampaignAudit]) -> None:
        head = ["campaign", "state", "eligible", "open", *COLUMNS, "balance"]
        rows = [head]
        for audit in audits:
            counts = [audit.counted.get(DeliveryStatus(column).value, 0) for column in COLUMNS]
            rows.append(
                [
                    str(audit.campaign.pk),
                    audit.campaign.status,
                    f"{audit.eligible:,}",
                    f"{audit.open_letters:,}",
                    *(f"{count:,}" for count in counts),
                    f"{audit.eligible - audit.final_letters - audit.open_letters:,}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.stdout.write("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))

    def complain(self, where: str, imbalance: Imbalance) -> None:
        examples = ", ".join(map(str, imbalance.examples))
        self.stdout.write(
            self.style.ERROR(
                f"{where}: {imbalance.what} ({imbalance.count:,})"
                + (f"; deliveries {examples}" if examples else "")
            )
        )


def campaign_ids(wanted: int | None) -> list[int]:
    """All campaigns that left their draft, the oldest first; CommandError for one that is not."""
    campaigns = Campaign.objects.exclude(status=CampaignStatus.DRAFT).order_by("pk")
    if wanted is not None:
        campaigns = campaigns.filter(pk=wanted)
        if not campaigns.exists():
            raise CommandError(f"There is no campaign {wanted} that left its draft.")
    return list(campaigns.values_list("pk", flat=True))
