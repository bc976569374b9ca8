"""The admin shows what came back, escaped, and changes none of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse

from bounces.models import Bounce, MailboxState, ReceivedMail
from bounces.poller import poll
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_maildir import put

pytestmark = pytest.mark.django_db

ATTACK = "<script>alert('pwned')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def bounce(settings, deliver: Deliver, now) -> Bounce:
    """A genuine report whose every text is hostile, through the real channel: a mailbox."""
    letter = deliver()
    raw = report(
        group(diagnostic=f"smtp; 550 5.1.1 {ATTACK} \u202egnp.exe"),
        delivered_to=return_path(letter),
    )
    raw = raw.replace(b"Subject: Undelivered", b"Subject: " + ATTACK.encode())
    raw = raw.replace(b"From: MAILER-DAEMON", b"From: " + ATTACK.encode())
    raw = raw.replace(b"It did not arrive.", ATTACK.encode())
    put(Path(settings.BOUNCES["MAILBOXES"]["default"]["OPTIONS"]["path"]), raw)
    poll("default", now)
    return Bounce.objects.get()


def pages(bounce: Bounce) -> list[str]:
    return [
        reverse("admin:bounces_bounce_changelist"),
        reverse("admin:bounces_bounce_change", args=[bounce.pk]),
        reverse("admin:bounces_receivedmail_changelist"),
        reverse("admin:bounces_receivedmail_change", args=[bounce.received_mail_id]),
        reverse("admin:bounces_mailboxstate_changelist"),
        reverse("admin:bounces_mailboxstate_change", args=[MailboxState.objects.get().pk]),
    ]


def test_t6_every_page_escapes_what_came_from_outside(admin: Client, bounce: Bounce) -> None:
    shown = 0
    for page in pages(bounce):
        answer = admin.get(page)
        assert answer.status_code == 200, page
        html = answer.content.decode()
        assert "<script>alert('pwned')" not in html
        assert "<img src=x" not in html
        assert "\u202e" not in html
        shown += "&lt;script&gt;alert(" in html
    assert shown >= 3  # it was there to be escaped


def test_the_mail_is_shown_as_it_was(admin: Client, bounce: Bounce) -> None:
    html = admin.get(pages(bounce)[3]).content.decode()
    assert "Reporting-MTA: dns; mx.example.net" in html
    assert "<pre" in html


def test_a_mail_whose_retention_is_over_says_so(admin: Client, bounce: Bounce) -> None:
    ReceivedMail.objects.update(raw=None)
    assert "retention is over" in admin.get(pages(bounce)[3]).content.decode()


def test_a_bounce_leads_to_its_letter_and_its_mail(admin: Client, bounce: Bounce) -> None:
    html = admin.get(pages(bounce)[1]).content.decode()
    assert reverse("admin:delivery_delivery_change", args=[bounce.delivery_id]) in html
    assert reverse("admin:bounces_receivedmail_change", args=[bounce.received_mail_id]) in html


def test_bounces_are_found_by_the_beginning_of_an_address(admin: Client, bounce: Bounce) -> None:
    url = reverse("admin:bounces_bounce_changelist")
    assert "ada@example.net" in admin.get(url, {"q": "ADA@"}).content.decode()
    assert "ada@example.net" not in admin.get(url, {"q": "bob@"}).content.decode()


def test_bounces_are_filtered_by_class_and_campaign(admin: Client, bounce: Bounce) -> None:
    url = reverse("admin:bounces_bounce_changelist")
    campaign = {"campaign__id__exact": bounce.campaign_id}
    assert "ada@example.net" in admin.get(url, campaign).content.decode()
    hard, soft = {"bounce_class__exact": "hard"}, {"bounce_class__exact": "soft"}
    assert "ada@example.net" in admin.get(url, hard).content.decode()
    assert "ada@example.net" not in admin.get(url, soft).content.decode()


def test_machine_rows_cannot_be_added_changed_or_deleted(admin: Client, bounce: Bounce) -> None:
    for model, pk in (
        ("bounce", bounce.pk),
        ("receivedmail", bounce.received_mail_id),
        ("mailboxstate", MailboxState.objects.get().pk),
    ):
        assert admin.get(reverse(f"admin:bounces_{model}_add")).status_code == 403
        change = reverse(f"admin:bounces_{model}_change", args=[pk])
        assert admin.post(change, {"recipient": "x"}).status_code == 403
        delete = reverse(f"admin:bounces_{model}_delete", args=[pk])
        assert admin.post(delete, {"post": "yes"}).status_code == 403
    bounce.refresh_from_db()
    assert bounce.recipient == "ada@example.net"


def test_without_the_permission_nothing_is_shown(bounce: Bounce) -> None:
    user = get_user_model().objects.create_user("helper", password="x", is_staff=True)
    client = Client()
    client.force_login(user)
    assert {client.get(page).status_code for page in pages(bounce)} == {403}


def test_a_mail_about_many_readers_is_shown_with_few_queries(
    admin: Client, bounce: Bounce, deliver: Deliver, django_assert_max_num_queries
) -> None:
    for number in range(30):
        letter = deliver(f"r{number}@example.net")
        Bounce.objects.create(received_mail=bounce.received_mail, delivery=letter, at=bounce.at)
    with django_assert_max_num_queries(20):
        html = admin.get(pages(bounce)[3]).content.decode()
    assert "r29@example.net" in html


def test_received_mail_is_chosen_by_its_mailbox_without_looking_through_all_of_it(
    admin: Client, bounce: Bounce, django_assert_max_num_queries
) -> None:
    url = reverse("admin:bounces_receivedmail_changelist")
    MailboxState.objects.create(name="other")
    with django_assert_max_num_queries(20) as captured:
        assert "alert(" in admin.get(url, {"mailbox": "default"}).content.decode()
    assert not any("DISTINCT" in query["sql"] for query in captured.captured_queries)
    assert "alert(" not in admin.get(url, {"mailbox": "other"}).content.decode()


def test_the_list_does_not_fetch_the_mails_themselves(
    admin: Client, bounce: Bounce, django_assert_max_num_queries
) -> None:
    with django_assert_max_num_queries(20) as captured:
        admin.get(reverse("admin:bounces_receivedmail_changelist"))
    assert not any('"raw"' in query["sql"] for query in captured.captured_queries)
