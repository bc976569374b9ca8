"""The admin's own pages: charts, which detector, examine again, undo, alerts, the breaker."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from bounces import charts
from bounces.conf import DEFAULT_DETECTORS
from bounces.detectors.delivery_status import DeliveryStatusDetector
from bounces.intake import CAUSE_OF_FORGERY
from bounces.models import Bounce, Breaker, ReceivedMail, Verdict
from bounces.poller import poll
from campaigns.models import Campaign, Suppression
from delivery.alerts import open_alerts, raise_alert
from delivery.models import Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.samples import raw_sample
from tests.bounces.test_admin import ATTACK
from tests.bounces.test_intake import take
from tests.bounces.test_maildir import put

pytestmark = pytest.mark.django_db

CHARTS = "admin:bounces_charts"
WHICH = "admin:bounces_which"


@pytest.fixture
def helper(db) -> Client:
    """May look at everything, and do nothing."""
    user = get_user_model().objects.create_user("helper", password="x", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(content_type__app_label="bounces", codename__startswith="view_")
    )
    client = Client()
    client.force_login(user)
    return client


def only(settings, *detectors: str) -> None:
    settings.BOUNCES = settings.BOUNCES | {"DETECTORS": list(detectors)}


def again(mail: ReceivedMail) -> str:
    return reverse("admin:bounces_receivedmail_again", args=[mail.pk])


def test_t6_hostile_text_that_came_by_the_mailbox_is_escaped_on_every_page(
    admin: Client, settings, deliver: Deliver
) -> None:
    letter = deliver()
    Delivery.objects.update(handed_over_at=timezone.now())
    raw = report(
        group(
            f'"{ATTACK}"@evil.example',
            status="5.7.1",
            diagnostic=f"smtp; 550 5.7.1 {ATTACK} \u202e blocked",
        ),
        delivered_to=return_path(letter),
    )
    raw = raw.replace(b"Subject: Undelivered", b"Subject: " + ATTACK.encode())
    put(Path(settings.BOUNCES["MAILBOXES"]["default"]["OPTIONS"]["path"]), raw)
    poll("default", timezone.now())
    Bounce.objects.update(domain=ATTACK)
    mail = ReceivedMail.objects.get()
    pages = [
        reverse(CHARTS),
        again(mail),
        reverse("admin:delivery_alert_changelist"),
        reverse("admin:bounces_receivedmail_document", args=[mail.pk]),
        reverse("admin:delivery_delivery_change", args=[letter.pk]),
    ]
    answers = [admin.get(page) for page in pages]
    answers.append(admin.post(reverse(WHICH), {"text": raw.decode()}))
    for answer in answers:
        html = answer.content.decode()
        assert answer.status_code == 200
        assert "<script>alert('pwned')" not in html
        assert "<img src=x" not in html
    assert sum("&lt;script&gt;alert(" in answer.content.decode() for answer in answers) >= 4


def test_t6_html_of_a_stranger_is_shown_in_a_frame_that_may_do_nothing(admin: Client, now) -> None:
    raw = b"Content-Type: text/html\n\n<h1>Hi</h1><script>alert(1)</script><img src=http://x/y>"
    take(raw, now)
    mail = ReceivedMail.objects.get()
    answer = admin.get(reverse("admin:bounces_receivedmail_document", args=[mail.pk]))
    policy = answer["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "img-src" not in policy and "script-src" not in policy and "allow-" not in policy
    assert answer["X-Content-Type-Options"] == "nosniff"
    page = admin.get(reverse("admin:bounces_receivedmail_change", args=[mail.pk]))
    assert 'sandbox=""' in page.content.decode()
    assert "<h1>Hi</h1>" not in page.content.decode()


def test_a_mail_is_shown_in_the_charset_that_it_claims(admin: Client, now) -> None:
    take(raw_sample("words-in-koi8-r"), now)
    mail = ReceivedMail.objects.get()
    answer = admin.get(reverse("admin:bounces_receivedmail_document", args=[mail.pk]))
    assert "Сообщение не может быть доставлено" in answer.content.decode()


def test_charts_count_by_class_domain_and_campaign(admin: Client, deliver: Deliver, now) -> None:
    now = timezone.now()
    for number, (domain, status) in enumerate(
        [("one.example", "5.1.1"), ("one.example", "5.2.2"), ("two.example", "5.1.1")]
    ):
        letter = deliver(f"r{number}@{domain}")
        Delivery.objects.update(handed_over_at=now)
        raw = report(
            group(status=status, diagnostic=f"smtp; 550 {status} x"),
            delivered_to=return_path(letter),
        )
        take(raw, now, uid=str(number))
    Bounce.objects.create(
        received_mail=ReceivedMail.objects.first(),
        at=now - timedelta(days=31),
        domain="old.example",
    )
    totals = {bar.label: bar.total for bar in charts.by_class(now)}
    assert totals["Hard: the address is gone"] == 2
    assert totals["Soft: not this time"] == 1
    assert [(bar.label, bar.total) for bar in charts.by_domain(now)] == [
        ("one.example", 2), ("two.example", 1)
    ]  # fmt: skip
    assert [segment.width for segment in charts.by_domain(now)[0].segments] == [50.0, 50.0]
    assert [(bar.label, bar.total) for bar in charts.by_campaign(now)] == [("Week 47", 3)]
    html = admin.get(reverse(CHARTS)).content.decode()
    assert "<svg" in html and "one.example" in html and "old.example" not in html


def test_two_campaigns_of_one_name_have_a_bar_each(deliver: Deliver) -> None:
    now = timezone.now()
    take(report(delivered_to=return_path(deliver())), now)
    mail, bounce = ReceivedMail.objects.get(), Bounce.objects.get()
    namesake = Campaign.objects.create(name=bounce.campaign.name)
    for _ in range(2):
        Bounce.objects.create(received_mail=mail, campaign=namesake, bounce_class="soft", at=now)
    assert [(bar.label, bar.total) for bar in charts.by_campaign(now)] == [
        ("Week 47", 2), ("Week 47", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("by", ["text", "file"])
def test_a_pasted_or_uploaded_mail_is_put_to_every_detector(by: str, admin: Client) -> None:
    raw = raw_sample("postfix-user-unknown")
    data = {"text": raw.decode()} if by == "text" else {"file": SimpleUploadedFile("x.eml", raw)}
    html = admin.post(reverse(WHICH), data).content.decode()
    assert html.count("not mine") == 3
    assert "takes it" in html
    assert "ada@example.net" in html
    assert "the address does not exist" in html
    assert not ReceivedMail.objects.exists()


def test_a_detector_that_would_take_a_mail_too_late_is_named(admin: Client, settings) -> None:
    only(settings, *reversed(DEFAULT_DETECTORS))
    html = admin.post(reverse(WHICH), {"text": raw_sample("mdn-displayed").decode()})
    assert "takes it" in html.content.decode()
    assert "Paste a mail" in admin.post(reverse(WHICH), {}).content.decode()


def test_examining_again_shows_the_difference_and_changes_nothing(
    admin: Client, settings, deliver: Deliver, now
) -> None:
    letter = deliver()
    only(settings, DEFAULT_DETECTORS[2])
    assert take(report(delivered_to=return_path(letter)), now) is Verdict.UNRECOGNISED
    only(settings, *DEFAULT_DETECTORS)
    html = admin.get(again(ReceivedMail.objects.get())).content.decode()
    assert "Nobody is reported" in html
    assert "ada@example.net: hard 5.1.1" in html
    assert "Record the new reading" in html
    assert not Bounce.objects.exists()


def test_a_better_detector_takes_up_an_old_mail(admin, settings, deliver: Deliver, now) -> None:
    letter = deliver()
    only(settings, DEFAULT_DETECTORS[2])
    take(report(delivered_to=return_path(letter)), now)
    only(settings, *DEFAULT_DETECTORS)
    admin.post(again(ReceivedMail.objects.get()))
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert Suppression.in_force().count() == 1
    mail = ReceivedMail.objects.get()
    assert mail.verdict == Verdict.BOUNCE
    assert mail.detector_version == DeliveryStatusDetector.version
    assert "say the same" in admin.get(again(mail)).content.decode()
    admin.post(again(mail))
    assert Bounce.objects.count() == 1


class Softer:
    version = "3.1"

    def detect(self, mail):
        from bounces.report import BounceReport

        return [BounceReport("ada@example.net", "failed", "5.2.2", False, "full after all")]


class Nobody:
    def detect(self, mail):
        return []


@pytest.mark.parametrize("detector", [Softer, Nobody])
def test_a_suppression_that_a_new_reading_does_not_bear_out_is_lifted(
    detector, admin: Client, settings, deliver: Deliver, now
) -> None:
    letter = deliver()
    take(report(delivered_to=return_path(letter)), now)
    only(settings, f"{detector.__module__}.{detector.__qualname__}")
    admin.post(again(ReceivedMail.objects.get()))
    assert not Suppression.in_force().exists()
    old = Bounce.objects.get(replaced=True)
    assert old.suppressed and old.undone_at is not None
    letter.refresh_from_db()
    assert letter.status == DeliveryStatus.BOUNCED
    assert Bounce.objects.filter(replaced=False).count() == (1 if detector is Softer else 0)


def test_a_new_reading_that_bears_it_out_keeps_the_suppression(
    admin: Client, settings, deliver: Deliver, now
) -> None:
    letter = deliver()
    take(report(group(status="5.1.2"), delivered_to=return_path(letter)), now)
    Bounce.objects.update(status="5.1.9")  # as if read otherwise then
    admin.post(again(ReceivedMail.objects.get()))
    assert Suppression.in_force().count() == 1
    assert list(Bounce.objects.order_by("id").values_list("replaced", "suppressed")) == [
        (True, True), (False, True)
    ]  # fmt: skip


def test_a_mail_that_is_forgotten_cannot_be_examined_again(admin: Client, now) -> None:
    take(report(), now)
    ReceivedMail.objects.update(raw=None)
    assert admin.get(again(ReceivedMail.objects.get())).status_code == 302


def test_a_suppression_is_undone_from_its_bounce(admin: Client, deliver: Deliver, now) -> None:
    take(report(delivered_to=return_path(deliver())), now)
    bounce = Bounce.objects.get()
    page = reverse("admin:bounces_bounce_change", args=[bounce.pk])
    undo = reverse("admin:bounces_bounce_undo", args=[bounce.pk])
    assert "Undo the suppression" in admin.get(page).content.decode()
    assert admin.get(undo).status_code == 405
    admin.post(undo)
    assert not Suppression.in_force().exists()
    assert Suppression.objects.get().lifted_by.username == "admin"
    bounce.refresh_from_db()
    assert bounce.undone_at is not None and bounce.undone_by.username == "admin"
    assert "Undo the suppression" not in admin.get(page).content.decode()
    assert "No suppression in force" in admin.post(undo, follow=True).content.decode()


def test_a_suppression_of_another_origin_is_not_undone(admin: Client, deliver, now) -> None:
    letter = deliver()
    Suppression.add(letter.rcpt_to, "manual", source="a person")
    take(report(delivered_to=return_path(letter)), now)
    admin.post(reverse("admin:bounces_bounce_undo", args=[Bounce.objects.get().pk]))
    assert Suppression.in_force().count() == 1


def test_a_tripped_breaker_is_closed_by_a_person(admin: Client, now) -> None:
    Breaker.add(10, 10, now)
    raise_alert("returned", CAUSE_OF_FORGERY, "forged", "", now)
    breaker = Breaker.objects.get()
    page = reverse("admin:bounces_breaker_change", args=[breaker.pk])
    assert "Close the breaker" in admin.get(page).content.decode()
    admin.post(reverse("admin:bounces_breaker_reset", args=[breaker.pk]))
    assert not Breaker.is_tripped()
    assert not open_alerts().exists()
    assert "Close the breaker" not in admin.get(page).content.decode()


def test_who_may_only_look_changes_nothing(helper: Client, deliver: Deliver, now) -> None:
    take(report(delivered_to=return_path(deliver())), now)
    Breaker.add(10, 10, now)
    bounce, mail = Bounce.objects.get(), ReceivedMail.objects.get()
    assert helper.get(again(mail)).status_code == 403
    for name, pk in [
        ("bounces_receivedmail_again", mail.pk),
        ("bounces_bounce_undo", bounce.pk),
        ("bounces_breaker_reset", Breaker.objects.get().pk),
    ]:
        assert helper.post(reverse(f"admin:{name}", args=[pk])).status_code == 403
    assert Suppression.in_force().count() == 1
    assert Breaker.is_tripped()
    page = reverse("admin:bounces_bounce_change", args=[bounce.pk])
    assert "Undo the suppression" not in helper.get(page).content.decode()


def test_the_pages_are_for_those_who_may_see_bounces(db) -> None:
    user = get_user_model().objects.create_user("other", password="x", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(reverse(CHARTS)).status_code == 403
    assert client.get(reverse(WHICH)).status_code == 403
