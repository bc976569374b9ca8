"""The campaign pages in a real Chromium: what no other test sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from campaigns.models import Campaign, CampaignTotals
from tests.campaigns.admin_world import browser as logged_in
from tests.campaigns.admin_world import count, draft, mailing_list, person, sending, url

pytestmark = [
    pytest.mark.browser,
    pytest.mark.one_database,  # the views behind these pages: test_admin_campaigns.py, on both
    pytest.mark.django_db(transaction=True),
]

# Port 9 discards: a request to it would be seen below, and answers nothing.
CANARY = "http://127.0.0.1:9"
PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "svg": "<svg onload=alert(1)></svg>",
    "refresh": f'<meta http-equiv="refresh" content="0;url={CANARY}/">',
    "form": f'<form action="{CANARY}/"><input name="x" autofocus onfocus="form.submit()"></form>',
    "base": f'<base href="{CANARY}/"><img src="picture.png">',
    "frame": f'<iframe src="{CANARY}/"></iframe>',
    "style sheet": f'<link rel="stylesheet" href="{CANARY}/x.css">',
    "import": f"<style>@import url({CANARY}/x.css);</style>",
    "link": '<a href="javascript:alert(1)" autofocus onfocus="click()">x</a>',
}


@pytest.fixture
def page(chromium: Browser, live_server) -> Iterator[Page]:
    session = logged_in(person(name="chief", is_superuser=True)).cookies
    context = chromium.new_context(base_url=live_server.url, timezone_id="Asia/Tokyo")
    cookie = session[settings.SESSION_COOKIE_NAME].value
    context.add_cookies(
        [{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": live_server.url}]
    )
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_hostile_letter_runs_nothing_and_calls_nobody_in_the_preview(page: Page, payload: str):
    campaign = draft(html=f"<p>Before</p>{payload}<p>After</p>", subject=payload, name=payload)
    dialogs: list[str] = []
    finished: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.route(f"{CANARY}/**", lambda route: (finished.append(route.request.url), route.abort()))

    page.goto(url(campaign, "preview"))
    frame = page.frame_locator(".pp-letter-desktop").first
    expect(frame.locator("body")).to_contain_text("Before")

    assert dialogs == []
    assert finished == []
    assert page.url.endswith(url(campaign, "preview"))


def test_the_numbers_of_a_running_campaign_come_without_a_reload(page: Page):
    campaign = sending(mailing_list("news", readers=1))
    count(campaign, eligible=10, queued=10)
    page.goto(url(campaign))
    page.evaluate("window.isTheSamePage = true")

    CampaignTotals.add(campaign.pk, 0, {"queued": -4, "sent": 4})
    expect(page.locator("[data-part=percent]")).to_have_text("40 %")
    expect(page.locator("[data-state=sent] b")).to_have_text("4")

    campaign.pause()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.locator("[data-part=waiting]")).to_contain_text("until someone resumes it")
    assert page.evaluate("window.isTheSamePage")

    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()


def test_the_expected_finish_is_in_the_time_zone_of_the_site_wherever_the_browser_is(page: Page):
    campaign = sending(mailing_list("news", readers=1))
    now = timezone.now()
    Campaign.objects.update(started_at=now - timedelta(hours=1), filled_at=now)
    count(campaign, eligible=200, sent=100, queued=100)

    page.goto(url(campaign))

    minutes = [timezone.localtime(now + timedelta(minutes=60 + late)) for late in range(3)]
    words = "|".join(f"{at:%H:%M}" for at in minutes)
    finish = page.locator("[data-part=finish]")
    expect(finish).to_have_text(re.compile(rf"^({words}) \(in 6[0-2] minutes\)$"))


def test_the_size_of_the_letter_is_counted_while_one_writes(page: Page):
    page.goto(url(draft(html="é" * 1024)))

    expect(page.locator("#id_html + .pp-size")).to_contain_text("1,024 characters, 2.0 KB")
