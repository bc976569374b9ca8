"""How many bounces a second are taken in, from a Maildir to the suppressed reader.

    DATABASE_URL=postgres://... python benchmarks/intake.py [--mails 10000] [--json]

Writes that many reports into a Maildir, each about a letter of its own (95 of 100 hard, the rest
soft), and polls them as the scheduled task does, in this process. Printed are mails a second, the
memory at a tenth of the way and at the end (flat is the point), and the mean time to read one
sample of tests/samples. Run it on a database of its own: without --keep-database it makes one
beside the one that DATABASE_URL names, and drops it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
os.environ.setdefault("LOG_LEVEL", "ERROR")

REPORT = """Return-Path: <>
Delivered-To: {return_path}
From: MAILER-DAEMON@mx.example.net (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

I'm sorry to have to inform you that your message could not be delivered.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net

Final-Recipient: rfc822; {address}
Original-Recipient: rfc822;{address}
Action: failed
Status: {status}
Diagnostic-Code: smtp; 550 {status} <{address}>: Recipient address rejected

--b
Content-Type: message/rfc822

From: news@example.org
To: {address}
Subject: What happened this week

{filling}
--b--
"""
FILLING = ("Lorem ipsum dolor sit amet, consectetur adipiscing elit. " * 2 + "\n") * 60


def memory_mb() -> float:
    """What this process holds now; its reading child is as large, and shares nearly all of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def make_letters(count: int) -> list[int]:
    from django.utils import timezone

    from campaigns.models import Campaign, CampaignTotals, Edition
    from delivery.models import Delivery

    now = timezone.now() - timedelta(hours=1)
    campaign = Campaign.objects.create(name="Intake", from_email="news@example.org", subject="x")
    edition = Edition.objects.create(
        campaign=campaign, digest="0" * 64, from_email="news@example.org", subject="x"
    )
    letters = (
        Delivery(
            campaign=campaign,
            edition=edition,
            rcpt_to=f"reader{number}@example.net",
            address_key=f"reader{number}@example.net",
            status="sent",
            due_at=now,
            queued_at=now,
            handed_over_at=now,
            settled_at=now,
        )
        for number in range(count)
    )
    Delivery.objects.bulk_create(letters, batch_size=2000)
    CampaignTotals.add(campaign.pk, 0, {"eligible": count, "sent": count})
    return list(
        Delivery.objects.filter(campaign=campaign).order_by("id").values_list("id", flat=True)
    )


def write_mails(maildir: Path, letters: list[int]) -> None:
    from campaigns.conf import campaign_settings
    from campaigns.tokens import Purpose
    from delivery.conf import delivery_settings

    for name in ("cur", "new", "tmp"):
        (maildir / name).mkdir(parents=True)
    signer = campaign_settings().signer
    for number, letter in enumerate(letters):
        raw = REPORT.format(
            return_path=delivery_settings().return_path.format(
                token=signer.sign(Purpose.RETURN_PATH, letter)
            ),
            address=f"reader{number}@example.net",
            status="5.2.2" if number % 20 == 0 else "5.1.1",
            filling=FILLING,
        )
        (maildir / "new" / f"{1795255200 + number}.M{number}P1.mx").write_text(raw)


def run(mails: int) -> dict[str, float]:
    from django.conf import settings
    from django.core.signals import setting_changed
    from django.utils import timezone

    from bounces.models import Bounce, ReceivedMail
    from bounces.poller import poll
    from bounces.reading import read_bounce
    from campaigns.models import Suppression

    with tempfile.TemporaryDirectory() as folder:
        maildir = Path(folder) / "bounces"
        settings.BOUNCES = {
            **settings.BOUNCES,
            "MAILBOXES": {
                "benchmark": {
                    "BACKEND": "bounces.mailboxes.maildir.MaildirMailbox",
                    "OPTIONS": {"path": str(maildir)},
                }
            },
        }
        setting_changed.send(sender=None, setting="BOUNCES", value=None, enter=True)
        write_mails(maildir, make_letters(mails))
        begin, seen, early = time.perf_counter(), 0, 0.0
        while taken := poll("benchmark", timezone.now(), timedelta(seconds=5)).taken:
            seen += taken
            early = early or memory_mb()
        seconds = time.perf_counter() - begin
    assert seen == mails == Bounce.objects.filter(counted=True).count(), seen
    assert Suppression.objects.count() == mails - -(-mails // 20)
    assert not ReceivedMail.objects.exclude(verdict="bounce").exists()

    samples = [path.read_bytes() for path in sorted((HERE / "tests/samples").glob("*.eml"))]
    begin = time.perf_counter()
    for _ in range(20):
        for raw in samples:
            read_bounce(raw)
    reading = (time.perf_counter() - begin) / 20 / len(samples)
    return {
        "mails": mails,
        "mails_per_second": round(mails / seconds, 1),
        "memory_mb_early": round(early, 1),
        "memory_mb_end": round(memory_mb(), 1),
        "ms_to_read_a_sample": round(reading * 1000, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mails", type=int, default=10_000)
    parser.add_argument("--keep-database", action="store_true", help="use DATABASE_URL as it is")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    name = connection.settings_dict["NAME"]
    if args.keep_database:
        call_command("migrate", verbosity=0)
        found = run(args.mails)
    else:
        connection.creation.create_test_db(verbosity=0, autoclobber=True)
        try:
            found = run(args.mails)
        finally:
            connection.creation.destroy_test_db(name, verbosity=0)
    if args.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
