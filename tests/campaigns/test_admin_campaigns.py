"""The admin pages of campaigns: write, preview, test, send, watch."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from campaigns.admin.campaigns import starter_html
from campaigns.models import (
    Campaign,
    CampaignEvent,
    Edition,
    Subscriber,
    Subscription,
    Suppression,
)
from campaigns.signals import test_requested as requested
from campaigns.signals import waiting_asked
from campaigns.unsubscribe import NOBODY, read_link
from tests.campaigns.admin_world import (
    HOSTILE,
    HTML,
    browser,
    count,
    draft,
    mailing_list,
    person,
    scheduled,
    sending,
    url,
)

pytestmark = pytest.mark.django_db
LIST = "admin:campaigns_campaign_changelist"


@pytest.fixture
def chief():
    return person(name="chief", is_superuser=True)


@pytest.fixture
def client(chief):
    return browser(chief)


@contextmanager
def listening(signal, receiver):
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def heard(signal):
    """What a signal announces inside the block, and nothing but that."""
    found: list[dict] = []

    def receiver(**announced):
        found.append(announced)

    before, signal.receivers = signal.receivers, []
    signal.sender_receivers_cache.clear()
    try:
        with listening(signal, receiver):
            yield found
    finally:
        signal.receivers = before
        signal.sender_receivers_cache.clear()


def form_of(campaign: Campaign | None = None, **changes: object) -> dict[str, object]:
    """What the browser posts for a draft."""
    fields = ("name", "subject", "preheader", "from_name", "from_email", "reply_to", "html", "text")
    source = campaign or Campaign(name="November", from_email="news@example.org", html=HTML)
    choices = {"provider": "default", "priority": 0, "on_doubt": "hold"}
    return {name: getattr(source, name) for name in fields} | choices | changes


# ------------------------------------------------------------------------------------ writing


def test_a_new_campaign_begins_with_the_starter_and_the_last_sender(client):
    draft(from_name="The Orchestra", reply_to="office@example.org")

    text = client.get(reverse("admin:campaigns_campaign_add")).context["adminform"].form

    assert text.initial["html"] == starter_html()
    assert text.initial["from_name"] == "The Orchestra"
    assert text.initial["reply_to"] == "office@example.org"


def test_the_starter_asks_for_nothing_that_a_reader_may_lack(client):
    news = mailing_list("news")
    Subscriber.objects.create(email="bare@example.org").subscriptions.create(mailing_list=news)
    campaign = draft(news, html=starter_html(), text="")

    answer = client.get(url(campaign, "letter"))

    assert "Dear reader," in answer.content.decode()
    assert "/u/" in answer.content.decode()


def test_a_draft_is_written_and_recorded(client, chief):
    news = mailing_list("news")

    answer = client.post(
        reverse("admin:campaigns_campaign_add"),
        form_of(from_email="Orchestra@EXAMPLE.org", include_lists=[news.pk]),
    )

    campaign = Campaign.objects.get()
    assert answer.headers["Location"] == url(campaign)
    assert campaign.from_email == "Orchestra@example.org"
    assert (campaign.created_by, list(campaign.include_lists.all())) == (chief, [news])
    assert [(event.action, event.by) for event in campaign.events.all()] == [("created", chief)]


def test_saving_may_lead_to_the_preview(client):
    campaign = draft()

    answer = client.post(url(campaign), form_of(campaign, _preview="1"))

    assert answer.headers["Location"] == url(campaign, "preview")


def test_a_provider_that_the_settings_do_not_name_is_refused(client):
    campaign = draft()

    answer = client.post(url(campaign), form_of(campaign, provider="elsewhere"))

    assert answer.context["adminform"].form.errors["provider"]


def test_the_form_shows_how_many_readers_each_list_has(client):
    mailing_list("news", readers=3)

    assert "News (3)" in client.get(url(draft())).content.decode()


@pytest.mark.parametrize("make", [scheduled, sending])
def test_a_campaign_that_left_draft_is_not_rewritten(client, make):
    campaign = make()

    answer = client.post(url(campaign), form_of(campaign, subject="Another subject"))

    campaign.refresh_from_db()
    assert answer.status_code == 403
    assert campaign.subject == "Three concerts"
    assert b'name="subject"' not in client.get(url(campaign)).content


def test_a_campaign_that_left_draft_is_not_deleted_and_a_tested_draft_neither(client):
    started, tested, fresh = sending(), draft(), draft(name="Fresh")
    Edition.objects.create(campaign=tested, digest="d" * 64, from_email="news@example.org")

    for campaign in (started, tested, fresh):
        client.post(url(campaign, "delete"), {"post": "yes"})

    assert set(Campaign.objects.all()) == {started, tested}


def test_a_duplicate_is_a_new_draft_with_the_same_words(client, chief):
    news, old = mailing_list("news"), mailing_list("old")
    campaign = sending(news, text="Own text")
    campaign.exclude_lists.add(old)

    client.post(url(campaign, "duplicate"))

    copy = Campaign.objects.latest("id")
    assert (copy.status, copy.edition, copy.created_by) == ("draft", None, chief)
    assert (copy.subject, copy.html, copy.text) == (campaign.subject, campaign.html, "Own text")
    assert list(copy.include_lists.all()) == [news]
    assert list(copy.exclude_lists.all()) == [old]


# -------------------------------------------------------------------------------- the preview


def test_the_preview_is_a_sandbox_without_scripts_and_without_our_origin(client):
    campaign = draft(mailing_list("news", readers=1))

    text = client.get(url(campaign, "preview")).content.decode()

    assert text.count("<iframe") == text.count('sandbox=""') == 3
    assert "allow-scripts" not in text
    assert "allow-same-origin" not in text


@pytest.mark.parametrize("part", ["html", "text"])
def test_the_letter_in_the_frame_carries_a_policy_of_its_own(client, part):
    campaign = draft(mailing_list("news", readers=1))

    headers = client.get(url(campaign, "letter"), {"part": part}).headers

    policy = headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "img-src https: data:" in policy
    assert "style-src 'unsafe-inline'" in policy
    assert "script-src" not in policy
    assert "base-uri 'none'; form-action 'none'; frame-ancestors 'self'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_the_letter_is_shown_as_the_first_reader_of_the_audience_gets_it(client):
    news = mailing_list("news", readers=2)
    Suppression.add("news0@example.org", "manual", source="test")
    campaign = draft(news)

    assert "Dear Ada1," in client.get(url(campaign, "letter")).content.decode()


def test_the_letter_is_shown_as_a_chosen_reader_gets_it(client):
    campaign = draft(mailing_list("news", readers=2))
    reader = Subscriber.objects.get(email="news1@example.org")

    page = client.get(url(campaign, "preview"), {"reader": reader.pk}).content.decode()
    letter = client.get(url(campaign, "letter"), {"reader": reader.pk}).content.decode()

    assert "news1@example.org" in page
    assert f"reader={reader.pk}" in page
    assert "Dear Ada1," in letter


def test_without_an_audience_the_letter_is_filled_with_example_values(client):
    assert "Dear Ada," in client.get(url(draft(), "letter")).content.decode()


def test_who_may_not_see_readers_sees_example_values():
    campaign = draft(mailing_list("news", readers=1))
    reader = Subscriber.objects.get()
    editor = browser(person("view_campaign"))

    letter = editor.get(url(campaign, "letter"), {"reader": reader.pk}).content.decode()
    page = editor.get(url(campaign, "preview"), {"reader": reader.pk}).content.decode()

    assert "Dear Ada," in letter
    assert "news0@example.org" not in page


def test_a_preview_names_the_list_through_which_the_reader_gets_the_letter(client):
    first, second = mailing_list("first", 1), mailing_list("second")
    campaign = draft(first, html="<p>Of {{ list_name }}</p>" + HTML)
    campaign.include_lists.add(second)
    reader = first.subscriptions.get().subscriber
    first.subscriptions.get().move("unsubscribed", source="test")
    assert "Of First" in client.get(url(campaign, "letter"), {"reader": reader.pk}).content.decode()
    Subscription.objects.create(subscriber=reader, mailing_list=second)
    letter = client.get(url(campaign, "letter"), {"reader": reader.pk}).content.decode()
    assert "Of Second" in letter


def test_the_link_in_a_preview_unsubscribes_nobody(client):
    campaign = draft(mailing_list("news", readers=1))

    letter = client.get(url(campaign, "letter")).content.decode()

    link = read_link(letter.split("/u/")[1].split('"')[0])
    assert link is not None
    assert link.subscriber_id == NOBODY


def test_a_reader_who_does_not_exist_is_not_found(client):
    campaign = draft()

    assert client.get(url(campaign, "letter"), {"reader": "99"}).status_code == 404
    assert client.get(url(campaign, "letter"), {"reader": "no number"}).status_code == 200


def test_a_letter_that_cannot_be_made_says_why(client):
    campaign = draft(html="{{ unclosed")

    assert "cannot be made" in client.get(url(campaign, "preview")).content.decode()
    frame = client.get(url(campaign, "letter"))
    assert "cannot be made" in frame.content.decode()
    assert frame.headers["Content-Security-Policy"].startswith("sandbox;")


def test_a_campaign_that_left_draft_shows_its_frozen_letter(client):
    campaign = sending(mailing_list("news", readers=1))
    Campaign.objects.filter(pk=campaign.pk).update(html="<p>rewritten behind its back</p>")

    letter = client.get(url(campaign, "letter")).content.decode()

    assert "Dear Ada0," in letter
    assert "rewritten" not in letter


# ----------------------------------------------------------------------------- the test letter


def test_a_test_letter_is_frozen_announced_and_recorded(client, chief):
    campaign = draft(mailing_list("news", readers=2))
    reader = Subscriber.objects.get(email="news1@example.org")

    with heard(requested) as announced:
        answer = client.post(
            url(campaign, "test"),
            {"addresses": "A@EXAMPLE.org, b@example.org\nA@example.org", "reader": reader.pk},
        )

    assert answer.status_code == 302
    [said] = announced
    assert said["campaign"] == campaign
    assert said["edition"] == campaign.editions.get()
    assert said["addresses"] == ["A@example.org", "b@example.org"]
    assert said["reader"] == reader
    event = campaign.events.get()
    assert (event.action, event.by) == ("tested", chief)
    assert "b@example.org" in event.note
    campaign.refresh_from_db()
    assert campaign.is_draft


@pytest.mark.parametrize(
    "addresses",
    ["", " , ", "no address", ",".join(f"a{n}@example.org" for n in range(11))],
    ids=["empty", "only commas", "no address", "eleven"],
)
def test_test_letters_go_to_one_to_ten_real_addresses(client, addresses):
    campaign = draft()

    with heard(requested) as announced:
        answer = client.post(url(campaign, "test"), {"addresses": addresses})

    assert answer.context["form"].errors["addresses"]
    assert not announced
    assert not campaign.editions.exists()


def test_a_letter_that_cannot_be_made_is_not_tested(client):
    campaign = draft(html="{{ unclosed")

    with heard(requested) as announced:
        answer = client.post(url(campaign, "test"), {"addresses": "a@example.org"})

    assert "cannot be made" in answer.content.decode()
    assert not announced
    assert not CampaignEvent.objects.exists()


def test_only_drafts_are_tested(client):
    campaign = sending()

    with heard(requested) as announced:
        client.post(url(campaign, "test"), {"addresses": "a@example.org"})

    assert not announced


# ------------------------------------------------------------------------ preflight and sending


def warnings_of(client: Client, campaign: Campaign) -> str:
    """The codes that the box "I have seen these" carries."""
    return client.get(url(campaign, "send")).context["warning_codes"]


def ready(**fields: object) -> Campaign:
    return draft(mailing_list("news", readers=2), **fields)


def with_a_warning() -> Campaign:
    """A link that is not encrypted is worth a warning, and no more."""
    return ready(html=HTML + '<p><a href="http://example.org/">More</a></p>')


def test_the_send_page_shows_the_audience_and_the_preflight(client):
    campaign = ready(subject="")

    answer = client.get(url(campaign, "send"))

    assert answer.context["readers"] == 2
    assert answer.context["fails"]
    assert 'id="audience-count">2<' in answer.content.decode()
    assert answer.context["fails"][0].code in answer.content.decode()


def test_what_fails_is_not_sent(client):
    campaign = ready(subject="")

    answer = client.post(url(campaign, "send_now"), {"seen": warnings_of(client, campaign)})

    campaign.refresh_from_db()
    assert answer.status_code == 422
    assert campaign.is_draft
    assert not campaign.editions.exists()


def test_warnings_must_be_seen(client):
    campaign = with_a_warning()
    seen = warnings_of(client, campaign)
    assert seen

    refused = client.post(url(campaign, "send_now"), {})
    assert refused.status_code == 422
    assert "Please tick" in refused.content.decode()
    client.post(url(campaign, "send_now"), {"seen": seen})

    campaign.refresh_from_db()
    assert campaign.status == "scheduled"


def test_a_warning_that_came_up_since_is_not_covered_by_an_old_tick(client):
    campaign = with_a_warning()

    answer = client.post(url(campaign, "send_now"), {"seen": "some-other-warning"})

    campaign.refresh_from_db()
    assert (answer.status_code, campaign.status) == (422, "draft")


def test_sending_now_freezes_the_letter_and_records_who(client, chief):
    campaign = ready()

    client.post(url(campaign, "send_now"), {"seen": warnings_of(client, campaign)})

    campaign.refresh_from_db()
    assert campaign.status == "scheduled"
    assert campaign.edition == campaign.editions.get()
    assert campaign.scheduled_at <= timezone.now()
    assert [(event.action, event.by) for event in campaign.events.all()] == [("scheduled", chief)]


def test_a_schedule_is_read_in_the_time_zone_that_the_page_shows(client, settings):
    settings.TIME_ZONE = "Europe/Berlin"
    campaign = ready()
    seen = warnings_of(client, campaign)

    assert "Europe/Berlin" in client.get(url(campaign, "send")).content.decode()
    client.post(url(campaign, "schedule"), {"seen": seen, "at": "2100-01-15T10:00"})

    campaign.refresh_from_db()
    assert campaign.scheduled_at.isoformat() == "2100-01-15T09:00:00+00:00"


@pytest.mark.parametrize("at", ["", "never", "2001-01-01T10:00"])
def test_a_schedule_needs_a_moment_to_come(client, at):
    campaign = ready()

    answer = client.post(
        url(campaign, "schedule"), {"seen": warnings_of(client, campaign), "at": at}
    )

    campaign.refresh_from_db()
    assert (answer.status_code, campaign.status) == (422, "draft")
    assert answer.context["form"].errors["at"]


def test_a_schedule_is_taken_back(client, chief):
    campaign = scheduled()

    client.post(url(campaign, "unschedule"))

    campaign.refresh_from_db()
    assert (campaign.status, campaign.edition, campaign.scheduled_at) == ("draft", None, None)
    assert campaign.events.latest("id").by == chief


def test_pause_resume_and_cancel_are_recorded_with_who(client, chief):
    campaign = sending()

    statuses = []
    for verb in ("pause", "resume", "cancel"):
        client.post(url(campaign, verb))
        campaign.refresh_from_db()
        statuses.append(campaign.status)

    assert statuses == ["paused", "sending", "cancelled"]
    said = [(event.action, event.by) for event in campaign.events.order_by("id")[2:]]
    assert said == [("paused", chief), ("resumed", chief), ("cancelled", chief)]


def test_the_page_before_cancelling_says_what_will_happen_and_changes_nothing(client):
    campaign = sending()
    count(campaign, eligible=10, sent=3, sending=1, queued=6)

    text = client.get(url(campaign, "cancel")).content.decode()

    campaign.refresh_from_db()
    assert campaign.status == "sending"
    assert "3 letters. Nobody can call them back." in text
    assert "6. These letters will never leave." in text


@pytest.mark.parametrize(
    ("make", "verb"),
    [
        (draft, "unschedule"),
        (sending, "unschedule"),
        (scheduled, "pause"),
        (sending, "resume"),
        (scheduled, "send_now"),
        (sending, "schedule"),
    ],
)
def test_a_move_that_is_not_possible_any_more_is_a_friendly_message(client, make, verb):
    campaign = make()
    before = (campaign.status, campaign.events.count())

    answer = client.post(url(campaign, verb), follow=True)

    campaign.refresh_from_db()
    assert answer.status_code == 200
    assert "Nothing was changed" in answer.content.decode()
    assert (campaign.status, campaign.events.count()) == before


VERBS = {
    "send_now": (ready, "send_campaign"),
    "schedule": (ready, "schedule_campaign"),
    "unschedule": (scheduled, "schedule_campaign"),
    "pause": (sending, "pause_campaign"),
    "resume": (sending, "resume_campaign"),
    "cancel": (sending, "cancel_campaign"),
    "test": (ready, "test_campaign"),
    "duplicate": (ready, "add_campaign"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_needs_its_own_permission(verb):
    make, permission = VERBS[verb]
    campaign = make()
    everything_else = Permission.objects.filter(content_type__app_label="campaigns").exclude(
        codename=permission
    )
    others = [right.codename for right in everything_else]

    refused = browser(person(*others, name="others")).post(url(campaign, verb))
    allowed = browser(person("view_campaign", permission, name="one")).post(url(campaign, verb))

    assert refused.status_code == 403
    assert allowed.status_code != 403


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"cancel", "test"}])
def test_each_verb_is_a_post(client, verb):
    campaign = VERBS[verb][0]()

    assert client.get(url(campaign, verb)).status_code == 405
    assert Campaign.objects.count() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_needs_the_token_against_forged_requests(chief, verb):
    campaign = VERBS[verb][0]()
    forger = Client(enforce_csrf_checks=True)
    forger.force_login(chief)

    assert forger.post(url(campaign, verb)).status_code == 403


PAGES = ["change", "preview", "letter", "send", "progress"]


@pytest.mark.parametrize("page", PAGES)
def test_each_page_needs_the_permission_to_see_campaigns(page):
    campaign = draft()
    stranger = browser(person("view_mailinglist", name="stranger"))
    nobody = Client()

    assert stranger.get(url(campaign, page)).status_code == 403
    assert nobody.get(url(campaign, page)).status_code == 302
    assert browser(person("view_campaign")).get(url(campaign, page)).status_code == 200


# --------------------------------------------------------------------------------- watching it


def test_the_page_of_a_running_campaign_is_its_progress(client):
    campaign = sending(mailing_list("news", readers=1))
    count(campaign, eligible=100, sent=60, bounced=5, rejected=3, unconfirmed=2, queued=30)

    answer = client.get(url(campaign))
    text = answer.content.decode()

    assert "60 sent · 5 bounced · 3 failed · 2 in doubt" in text
    assert 'style="width: 60.000%"' in text
    assert "It may or may not have arrived" in text
    assert "Started" in text
    assert url(campaign, "pause") in text
    assert url(campaign, "resume") not in text


def test_the_numbers_come_as_json(client):
    campaign = sending()
    count(campaign, eligible=10, sent=4, deferred=1, queued=5)

    state = client.get(url(campaign, "progress")).json()

    assert (state["total"], state["done"], state["left"], state["percent"]) == (10, 4, 6, 40)
    assert state["counts"]["deferred"] == 1
    assert (state["status"], state["is_final"], state["is_filled"]) == ("sending", False, False)
    assert state["average_per_second"] > 0


@pytest.mark.parametrize(
    ("per_second", "written"), [("0.01", "%H:%M"), ("0.0001", "%-d %b %Y, %H:%M")]
)
def test_the_expected_finish_is_said_in_the_time_zone_of_the_site(client, per_second, written):
    campaign = sending()
    Campaign.objects.update(filled_at=timezone.now())
    count(campaign, eligible=100, sent=40, queued=60)

    with timezone.override("Asia/Tokyo"):
        answer = client.get(url(campaign, "progress"), {"per_second": per_second})

    state = answer.json()
    assert state["finish"]["at"] == pytest.approx(state["at"] + 60 / float(per_second))
    at = datetime.fromtimestamp(state["finish"]["at"], ZoneInfo("Asia/Tokyo"))
    assert state["finish"]["words"] == at.strftime(written)


def test_without_a_speed_of_late_the_average_foretells_the_finish(client):
    campaign = sending()
    hour_ago = timezone.now() - timedelta(hours=1)
    Campaign.objects.update(started_at=hour_ago, filled_at=hour_ago)
    count(campaign, eligible=100, sent=50, queued=50)

    for nothing_known in ("", "?per_second=fast", "?per_second=nan", "?per_second=0"):
        state = client.get(url(campaign, "progress") + nothing_known).json()
        assert state["finish"]["at"] == pytest.approx(state["at"] + 3600, abs=60)
    assert state["finish"]["words"] in client.get(url(campaign)).content.decode()


def test_no_finish_is_foretold_while_the_queue_is_filled_or_nothing_is_sent(client):
    campaign = sending()
    count(campaign, eligible=10, sent=4, queued=6)

    assert client.get(url(campaign, "progress"), {"per_second": "1"}).json()["finish"] is None
    Campaign.objects.update(filled_at=timezone.now())
    assert client.get(url(campaign, "progress"), {"per_second": "1"}).json()["finish"]
    campaign.refresh_from_db()
    campaign.pause()
    assert client.get(url(campaign, "progress"), {"per_second": "1"}).json()["finish"] is None


def test_the_numbers_take_few_queries(client, django_assert_max_num_queries):
    campaign = sending()
    client.get(url(campaign, "progress"))

    with heard(waiting_asked), django_assert_max_num_queries(5):  # session, user, campaign, counts
        client.get(url(campaign, "progress"))


def test_what_a_campaign_is_waiting_for_is_said_in_words(client):
    campaign = sending()

    def receiver(campaign, **announced):
        return f"The provider rests; campaign {campaign.pk} waits."

    def silent(**announced):
        return None

    def broken(**announced):
        raise RuntimeError("not the page's trouble")

    with (
        heard(waiting_asked),
        listening(waiting_asked, receiver),
        listening(waiting_asked, silent),
        listening(waiting_asked, broken),
    ):
        state = client.get(url(campaign, "progress")).json()

    assert state["waiting"] == [f"The provider rests; campaign {campaign.pk} waits."]


def test_paused_and_scheduled_campaigns_say_what_they_wait_for(client):
    paused, later = sending(), draft(name="Later")
    paused.pause()
    at = timezone.now() + timedelta(days=2)
    later.schedule(at, edition=Edition.objects.create(campaign=later, digest="d"))

    assert "until someone resumes it" in client.get(url(paused)).content.decode()
    assert "Waiting for its time" in client.get(url(later)).content.decode()


def test_a_final_campaign_waits_for_nothing_and_is_not_polled(client):
    campaign = sending()
    campaign.finish(timezone.now())

    text = client.get(url(campaign)).content.decode()

    assert 'data-final="true"' in text
    assert client.get(url(campaign, "progress")).json()["waiting"] == []


# ------------------------------------------------------------------------------------ the list


def test_the_list_counts_all_campaigns_in_one_query(client, django_assert_max_num_queries):
    count(sending(), eligible=10, sent=4, queued=6)
    with django_assert_max_num_queries(20) as few:
        client.get(reverse(LIST))
    for number in range(9):
        count(sending(name=f"More {number}"), eligible=5, sent=5)

    with django_assert_max_num_queries(len(few.captured_queries)):
        answer = client.get(reverse(LIST))

    assert [row.progress.total for row in answer.context["cl"].result_list] == [5] * 9 + [10]


def test_the_list_is_filtered_by_status(client):
    draft()
    running = sending()

    answer = client.get(reverse(LIST), {"status__exact": "sending"})

    assert list(answer.context["cl"].result_list) == [running]


def test_the_start_page_shows_what_runs_and_how_many_readers_there_are(
    client, django_assert_max_num_queries
):
    news = mailing_list("news", readers=3)
    count(sending(news, name="Running now"), eligible=10, sent=4, queued=6)
    draft(name="Being written")

    with django_assert_max_num_queries(20):
        answer = client.get(reverse("admin:index"))

    text = answer.content.decode()
    assert "Running now" in text
    assert "40 %" in text
    assert "Being written" in text
    assert [mailing.readers for mailing in answer.context["lists"]] == [3]
    assert reverse("admin:campaigns_campaign_add") in text


def test_the_start_page_keeps_from_each_what_they_may_not_see():
    sending(mailing_list("secret", readers=1), name="Secret plan")

    text = browser(person(name="newcomer")).get(reverse("admin:index")).content.decode()

    assert "Secret" not in text


# ------------------------------------------------------------------------------- hostile names


def test_hostile_words_are_text_on_every_page(client, chief):
    news = mailing_list("news")
    news.name = HOSTILE
    news.save()
    reader = Subscriber.objects.create(email="evil@example.org", name=HOSTILE)
    reader.subscriptions.create(mailing_list=news)
    hostile = {"name": HOSTILE, "subject": HOSTILE, "preheader": HOSTILE, "from_name": HOSTILE}
    written = draft(news, **hostile)
    running = sending(news, **hostile)
    running.pause(by=chief, note=HOSTILE)
    pages = [
        reverse("admin:index"),
        reverse(LIST),
        *(url(written, page) for page in ("change", "preview", "test", "send")),
        *(url(running, page) for page in ("change", "preview", "cancel")),
    ]

    for address in pages:
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert "<script>alert(1)" not in answer.content.decode(), address
        assert "<img src=x" not in answer.content.decode(), address


def test_a_readers_name_is_never_markup_in_the_letter(client):
    news = mailing_list("news")
    reader = Subscriber.objects.create(email="evil@example.org", attributes={"first_name": HOSTILE})
    reader.subscriptions.create(mailing_list=news)
    campaign = draft(news)

    for part in ("html", "text"):
        letter = client.get(url(campaign, "letter"), {"part": part}).content.decode()
        assert "<script>" not in letter
        assert "<img" not in letter
