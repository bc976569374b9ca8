"""A letter's bytes: equal to what the standard library would have meant, and never more."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaigns.letter import Addressee, Letter, LetterError, LetterSource, audit, letter_of
from campaigns.models import Edition
from tests.campaigns.reference_composer import compose
from tests.campaigns.test_header_fields import ANYTHING

DOMAIN, SENDER = "news.example.org", "pennypost"
SOURCE = LetterSource(
    from_name="Brand & Söhne",
    from_email="news@example.com",
    reply_to="hello@example.com",
    subject="News for {{ first_name | default('you') }}",
    html=(
        "<!DOCTYPE html><html><body>\n<p>Dear {{ name | default('reader') }} ({{ email }}),</p>\n"
        "{% if vip %}<p>You are a VIP: {{ vip }}.</p>\n{% endif %}"
        "<p>A line with = and é and a very long run of words, so that it is longer than 76 "
        "characters and has to be broken somewhere without any harm to its words.</p>\n"
        '<a href="{{ unsubscribe_url }}">Leave {{ list_name }}</a></body></html>\n'
    ),
    text=(
        "Dear {{ name | default('reader') }},\n\n.\nMAIL FROM:<evil@example.org>\n \n"
        "{%- for letter in language %}\n* {{ letter }}{% endfor %}\n\n"
        "Leave: {{ unsubscribe_url }}\n"
    ),
)
READER = Addressee(
    rcpt_to="ada@example.org",
    name="Ada Lovelace",
    language="en",
    attributes={"first_name": "Ada", "vip": ""},
    campaign_id=12,
    list_name="Weekly",
    list_label="weekly",
    message_id="<abc.12@news.example.org>",
    unsubscribe_url="https://news.example.org/u/abcdefghijklmnopqrstuvwxyz234",
    date=datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
)


def letter(source: LetterSource = SOURCE) -> Letter:
    return Letter(source, list_id_domain=DOMAIN, sender_id=SENDER)


def read(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=policy.default)  # type: ignore[return-value]


LETTER = letter()
PLANNED = [
    *("Date", "From", "Reply-To", "To", "Subject", "Message-ID", "List-Id", "Feedback-ID"),
    *("List-Unsubscribe", "List-Unsubscribe-Post", "MIME-Version", "Content-Type"),
]


# ---------------------------------------------------------------------------- the bytes themselves


def test_the_header_of_a_letter_is_this_to_the_octet() -> None:
    head = LETTER.render(READER).partition(b"\r\n\r\n")[0].decode()

    assert head.split("\r\n") == [
        "Date: Sat, 21 Nov 2026 10:00:00 +0000",
        "From: =?utf-8?b?QnJhbmQgJiBTw7ZobmU=?= <news@example.com>",
        "Reply-To: <hello@example.com>",
        "To: Ada Lovelace <ada@example.org>",
        "Subject: News for Ada",
        "Message-ID: <abc.12@news.example.org>",
        "List-Id: Weekly <weekly.news.example.org>",
        "Feedback-ID: c12:weekly:pennypost",
        "List-Unsubscribe: <https://news.example.org/u/abcdefghijklmnopqrstuvwxyz234>",
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
        "MIME-Version: 1.0",
        'Content-Type: multipart/alternative; boundary="=_pennypost"',
    ]


def test_text_comes_first_and_both_parts_are_quoted_printable_utf_8() -> None:
    text, html_part = read(LETTER.render(READER)).iter_parts()

    assert [text.get_content_type(), html_part.get_content_type()] == ["text/plain", "text/html"]
    for part in (text, html_part):
        assert part.get_content_charset() == "utf-8"
        assert part["Content-Transfer-Encoding"] == "quoted-printable"


def test_a_letter_never_announces_itself_as_bulk_or_tells_its_return_path() -> None:
    assert not {"Precedence", "Return-Path", "Bcc", "Cc"} & set(read(LETTER.render(READER)).keys())


def test_a_test_letter_has_no_list_id_and_keeps_its_way_out() -> None:
    content = LETTER.render(READER._replace(list_name="", list_label=""))
    message = read(content)

    audit(content)
    assert "List-Id" not in message
    assert message["Feedback-ID"] == "c12:test:pennypost"
    assert message["List-Unsubscribe"] == f"<{READER.unsubscribe_url}>"


def test_a_letter_without_a_way_out_has_neither_half_of_one_click() -> None:
    content = LETTER.render(READER._replace(unsubscribe_url=""))

    audit(content)
    assert b"List-Unsubscribe" not in content


def test_the_preview_shows_what_the_letter_says() -> None:
    parts = [part.get_content() for part in read(LETTER.render(READER)).iter_parts()]

    assert LETTER.render_subject(READER) == "News for Ada"
    assert LETTER.render_text(READER) == parts[0].replace("\r\n", "\n")
    assert LETTER.render_html(READER) == parts[1].replace("\r\n", "\n")


# --------------------------------------------------------------------- equal to the slow composer

NAMES = ANYTHING | st.text(max_size=150)
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60),
    st.sampled_from(["=", "a=3D", "x " * 60, "<b>&'\"", "{{ name }}", "日本語" * 20, "a\nb", " "]),
)


def addressees() -> st.SearchStrategy[Addressee]:
    return st.builds(
        READER._replace,
        name=VALUES,
        language=VALUES,
        attributes=st.dictionaries(st.sampled_from(["first_name", "vip", "other"]), VALUES),
        unsubscribe_url=st.sampled_from([READER.unsubscribe_url, "http://localhost:8000/u/x", ""]),
        list_label=st.sampled_from(["weekly", ""]),
    )


def body(part: EmailMessage) -> str:
    text = part.get_payload(decode=True).decode("utf-8")  # type: ignore[union-attr]
    return text.replace("\r\n", "\n")


def unescaped(part: EmailMessage) -> str:
    """minijinja writes &#x2f; and &quot; where html.escape leaves a slash and writes &#x27;."""
    return html.unescape(body(part))


