"""Freezing: CSS inlined around the tags, a preheader, a text part, one edition per content."""

from __future__ import annotations

import css_inline
import pytest

from campaigns.editions import draft_edition, freeze
from campaigns.inlining import inline_css
from campaigns.letter import letter_of
from campaigns.merge import LetterError, MergeTemplate
from campaigns.models import Edition
from campaigns.plain_text import text_of_html
from campaigns.trial import Manuscript, typeset
from tests.campaigns.people import HTML, a_campaign
from tests.campaigns.test_letter import READER

STYLE = "<style>.a { color: red } h1 { margin: 0 }</style>"


def filled(html: str, **values: str) -> str:
    return MergeTemplate("HTML", html, html=True).render(values)


def parsed(html: str, *, inline: bool = False) -> str:
    """The document as an HTML parser understands it, its CSS inlined or left."""
    document = css_inline.inline(
        html, inline_style_tags=inline, keep_style_tags=True, load_remote_stylesheets=False
    )
    return document.removeprefix("<!DOCTYPE html>")


# ------------------------------------------------------------------------------------ inlining


def test_css_is_inlined_and_the_style_sheet_stays_for_media_queries() -> None:
    inlined = inline_css("<style>p{color:red} @media print{p{color:blue}}</style><p>x</p>")

    assert '<p style="color: red;">x</p>' in inlined
    assert "@media print{p{color:blue}}" in inlined


def test_a_loop_over_rows_stays_around_its_rows() -> None:
    source = (
        STYLE + "<table>{% for c in name %}<tr class='a'><td>{{ c }}</td></tr>{% endfor %}</table>"
    )

    written = filled(inline_css(source), name="xy")

    assert written.count('<tr class="a" style="color: red;">') == 2
    assert "<table><tr" in written
    assert "<tbody>" not in written


def test_a_table_body_that_the_author_wrote_stays() -> None:
    assert "<tbody><tr>" in inline_css("<table><tbody><tr><td>x</td></tr></tbody></table>")


@pytest.mark.parametrize(
    "source",
    [
        '<p title="{{ name | default("a") }}">x</p>',
        "<p title='{{ name | default('a') }}'>x</p>",
        '<a href="https://a.example/?q={{ name | urlencode }}&amp;x=1">x</a>',
        '<a href="{% if vip %}{{ link | url }}{% else %}https://a.example/{% endif %}">x</a>',
        '<p {% if vip %}class="a" lang="{{ name }}"{% else %}class="b"{% endif %} dir="ltr">x</p>',
        "<table>{% if vip %}<tr><td>{{ name }}</td></tr>{% endif %}<tr><td>x</td></tr></table>",
        "<p {{ attributes }}>x</p>",
        "<style>{% if vip %}.a { color: {{ colour }} }{% endif %}</style><p>x</p>",
        "<style>.b { color: {{ colour | default('red') }} }</style><p>x</p>",
        "<p>x</p><title>{{ list_name }}</title>",
        "<textarea>{{ name }}</textarea>",
        "<!--[if mso]><p>{{ name }}</p><![endif]--><p>x</p>",
        "<![if !mso]><p>{{ name }}</p><![endif]>",
        "{% if vip %}<p>{{ name }}</p>{% endif %}",
        "{# a comment > with '\" marks #}<p>x</p>",
        "{% raw %}{{ <b> }}{% endraw %}<p>x</p>",
        "{% set v = name %}<ul>{% for c in v %}<li>{{ c }}</li>{% endfor %}</ul>",
        "<select>{% for c in name %}<option>{{ c }}</option>{% endfor %}</select>",
    ],
)
def test_every_tag_survives_inlining_and_means_the_same(source: str) -> None:
    inlined = inline_css(source)

    values = {"name": "A<b>", "vip": "1", "colour": "blue", "link": "https://b.example/"}
    for given in (values, {}):
        document = f"<body>{filled(source, **given)}</body>"
        assert parsed(filled(inlined, **given)) == parsed(document, inline=True)


def test_an_unquoted_merge_field_becomes_a_quoted_one() -> None:
    assert '<a href="{{ link | url }}">' in inline_css("<a href={{ link | url }}>x</a>")


