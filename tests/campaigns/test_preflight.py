"""Preflight: what forbids sending, and what to look at."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from campaigns import trial
from campaigns.models import Campaign, CampaignTotals, MailingList
from campaigns.preflight import Finding, preflight
from campaigns.preflight.sample import SAMPLE_SIZE, Sample
from tests.campaigns.people import a_campaign, a_list, a_reader

pytestmark = pytest.mark.django_db

IN_CHILD = trial._in_child
LEAVE = '<a href="{{ unsubscribe_url }}">Leave</a>'
WORDS = "<p>" + "A sentence that has enough words to be a letter. " * 6 + "</p>"


@pytest.fixture(autouse=True)
def _no_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """These letters are harmless, and two children for each of them took most of the time."""
    monkeypatch.setattr(trial, "_in_child", lambda job: trial.result_of(json.loads(job)))


@pytest.fixture
def weekly() -> MailingList:
    weekly = a_list()
    a_reader("ada@example.org", weekly, name="Ada Lovelace", first_name="Ada", city="London")
    a_reader("bob@example.org", weekly, name="Bob", first_name="Bob", city="Bath")
    return weekly


def findings(campaign: Campaign) -> dict[str, Finding]:
    found = preflight(campaign)
    codes = [finding.code for finding in found]
    assert len(codes) == len(set(codes)), "each code once"
    return {finding.code: finding for finding in found}


def codes(weekly: MailingList, html: str = WORDS + LEAVE, **fields: str) -> dict[str, str]:
    """What is found for a campaign that is right but for these fields: code -> level."""
    campaign = a_campaign(weekly, **({"html": html} | fields))
    return {code: finding.level for code, finding in findings(campaign).items()}


def test_a_campaign_with_nothing_wrong_has_no_finding(weekly: MailingList) -> None:
    assert codes(weekly) == {}


def test_fails_come_first(weekly: MailingList) -> None:
    campaign = a_campaign(weekly, html=WORDS, subject="RE: ALL CAPITALS")

    found = preflight(campaign)

    levels = [finding.level for finding in found]
    assert levels == sorted(levels)
    assert [finding.code for finding in found if finding.level == "fail"] == ["no_unsubscribe_link"]
    assert "warn" in levels


def test_every_finding_is_a_sentence(weekly: MailingList) -> None:
    campaign = a_campaign(
        html="<p onclick=x>{{ nobody }}", subject="", from_name="a@b", provider="x"
    )

    for finding in preflight(campaign):
        assert str(finding.sentence).endswith(".")


# ------------------------------------------------------------------------------- what was typed in


@pytest.mark.parametrize(
    ("subject", "code", "level"),
    [
        ("", "subject_empty", "fail"),
        ("\u202e \x07", "subject_empty", "fail"),
        ("One\nTwo", "subject_line_break", "fail"),
        ("One\u2028Two", "subject_line_break", "fail"),
        ("Turned \u202eround", "subject_controls", "warn"),
        ("=?utf-8?q?x?=", "subject_controls", "warn"),
        ("SALE TODAY, {{ first_name }}", "subject_capitals", "warn"),
        ("Re: your order", "subject_reply", "warn"),
        ("FWD : look", "subject_reply", "warn"),
        ("long " * 31, "subject_long", "warn"),
        ("🎉🎉🎉🎉 party", "subject_emoji", "warn"),
        ("{{ '' }}", "subject_empty_for_some", "fail"),
    ],
)
def test_an_odd_subject_is_found(weekly: MailingList, subject: str, code: str, level: str) -> None:
    assert codes(weekly, subject=subject).get(code) == level


@pytest.mark.parametrize(
    "subject", ["Summer — sale 🎉", "NASA", "Ünïcödé", "Return to sender", "日本語"]
)
def test_an_ordinary_subject_is_no_finding(weekly: MailingList, subject: str) -> None:
    assert codes(weekly, subject=subject) in ({}, {"subject_capitals": "warn"})
    assert ("subject_capitals" in codes(weekly, subject=subject)) == (subject == "NASA")


@pytest.mark.parametrize(
    ("fields", "code", "level"),
    [
        ({"from_email": ""}, "from_missing", "fail"),
        ({"from_email": "nobody"}, "letter_error", "fail"),
        ({"from_name": "news@example.com"}, "from_name_address", "warn"),
        ({"from_name": "Brand 🎉"}, "from_name_emoji", "warn"),
        ({"provider": "no such provider"}, "unknown_provider", "fail"),
        ({"html": "  "}, "html_empty", "fail"),
    ],
)
def test_an_odd_field_is_found(
    weekly: MailingList, fields: dict[str, str], code: str, level: str
) -> None:
    assert codes(weekly, **fields).get(code) == level


def test_one_click_needs_https_but_not_on_this_machine(weekly: MailingList, settings: Any) -> None:
    settings.BASE_URL = "http://news.example.org"
    assert codes(weekly) == {"base_url_not_https": "warn"}

    settings.BASE_URL = "http://localhost:8000"
    assert codes(weekly) == {}


# ----------------------------------------------------------------------------------- the audience


def test_a_campaign_to_no_list_is_found() -> None:
    assert findings(a_campaign())["no_lists"].level == "fail"


def test_a_campaign_to_nobody_is_found() -> None:
    assert findings(a_campaign(a_list()))["no_audience"].level == "fail"


def test_an_audience_of_offices_is_found() -> None:
    weekly = a_list()
    for number in range(4):
        a_reader(f"info@example{number}.org", weekly)

    assert codes(weekly)["role_addresses"] == "warn"


def test_an_audience_far_larger_than_any_before_is_found(weekly: MailingList) -> None:
    earlier = a_campaign(weekly, name="earlier")
    Campaign.objects.filter(pk=earlier.pk).update(started_at=timezone.now() - timedelta(days=3))
    CampaignTotals.add(earlier.pk, 0, {"eligible": 1})
    assert "audience_jump" not in codes(weekly)

    a_reader("eve@example.org", weekly, name="Eve", first_name="Eve")
    assert codes(weekly)["audience_jump"] == "warn"


def test_the_sample_has_both_ends_of_a_large_audience_and_asks_for_no_more() -> None:
    weekly = a_list()
    readers = [a_reader(f"r{number}@example.org", weekly) for number in range(SAMPLE_SIZE + 3)]
    sample = Sample(a_campaign(weekly))

    assert sample.readers[0] == readers[0]
    assert sample.readers[-1] == readers[-1]
    assert len(sample.readers) == SAMPLE_SIZE + 3


def test_a_letter_is_tried_for_the_readers_that_are_oddest(weekly: MailingList) -> None:
    longest = a_reader("eve@example.org", weekly, name="E" * 150, first_name="E")
    barest = a_reader("nil@example.org", weekly)
    last = a_reader("zoe@example.org", weekly, name="Zoe", first_name="Zoe")

    odd = Sample(a_campaign(weekly)).odd_readers

    assert {longest, barest, last} <= set(odd)
    assert odd[0].email == "ada@example.org"


# ----------------------------------------------------------------------------------- merge fields


def test_a_letter_that_would_end_the_process_that_renders_it_is_found(
    weekly: MailingList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_in_child", IN_CHILD)
    bomb = "{% set a = name %}" + "{% set a = a ~ a %}" * 30
    assert codes(weekly, WORDS + bomb + LEAVE)["letter_error"] == "fail"


@pytest.mark.parametrize(
    ("html", "code", "level"),
    [
        ("{{ frist_name }}", "unknown_field", "fail"),
        ("{{ frist_name | upper }}", "unknown_field", "fail"),
        ("{{ nick | default('you') }}", "field_of_nobody", "warn"),
        ("{% if nick %}{{ nick }}{% endif %}", "field_of_nobody", "warn"),
        ("{% if %}", "letter_error", "fail"),
        ("{{ name.first.letter }}", "letter_error", "fail"),
        ("{{ debug() }}", "letter_error", "fail"),
        ("{{ city | int }}", "letter_error", "fail"),
        ("{{ '{{' }} name }}", "left_over_tag", "fail"),
        ("%%first_name%%", "left_over_tag", "fail"),
        ("*|FNAME|*", "left_over_tag", "fail"),
    ],
)
def test_a_merge_field_that_goes_wrong_is_found(
    weekly: MailingList, html: str, code: str, level: str
) -> None:
    assert codes(weekly, WORDS + html + LEAVE).get(code) == level


@pytest.mark.parametrize(
    "html",
    ["{{ first_name }}{{ city }}", "{{ email }} {{ list_name }}", "{% set x = 1 %}{{ x }}"]
    + ["{% for c in name %}{{ c }}{{ loop.index }}{% endfor %}"],
)
def test_known_fields_are_no_finding(weekly: MailingList, html: str) -> None:
    assert codes(weekly, WORDS + html + LEAVE) == {}


def test_a_field_that_is_empty_for_many_is_found(weekly: MailingList) -> None:
    a_reader("eve@example.org", weekly, first_name="Eve")

    assert codes(weekly, WORDS + "{{ city }}" + LEAVE) == {"field_often_empty": "warn"}
    assert codes(weekly, WORDS + "{{ city | default('-') }}" + LEAVE) == {}


def test_a_letter_that_fails_for_one_reader_says_why(weekly: MailingList) -> None:
    a_reader("eve@example.org", weekly, name="Eve", first_name="Eve", city="x", points="many")
    html = WORDS + "{% if points %}{{ points | int }}{% endif %}" + LEAVE

    finding = findings(a_campaign(weekly, html=html))["letter_error"]

    assert "HTML, line 1" in finding.detail


# ------------------------------------------------------------------------------- links and elements


@pytest.mark.parametrize(
    ("html", "code", "level"),
    [
        ('<a href="javascript:alert(1)">x</a>', "bad_link", "fail"),
        ('<a href="data:text/html,x">x</a>', "bad_link", "fail"),
        ('<a href="">x</a>', "bad_link", "fail"),
        ('<a href="/path">x</a>', "bad_link", "fail"),
        ('<a href="example.org">x</a>', "bad_link", "fail"),
        ('<a href="http://127.0.0.1/x">x</a>', "inside_link", "fail"),
        ('<a href="https://[::1]/x">x</a>', "inside_link", "fail"),
        ('<a href="https://localhost/x">x</a>', "inside_link", "fail"),
        ('<a href="https://intranet/x">x</a>', "inside_link", "fail"),
        ('<a href="http://a.example/x">x</a>', "http_link", "warn"),
        ('<a href="https://bit.ly/x">x</a>', "shortened_link", "warn"),
        ('<a href="https://evil.example/">www.bank.example</a>', "misleading_link", "warn"),
        ('<a href="https://evil.example/">https://bank.example/x</a>', "misleading_link", "warn"),
        (
            "".join(f'<a href="https://h{number}.example/">x</a>' for number in range(6)),
            "many_hosts",
            "warn",
        ),
        ('<a href="{{ city }}">x</a>', "unguarded_link", "fail"),
        ('<img src="{{ city }}" alt="x">', "unguarded_link", "fail"),
        ('<a href="{{ city | default("https://a.example/") }}">x</a>', "unguarded_link", "fail"),
        ('<a href="{% if city %}{{ city }}{% endif %}">x</a>', "unguarded_link", "fail"),
        ('<a {% if city %}href="{{ city }}"{% endif %}>x</a>', "unguarded_link", "fail"),
        ('<table background="{{ city }}"><tr><td>x</td></tr></table>', "unguarded_link", "fail"),
        ("<script>x()</script>", "script", "fail"),
        ('<p onclick="x()">x</p>', "script", "fail"),
        ('<iframe src="https://a.example/"></iframe>', "script", "fail"),
        ('<form action="https://a.example/"><input></form>', "form", "warn"),
        ('<meta http-equiv="refresh" content="0;https://a.example/">', "external_style", "warn"),
        ('<p style="display:none">' + "hidden " * 90 + "</p>", "hidden_text", "warn"),
        ('<img src="https://a.example/x.png">', "image_without_alt", "warn"),
        ('<img src="http://a.example/x.png" alt="x">', "http_image", "warn"),
        ('<img src="data:image/png;base64,x" alt="x">', "data_image", "warn"),
        ('<img src="x.png" alt="x">', "bad_image", "fail"),
    ],
)
def test_an_odd_link_or_element_is_found(
    weekly: MailingList, html: str, code: str, level: str
) -> None:
    assert codes(weekly, WORDS + html + LEAVE).get(code) == level


@pytest.mark.parametrize(
    ("html", "code"),
    [
        ("<script>x()</script>", "script"),
        ('<p onclick="x()">x</p>', "script"),
        ('<form action="https://a.example/"><input></form>', "form"),
        ('<p style="display:none">' + "hidden " * 90 + "</p>", "hidden_text"),
        ('<img src="https://a.example/x.png">', "image_without_alt"),
        ('<img src="x.png" alt="x">', "bad_image"),
    ],
)
@pytest.mark.parametrize("reader", ["Ada", "Bob"])
def test_what_only_one_reader_gets_is_found(
    weekly: MailingList, html: str, code: str, reader: str
) -> None:
    conditional = f"{{% if first_name == '{reader}' %}}{html}{{% endif %}}"
    assert code in codes(weekly, WORDS + conditional + LEAVE)


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://a.example/">a.example</a><a href="https://www.a.example/">a.example</a>',
        '<a href="mailto:a@b.example">write</a><a href="tel:+4930">ring</a><a href="#top">top</a>',
        '<a href="https://a.example/?q={{ city | urlencode }}">x</a>',
        '<img src="https://a.example/x.png" alt="">',
        '<img src="https://a.example/{{ city }}.png" alt="{{ city }}">',
    ],
)
def test_ordinary_links_and_images_are_no_finding(weekly: MailingList, html: str) -> None:
    assert codes(weekly, WORDS + html + LEAVE) == {}


def test_a_link_from_a_field_that_is_no_address_leads_nowhere(weekly: MailingList) -> None:
    assert codes(weekly, WORDS + '<a href="{{ city | url }}">x</a>' + LEAVE) == {"bad_link": "fail"}


def test_a_letter_of_images_is_found(weekly: MailingList) -> None:
    html = '<img src="https://a.example/x.png" alt="Everything is in this picture">' + LEAVE

    assert codes(weekly, html) == {"image_only": "warn"}


# ------------------------------------------------------------------------ the way out, and the size


@pytest.mark.parametrize(
    "html",
    [
        WORDS,
        WORDS + "{{ unsubscribe_url }}",
        WORDS + '<a href="https://a.example/unsubscribe">Leave</a>',
        WORDS + "{% if city == 'London' %}" + LEAVE + "{% endif %}",
    ],
)
def test_html_without_a_way_out_for_everybody_is_found(weekly: MailingList, html: str) -> None:
    assert codes(weekly, html).get("no_unsubscribe_link") == "fail"


def test_a_text_part_without_a_way_out_is_found(weekly: MailingList) -> None:
    found = codes(weekly, text="The same as text, and it is long enough.")

    assert found == {"no_unsubscribe_link_in_text": "warn"}


def test_a_text_part_that_says_nothing_is_found(weekly: MailingList) -> None:
    assert codes(weekly, text="See HTML.")["text_short"] == "warn"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 90, {"html_large": "warn"}),
        (0, 110, {"html_clipped": "warn"}),
        (110, 0, {"html_clipped": "fail"}),
        (0, 60, {}),
    ],
)
def test_html_that_gmail_cuts_off_is_found(
    weekly: MailingList, before: int, after: int, expected: dict[str, str]
) -> None:
    html = f"{WORDS}<p>{'x ' * 512 * before}</p>{LEAVE}<p>{'x ' * 512 * after}</p>"

    assert codes(weekly, html, text="Enough of a text: {{ unsubscribe_url }}") == expected


def test_the_preflight_of_a_letter_ends_no_subscription(weekly: MailingList) -> None:
    """Links in a preflight are a test letter's, in case somebody ever shows them."""
    for addressee in Sample(a_campaign(weekly)).addressees:
        assert addressee.unsubscribe_url.startswith("http://localhost:8000/u/")
    assert weekly.subscriptions.filter(status="subscribed").count() == 2
