"""audit_deliveries: a ledger that balances passes, and each imbalance that is planted is found."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.utils import timezone

from bounces.models import Bounce, Kind, ReceivedMail
from campaigns.models import Campaign, CampaignTotals, Subscription, Suppression
from delivery import claiming, leases
from delivery.audit import audit_campaign, audit_leases
from delivery.models import Attempt, Delivery, Resolution, WorkerLease
from delivery.outcomes import Accepted, Deferred, Phase, Rejected, Reply, Unconfirmed
from delivery.providers.memory import MemoryProvider
from delivery.states import DeliveryStatus
from tests.delivery.conftest import coordinate, hand_over, run_slice, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def audit(**options) -> tuple[str, int]:
    """What the command prints, and its exit code."""
    out = StringIO()
    try:
        call_command("audit_deliveries", stdout=out, no_color=True, **options)
    except SystemExit as end:
        return out.getvalue(), int(end.code)
    return out.getvalue(), 0


def found(campaign) -> list[str]:
    return [imbalance.what for imbalance in audit_campaign(campaign.pk).imbalances]


@pytest.fixture
def varied(campaign, clock, settings) -> Campaign:
    """A finished campaign with letters in every final state that sending can lead to."""
    settings.DELIVERY = settings.DELIVERY | {"MAX_ATTEMPTS": 1}
    answers = {
        "reader1@example.org": Rejected(Reply(Phase.RCPT, 550, "5.1.1 Gone"), True),
        "reader2@example.org": Deferred(Reply(Phase.RCPT, 450, "4.2.0 Greylisted")),
        "reader3@example.org": Unconfirmed(Reply(Phase.FINAL_DOT, None, "Connection lost")),
        "reader6@example.org": Unconfirmed(Reply(Phase.FINAL_DOT, None, "Connection lost")),
    }
    accepted = Accepted(Reply(Phase.LOCAL, 250, "kept"))
    MemoryProvider.answer = lambda message: answers.get(message.envelope.rcpt_to, accepted)
    Suppression.add("reader4@example.org", "complaint", source="test")
    subscription = Subscription.objects.get(subscriber__email="reader5@example.org")
    subscription.move("unsubscribed", source="test")
    run_slice(clock)
    Resolution.objects.create(
        delivery=letter("reader6@example.org"),
        at=clock(),
        means="evidence",
        status="sent",
    )
    moved(campaign, letter("reader6@example.org"), "sent")
    bounced(campaign, letter("reader7@example.org"), clock())
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.status == "finished"
    assert statuses(campaign) == {
        "sent": 6, "rejected": 1, "expired": 1, "unconfirmed": 1, "suppressed": 2, "bounced": 1,
    }  # fmt: skip
    return campaign


def letter(address: str) -> Delivery:
    return Delivery.objects.get(rcpt_to=address)


def moved(campaign: Campaign, delivery: Delivery, status: str, **changes) -> None:
    """A move behind the engine's back, with the totals kept: only the history is wrong."""
    CampaignTotals.add(campaign.pk, 0, {delivery.status: -1})
    CampaignTotals.add(campaign.pk, 0, {status: 1})
    columns = Delivery.of_state(DeliveryStatus(status)) | {"waits_alone": False}
    Delivery.objects.filter(pk=delivery.pk).update(**columns, **changes)


def bounced(campaign: Campaign, delivery: Delivery, now) -> None:
    mail = ReceivedMail.objects.create(
        mailbox="default", uid_validity="1", uid="1", received_at=now, raw=b""
    )
    Bounce.objects.create(
        received_mail=mail,
        delivery=delivery,
        campaign=campaign,
        kind=Kind.BOUNCE,
        address_key=delivery.address_key,
        counted=True,
        at=now,
    )
    moved(campaign, delivery, "bounced")


def test_a_ledger_that_balances_passes_and_is_printed(varied):
    output, code = audit()
    assert code == 0
    assert "Balanced: 12 letters of 1 campaigns." in output
    head, row = (line.split() for line in output.splitlines()[:2])
    assert dict(zip(head, row, strict=True)) == {
        "campaign": str(varied.pk), "state": "finished", "eligible": "12", "open": "0",
        "sent": "6", "bounced": "1", "unconfirmed": "1", "rejected": "1", "expired": "1",
        "suppressed": "2", "cancelled": "0", "balance": "0",
    }  # fmt: skip


def test_a_running_campaign_balances_too(campaign, clock):
    leases.make_places("default", 3)
    lease = leases.take("default", 3, "host:1", clock(), timedelta(hours=1))
    claims = claiming.claim(lease, [campaign.pk], 6, clock())
    hand_over(lease, [claimed.id for claimed in claims[:3]], clock())
    assert found(campaign) == []
    assert audit_campaign(campaign.pk).open_letters == 12


def test_a_cancelled_campaign_balances(campaign, clock):
    campaign.cancel(clock())
    coordinate(clock)
    assert statuses(campaign) == {"cancelled": 12}
    assert found(campaign) == []


def test_drafts_are_not_audited_and_an_unknown_campaign_is_an_error(varied):
    Campaign.objects.create(name="draft", from_email="a@example.org")
    assert "of 1 campaigns" in audit()[0]
    assert audit(campaign=varied.pk)[1] == 0
    with pytest.raises(CommandError, match="no campaign"):
        audit(campaign=varied.pk + 100)