@settings(deadline=None, max_examples=200)
@given(addressees())
def test_a_letter_means_what_the_standard_library_would_have_written(addressee: Addressee) -> None:
    expected = compose(SOURCE, addressee, domain=DOMAIN, sender=SENDER)

    content = LETTER.render(addressee)

    audit(content)
    message = read(content)
    assert message.keys() == [name for name in PLANNED if name in expected]
    for name in set(message.keys()) - {"Content-Type", "List-Id", "MIME-Version", "To", "From"}:
        assert message[name] == expected[name], name
    for name in {"From", "To"}:
        assert shown_name(content, name) == expected[name].addresses[0].display_name
        assert message[name].addresses[0].addr_spec == expected[name].addresses[0].addr_spec
    text, html_part = message.iter_parts()
    expected_text, expected_html = expected.iter_parts()
    assert body(text) == body(expected_text)
    assert unescaped(html_part) == unescaped(expected_html)


def shown_name(content: bytes, field: str) -> str:
    """A display name by the older decoder: the parser of Python 3.11 puts a space between two
    encoded words of a phrase."""
    raw = message_from_bytes(content, policy=policy.compat32)[field].rpartition("<")[0].strip()
    if "=?" in raw:
        return str(make_header(decode_header(raw)))
    return read(content)[field].addresses[0].display_name


# ----------------------------------------------------------------- never an extra header (T1, T2)


@settings(deadline=None, max_examples=300)
@given(NAMES, NAMES, st.dictionaries(st.sampled_from(["first_name", "vip"]), NAMES))
@example("Ada\r\nBcc: evil@example.org", "x", {"first_name": "x\r\n\r\n--=_pennypost\r\n"})
@example("=?utf-8?q?=0D=0ABcc:_x=40y.z?=", "", {"first_name": "=?utf-8?q?=0D=0ABcc:_x=40y.z?="})
@example("\ud800", "\udfff", {"vip": "\ud83d"})
def test_no_value_of_a_reader_makes_another_header_or_another_letter(
    name: str, language: str, attributes: Mapping[str, object]
) -> None:
    content = LETTER.render(READER._replace(name=name, language=language, attributes=attributes))

    audit(content)
    message = read(content)
    assert message.keys() == PLANNED
    assert [address.addr_spec for address in message["To"].addresses] == ["ada@example.org"]
    assert len(list(message.iter_parts())) == 2


@settings(deadline=None, max_examples=100)
@given(ANYTHING, ANYTHING)
def test_no_name_or_subject_of_an_author_makes_another_header(name: str, subject: str) -> None:
    subject = subject.replace("{", "(")
    content = letter(replace(SOURCE, from_name=name, subject=subject)).render(READER)

    audit(content)
    assert read(content).keys() == PLANNED


@pytest.mark.parametrize("smuggled", ["\n.\nMAIL FROM:<evil>", "\r.\r", "\r\n.\r\nQUIT\r\n", "\r"])
def test_a_body_never_has_a_bare_line_end(smuggled: str) -> None:
    content = letter(replace(SOURCE, text=smuggled + "{{ name }}", html=smuggled)).render(
        READER._replace(name=smuggled)
    )

    audit(content)
    assert b"\r" not in content.replace(b"\r\n", b"")
    assert b"\n" not in content.replace(b"\r\n", b"")