def test_a_style_that_uses_a_merge_field_is_inlined_with_it() -> None:
    inlined = inline_css("<style>.a{color:{{ colour | default('red') }}}</style><p class=a>x</p>")

    assert 'style="color: blue;"' in filled(inlined, colour="blue")


def test_text_that_only_looks_like_a_tag_stays_text() -> None:
    inlined = inline_css("<p>&#123;&#123; name }} &#123;% x %}</p>")

    assert "<p>{{ name }} {% x %}</p>" in filled(inlined, name="Ada").replace("&quot;", '"')


def test_placeholders_never_meet_words_of_the_author() -> None:
    assert "<p>pp0x pp0c ppq0x A</p>" in filled(
        inline_css("<p>pp0x pp0c ppq0x {{ name }}</p>"), name="A"
    )


def test_the_author_s_doctype_stays_and_a_missing_one_is_added() -> None:
    transitional = (
        '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://x/y.dtd">'
    )

    assert inline_css(transitional + "<p>x</p>").startswith(transitional)
    assert inline_css("<p>x</p>").startswith("<!DOCTYPE html>")


def test_nothing_is_loaded_from_the_web_or_the_disk(tmp_path) -> None:
    sheet = tmp_path / "sheet.css"
    sheet.write_text("p { color: green }")

    inlined = inline_css(
        f'<link rel="stylesheet" href="file://{sheet}">'
        f'<link rel="stylesheet" href="{sheet}"><link rel="stylesheet" href="/etc/passwd"><p>x</p>'
    )

    assert "green" not in inlined
    assert "root:" not in inlined


# ---------------------------------------------------------------------------------- the preheader


def test_the_preheader_is_the_first_thing_in_the_body_and_hidden() -> None:
    written = filled(
        inline_css("<body class='a>b'><p>x</p></body>", "For {{ name }} & you"), name="A"
    )

    body = written.partition("<body")[2].partition(">")[2].partition('b">')[2] or written
    assert body.lstrip().startswith('<div style="display:none')
    assert "For A &amp; you</div><p>x</p>" in written


def test_no_preheader_leaves_no_trace() -> None:
    assert "display:none" not in inline_css("<p>x</p>", "  ")


# ------------------------------------------------------------------------------------ the text part


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p><p>Two<br>lines</p>", "One\n\nTwo\nlines\n"),
        ('<a href="https://a.example/">Read on</a>', "Read on (https://a.example/)\n"),
        ('<a href="https://a.example/">https://a.example/</a>', "https://a.example/\n"),
        ('<a href="mailto:a@b.example">a@b.example</a>', "a@b.example\n"),
        (
            '<a href="https://a.example/"><img src="x" alt="Logo"></a>',
            "Logo (https://a.example/)\n",
        ),
        ('<a href="https://a.example/"><img src="x"></a>', "https://a.example/\n"),
        ('<a href="#top">Top</a><a name="x">y</a>', "Topy\n"),
        ("<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>", "- a\n- b\n  - c\n"),
        ("<ol><li>a</li><li>b</li></ol>", "1. a\n2. b\n"),
        ("<h1>Title</h1><p>x</p><h2>Sub</h2>y", "Title\n=====\n\nx\n\nSub\n---\n\ny\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a | b\nc\n"),
        ("<style>p{}</style><script>x()</script><title>t</title><p>x</p>", "x\n"),
        ('<div style="display: none">preheader</div><p hidden>y</p><p>x</p>', "x\n"),
        ("<div style='display:none'><img src=x><br>a</div><p>x</p>", "x\n"),
        ("a &amp; b &lt;c&gt; &nbsp;d", "a & b <c> \u00a0d\n"),
        ("  much \n\n  space  ", "much space\n"),
        ("<p>Dear {{ name | default('you') }},</p>", "Dear {{ name | default('you') }},\n"),
        ('<a href="{{ link | url }}">x</a>', "x ({{ link | url }})\n"),
        ("{% if a %}<p>b</p>{% endif %}", "{% if a %}\n\nb\n\n{% endif %}\n"),
        ("<table><tr><td>&nbsp;</td></tr></table><p>x</p>", "x\n"),
        ("a<hr>b", "a\n\n" + "-" * 40 + "\n\nb\n"),
    ],
)
def test_the_text_part_says_what_the_html_says(html: str, text: str) -> None:
    assert text_of_html(html) == text