def unlease(campaign, clock):
    moved(campaign, letter("reader0@example.org"), "sending", claim_key=4711)


def claimed_by_nobody(campaign, clock):
    moved(campaign, letter("reader0@example.org"), "claimed", claim_key=None)


def lose_a_row(campaign, clock):
    letter("reader0@example.org").delete()


def drop_index(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DROP INDEX {name}")


def double(campaign, clock):
    drop_index("delivery_once_per_subscriber")
    drop_index("delivery_once_per_address")
    copy = letter("reader0@example.org")
    copy.pk = None
    copy.save()
    CampaignTotals.add(campaign.pk, 0, {"eligible": 1, "sent": 1})


PLANTED = {
    "12 letters, and 13 were eligible": lambda campaign, clock: CampaignTotals.add(
        campaign.pk, 0, {"eligible": 1}
    ),
    "11 letters, and 12 were eligible": lose_a_row,
    "6 letters are sent, and the totals say 7": lambda campaign, clock: CampaignTotals.add(
        campaign.pk, 0, {"sent": 1}
    ),
    "finished, with letters still open": lambda campaign, clock: moved(
        campaign, letter("reader0@example.org"), "queued"
    ),
    "finished, with its queue not filled": lambda campaign, clock: Campaign.objects.update(
        filled_at=None
    ),
    "cancelled letters in a campaign that was not": lambda campaign, clock: moved(
        campaign, letter("reader0@example.org"), "cancelled"
    ),
    "readers with two letters": double,
    "addresses with two letters": double,
    "letters that the policy sent again more than once": lambda campaign, clock: [
        Resolution.objects.create(
            delivery=letter("reader0@example.org"), at=clock(), means="policy", status="queued"
        )
        for _time in range(2)
    ],
    "rejected without the attempt that led to it": lambda campaign, clock: Attempt.objects.filter(
        status="rejected"
    ).delete(),
    "expired without the attempt that led to it": lambda campaign, clock: Attempt.objects.filter(
        status="expired"
    ).delete(),
    "unconfirmed without the attempt that led to it": lambda campaign, clock: moved(
        campaign, letter("reader0@example.org"), "unconfirmed"
    ),
    "sent without the server's answer or its moment": lambda campaign, clock: (
        Delivery.objects.filter(rcpt_to="reader0@example.org").update(code=None, reply="")
    ),
    "bounced without a report that says so": lambda campaign, clock: Bounce.objects.update(
        counted=False
    ),
    "suppressed, though the reader never left and the address never was": lambda campaign, clock: (
        Suppression.objects.all().delete()
    ),
    "final without the moment of it": lambda campaign, clock: Delivery.objects.filter(
        status="suppressed"
    ).update(settled_at=None),
    "in hand, and nobody holds a lease": unlease,
    "waiting where no claim looks for them": lambda campaign, clock: moved(
        campaign, letter("reader0@example.org"), "queued"
    ),
    "listed under another state than their own": lambda campaign, clock: Delivery.objects.filter(
        status="rejected"
    ).update(unusual=None),
    "looked for by every claim, and not waiting": lambda campaign, clock: Delivery.objects.filter(
        rcpt_to="reader0@example.org"
    ).update(waits_alone=True),
    "waiting, and still claimed by somebody": lambda campaign, clock: moved(
        campaign, letter("reader0@example.org"), "queued", claim_key=4711
    ),
}


@pytest.mark.parametrize("imbalance", PLANTED)
def test_each_imbalance_is_found_and_the_command_exits_1(varied, clock, imbalance):
    # Taken back afterwards: some of them drop an index.
    with transaction.atomic():
        PLANTED[imbalance](varied, clock)
        assert imbalance in found(varied)
        output, code = audit(campaign=varied.pk)
        transaction.set_rollback(True)
    assert code == 1
    assert imbalance in output
    assert "Out of balance" in output
    assert found(varied) == []


def test_in_hand_without_a_claim_key_is_found_as_well(varied, clock):
    claimed_by_nobody(varied, clock)
    assert "in hand, and nobody holds a lease" in found(varied)


def test_a_sent_letter_without_its_moment_is_found(varied):
    Delivery.objects.filter(rcpt_to="reader0@example.org").update(settled_at=None)
    assert "sent without the server's answer or its moment" in found(varied)


def test_examples_name_the_letters(varied):
    Attempt.objects.filter(status="rejected").delete()
    (imbalance,) = audit_campaign(varied.pk).imbalances
    assert list(imbalance.examples) == [letter("reader1@example.org").pk]
    assert f"deliveries {letter('reader1@example.org').pk}" in audit()[0]


def test_a_lease_that_nobody_gave_back_is_found(varied):
    now = timezone.now()
    leases.make_places("default", 1)
    leases.take("default", 1, "host:1", now - timedelta(hours=2), timedelta(minutes=1))
    (imbalance,) = audit_leases(now)
    assert "default/0" in imbalance.what and "host:1" in imbalance.what
    assert audit()[1] == 1
    WorkerLease.objects.update(expires_at=now)
    assert audit_leases(now) == [], "reclaim still has time"


def test_an_erased_readers_suppressed_letter_needs_no_explanation(varied):
    Suppression.objects.all().delete()
    Delivery.objects.filter(rcpt_to="reader4@example.org").update(subscriber=None)
    assert found(varied) == []
