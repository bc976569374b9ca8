"""What Microsoft 365 does to a sender, scenario by scenario, as the whole engine lives it.

Coordinator, worker, reader of bounces and database are real, the mailbox is that of the strict
emulator, and the clock is everybody's. What the provider alone makes of an answer is in
tests/delivery/test_graph_provider.py. After each test the promises are asserted
(Site.assert_promises). The rest of the twenty-five: 19, 20 and 22 in test_smtp_scenarios.py, 21 in
tests/delivery/test_smtp_xoauth2.py, 23 in tests/bounces/test_graph_mailbox.py, 24 in
tests/bounces/test_watches.py, 25 in tests/bounces/test_reports_of_exchange.py.
"""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import pairwise

import httpx
import pytest

from campaigns.states import OnDoubt
from delivery import limits, mailboxes
from delivery.models import Alert, Attempt, Delivery, MailboxRequest, Resolution
from delivery.providers import graph
from delivery.providers.graph_http import ALLOWANCE
from tests.delivery.conftest import statuses
from tests.emulators.graph import Answer, Fault, expired_token
from tests.microsoft365.site import IDENTITY, MAILBOX, Site, campaign_of, settings_for

pytestmark = pytest.mark.one_database  # test_two_days.py has all these faults on both

SECONDS, MINUTES, HOURS = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def campaign(site, clock, mailing_list):
    return campaign_of(clock, mailing_list, 5)


def sends(site: Site) -> list:
    return [entry.at for entry in site.emulator.requests("sendMail")]


def attempts_used() -> set[int]:
    return set(Delivery.objects.values_list("attempts", flat=True))


def fault(site: Site, answer: Answer | None = None, at: str = "sendMail", **more) -> None:
    site.emulator.faults.append(Fault(at, answer, **more))


# ------------------------------------------------------------------ 1 to 5


