"""A campaign over two days through one mailbox, with faults of all kinds thrown in by dice.

What is promised: each letter is delivered exactly once, or is listed as unconfirmed with the
reason; no limit is passed; nobody is marked who did nothing. The long form sends to 12,000
readers through the mailbox as Microsoft has it; CI's is smaller, with a smaller quota a day, and
the same two days.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from random import Random

import httpx
import pytest

from campaigns.models import MailingList
from campaigns.states import CampaignStatus, OnDoubt
from delivery import limits
from delivery.models import Attempt, Delivery, Resolution
from tests.delivery.conftest import Clock, statuses
from tests.emulators.graph import Answer, Fault, expired_token
from tests.microsoft365.site import Site, campaign_of

GONE = "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"
SILENCE = ("ErrorTooManyObjectsOpened", "Too many concurrent connections opened.")
# (how often among the faults, what). ``done``: the letter was taken all the same.
KINDS: list[tuple[int, Callable[[bool], dict]]] = [
    (6, lambda done: {"answer": Answer.error(503, "CommandConcurrencyLimitReached"), "done": done}),
    (3, lambda done: {"answer": Answer.error(503, "ErrorServerBusy"), "done": done}),
    (3, lambda done: {"answer": Answer.error(503, "MailboxInfoStale"), "done": done}),
    (6, lambda done: {"answer": Answer.error(504, "UnknownError"), "done": done}),
    (4, lambda done: {"answer": Answer.error(500, "ErrorInternalServerError"), "done": done}),
    (2, lambda done: {"answer": Answer(502, b"<html>"), "done": done}),
    (4, lambda done: {"answer": Answer(200), "done": done}),
    (5, lambda done: {"drop": httpx.ReadTimeout, "done": done}),
    (5, lambda done: {"drop": httpx.RemoteProtocolError, "done": done}),
    (3, lambda done: {"drop": httpx.WriteError, "done": False}),
    (4, lambda done: {"drop": httpx.ConnectError}),
    (2, lambda done: {"drop": httpx.ConnectTimeout}),
    (6, lambda done: {"answer": Answer.error(429, "TooManyRequests", "", retry_after="7.5")}),
    (2, lambda done: {"answer": Answer.error(429, "TooManyRequests", "", retry_after="387")}),
    (3, lambda done: {"answer": Answer.error(429, "ApplicationThrottled", "MailboxConcurrency")}),
    (3, lambda done: {"answer": Answer.error(404, "ErrorNonExistentMailbox")}),
    (3, lambda done: {"answer": Answer.error(400, "SomethingNew")}),
    (4, lambda done: {"answer": expired_token()}),
    (1, lambda done: {"answer": Answer.error(403, "ErrorAccessDenied", "Access is denied.")}),
    (1, lambda done: {"answer": Answer.error(403, "ErrorQuotaExceeded", "maximum mailbox size")}),
    (1, lambda done: {"answer": Answer.error(429, *SILENCE)}),
]


class Dice:
    """One request in so many goes wrong, whatever it asks; each kind of fault comes by."""

    def __init__(self, seed: int, share: float) -> None:
        self.random, self.share = Random(seed), share
        self.thrown: Counter[int] = Counter()

    def __call__(self, line: str) -> Fault | None:
        if self.random.random() >= self.share:
            return None
        weights = [weight for weight, _make in KINDS]
        (kind,) = self.random.choices(range(len(KINDS)), weights)
        self.thrown[kind] += 1
        fault = KINDS[kind][1](self.random.random() < 0.5)
        if "oauth2" in line and fault.get("done"):
            fault["done"] = False
        return Fault(line, **fault)


def send_for_two_days(
    make_site: Callable[..., Site],
    mailing_list: MailingList,
    clock: Clock,
    *,
    readers: int,
    a_day: int,
    share: float,
    seed: int,
) -> Dice:
    scope = "mailbox:news@example.org"
    limited = [{"rate": "28/minute", "scope": scope}, {"cap": f"{a_day}/day", "scope": scope}]
    gone = [
        f"reader{number}@example.org" for number in range(readers // 200, readers, readers // 20)
    ]
    site = make_site(
        {"LIMITS": limited},
        readers_a_day=a_day,
        reported_after=timedelta(minutes=7),
        unreachable=dict.fromkeys(gone, GONE),
    )
    site.opens = lambda alias: limits.resume(alias, clock())
    dice = Dice(seed, share)
    campaign = campaign_of(clock, mailing_list, readers)
    campaign.on_doubt = OnDoubt.RESEND_ONCE
    campaign.save()
    began = clock()

    def is_finished() -> bool:
        campaign.refresh_from_db()
        return campaign.status == CampaignStatus.FINISHED

    site.emulator.chance = dice
    site.live(timedelta(days=4), until=is_finished, reads_every=timedelta(minutes=30))
    site.emulator.chance = lambda line: None
    took = clock() - began
    # Looks and reports that are still under way.
    site.live(timedelta(hours=3), step=timedelta(minutes=5), reads_every=timedelta(minutes=10))

    assert is_finished()
    assert timedelta(days=1) < took < timedelta(days=2, hours=1), took
    counted = statuses(campaign)
    assert set(counted) <= {"sent", "bounced", "unconfirmed"}, counted
    # A reader who is gone may be in doubt as any other: then nothing came back.
    in_doubt = set(Delivery.objects.filter(status="unconfirmed").values_list("rcpt_to", flat=True))
    came_back = set(gone) - in_doubt
    assert counted["bounced"] == len(came_back)
    assert {one.recipients[0] for one in site.emulator.returned} == came_back
    # Everybody else has it once, and nobody who has it is listed as in doubt.
    has_it = [one.recipients[0] for one in site.emulator.delivered]
    assert len(has_it) == len(set(has_it)) == readers - len(came_back) - len(in_doubt)
    assert not set(has_it) & in_doubt
    site.assert_only_these_are_marked(*came_back)
    site.assert_no_limit_was_passed()
    return dice


def test_a_small_campaign_over_two_days_reaches_everybody_once_through_faults_of_all_kinds(
    make_site, mailing_list, clock
):
    dice = send_for_two_days(
        make_site, mailing_list, clock, readers=90, a_day=60, share=0.12, seed=4
    )
    assert sum(dice.thrown.values()) > 15
    assert Attempt.objects.filter(outcome="unconfirmed").exists()
    assert Resolution.objects.filter(means="evidence").exists()


@pytest.mark.slow
def test_twelve_thousand_readers_over_two_days_are_reached_once_through_faults_of_all_kinds(
    make_site, mailing_list, clock, record_property
):
    dice = send_for_two_days(
        make_site, mailing_list, clock, readers=12_000, a_day=10_000, share=0.01, seed=1
    )
    record_property("faults", sum(dice.thrown.values()))
    for field, model in (("outcome", Attempt), ("means", Resolution), ("status", Delivery)):
        record_property(field, dict(Counter(model.objects.values_list(field, flat=True))))
    # Some kinds are rare.
    assert len(dice.thrown) >= len(KINDS) - 4