def test_a_condition_that_ends_outside_of_what_is_hidden_still_ends() -> None:
    text = text_of_html("<div hidden>{% if a %}{{ name }}</div><p>x</p>{% endif %}")

    assert MergeTemplate("text", text).render({"a": "1", "name": "n"}).strip() == "x"


def test_text_that_only_looks_like_a_tag_stays_text_there_too() -> None:
    assert MergeTemplate("text", text_of_html("&#123;&#123; x }}")).render({}) == "{{ x }}\n"


# -------------------------------------------------------------------------------------- typesetting


def test_the_author_s_own_text_part_is_taken_as_it_is() -> None:
    assert (
        typeset(Manuscript("s", "", "<p>x</p>", "My own, {{ name }}.")).text
        == "My own, {{ name }}."
    )


@pytest.mark.parametrize(
    ("part", "source", "reason"),
    [
        ("html", "<p>\n{{ name.a.b }}", "HTML, line 2"),
        ("html", "{% if %}", "HTML, line 1"),
        ("text", "{{ x", "text"),
        ("subject", "{{ debug() }}", "subject"),
        ("preheader", "{{ x | safe }}", "preheader"),
        ("html", "x" * 300_000, "larger than 200 KB"),
    ],
)
def test_what_cannot_be_set_says_which_part_and_where(part: str, source: str, reason: str) -> None:
    manuscript = {"subject": "s", "preheader": "", "html": "<p>x</p>", "text": ""} | {part: source}

    with pytest.raises(LetterError, match=reason):
        typeset(Manuscript(**manuscript))


def test_a_letter_that_fails_for_one_sample_is_not_set() -> None:
    manuscript = Manuscript("s", "", "<p>{{ points | default('0') | int }}</p>", "")

    assert typeset(manuscript, [{"points": "3"}])
    with pytest.raises(LetterError, match="invalid"):
        typeset(manuscript, [{"points": "3"}, {"points": "three"}])


# ---------------------------------------------------------------------------------------- freezing


@pytest.mark.django_db
def test_the_same_content_is_frozen_once() -> None:
    campaign = a_campaign()

    first, again = freeze(campaign), freeze(campaign)

    assert first == again
    assert Edition.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "field", ["subject", "from_name", "from_email", "reply_to", "html", "text", "preheader"]
)
def test_every_changed_field_is_another_edition(field: str) -> None:
    campaign = a_campaign()
    first = freeze(campaign)
    setattr(
        campaign, field, "other@example.org" if "m_email" in field or "to" in field else "Other"
    )

    assert freeze(campaign).digest != first.digest


@pytest.mark.django_db
def test_a_frozen_edition_does_not_change_with_its_campaign() -> None:
    campaign = a_campaign()
    edition = freeze(campaign)
    campaign.html = "<p>changed</p>"
    freeze(campaign)

    edition.refresh_from_db()
    assert "changed" not in edition.html


@pytest.mark.django_db
def test_a_draft_is_shown_without_being_saved() -> None:
    campaign = a_campaign(html=STYLE + "<h1>Dear {{ name }}</h1>" + HTML)

    edition = draft_edition(campaign)

    assert edition.pk is None
    assert Edition.objects.count() == 0
    shown = letter_of(edition)
    assert '<h1 style="margin: 0;">Dear Ada Lovelace</h1>' in shown.render_html(READER)
    assert READER.unsubscribe_url in shown.render_text(READER)
    assert freeze(campaign).digest == edition.digest


@pytest.mark.django_db
def test_a_letter_that_cannot_be_made_is_not_frozen() -> None:
    campaign = a_campaign(html="{% if %}")

    with pytest.raises(LetterError):
        freeze(campaign)
    assert Edition.objects.count() == 0


@pytest.mark.django_db
def test_a_from_address_that_is_none_is_not_frozen() -> None:
    with pytest.raises(LetterError, match="from"):
        freeze(a_campaign(from_email="nobody"))


@pytest.mark.django_db
def test_an_address_of_another_script_is_frozen_as_it_travels() -> None:
    assert freeze(a_campaign(from_email="news@München.example")).from_email == (
        "news@xn--mnchen-3ya.example"
    )
