"""Delivery's pages in the admin: what they show, to whom and at what cost. They never write."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape

from campaigns.models import Campaign, CampaignTotals
from delivery import limits, listing, mailboxes, slots
from delivery.claiming import Claimed
from delivery.clocks import database_now
from delivery.composing import compose, letters_of
from delivery.conf import delivery_settings
from delivery.models import Delivery, ProviderState
from delivery.providers.memory import MemoryProvider
from tests.delivery.rows import a_campaign, a_letter, a_reader, an_attempt

pytestmark = pytest.mark.django_db
LIST = "admin:delivery_delivery_changelist"
HOSTILE = '550 <script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7|add:7 }}'


def page(client: Client, name: str, *args: object, **query: object) -> HttpResponse:
    return client.get(reverse(name, args=args), query)


def text(answer: HttpResponse) -> str:
    assert answer.status_code == 200, answer
    return answer.content.decode()


def shown(answer: HttpResponse) -> list[str]:
    """The addresses of a list, in its order."""
    text(answer)
    return [delivery.rcpt_to for delivery in answer.context["cl"].result_list]


def staff_with(*permissions: str) -> Client:
    user = User.objects.create_user("clerk", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


# ---------------------------------------------------------------------------------- the list


def test_the_list_shows_the_newest_campaign_first_and_links_to_its_letters_stories(
    admin_client: Client, now: datetime
) -> None:
    campaign = a_campaign("Spring & Summer")
    first = a_letter(campaign, "a@example.org", now, code=250, reply="2.0.0 Ok")
    a_letter(a_campaign("Autumn"), "b@example.org", now, "rejected")
    answer = page(admin_client, LIST)
    assert shown(answer) == ["b@example.org", "a@example.org"]
    html = text(answer)
    assert reverse("admin:delivery_delivery_change", args=[first.pk]) in html
    assert "250 2.0.0 Ok" in html
    assert "Spring &amp; Summer" in html


def test_the_list_can_be_narrowed_by_campaign_status_and_kind(
    admin_client: Client, now: datetime
) -> None:
    spring, summer = a_campaign("Spring"), a_campaign("Summer")
    a_letter(spring, a_reader("sent@example.org"), now)
    a_letter(spring, a_reader("rejected@example.org"), now, "rejected")
    a_letter(spring, a_reader("queued@example.org"), now, "queued")
    a_letter(summer, a_reader("summer@example.org"), now)
    a_letter(spring, "boss@example.org", now, is_test=True)
    of_spring = {"campaign__id__exact": spring.pk}
    assert shown(page(admin_client, LIST, **of_spring)) == [
        "sent@example.org",
        "rejected@example.org",
        "queued@example.org",
    ]
    for status in ("sent", "rejected", "queued"):
        found = page(admin_client, LIST, **of_spring, status__exact=status)
        assert shown(found) == [f"{status}@example.org"]
    assert len(shown(page(admin_client, LIST, status__exact="sent"))) == 2
    assert shown(page(admin_client, LIST, **of_spring, test="yes")) == ["boss@example.org"]


def test_waiting_letters_stand_in_the_order_in_which_they_will_leave(
    admin_client: Client, now: datetime
) -> None:
    campaign = a_campaign()
    for minutes in (3, 1, 2):
        a_letter(
            campaign,
            a_reader(f"in{minutes}@example.org"),
            now,
            "deferred",
            due_at=now + timedelta(minutes=minutes),
        )
    found = page(admin_client, LIST, campaign__id__exact=campaign.pk, status__exact="deferred")
    assert shown(found) == ["in1@example.org", "in2@example.org", "in3@example.org"]


def test_a_search_finds_the_whole_address_first_and_otherwise_its_beginning(
    admin_client: Client, now: datetime
) -> None:
    campaign = a_campaign()
    for address in ("ada@example.org", "ada@example.org.uk", "adam@example.org", "eve@example.org"):
        a_letter(campaign, address, now)
    assert shown(page(admin_client, LIST, q="ADA@example.org")) == ["ada@example.org"]
    assert shown(page(admin_client, LIST, q="ada")) == [
        "ada@example.org",
        "ada@example.org.uk",
        "adam@example.org",
    ]
    assert shown(page(admin_client, LIST, q="ad_")) == []
    assert shown(page(admin_client, LIST, q="ada@example.org", status__exact="queued")) == []
    assert shown(page(admin_client, LIST, q="nobody")) == []


def test_the_list_never_counts_the_big_table(admin_client: Client, now: datetime) -> None:
    campaign = a_campaign()
    for number in range(3):
        a_letter(campaign, a_reader(f"r{number}@example.org"), now)
    for query in (
        {},
        {"campaign__id__exact": campaign.pk},
        {"status__exact": "sent"},
        {"campaign__id__exact": campaign.pk, "status__exact": "sent"},
        {"_facets": "True"},
    ):
        with CaptureQueriesContext(connection) as queries:
            answer = page(admin_client, LIST, **query)
        assert answer.context["cl"].result_count == 3
        counts = [sql["sql"] for sql in queries if "COUNT(" in sql["sql"]]
        assert not [sql for sql in counts if "delivery_delivery" in sql]


def test_a_longer_list_costs_no_more_queries(admin_client: Client, now: datetime) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            text(page(admin_client, LIST))
        return len(queries)

    a_letter(a_campaign("first"), "first@example.org", now)
    page(admin_client, LIST)
    before = cost()
    for number in range(20):
        a_letter(a_campaign(f"number {number}"), f"r{number}@example.org", now)
    assert cost() == before


def test_a_search_is_counted_only_up_to_a_bound(
    admin_client: Client, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "COUNTED_AT_MOST", 3)
    campaign = a_campaign()
    for number in range(5):
        a_letter(campaign, f"r{number}@example.org", now)
    answer = page(admin_client, LIST, q="r")
    assert len(shown(answer)) == 3
    assert "at least 3 deliveries: type more of the address" in text(answer)


def test_a_search_that_no_address_can_match_is_refused_and_shows_the_list(
    admin_client: Client, now: datetime
) -> None:
    a_letter(a_campaign(), "a@example.org", now)
    answer = page(admin_client, LIST, q="a\0")
    assert "Null characters are not allowed" in text(answer)
    assert shown(answer) == ["a@example.org"]


def test_a_wrong_total_does_not_load_the_table(admin_client: Client, now: datetime) -> None:
    campaign = a_campaign()
    for number in range(3):
        a_letter(campaign, f"r{number}@example.org", now)
    CampaignTotals.objects.all().delete()
    assert shown(page(admin_client, LIST)) == []


def test_lookups_that_no_index_serves_are_refused(admin_client: Client, now: datetime) -> None:
    a_letter(a_campaign(), "a@example.org", now)
    for lookup in ("reply__contains", "attempts__gt", "campaign__created_by__password__startswith"):
        assert page(admin_client, LIST, **{lookup: "x"}).status_code == 400
    assert shown(page(admin_client, LIST, o="1.-2.3.4.5.6")) == ["a@example.org"]


def test_a_page_beyond_the_last_is_no_error(admin_client: Client, now: datetime) -> None:
    a_letter(a_campaign(), "a@example.org", now)
    assert page(admin_client, LIST, p=99).status_code == 302


# ---------------------------------------------------------------------------------- one letter


def test_a_letters_page_tells_its_story_with_envelope_and_links(
    admin_client: Client, now: datetime
) -> None:
    campaign, reader = a_campaign(), a_reader("ada@example.org", name="Ada")
    letter = a_letter(campaign, reader, now, settled_at=now, code=250, reply="2.0.0 Ok: 4bXy")
    an_attempt(letter, now, "deferred")
    html = text(page(admin_client, "admin:delivery_delivery_change", letter.pk))
    for expected in (
        "Accepted by the provider&#x27;s server: sent, not yet proof of delivery",
        "450 4.2.0 Greylisted",
        "250 2.0.0 Ok: 4bXy",
        reverse("admin:campaigns_campaign_change", args=[campaign.pk]),
        reverse("admin:campaigns_subscriber_change", args=[reader.pk]),
    ):
        assert expected in html


def test_the_envelope_shown_is_the_one_that_was_sent(
    admin_client: Client, now: datetime, campaign: object
) -> None:
    letter = Delivery.objects.select_related("subscriber", "mailing_list").first()
    claimed = Claimed(
        id=letter.pk,
        campaign_id=letter.campaign_id,
        edition_id=letter.edition_id,
        subscriber_id=letter.subscriber_id,
        rcpt_to=letter.rcpt_to,
        is_test=False,
        attempts=0,
        queued=now.isoformat(),
        name="",
        language="",
        attributes={},
        list_name="Weekly",
        list_label="weekly",
    )
    (message,) = compose([claimed], letters_of([claimed]), now)
    html = text(page(admin_client, "admin:delivery_delivery_change", letter.pk))
    assert escape(message.message_id) in html
    assert escape(message.envelope.mail_from) in html


def test_a_letter_in_doubt_says_what_that_means(admin_client: Client, now: datetime) -> None:
    letter = a_letter(a_campaign(), "ada@example.org", now, "unconfirmed", settled_at=now)
    html = text(page(admin_client, "admin:delivery_delivery_change", letter.pk))
    assert "may or may not have arrived" in html


def test_an_erased_readers_letter_can_still_be_read(admin_client: Client, now: datetime) -> None:
    reader = a_reader("ada@example.org")
    letter = a_letter(a_campaign(), reader, now)
    reader.delete()
    html = text(page(admin_client, "admin:delivery_delivery_change", letter.pk))
    assert "Erased since" in html


def test_letters_can_be_neither_made_nor_changed_nor_deleted(
    admin_client: Client, now: datetime
) -> None:
    letter = a_letter(a_campaign(), "ada@example.org", now)
    assert admin_client.get(reverse("admin:delivery_delivery_add")).status_code == 403
    change = reverse("admin:delivery_delivery_change", args=[letter.pk])
    assert admin_client.post(change, {"status": "queued"}).status_code == 405
    delete = reverse("admin:delivery_delivery_delete", args=[letter.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403
    letter.refresh_from_db()
    assert letter.status == "sent"


# ---------------------------------------------------------------------------------- hostile text


def test_hostile_replies_are_text_on_every_page(admin_client: Client, now: datetime) -> None:
    campaign = a_campaign(HOSTILE[:200])
    letter = a_letter(
        campaign,
        a_reader("ada@example.org", name=HOSTILE),
        now,
        "rejected",
        settled_at=now,
        code=550,
        reply=HOSTILE,
    )
    an_attempt(letter, now, "rejected", reply=HOSTILE, rule=HOSTILE[:60], phase="rcpt")
    state = ProviderState.objects.create(
        alias="default", stopped=True, because=HOSTILE, rule=HOSTILE[:60], paused_at=now
    )
    pages = [
        page(admin_client, LIST),
        page(admin_client, LIST, q="<script>alert(1)</script>"),
        page(admin_client, "admin:delivery_delivery_change", letter.pk),
        page(admin_client, "admin:delivery_why", address="ada@example.org"),
        page(admin_client, "admin:delivery_why", address='"><script>alert(1)</script>'),
        page(admin_client, "admin:delivery_providerstate_changelist"),
        page(admin_client, "admin:delivery_providerstate_change", state.pk),
    ]
    for answer in pages:
        html = text(answer)
        assert "<script>alert(1)" not in html
        assert "<img src=x" not in html
    for answer in (pages[2], pages[6]):
        assert escape(HOSTILE) in text(answer)  # verbatim, as text


# ---------------------------------------------------------------------------------- why


def test_why_answers_for_every_campaign_but_drafts(admin_client: Client, now: datetime) -> None:
    spring = a_campaign("Spring", started_at=now, filled_at=now)
    a_campaign("Summer", started_at=now, filled_at=now)
    a_campaign("Autumn", status="draft")
    letter = a_letter(spring, a_reader("ada@example.org"), now, settled_at=now)
    answer = page(admin_client, "admin:delivery_why", address=" ADA@example.org ")
    html = text(answer)
    assert [one.campaign.name for one in answer.context["answers"]] == ["Summer", "Spring"]
    assert "Sent on 21 November 2026" in html
    assert "Not in the audience" in html
    assert reverse("admin:delivery_delivery_change", args=[letter.pk]) in html
    assert "Autumn" not in html


def test_why_pages_through_many_campaigns(admin_client: Client, now: datetime) -> None:
    for number in range(21):
        a_campaign(f"Number {number}", started_at=now, filled_at=now)
    first = page(admin_client, "admin:delivery_why", address="a+b@example.org")
    assert len(first.context["answers"]) == 20
    assert "?address=a%2Bb%40example.org&amp;p=2" in text(first)
    second = page(admin_client, "admin:delivery_why", address="a+b@example.org", p=2)
    assert [one.campaign.name for one in second.context["answers"]] == ["Number 0"]


def test_why_says_what_is_wrong_with_what_was_typed(admin_client: Client) -> None:
    for wrong in ("", "not an address", "a@b@c", "x" * 400):
        html = text(page(admin_client, "admin:delivery_why", address=wrong))
        assert 'role="alert"' in html


def test_why_needs_its_permission() -> None:
    assert text(page(staff_with("ask_why"), "admin:delivery_why"))
    User.objects.all().delete()
    stranger = staff_with("view_campaign")
    assert page(stranger, "admin:delivery_why").status_code == 403
    assert page(Client(), "admin:delivery_why").status_code == 302


# ---------------------------------------------------------------------------------- providers


def test_each_provider_of_the_settings_is_listed_and_none_of_its_options(
    admin_client: Client, settings: object
) -> None:
    settings.DELIVERY = {
        **settings.DELIVERY,
        "PROVIDERS": {
            "default": {
                "BACKEND": "delivery.providers.smtp.SMTPProvider",
                "OPTIONS": {"host": "localhost", "username": "u", "password": "planted-secret"},
                "LIMITS": [{"rate": "30/minute"}],
            }
        },
    }
    html = text(page(admin_client, "admin:delivery_providerstate_changelist"))
    assert "SMTPProvider" in html
    state = ProviderState.objects.get(alias="default")
    html += text(page(admin_client, "admin:delivery_providerstate_change", state.pk))
    assert "30 a minute" in html
    assert "planted-secret" not in html


def test_a_providers_page_shows_what_counts_and_how_many_connections_it_bears(
    admin_client: Client, settings: Any
) -> None:
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": {
            "default": {
                "BACKEND": "delivery.providers.smtp.SMTPProvider",
                "OPTIONS": {"host": "localhost"},
                "LIMITS": [{"cap": "1000/day"}, {"connections": 4}],
            }
        },
    }
    provider = delivery_settings().providers["default"]
    limits.take(provider.limits, 7, 1, database_now)
    slots.make(provider.connections)
    slots.hold(provider.connections, 1, 2)
    slots.fewer(provider.connections, database_now())
    page(admin_client, "admin:delivery_providerstate_changelist")
    state = ProviderState.objects.get(alias="default")
    html = text(page(admin_client, "admin:delivery_providerstate_change", state.pk))
    assert "1,000 a day" in html
    assert "7 of 1,000" in html
    assert "2 of 4 in use" in html
    assert "Reduced to 2 since" in html


def test_a_stopped_provider_is_opened_by_a_post_with_its_permission(now: datetime) -> None:
    state = ProviderState.objects.create(
        alias="default", stopped=True, because="535 5.7.8 Bad credentials", paused_at=now
    )
    url = reverse("admin:delivery_providerstate_resume", args=[state.pk])
    viewer = staff_with("view_providerstate")
    html = text(page(viewer, "admin:delivery_providerstate_change", state.pk))
    assert "535 5.7.8 Bad credentials" in html
    assert "Open again" not in html
    assert viewer.post(url).status_code == 403
    User.objects.all().delete()
    operator = staff_with("view_providerstate", "resume_provider")
    assert operator.get(url).status_code == 405
    state.refresh_from_db()
    assert state.stopped
    assert operator.post(url).status_code == 302
    state.refresh_from_db()
    assert not state.stopped
    assert LogEntry.objects.get().change_message == "Opened again."
    operator.post(url)
    assert LogEntry.objects.count() == 1  # it was open already


def test_a_provider_is_tested_by_a_post_with_its_permission(
    admin_client: Client, settings: Any
) -> None:
    page(admin_client, "admin:delivery_providerstate_changelist")
    state = ProviderState.objects.get(alias="default")
    url = reverse("admin:delivery_providerstate_test", args=[state.pk])
    addresses = {"sender": "news@example.org", "to": "me@example.org"}
    viewer = staff_with("view_providerstate")
    assert viewer.post(url, addresses).status_code == 403
    assert url not in text(page(viewer, "admin:delivery_providerstate_change", state.pk))
    assert admin_client.get(url).status_code == 405
    assert "Give both" in text(admin_client.post(url, {"sender": "nobody"}, follow=True))
    before = len(MemoryProvider.outbox)
    html = text(admin_client.post(url, addresses, follow=True))
    assert "Accepted: 250 kept" in html
    assert len(MemoryProvider.outbox) == before + 1
    assert LogEntry.objects.get().change_message == "Tested."


def test_a_test_into_a_silence_says_until_when_it_rests(
    admin_client: Client, settings: Any
) -> None:
    options = {"host": "smtp.office365.com", "username": "news@contoso.example", "password": "x"}
    provider = {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": options}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": {"default": provider}}
    turn = mailboxes.ask("news@contoso.example", None, database_now())
    mailboxes.done("news@contoso.example", turn, database_now(), "429 Too many objects")
    state = ProviderState.objects.get(alias="default")
    url = reverse("admin:delivery_providerstate_test", args=[state.pk])
    addresses = {"sender": "news@contoso.example", "to": "news@contoso.example"}
    until = mailboxes.resting_until("news@contoso.example", database_now())
    html = text(admin_client.post(url, addresses, follow=True))
    assert f"Resting until {timezone.localtime(until):%H:%M}" in html


def test_before_a_campaign_starts_its_page_says_when_it_will_be_done_and_why(
    admin_client: Client, settings: Any, campaign: Campaign
) -> None:
    draft = Campaign.objects.create(
        name="June", from_email="news@example.org", subject="News", html="<p>Good day.</p>"
    )
    draft.include_lists.set(campaign.include_lists.all())
    address = reverse("admin:campaigns_campaign_send", args=[draft.pk])
    assert 'id="forecast"' not in text(admin_client.get(address))
    memory = settings.DELIVERY["PROVIDERS"]["default"]
    limits_set = [{"rate": "28/minute"}, {"cap": "5/day", "scope": "mailbox:news"}]
    settings.DELIVERY = settings.DELIVERY | {
        "PROVIDERS": {"default": memory | {"LIMITS": limits_set}}
    }
    html = text(admin_client.get(address))
    assert "what decides is the limit of 5 a day (mailbox:news)" in html


def test_a_mailboxs_rest_is_shown_and_opened_by_nobody(admin_client: Client, settings) -> None:
    options = {"host": "smtp.office365.com", "username": "news@contoso.example", "password": "x"}
    provider = {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": options}
    settings.DELIVERY = settings.DELIVERY | {"PROVIDERS": {"default": provider}}
    turn = mailboxes.ask("news@contoso.example", None, database_now())
    mailboxes.done("news@contoso.example", turn, database_now(), "429 Too many objects")
    state = ProviderState.objects.get(alias="default")
    html = text(page(admin_client, "admin:delivery_providerstate_change", state.pk))
    assert "Nobody touches the mailbox until" in html
    assert "Open again" not in html
    url = reverse("admin:delivery_providerstate_resume", args=[state.pk])
    html = text(admin_client.post(url, follow=True))
    assert "nobody can end that early" in html
    assert limits.closed_until(limits.state_of("default"), database_now()) is not None


def test_several_providers_are_opened_from_the_list(admin_client: Client, now: datetime) -> None:
    states = [
        ProviderState.objects.create(alias=alias, stopped=True, paused_at=now)
        for alias in ("default", "other")
    ]
    admin_client.post(
        reverse("admin:delivery_providerstate_changelist"),
        {"action": "open_again", "_selected_action": [state.pk for state in states]},
    )
    assert not ProviderState.objects.filter(stopped=True).exists()


# ---------------------------------------------------------------------------------- the others


@pytest.mark.parametrize(
    "name",
    [
        "django_q_schedule",
        "django_q_success",
        "django_q_failure",
        "django_q_ormq",
        "auth_user",
        "auth_group",
    ],
)
def test_foreign_models_have_pages_in_the_frame_of_the_product(
    admin_client: Client, name: str
) -> None:
    answer = page(admin_client, f"admin:{name}_changelist")
    assert "unfold" in text(answer)
    assert type(answer.context["cl"].model_admin).__module__.split(".")[0] in {
        "delivery",
        "campaigns",
    }


def test_a_user_is_made_and_changed_through_the_pages(admin_client: Client) -> None:
    answer = admin_client.post(
        reverse("admin:auth_user_add"),
        {
            "username": "grace",
            "usable_password": "true",
            "password1": "a-long-enough-one",
            "password2": "a-long-enough-one",
        },
    )
    assert answer.status_code == 302
    user = User.objects.get(username="grace")
    assert user.check_password("a-long-enough-one")
    text(page(admin_client, "admin:auth_user_change", user.pk))
    text(page(admin_client, "admin:auth_user_password_change", user.pk))