def test_a_body_cannot_contain_the_boundary() -> None:
    source = replace(SOURCE, text="--=_pennypost--\r\n{{ name }}\n--=_pennypost\n")

    message = read(letter(source).render(READER._replace(name="\n--=_pennypost--\n")))

    assert len(list(message.iter_parts())) == 2
    assert message.defects == []


@pytest.mark.parametrize(
    "change",
    [
        {"rcpt_to": "a@example.org, b@example.org"},
        {"rcpt_to": "a@example.org\r\nBcc: b@example.org"},
        {"message_id": "<a@b>\r\nX: y"},
        {"unsubscribe_url": "https://example.org/" + "u" * 60},
        {"unsubscribe_url": "https://example.org/u>\r\nX: y"},
        {"list_label": "week\r\nly"},
        {"date": datetime(2026, 11, 21)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_stand_in_a_header_is_refused_with_the_reason(change: dict) -> None:
    with pytest.raises(LetterError):
        LETTER.render(READER._replace(**change))


# ------------------------------------------------------------------------------- the merge values


def test_a_built_in_field_is_never_taken_from_the_attributes() -> None:
    attributes = {"unsubscribe_url": "https://evil.example/", "email": "x", "name": "Eve"}

    values = LETTER.merge_values(READER._replace(attributes=attributes))

    assert values["unsubscribe_url"] == READER.unsubscribe_url
    assert values["email"] == "ada@example.org"
    assert values["name"] == "Ada Lovelace"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("Ada", "Ada"), (0, "0"), (3, "3"), (2.5, "2.5"), (True, "true"), ("a\x00\x07b", "ab")]
    + [("\ud800x", "x"), ("x" * 20_000, "x" * 10_000), ("a\r\nb", "a\r\nb")],
)
def test_a_value_is_a_string_without_controls(value: object, shown: str) -> None:
    assert LETTER.merge_values(READER._replace(attributes={"vip": value}))["vip"] == shown


@pytest.mark.parametrize("value", ["", None, False, [], {}, ["a"], {"a": 1}, "\x00"])
def test_what_is_empty_or_no_single_value_is_left_out(value: object) -> None:
    assert "vip" not in LETTER.merge_values(READER._replace(attributes={"vip": value}))


# ------------------------------------------------------------------------------------- the audit


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Subject: ", b"Bcc: x@example.org\r\nSubject: "),
        (b"Subject: ", b"Subject: a\r\nSubject: "),
        (b"MIME-Version: 1.0\r\n", b""),
        (b"Subject: ", b"Subject: \n"),
        (b"Subject: ", b"Subject: \r"),
        (b"Subject: ", b"Subject: " + b"x" * 999),
        (b"Subject: ", b"Subject: \xc3\xa9"),
        (b"List-Unsubscribe: <", b"List-Unsubscribe: =?utf-8?q?x?= <"),
        (b"List-Unsubscribe: <", b"List-Unsubscribe:\r\n <"),
        (b"List-Id: ", b"List-Id: =?utf-8?q?x?= "),
        (b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", b""),
        (b"Date: ", b"no field\r\nDate: "),
        (b"Date: ", b" folded\r\nDate: "),
        (b"<!DOCTYPE", b".<!DOCTYPE"),
        (b"--=_pennypost--\r\n", b"--=_pennypost--"),
    ],
)
def test_the_audit_refuses_every_departure_from_the_plan(old: bytes, new: bytes) -> None:
    content = LETTER.render(READER)
    audit(content)
    assert old in content

    with pytest.raises(LetterError, match="audit"):
        audit(content.replace(old, new, 1))


# ------------------------------------------------------------------------------- compiled once


def edition(**changes: str) -> Edition:
    fields = {name: getattr(SOURCE, name) for name in LetterSource.__slots__}
    return Edition(**(fields | changes))


def test_an_edition_is_compiled_once_and_found_by_its_content() -> None:
    assert letter_of(edition()) is letter_of(edition())
    assert letter_of(edition(subject="Other")) is not letter_of(edition())


def test_a_changed_setting_is_another_letter(settings: Any) -> None:
    before = letter_of(edition()).render(READER)
    settings.CAMPAIGNS = {"SENDER_ID": "othersender", "LIST_ID_DOMAIN": "lists.example.net"}

    after = letter_of(edition()).render(READER)

    assert b":pennypost\r\n" in before
    assert b":othersender\r\n" in after
    assert b"<weekly.lists.example.net>" in after


@pytest.mark.parametrize(
    "change",
    [{"html": "{% if %}"}, {"text": "{{ x"}, {"subject": "{% include 'x' %}"}]
    + [{"from_email": "nobody"}, {"reply_to": "a b@c"}, {"html": "x" * 300_000}],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_compile_says_so_when_it_is_compiled(change: dict[str, str]) -> None:
    with pytest.raises(LetterError):
        letter_of(edition(**change))
