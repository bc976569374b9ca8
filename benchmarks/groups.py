"""What filling the queue and claiming from it cost, with readers at many domains.

    DATABASE_URL=postgres://... python benchmarks/groups.py [--readers 100000] [--claims 300]

Times ``filling.fill_page`` over the whole audience, then claims of ``--size`` letters: with no
group of domains held, and with the largest held, when the first claims send its letters to the end
of the pause and the later ones find them gone. Medians and the slowest claim, in milliseconds. Run
it on a database of its own: it migrates it and leaves its readers there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

# Of a hundred readers; the rest have one of OWN_DOMAINS.
SHARES = {"gmail.com": 35, "hotmail.com": 12, "outlook.com": 6, "yahoo.com": 8, "icloud.com": 5}
OWN_DOMAINS = 5_000


def domain(n: int) -> str:
    place = n * 48271 % 65537 % 100
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return f"company{n * 31 % OWN_DOMAINS}.example"


def make_campaign(readers: int) -> int:
    """A scheduled campaign to so many new readers; its id."""
    from django.utils import timezone

    from campaigns.editions import freeze
    from campaigns.models import Campaign, MailingList, Subscriber, Subscription

    label = f"bench-{time.time_ns()}"
    mailing_list = MailingList.objects.create(name=label, label=label)
    for start in range(0, readers, 10_000):
        addresses = [f"{label}-{n}@{domain(n)}" for n in range(start, min(readers, start + 10_000))]
        new = Subscriber.objects.bulk_create(Subscriber(email=a, address_key=a) for a in addresses)
        Subscription.objects.bulk_create(
            Subscription(subscriber=reader, mailing_list=mailing_list) for reader in new
        )
    campaign = Campaign.objects.create(
        name=label, from_email="news@example.org", subject="News", html="<p>News</p>"
    )
    campaign.include_lists.add(mailing_list)
    assert campaign.schedule(timezone.now(), edition=freeze(campaign))
    assert campaign.start(timezone.now())
    return campaign.pk


def fill(campaign_id: int) -> float:
    from django.utils import timezone

    from campaigns.models import Campaign
    from delivery import filling

    campaign = Campaign.objects.get(pk=campaign_id)
    began = time.perf_counter()
    while filling.fill_page(campaign, 10_000, timezone.now()) is not None:
        pass
    return time.perf_counter() - began


def claims(campaign_id: int, count: int, size: int, hold: str = "") -> list[float]:
    """Milliseconds of each of so many claims; the letters stay claimed."""
    from django.utils import timezone

    from delivery import claiming, leases

    leases.make_places("default", 1)
    lease = leases.take("default", 1, "benchmark", timezone.now(), timedelta(hours=1))
    assert lease is not None
    times = []
    for _ in range(count):
        now = timezone.now()
        began = time.perf_counter()
        if hold:
            from delivery import limits
            from delivery.groups import Held

            held = Held.of(limits.state_of("default"), lambda name: (name,), now)
            assert held is not None
            found = claiming.claim(lease, [campaign_id], size, now, (), held)
        else:
            found = claiming.claim(lease, [campaign_id], size, now)
        times.append((time.perf_counter() - began) * 1000)
        assert len(found) == size
        assert not any(claimed.rcpt_to.endswith(f"@{hold}") for claimed in found if hold)
    leases.give_back(lease)
    return times


def told(name: str, times: list[float]) -> None:
    print(f"{name}: median {statistics.median(times):.2f} ms, slowest {max(times):.1f} ms")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", type=int, default=100_000)
    parser.add_argument("--claims", type=int, default=300)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--only-without-groups", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    with tempfile.TemporaryDirectory(prefix="pennypost-var-") as var:
        os.environ.setdefault("PENNYPOST_VAR", var)
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connection
        from django.utils import timezone

        call_command("migrate", verbosity=0)
        campaign_id = make_campaign(args.readers)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        print(f"fill: {args.readers / fill(campaign_id):,.0f} letters/s")
        claims(campaign_id, 20, args.size)
        told(f"claim of {args.size}", claims(campaign_id, args.claims, args.size))
        if args.only_without_groups:
            return
        from delivery import groups
        from delivery.outcomes import Deferred, Phase, Reply, Speaker, Throttle

        reply = Reply(Phase.FINAL_DOT, 421, "4.7.28 unusual rate of mail", Speaker.READER)
        pause = Deferred(reply, timedelta(hours=1), "benchmark", Throttle.PAUSE)
        groups.hold("default", [("x@gmail.com", pause)], timezone.now())
        times = claims(campaign_id, args.claims, args.size, hold="gmail.com")
        told("  with a third of them held", times)


if __name__ == "__main__":
    main()