def test_01_each_letter_is_one_request_and_two_seconds_lie_between(site, campaign):
    site.live(2 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert site.asked() == 5
    moments = sends(site)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert min(gaps) > 1.5 * SECONDS
    site.assert_no_limit_was_passed()


def test_02_a_202_with_retry_after_is_not_sent_again(site, campaign):
    fault(site, Answer(202, headers={"retry-after": "30"}), done=True)
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert len(sends(site)) == 5


def test_03_a_refusal_for_concurrency_waits_and_charges_nobody(site, campaign):
    throttled = "Application is over its MailboxConcurrency limit."
    fault(site, Answer.error(429, "ApplicationThrottled", throttled, retry_after="1"), skip=1)
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert attempts_used() == {1}
    moments = sends(site)
    assert len(moments) == 6
    assert moments[2] - moments[1] >= SECONDS


@pytest.mark.parametrize(
    ("header", "least"),
    [
        ({"Retry-After": "7"}, 7 * SECONDS),
        ({"retry-after": "2.128"}, 2.128 * SECONDS),
        ({"Retry-After": "Sat, 21 Nov 2026 10:05:00 GMT"}, 299 * SECONDS),
        ({"Retry-After": "0"}, SECONDS),
        ({"Retry-After": "-3"}, 5 * SECONDS),
        ({"Retry-After": "abc"}, 5 * SECONDS),
        ({}, 5 * SECONDS),
        ({"Retry-After": "999999"}, 24 * HOURS),
    ],
)
def test_04_nothing_is_asked_earlier_than_told(site, campaign, header, least):
    body = json.dumps({"error": {"code": "TooManyRequests", "message": "Please retry."}})
    fault(site, Answer(429, body.encode(), header))
    site.live(30 * HOURS, until=lambda: len(sends(site)) > 1)
    first, second = sends(site)[:2]
    assert second - first >= least


def test_05_an_exhausted_window_is_waited_for_in_silence(site, campaign, clock):
    site.emulator.mailboxes[MAILBOX].requests.extend([clock()] * 9_998)
    clock.now += 210 * SECONDS
    site.live(2 * MINUTES)
    assert statuses(campaign) == {"sent": 2, "queued": 3}
    assert len(site.emulator.over_limits) == 1
    refused_at = sends(site)[-1]
    assert site.rest > 380 * SECONDS - (clock() - refused_at)
    site.live(10 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert sends(site)[3] - refused_at >= 387 * SECONDS
    site.emulator.over_limits.clear()


def test_05_our_own_count_of_requests_avoids_the_refusal(site, campaign, clock):
    MailboxRequest.objects.bulk_create(
        MailboxRequest(
            mailbox=MAILBOX, channel="graph", began_at=clock(), ended_at=clock(), octets=1
        )
        for _ in range(ALLOWANCE.requests - 2)
    )
    site.live(2 * MINUTES)
    assert statuses(campaign) == {"sent": 2, "queued": 3}
    site.live(12 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    site.assert_no_limit_was_passed()


# ------------------------------------------------------------------ 6 to 10


@pytest.mark.parametrize(
    "code", ["CommandConcurrencyLimitReached", "ErrorDirectoryConcurrencyLimit"]
)
@pytest.mark.parametrize("was_sent", [True, False], ids=["A sent", "B not sent"])
def test_06_a_503_is_looked_up_and_sent_again_only_when_it_is_nowhere(
    site, campaign, code, was_sent
):
    campaign.on_doubt = OnDoubt.RESEND_ONCE
    campaign.save()
    fault(site, Answer.error(503, code), done=was_sent)
    site.live(20 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert len(site.emulator.delivered) == 5
    assert len(sends(site)) == (5 if was_sent else 6)
    assert Resolution.objects.get().means == ("evidence" if was_sent else "policy")
    if not was_sent:
        looks = [entry.at for entry in site.emulator.requests("drafts")]
        assert looks[-1] - sends(site)[0] >= 10 * MINUTES


def test_07_total_silence_is_kept_by_sender_reader_and_test_and_then_left_step_by_step(
    make_site, settings, clock, mailing_list
):
    site = make_site()
    settings.DELIVERY["PROVIDERS"]["again"] = settings.DELIVERY["PROVIDERS"]["graph"]
    settings.DELIVERY = {**settings.DELIVERY}
    one = campaign_of(clock, mailing_list, 4)
    other = campaign_of(clock, mailing_list, 0, provider="again")
    fault(site, Answer.error(429, "ErrorTooManyObjectsOpened", "Too many."), skip=1)
    site.live(2 * MINUTES, reads_every=MINUTES)
    until = mailboxes.resting_until(MAILBOX, clock())
    before = len(site.emulator.journal)
    site.live(until - clock() - 10 * SECONDS, reads_every=MINUTES)
    assert len(site.emulator.journal) == before
    last = max(entry.at for entry in site.emulator.requests("/users/"))
    assert until - last >= 35 * MINUTES
    site.live(10 * MINUTES, reads_every=MINUTES)
    after = [entry for entry in site.emulator.requests("/users/") if entry.at > last]
    assert after[0].method == "GET"
    assert after[0].at - last >= 35 * MINUTES
    assert statuses(one) == {"sent": 4}
    assert statuses(other) == {"sent": 4}


def test_07_the_500th_move_of_somebody_elses_program_silences_us_too(site, campaign, clock):
    mailbox = site.emulator.mailboxes[MAILBOX]
    mailbox.silent_until = clock() + 30 * MINUTES
    site.live(2 * MINUTES)
    # The one request that found out; from then on none, and the silence is measured from it.
    assert site.emulator.silence_broken == 1
    site.emulator.silence_broken = 0
    site.emulator.over_limits.clear()
    site.live(40 * MINUTES, reads_every=MINUTES)
    assert statuses(campaign) == {"sent": 5}


@pytest.mark.parametrize("was_sent", [True, False], ids=["A sent", "B not sent"])
def test_08_a_504_is_looked_up_patiently(make_site, clock, mailing_list, was_sent):
    site = make_site(visible_after=90 * SECONDS)
    campaign = campaign_of(clock, mailing_list, 3)
    campaign.on_doubt = OnDoubt.RESEND_ONCE
    campaign.save()
    fault(site, Answer.error(504, "UnknownError", ""), done=was_sent)
    site.live(20 * MINUTES)
    assert statuses(campaign) == {"sent": 3}
    assert len(site.emulator.delivered) == 3
    assert len(sends(site)) == (3 if was_sent else 4)


def test_09_a_connection_that_was_never_made_is_no_doubt(site, campaign):
    fault(site, drop=httpx.ConnectError)
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert site.emulator.requests("GET /v1.0") == []


@pytest.mark.parametrize("error", [httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError])
@pytest.mark.parametrize("was_sent", [True, False], ids=["b after", "c before"])
def test_09_a_broken_connection_ends_in_exactly_one_letter(site, campaign, error, was_sent):
    campaign.on_doubt = OnDoubt.RESEND_ONCE
    campaign.save()
    fault(site, drop=error, done=was_sent)
    site.live(20 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert len(site.emulator.delivered) == 5


def test_09_where_sent_items_may_not_be_read_a_doubt_stays_and_nothing_is_sent_again(
    site, campaign
):
    site.emulator.may_read = False
    campaign.on_doubt = OnDoubt.HOLD
    campaign.save()
    fault(site, drop=httpx.ReadTimeout, done=True)
    site.live(30 * MINUTES)
    assert statuses(campaign) == {"sent": 4, "unconfirmed": 1}
    assert len(sends(site)) == 5


def test_10_a_200_is_looked_up_and_counts_as_taken(site, campaign):
    fault(site, Answer(200), done=True)
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert len(sends(site)) == 5


def test_10_a_letter_that_is_too_large_stops_before_the_second_reader(site, campaign):
    fault(site, Answer(413, b"<html>Request Entity Too Large</html>"), times=99)
    site.live(HOURS, step=10 * MINUTES)
    assert len(sends(site)) == 1
    assert statuses(campaign) == {"queued": 5}
    site.assert_only_these_are_marked()


# ------------------------------------------------------------------ 11 to 15


def test_11_an_expired_token_costs_one_renewal_and_one_repetition(site, campaign):
    emulator = site.emulator

    def revoke(letter) -> None:
        if len(emulator.delivered) == 2:
            emulator.revoked = set(emulator.tokens)

    emulator.on_delivered = revoke
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert len(sends(site)) == 6
    assert len(site.emulator.requests("POST /contoso.example/oauth2")) == 2
    assert attempts_used() == {1}


def test_11_a_token_that_is_refused_again_stops_the_provider(site, campaign):
    fault(site, expired_token(), times=99)
    site.live(HOURS, step=10 * MINUTES)
    assert len(sends(site)) == 2
    assert limits.state_of("graph").stopped
    assert statuses(campaign) == {"queued": 5}


@pytest.mark.parametrize("number", [7000222, 700016, 7000215])
def test_12_a_wrong_registration_stops_after_one_call_and_works_at_once_when_mended(
    site, campaign, clock, number
):
    refused = site.emulator.refused_token(401, "invalid_client", number, "No.")
    fault(site, refused, at="oauth2", times=99)
    site.live(HOURS, step=10 * MINUTES)
    assert len(site.emulator.requests("oauth2")) == 1
    assert site.asked() == 0
    assert limits.state_of("graph").stopped
    assert f"AADSTS{number}" in limits.state_of("graph").because
    site.emulator.faults.clear()
    limits.resume("graph", clock())
    site.live(2 * MINUTES)
    assert statuses(campaign) == {"sent": 5}


TROUBLE_AT_THE_ENDPOINT = [
    pytest.param({"answer": Answer(429, b"{}", {"Retry-After": "20"})}, id="c 429"),
    pytest.param({"answer": Answer(503, b"busy")}, id="d 503"),
    pytest.param({"drop": httpx.ReadTimeout}, id="e time-out"),
]


@pytest.mark.parametrize("trouble", TROUBLE_AT_THE_ENDPOINT)
def test_12_with_a_token_in_hand_sending_goes_on_through_trouble_at_the_endpoint(
    site, campaign, clock, mailing_list, trouble
):
    site.live(2 * MINUTES)
    later = campaign_of(clock, mailing_list, 3, prefix="later")
    clock.now += 53 * MINUTES  # a token is renewed from five minutes before its end
    site.emulator.faults.append(Fault("oauth2", times=99, **trouble))
    site.live(2 * MINUTES)
    assert statuses(later)["sent"] == 8
    assert limits.closed_until(limits.state_of("graph"), clock()) is None
    assert len(site.emulator.requests("oauth2")) > 1


@pytest.mark.parametrize("trouble", TROUBLE_AT_THE_ENDPOINT)
def test_12_without_a_token_the_provider_rests_and_then_goes_on(site, campaign, trouble):
    site.emulator.faults.append(Fault("oauth2", times=2, **trouble))
    site.live(20 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    assert not limits.state_of("graph").stopped
    assert attempts_used() == {1}


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        ("ErrorAccessDenied", "Access to OData is disabled: [RAOP] : Blocked by tenant", "service"),
        ("ErrorAccessDenied", "Access is denied. Check credentials and try again.", "Mail.Send"),
        ("ErrorSendAsDenied", "The user account does not have the right to send mail", "From"),
    ],
)
def test_13_what_is_forbidden_stops_at_the_first_touches_no_reader_and_names_the_remedy(
    site, campaign, clock, code, text, remedy
):
    fault(site, Answer.error(403, code, text), times=99)
    site.live(3 * HOURS, step=20 * MINUTES)
    assert len(sends(site)) == 1
    assert statuses(campaign) == {"queued": 5}
    assert attempts_used() == {0}
    assert remedy in limits.state_of("graph").because
    assert Alert.objects.filter(kind=Alert.Kind.PROVIDER, resolved_at=None).exists()


@pytest.mark.parametrize("code", ["MailboxNotEnabledForRESTAPI", "ErrorInvalidUser"])
def test_14_a_mailbox_that_is_none_stops_at_the_first(site, campaign, code):
    fault(site, Answer.error(404, code, "No such mailbox."), times=99)
    site.live(HOURS, step=10 * MINUTES)
    assert len(sends(site)) == 1
    assert statuses(campaign) == {"queued": 5}


def test_14_a_mailbox_that_is_moving_is_tried_after_one_and_five_minutes(site, campaign):
    fault(site, Answer.error(404, "ErrorNonExistentMailbox", "No mailbox."), times=2)
    site.live(20 * MINUTES)
    assert statuses(campaign) == {"sent": 5}
    first, second, third = sends(site)[:3]
    assert second - first >= MINUTES
    assert third - second >= 5 * MINUTES
    assert attempts_used() == {1}


def test_15_one_address_that_is_refused_is_one_reader_and_the_others_get_theirs(
    site, clock, mailing_list
):
    campaign = campaign_of(clock, mailing_list, 40)
    text = "At least one recipient is not valid., Recipient 'x' is not resolved."
    fault(site, Answer.error(400, "ErrorInvalidRecipients", text), skip=17)
    site.live(5 * MINUTES)
    assert statuses(campaign) == {"sent": 39, "rejected": 1}
    assert len(sends(site)) == 40


def test_15_two_letters_that_are_not_understood_stop_and_mark_nobody(site, campaign):
    fault(site, Answer.error(400, "ErrorMimeContentInvalidBase64String", "Invalid."), times=99)
    site.live(3 * HOURS, step=20 * MINUTES)
    assert len(sends(site)) == 2
    assert limits.state_of("graph").stopped
    assert "rejected" not in statuses(campaign)
    site.assert_only_these_are_marked()


def test_15_a_refusal_that_nobody_knows_holds_the_letter_and_three_in_a_row_stop(site, campaign):
    fault(site, Answer.error(400, "SomethingNew", "?"), times=99)
    site.live(3 * HOURS, step=20 * MINUTES)
    assert len(sends(site)) == 3
    assert limits.state_of("graph").stopped
    assert statuses(campaign) == {"deferred": 2, "queued": 3}


# ------------------------------------------------------------------ 16 and 17


@pytest.mark.parametrize("status", [429, 403])
def test_16_a_spent_quota_is_waited_for_until_our_own_log_knows_of_room_and_reading_goes_on(
    make_site, clock, mailing_list, status
):
    site = make_site()
    campaign = campaign_of(clock, mailing_list, 8)
    text = "The message couldn't be sent because the sender's submission quota was exceeded."
    fault(site, Answer.error(status, "ErrorSubmissionQuotaExceeded", text), skip=4)
    began = clock()
    site.live(20 * HOURS, step=HOURS, reads_every=5 * HOURS)
    assert statuses(campaign) == {"sent": 4, "queued": 4}
    assert len(sends(site)) == 5
    assert len(site.emulator.requests("delta")) >= 4
    site.live(6 * HOURS, step=20 * MINUTES)
    assert statuses(campaign) == {"sent": 8}
    assert sends(site)[5] - began >= 24 * HOURS
    assert sends(site)[5] - began <= 24 * HOURS + 30 * MINUTES


def test_16_an_account_that_must_be_verified_waits_for_a_person(site, campaign):
    fault(site, Answer.error(403, "ErrorExceededMessageLimit", "Verify your account."), times=99)
    site.live(3 * HOURS, step=20 * MINUTES)
    assert len(sends(site)) == 1
    assert statuses(campaign) == {"queued": 5}
    assert Alert.objects.filter(kind=Alert.Kind.PROVIDER).exists()


def test_16_letters_beyond_the_tenants_quota_come_back_and_leave_again_the_next_day(
    make_site, settings, clock, mailing_list
):
    site = make_site(tenant_readers_a_day=8, reported_after=3 * MINUTES)
    more = settings_for(OPTIONS={"mailbox": "more@example.org", "identity": IDENTITY})
    settings.DELIVERY = settings_for() | {
        "PROVIDERS": settings_for()["PROVIDERS"] | {"more": more["PROVIDERS"]["graph"]}
    }
    campaign = campaign_of(clock, mailing_list, 14)
    site.live(30 * MINUTES, step=3 * MINUTES, reads_every=6 * MINUTES)
    assert len(site.emulator.delivered) == 8
    assert len(site.emulator.returned) == 6
    assert statuses(campaign) == {"sent": 8, "queued": 6}
    for alias in ("graph", "more"):
        assert limits.closed_until(limits.state_of(alias), clock()) is not None
    site.assert_only_these_are_marked()
    before = len(sends(site))
    site.live(22 * HOURS, step=HOURS, reads_every=5 * HOURS)
    assert len(sends(site)) == before
    site.live(4 * HOURS, step=20 * MINUTES, reads_every=HOURS)
    assert statuses(campaign) == {"sent": 14}
    assert len(site.emulator.delivered) == 14
    assert attempts_used() == {1}
    site.assert_only_these_are_marked()


def test_17_our_own_full_mailbox_stops_sending_and_the_reader_backs_off(site, campaign, clock):
    full = Answer.error(403, "ErrorQuotaExceeded", "Mailbox has exceeded maximum mailbox size.")
    fault(site, full, times=99, at="/users/")
    site.live(HOURS, reads_every=10 * MINUTES)
    assert len(sends(site)) == 1
    assert "Sent Items" in limits.state_of("graph").because
    assert statuses(campaign) == {"queued": 5}
    site.assert_only_these_are_marked()


def test_17_507_stops_as_well(site, campaign):
    fault(site, Answer.error(507, "QuotaExceededException", "Target mailbox quota exceeded."))
    site.live(HOURS, step=10 * MINUTES)
    assert len(sends(site)) == 1
    assert statuses(campaign) == {"queued": 5}


def test_18_neither_sender_nor_reader_uses_a_batch(site, campaign):
    fault(site, Answer.error(504, "UnknownError"), done=True)
    site.live(15 * MINUTES, reads_every=5 * MINUTES)
    assert site.emulator.requests("$batch") == []
    assert Attempt.objects.filter(outcome="unconfirmed").count() == 1
    assert graph.mailbox_of(f"https://graph.microsoft.com/v1.0 {MAILBOX}").at_once == 1
