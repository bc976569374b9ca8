"""Filling the queue: a delivery for each reader of a campaign's audience, and for test letters."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import Max, QuerySet

from campaigns.audience import audience, audience_page
from campaigns.models import Campaign, CampaignTotals
from campaigns.states import CampaignStatus
from delivery import queue_pages
from delivery.models import Delivery
from delivery.sql import as_parameter
from delivery.states import DeliveryStatus
from delivery.tally import COMMON_SHARD


def fill_page(campaign: Campaign, size: int, now: datetime) -> int | None:
    """Queues the next ``size`` readers of the audience; how many; None when none is left.

    One INSERT ... SELECT and the checkpoint in one transaction, under the campaign's row lock: two
    coordinators cannot fill the same page, and a killed one is taken up where it stopped. An
    address whose subscriber was made anew gets one letter.
    """
    # SQLite would look each reader up for each letter, although the same statement has just read
    # her: a quarter of the time of filling, in which nobody else can write. PostgreSQL does.
    with connection.constraint_checks_disabled(), transaction.atomic():
        # no_key: the workers' totals refer to this row and must not wait for a whole page.
        row = Campaign.objects.select_for_update(no_key=True).get(pk=campaign.pk)
        if row.filled_at is not None or row.status != CampaignStatus.SENDING:
            return None
        end = queue_pages.end_of_the_queue()
        page = audience_page(row, row.filled_up_to, size)
        try:
            # Nearly every page. PostgreSQL looks through both unique indexes twice for each letter
            # when it is told what to do on conflict: a fifth of the time of filling.
            with transaction.atomic():
                queued = _queue(row, page, now)
            last = queue_pages.last_reader(row.pk, end)
        except IntegrityError:
            last = page.aggregate(last=Max("pk"))["last"]
            # None at all, perhaps: a page may hold only readers who are queued already.
            queued = _queue_missing(row, last, now) if last is not None else 0
        if last is None:
            Campaign.objects.filter(pk=row.pk).update(filled_at=now)
            return None
        queue_pages.write(row.pk, end, now)
        Campaign.objects.filter(pk=row.pk).update(filled_up_to=last)
        CampaignTotals.add(row.pk, COMMON_SHARD, {"eligible": queued, "queued": queued})
        return queued


def _queue_missing(campaign: Campaign, last: int, now: datetime) -> int:
    """Queues the readers of the page that ends with this one, where they are not yet; how many. By
    its end and not by its size: who joins at this moment must not push out the reader at the end,
    whom the checkpoint passes."""
    readers = audience(campaign, campaign.filled_up_to, last)
    return _queue(campaign, readers, now, "ON CONFLICT DO NOTHING")


def _queue(campaign: Campaign, readers: QuerySet[Any], now: datetime, on_conflict: str = "") -> int:
    """Queues these readers, as ``audience`` gives them; how many."""
    sql, parameters = readers.values(
        "id", "through_list", "email", "address_key"
    ).query.sql_with_params()
    values = [
        campaign.pk,
        campaign.edition_id,
        DeliveryStatus.QUEUED.value,
        False,
        False,
        as_parameter(now),
        as_parameter(now),
        *parameters,
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {Delivery._meta.db_table}
                (campaign_id, edition_id, subscriber_id, mailing_list_id, rcpt_to, address_key,
                 status, is_test, waits_alone, due_at, attempts, provider, reply, queued_at)
            SELECT %s, %s, page.id, page.through_list, page.email, page.address_key,
                   %s, %s, %s, %s, 0, '', '', %s
              FROM ({sql}) AS page WHERE true ORDER BY {_INTERLEAVED} {on_conflict}
            """,
            values,
        )
        return cursor.rowcount


# Letters are claimed in the order in which they are written: neighbours come far apart, so that a
# list that was imported sorted by domain reaches no operator as a burst. 40503 is 65537 divided by
# the golden ratio: its multiples are spread evenly however few or many are taken.
_INTERLEAVED = "(page.id %% 65537) * 40503 %% 65537, page.id"


def queue_tests(
    campaign: Campaign, edition_id: int, addresses: Iterable[tuple[str, str]],
    subscriber_id: int | None, now: datetime,
) -> int:  # fmt: skip
    """Queues a test letter for each (address, key); it goes before all others, and uncounted."""
    made = Delivery.objects.bulk_create(
        Delivery(
            campaign=campaign,
            edition_id=edition_id,
            subscriber_id=subscriber_id,
            rcpt_to=address,
            address_key=key,
            is_test=True,
            due_at=now,
            queued_at=now,
        )
        for address, key in addresses
    )
    return len(made)
