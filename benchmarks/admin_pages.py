"""How long delivery's pages take with a million deliveries: the median of each page.

    python -m tests.postgresql python -m benchmarks.admin_pages

Fills the database that DATABASE_URL names (use a throw-away one), asks each page several times
through the whole of Django, and prints milliseconds. Exit status 1 when a median is over 300 ms.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from datetime import timedelta
from urllib.parse import urlencode

import django

LETTERS = int(os.environ.get("LETTERS", "1000000"))
ROUNDS = 7
SLOWEST_MEDIAN_MS = 300


def fill() -> None:
    """Twenty campaigns: one with 60 % of the letters, one that is being sent, and small ones."""
    from django.db import connection
    from django.utils import timezone

    from campaigns.models import Campaign, CampaignTotals, Edition, MailingList

    now = timezone.now()
    weekly = MailingList.objects.create(name="Weekly", label="weekly")
    biggest, running = LETTERS * 60 // 100, LETTERS * 20 // 100
    small = (LETTERS - biggest - running) // 18
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO campaigns_subscriber
                   (email, address_key, name, language, attributes, created_at, updated_at)
            SELECT a, a, 'Reader ' || n, 'en', '{}', now(), now()
              FROM (SELECT n, 'reader' || n || '@example.org' AS a
                      FROM generate_series(1, %s) n ORDER BY md5(n::text)) AS readers
            """,
            [biggest],
        )
        cursor.execute(
            """
            INSERT INTO campaigns_subscription
                   (subscriber_id, mailing_list_id, status, source, created_at, changed_at)
            SELECT id, %s, 'subscribed', 'benchmark', %s, %s FROM campaigns_subscriber
            """,
            [weekly.pk, now - timedelta(days=1), now],
        )
        for number, size in enumerate([small] * 9 + [biggest] + [small] * 9 + [running], start=1):
            is_running = number == 20
            campaign = Campaign.objects.create(
                name=f"Newsletter {number}",
                from_email="news@example.org",
                subject="News",
                status="sending" if is_running else "finished",
                started_at=now,
                filled_at=now,
            )
            campaign.include_lists.add(weekly)
            edition = Edition.objects.create(
                campaign=campaign,
                digest=str(number),
                from_email="news@example.org",
                subject="News",
                html="",
                text="",
            )
            cursor.execute(
                """
                INSERT INTO delivery_delivery
                       (campaign_id, edition_id, subscriber_id, mailing_list_id, rcpt_to,
                        address_key, status, is_test, due_at, attempts, provider, handed_over_at,
                        settled_at, code, reply, queued_at)
                SELECT %s, %s, id, %s, email, address_key, status, false, now(), 1, 'default',
                       now(), now(), 250, '2.0.0 Ok: queued as 4bXyZ' || id, now()
                  FROM (SELECT *, CASE
                           WHEN %s AND row_number() OVER (ORDER BY id) > %s THEN 'queued'
                           WHEN dice < 10 THEN 'rejected' WHEN dice < 25 THEN 'bounced'
                           WHEN dice < 30 THEN 'expired' WHEN dice < 32 THEN 'suppressed'
                           WHEN dice < 35 AND %s THEN 'deferred'
                           ELSE 'sent' END AS status
                          FROM (SELECT *, abs(hashtext(email || %s)) %% 1000 AS dice
                                  FROM campaigns_subscriber ORDER BY id LIMIT %s) AS chosen
                       ) AS letters ORDER BY id
                """,
                [campaign.pk, edition.pk, weekly.pk, is_running, running // 2, is_running,
                 str(number), size],
            )  # fmt: skip
            cursor.execute(
                "SELECT status, count(*) FROM delivery_delivery WHERE campaign_id = %s GROUP BY 1",
                [campaign.pk],
            )
            CampaignTotals.objects.create(
                campaign=campaign, eligible=size, **dict(cursor.fetchall())
            )
        cursor.execute("VACUUM ANALYZE")


def pages() -> dict[str, str]:
    """The addresses of the pages that are measured, by what they show."""
    from django.urls import reverse

    from campaigns.models import Campaign
    from delivery.models import Delivery

    first, biggest, running = (
        Campaign.objects.get(name=f"Newsletter {number}").pk for number in (1, 10, 20)
    )
    changelist = reverse("admin:delivery_delivery_changelist")
    last = -(-LETTERS // 50)

    def listed(**query: object) -> str:
        return f"{changelist}?{urlencode(query)}"

    found = {
        "all": listed(),
        "all, middle page": listed(p=last // 2),
        "all, last page": listed(p=last),
        "search, whole address": listed(q="reader500@example.org"),
        "search, beginning": listed(q="reader50"),
        "search, nothing": listed(q="nobody"),
    }
    for status in ("queued", "deferred", "sending", "sent", "rejected", "bounced", "unconfirmed"):
        found[f"{status}"] = listed(status__exact=status)
        for name, pk in (("old small", first), ("biggest", biggest), ("running", running)):
            found[f"{name}, {status}"] = listed(campaign__id__exact=pk, status__exact=status)
    for name, pk, size in (
        ("old small", first, LETTERS // 90),
        ("biggest", biggest, LETTERS * 6 // 10),
        ("running", running, LETTERS * 2 // 10),
    ):
        found[name] = listed(campaign__id__exact=pk)
        found[f"{name}, middle page"] = listed(campaign__id__exact=pk, p=size // 100)
        found[f"{name}, last page"] = listed(campaign__id__exact=pk, p=-(-size // 50))
    letter = Delivery.objects.filter(campaign=biggest, status="rejected").first()
    assert letter is not None
    found["a letter's story"] = reverse("admin:delivery_delivery_change", args=[letter.pk])
    found["why"] = f"{reverse('admin:delivery_why')}?{urlencode({'address': letter.rcpt_to})}"
    found["providers"] = reverse("admin:delivery_providerstate_changelist")
    return found


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client

    if connection.vendor != "postgresql":
        sys.exit("This measures PostgreSQL: run it with `python -m tests.postgresql`.")
    settings.ALLOWED_HOSTS = ["testserver"]
    call_command("migrate", verbosity=0)
    if not User.objects.exists():
        fill()
    user, _ = User.objects.get_or_create(username="a", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(user)
    slow = 0
    for name, address in pages().items():
        taken = []
        for _round in range(ROUNDS):
            began = time.perf_counter()
            answer = client.get(address)
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, (address, answer.status_code)
        median = statistics.median(taken)
        slow += median > SLOWEST_MEDIAN_MS
        print(f"{name:28} {median:7.0f} ms   (slowest {max(taken):.0f})", flush=True)
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
