"""What a person decides in the admin: about letters in doubt, alerts, a host that is off, and a
campaign that is late. Each by POST, with its permission, and on record."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from campaigns.editions import freeze
from campaigns.models import Campaign, Suppression
from delivery import alerts, installation
from delivery.conf import DeliverySettings
from delivery.models import Alert, Attempt, Delivery, Resolution
from tests.campaigns.admin_world import draft, mailing_list
from tests.delivery.rows import a_campaign, a_letter, a_reader, an_attempt
from tests.delivery.test_admin import HOSTILE, LIST, page, shown, staff_with, text

pytestmark = pytest.mark.django_db
SEES = "view_delivery"
DECIDES = ("view_delivery", "resolve_doubt")
IN_DOUBT = {"status__exact": "unconfirmed"}


def url(decision: str, letter: Delivery) -> str:
    return reverse(f"admin:delivery_delivery_{decision}", args=[letter.pk])


def a_doubt(campaign: Campaign, address: str, now: datetime) -> Delivery:
    letter = a_letter(campaign, a_reader(address), now, "unconfirmed", settled_at=now)
    an_attempt(
        letter, now, "unconfirmed", status="unconfirmed", phase="final dot", code=None,
        reply="Connection lost",
    )  # fmt: skip
    return letter


@pytest.fixture
def spring() -> Campaign:
    return a_campaign("Spring")


@pytest.fixture
def doubt(spring: Campaign, now: datetime) -> Delivery:
    return a_doubt(spring, "ada@example.org", now)


def post_action(client: Client, action: str, letters: list[Delivery], query: str = "", **more: str):
    return client.post(
        reverse(LIST) + (query or "?status__exact=unconfirmed"),
        {"action": action, "_selected_action": [letter.pk for letter in letters]} | more,
    )


# ---------------------------------------------------------------------------- letters in doubt


def test_a_letter_in_doubt_says_where_the_connection_broke_and_offers_two_ways_out(
    doubt: Delivery,
) -> None:
    html = text(page(staff_with(*DECIDES), "admin:delivery_delivery_change", doubt.pk))
    assert "broke after the final dot" in html
    assert "Connection lost" in html
    assert url("treat_as_sent", doubt) in html and url("send_again", doubt) in html


def test_whoever_may_only_look_is_offered_nothing_and_can_do_nothing(doubt: Delivery) -> None:
    client = staff_with(SEES)
    html = text(page(client, "admin:delivery_delivery_change", doubt.pk))
    assert url("send_again", doubt) not in html
    for decision in ("treat_as_sent", "send_again"):
        assert client.get(url(decision, doubt)).status_code == 403
        assert client.post(url(decision, doubt)).status_code == 403
        post_action(client, decision, [doubt], confirmed="yes")
    doubt.refresh_from_db()
    assert doubt.status == "unconfirmed"
    assert not Resolution.objects.exists()


def test_each_decision_is_asked_for_once_more_and_looking_changes_nothing(doubt: Delivery) -> None:
    client = staff_with(*DECIDES)
    assert "two copies" in text(client.get(url("send_again", doubt)))
    assert "gets none" in text(client.get(url("treat_as_sent", doubt)))
    doubt.refresh_from_db()
    assert doubt.status == "unconfirmed"


@pytest.mark.parametrize(
    ("decision", "status"), [("treat_as_sent", "sent"), ("send_again", "queued")]
)
def test_a_person_decides_about_one_letter_and_it_is_on_record(
    doubt: Delivery, decision: str, status: str
) -> None:
    client = staff_with(*DECIDES)
    answer = client.post(url(decision, doubt), follow=True)
    doubt.refresh_from_db()
    assert doubt.status == status
    resolution = Resolution.objects.get()
    assert (resolution.means, resolution.by.username) == ("person", "clerk")
    assert "clerk" in text(answer)
    # A second time there is nothing left to decide.
    assert "not in doubt" in text(client.post(url(decision, doubt), follow=True))
    assert Resolution.objects.count() == 1


def test_sending_again_says_that_the_finished_campaign_is_opened_again(
    doubt: Delivery, spring: Campaign
) -> None:
    client = staff_with(*DECIDES)
    assert "the campaign is opened again" in text(client.get(url("send_again", doubt)))
    client.post(url("send_again", doubt))
    spring.refresh_from_db()
    assert spring.status == "sending"


def test_the_list_of_doubts_has_their_phase_and_actions_and_no_other_list_has(
    doubt: Delivery, spring: Campaign, now: datetime
) -> None:
    a_letter(spring, a_reader("sent@example.org"), now)
    client = staff_with(*DECIDES)
    html = text(page(client, LIST, **IN_DOUBT))
    assert "after the final dot" in html
    assert 'value="send_again"' in html
    assert 'value="send_again"' not in text(page(client, LIST))
    assert 'value="send_again"' not in text(page(client, LIST, status__exact="sent"))
    assert 'value="send_again"' not in text(page(staff_with_other(SEES), LIST, **IN_DOUBT))


def staff_with_other(*permissions: str) -> Client:
    User.objects.filter(username="clerk").delete()
    return staff_with(*permissions)


def test_the_phases_of_a_page_cost_one_query(
    spring: Campaign, now: datetime, django_assert_max_num_queries
) -> None:
    for number in range(20):
        a_doubt(spring, f"r{number}@example.org", now)
    client = staff_with(*DECIDES)
    with django_assert_max_num_queries(22):
        page(client, LIST, **IN_DOUBT)


def test_many_doubts_are_asked_about_together_and_then_decided(
    spring: Campaign, now: datetime
) -> None:
    letters = [a_doubt(spring, f"r{number}@example.org", now) for number in range(4)]
    client = staff_with(*DECIDES)
    asked = text(post_action(client, "treat_as_sent", letters[:3]))
    assert "3 letters in doubt" in asked and "Spring" in asked
    assert not Resolution.objects.exists()
    answer = post_action(client, "treat_as_sent", letters[:3], confirmed="yes")
    assert answer.status_code == 302
    assert Delivery.objects.filter(status="sent").count() == 3
    assert Resolution.objects.count() == 3
    assert shown(page(client, LIST, **IN_DOUBT)) == ["r3@example.org"]


def test_all_doubts_of_a_campaign_are_decided_across_pages(spring: Campaign, now: datetime) -> None:
    summer = a_campaign("Summer")
    other = a_doubt(summer, "other@example.org", now)
    letters = [a_doubt(spring, f"r{number}@example.org", now) for number in range(60)]
    query = f"?status__exact=unconfirmed&campaign__id__exact={spring.pk}"
    client = staff_with(*DECIDES)
    asked = text(post_action(client, "send_again", letters[-1:], query, select_across="1"))
    assert "60 letters in doubt" in asked
    post_action(client, "send_again", letters[-1:], query, select_across="1", confirmed="yes")
    assert Delivery.objects.filter(status="queued").count() == 60
    other.refresh_from_db()
    assert other.status == "unconfirmed"


def test_letters_of_other_states_cannot_be_slipped_in(spring: Campaign, now: datetime) -> None:
    sent = a_letter(spring, a_reader("sent@example.org"), now)
    client = staff_with(*DECIDES)
    for query in ("?status__exact=unconfirmed", "?status__exact=sent", "?"):
        post_action(client, "send_again", [sent], query, confirmed="yes")
    sent.refresh_from_db()
    assert sent.status == "sent"
    assert not Resolution.objects.exists()


def test_a_hostile_reply_is_text_on_the_pages_of_a_doubt(doubt: Delivery) -> None:
    Attempt.objects.update(reply=HOSTILE)
    Campaign.objects.update(name=HOSTILE[:200])
    client = staff_with(*DECIDES)
    for answer in (
        page(client, "admin:delivery_delivery_change", doubt.pk),
        client.get(url("send_again", doubt)),
        page(client, LIST, **IN_DOUBT),
    ):
        assert "<script>alert" not in text(answer)


# ------------------------------------------------------------------------------------- alerts


@pytest.fixture
def alert(spring: Campaign, now: datetime) -> Alert:
    alerts.raise_alert(
        "breaker", f"breaker: campaign {spring.pk}", "“Spring” is paused", "Look.", now,
        campaign=spring,
    )  # fmt: skip
    return Alert.objects.get()


def press(client: Client, button: str, alert: Alert):
    return client.post(reverse(f"admin:delivery_alert_{button}", args=[alert.pk]), follow=True)


def test_an_open_alert_stands_on_every_page_until_it_was_seen(
    alert: Alert, admin_client: Client, client: Client
) -> None:
    pages = ("admin:index", LIST, "admin:campaigns_campaign_changelist")
    for name in pages:
        assert "“Spring” is paused" in text(page(admin_client, name))
    press(admin_client, "see", alert)
    for name in pages:
        assert "“Spring” is paused" not in text(page(admin_client, name))
    assert "“Spring” is paused" in text(page(staff_with("view_alert", SEES), LIST))
    assert "admin" in text(page(admin_client, "admin:delivery_alert_change", alert.pk))
    alert.refresh_from_db()
    assert alert.resolved_at is None


def test_whoever_may_not_see_alerts_sees_no_banner(alert: Alert) -> None:
    client = staff_with(SEES)
    assert "“Spring” is paused" not in text(page(client, LIST))
    assert press(client, "see", alert).status_code == 403


def test_an_alert_that_is_over_has_no_banner(alert: Alert, admin_client: Client) -> None:
    press(admin_client, "dealt_with", alert)
    assert "“Spring” is paused" not in text(page(admin_client, LIST))
    assert LogEntry.objects.filter(object_id=str(alert.pk)).exists()


@pytest.mark.parametrize(
    ("button", "suppressed"), [("suppress", {"ada@example.org"}), ("let_be", set())]
)
def test_a_person_decides_about_suppressions_that_were_held_back(
    alert: Alert, doubt: Delivery, button: str, suppressed: set[str]
) -> None:
    Attempt.objects.update(status="rejected", suppression="held", code=550, reply="5.1.1 No")
    client = staff_with("view_alert")
    assert press(client, button, alert).status_code == 403
    client = staff_with_other("view_alert", "decide_suppressions")
    assert "1 address was refused" in text(page(client, "admin:delivery_alert_change", alert.pk))
    press(client, button, alert)
    assert {row.address_key for row in Suppression.in_force()} == suppressed
    assert "1 address was refused" not in text(
        page(client, "admin:delivery_alert_change", alert.pk)
    )


def test_buttons_take_posts_alone(alert: Alert, admin_client: Client) -> None:
    for button in ("see", "dealt_with", "suppress", "let_be", "adopt"):
        address = reverse(f"admin:delivery_alert_{button}", args=[alert.pk])
        assert admin_client.get(address).status_code == 405


def test_a_host_that_is_off_is_turned_on_by_whoever_may(tmp_path, now: datetime) -> None:
    installation.check_in(DeliverySettings(installations=tmp_path / "original"), now)
    here = DeliverySettings(installations=tmp_path / "copy")
    installation.check_in(here, now)
    alert = Alert.objects.get()
    client = staff_with("view_alert")
    assert press(client, "adopt", alert).status_code == 403
    client = staff_with_other("view_alert", "adopt_installation")
    assert "Turn sending on" in text(page(client, "admin:delivery_alert_change", alert.pk))
    assert "within a minute" in text(press(client, "adopt", alert))
    assert installation.check_in(here, now) is installation.Standing.OURS
    alert.refresh_from_db()
    assert alert.resolved_at == now
    assert "this is over" in text(press(client, "adopt", alert))


# ------------------------------------------------------------------------------ late campaigns


@pytest.fixture
def late(now: datetime) -> Campaign:
    campaign = draft(mailing_list(readers=1))
    assert campaign.schedule(now - timedelta(days=1), edition=freeze(campaign))
    assert campaign.hold(now)
    return campaign


def test_a_late_campaign_says_so_and_is_sent_by_whoever_may(
    late: Campaign, admin_client: Client
) -> None:
    html = text(page(admin_client, "admin:campaigns_campaign_change", late.pk))
    assert "It was to start on 20 November 2026, 10:00" in html
    assert "Send it after all" in html
    address = reverse("admin:campaigns_campaign_send_late", args=[late.pk])
    assert staff_with("view_campaign", "schedule_campaign").post(address).status_code == 403
    assert admin_client.get(address).status_code == 405
    admin_client.post(address)
    late.refresh_from_db()
    assert late.held_at is None
    assert late.events.last().action == "released"
    assert late.events.last().by.username == "admin"


def test_a_campaign_that_stopped_by_itself_says_why(late: Campaign, admin_client: Client) -> None:
    Campaign.objects.filter(pk=late.pk).update(status="sending", held_at=None)
    late.refresh_from_db()
    late.pause(note="guard rail: 20 of 100 letters bounced.")
    html = text(page(admin_client, "admin:campaigns_campaign_change", late.pk))
    assert "Paused (guard rail: 20 of 100 letters bounced.)" in html


def test_an_alerts_own_page_does_not_show_it_twice(alert: Alert, admin_client: Client) -> None:
    html = text(page(admin_client, "admin:delivery_alert_change", alert.pk))
    assert html.count("I have seen it") == 1
