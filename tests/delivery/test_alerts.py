"""Alerts: one for each cause, told once by each way, and over when the cause is gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.contrib.auth.models import User

from campaigns.editions import freeze
from delivery import alerts, limits
from delivery.conf import AlertSettings
from delivery.models import Alert
from delivery.outcomes import Phase, Reply, Unavailable
from tests.delivery.conftest import coordinate, make_campaign

pytestmark = pytest.mark.django_db(transaction=True)


class Hook(HTTPServer):
    """A webhook on 127.0.0.1. ``answer``: the status that it gives; ``posted``: what it got."""

    def __init__(self) -> None:
        self.posted: list[dict] = []
        self.answer = 204
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/alerts?key=s3cret"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        hook = self.server
        assert isinstance(hook, Hook)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hook.posted.append({"path": self.path} | json.loads(body))
        self.send_response(hook.answer)
        if hook.answer == 302:
            self.send_header("Location", f"http://127.0.0.1:{hook.server_port}/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def admins(settings) -> None:
    settings.ADMINS = [("Ada", "ada@example.org")]


def an_alert(now, cause="breaker: campaign 7", **changes) -> Alert:
    assert alerts.raise_alert("breaker", cause, "“May” is paused", "Look at it.", now, **changes)
    return Alert.objects.get(cause=cause, resolved_at=None)


def test_a_cause_has_one_alert_while_it_lasts(now):
    an_alert(now)
    assert not alerts.raise_alert("breaker", "breaker: campaign 7", "again", "", now)
    assert alerts.resolve("breaker: campaign 7", now)
    assert not alerts.resolve("breaker: campaign 7", now)
    an_alert(now)
    assert Alert.objects.count() == 2


def test_it_is_mailed_once(now, admins, mailoutbox):
    an_alert(now)
    assert alerts.tell(AlertSettings(), now) == 1
    assert alerts.tell(AlertSettings(), now) == 0
    (mail,) = mailoutbox
    assert mail.to == ["ada@example.org"]
    assert "“May” is paused" in mail.subject
    assert "Look at it." in mail.body and "/admin/delivery/alert/" in mail.body


def test_without_admins_or_a_webhook_the_banner_is_all(now, mailoutbox):
    an_alert(now)
    assert alerts.tell(AlertSettings(), now) == 0
    assert mailoutbox == []
    assert Alert.objects.get().failures == 0


def test_it_is_posted_once_as_json(now, hook, campaign):
    alert = an_alert(now, campaign=campaign)
    settings = AlertSettings(mail_admins=False, webhook=hook.address)
    assert alerts.tell(settings, now) == 1
    assert alerts.tell(settings, now) == 0
    (post,) = hook.posted
    assert post.pop("url").endswith(f"/admin/delivery/alert/{alert.pk}/change/")
    assert post == {
        "path": "/alerts?key=s3cret",
        "kind": "breaker",
        "title": "“May” is paused",
        "text": "Look at it.",
        "campaign": campaign.pk,
        "at": now.isoformat(),
    }


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_tried_again_and_no_redirect_is_followed(now, hook, status):
    an_alert(now)
    settings = AlertSettings(mail_admins=False, webhook=hook.address)
    hook.answer = status
    assert alerts.tell(settings, now) == 0
    assert [post["path"] for post in hook.posted] == ["/alerts?key=s3cret"]
    hook.answer = 204
    assert alerts.tell(settings, now) == 1
    assert len(hook.posted) == 2


def test_a_webhook_that_is_gone_keeps_no_mail_back_and_is_given_up_in_the_end(
    now, admins, mailoutbox, caplog, monkeypatch
):
    monkeypatch.setattr(alerts, "MOST_FAILURES", 3)
    an_alert(now)
    settings = AlertSettings(webhook="http://127.0.0.1:9/alerts?key=s3cret")
    assert alerts.tell(settings, now) == 1
    for _round in range(5):
        alerts.tell(settings, now)
    assert len(mailoutbox) == 1
    assert Alert.objects.get().failures == 3
    assert "s3cret" not in caplog.text


def test_a_mail_server_that_refuses_is_tried_again(now, admins, mailoutbox, monkeypatch):
    an_alert(now)

    def refuse(*args):
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(alerts, "mail_admins", refuse)
        assert alerts.tell(AlertSettings(), now) == 0
    assert alerts.tell(AlertSettings(), now) == 1
    assert len(mailoutbox) == 1


def test_what_is_over_is_not_told_any_more(now, admins, mailoutbox):
    an_alert(now)
    alerts.resolve("breaker: campaign 7", now)
    assert alerts.tell(AlertSettings(), now) == 0
    assert mailoutbox == []


def test_a_stopped_provider_is_told_once_and_is_over_when_it_is_opened(campaign, clock):
    refused = Unavailable(Reply(Phase.AUTH, 535, "5.7.8 No"), needs_a_person=True, rule="auth")
    limits.pause("default", refused, clock())
    for _round in range(3):
        coordinate(clock)
    alert = Alert.objects.get()
    assert (alert.kind, alert.resolved_at) == ("provider", None)
    assert "535 5.7.8 No" in alert.text
    limits.resume("default", clock())
    coordinate(clock)
    alert.refresh_from_db()
    assert alert.resolved_at == clock()


def test_a_person_puts_an_alert_away_for_herself_alone(now):
    ada, ben = (User.objects.create_user(name) for name in ("ada", "ben"))
    alert = an_alert(now)
    alerts.see(alert, ada)
    assert not alerts.unseen_by(ada).exists()
    assert alerts.unseen_by(ben).get() == alert


# ------------------------------------------------------------------------------- what comes late


def test_a_campaign_that_is_too_late_waits_for_a_person(mailing_list, readers, clock):
    campaign = make_campaign(mailing_list, clock())
    clock.advance(hours=6, minutes=1)
    for _round in range(3):
        assert coordinate(clock) == {}
    campaign.refresh_from_db()
    assert (campaign.status, campaign.started_at) == ("scheduled", None)
    assert campaign.held_at == clock()
    alert = Alert.objects.get()
    assert (alert.kind, alert.campaign) == ("stale", campaign)
    assert "21 November 2026, 10:00" in alert.text

    admin = User.objects.create_user("ada")
    assert campaign.send_late(clock(), by=admin)
    assert not campaign.send_late(clock(), by=admin)
    assert coordinate(clock) == {"default": 3}
    campaign.refresh_from_db()
    assert campaign.status == "sending"
    assert [(e.action, e.by) for e in campaign.events.all()] == [
        ("scheduled", None), ("held", None), ("released", admin), ("started", None),
    ]  # fmt: skip
    alert.refresh_from_db()
    assert alert.resolved_at == clock()


def test_a_campaign_that_is_a_little_late_is_sent(mailing_list, readers, clock):
    campaign = make_campaign(mailing_list, clock())
    clock.advance(hours=5, minutes=59)
    assert coordinate(clock) == {"default": 3}
    campaign.refresh_from_db()
    assert campaign.status == "sending"


def test_a_held_campaign_may_be_taken_back_and_scheduled_anew(mailing_list, readers, clock):
    campaign = make_campaign(mailing_list, clock())
    clock.advance(days=1)
    coordinate(clock)
    campaign.refresh_from_db()
    assert campaign.unschedule()
    coordinate(clock)
    assert Alert.objects.get().resolved_at is not None
    assert campaign.schedule(clock() + timedelta(hours=1), edition=freeze(campaign))
    clock.advance(hours=1)
    assert coordinate(clock) == {"default": 3}
