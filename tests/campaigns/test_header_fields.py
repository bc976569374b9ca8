"""Header fields: whatever a name or a subject holds, it comes back as it was cleaned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email import message_from_string, policy
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaigns.header_fields import (
    LONGEST_NAME,
    LONGEST_SUBJECT,
    clean,
    clean_name,
    clean_subject,
    date_field,
    encoded_words,
    mailbox_field,
    message_id_field,
    subject_field,
)
from campaigns.list_headers import feedback_id_field, list_id_field, unsubscribe_fields

# What has broken headers before, between letters of many scripts.
NASTY = st.sampled_from(
    ["\r", "\n", "\r\n", "\r\n ", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x00", "\t"]
    + ["=?utf-8?q?=0D=0ABcc:_x=40y.z?=", "=?utf-8?b?DQpCY2M6IHhAeS56?=", "=?", "?=", "==??"]
    + ["\u202e", "\u2066", "\u2069", "\ud800", "\udfff", "\r\nBcc: evil@example.org", "  ", "   "]
    + ['"', "\\", "<", ">", "(", ")", ",", ";", ":", "@", "a@b.example", ".", "👩‍👩‍👧", "🏳️‍🌈"]
    + ["Ωμέγα", "日本語", "עברית", "العربية", "हिन्दी", "é", "ñ", "\u00a0", "\u3000", "\u200b"]
)
WORDS = st.text(max_size=40) | st.text(st.characters(codec="ascii"), max_size=200)
ANYTHING = st.lists(NASTY | WORDS, max_size=8).map("".join)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=250)


def parsed(field: str):
    """The field as the standard library reads it, with every other field that it may hide."""
    return message_from_string(field + "\r\n", policy=policy.default)


def assert_well_formed(field: str) -> None:
    assert field.isascii()
    assert field.endswith("\r\n")
    lines = field[:-2].split("\r\n")
    assert not any("\r" in line or "\n" in line for line in lines)
    assert all(line.startswith(" ") and line.strip() for line in lines[1:])
    for line in lines:
        if "=?" in line:
            assert len(line) <= 76
            assert all(len(word) <= 75 for word in line.split(" "))


@settings(deadline=None)
@given(ANYTHING | PRINTABLE)
@example("word " * 60)
@example("x" * 250)
@example("é" * 250)
@example("A" * 80 + " " + "b" * 5)
def test_a_subject_comes_back_as_it_was_cleaned(subject: str) -> None:
    field = subject_field(subject)

    assert_well_formed(field)
    assert max(map(len, field.split("\r\n"))) <= 78
    message = parsed(field)
    assert message.keys() == ["Subject"]
    assert message["Subject"] == clean_subject(subject)
    assert not message["Subject"].defects


@settings(deadline=None)
@given(ANYTHING | PRINTABLE, st.sampled_from(["From", "To", "Reply-To"]))
@example("Ada Lovelace", "To")
@example('Ada "the first" \\ Lovelace, esq.', "From")
@example("名" * 100, "From")
def test_a_name_comes_back_as_it_was_cleaned_beside_one_address(name: str, field: str) -> None:
    written = mailbox_field(field, name, "ada@example.org")

    assert_well_formed(written)
    message = parsed(written)
    assert message.keys() == [field]
    (address,) = message[field].addresses
    assert address.addr_spec == "ada@example.org"
    assert display_name(written, address.display_name) == clean_name(name)


def display_name(written: str, as_parsed: str) -> str:
    """The name as a reader sees it. Python 3.11's own parser puts a space between two encoded
    words of a phrase, against RFC 2047 section 6.2; its older decoder does not."""
    raw = written.partition(": ")[2].rpartition("<")[0].strip()
    return str(make_header(decode_header(raw))) if "=?" in raw else as_parsed


@settings(deadline=None)
@given(ANYTHING)
def test_cleaning_leaves_nothing_that_breaks_or_turns_a_line(text: str) -> None:
    cleaned = clean(text)

    assert clean(cleaned) == cleaned
    assert "=?" not in cleaned
    assert not any(
        character < " "
        or "\x7f" <= character <= "\x9f"
        or character in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        or "\ud800" <= character <= "\udfff"
        for character in cleaned
    )


def test_line_breaks_become_spaces_and_bidi_marks_vanish() -> None:
    assert clean("Ada\r\nBcc: x@y.z") == "Ada Bcc: x@y.z"
    assert clean("tsop\u202eexe") == "tsopexe"
    assert clean("==??utf-8?q?x?=") == "utf-8?q?x?="


def test_emoji_and_scripts_are_left_alone() -> None:
    for text in ("👩‍👩‍👧 Familie", "שלום עולם", "こんにちは", "Ünïcödé", "non\u00a0breaking"):
        assert clean(text) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_encoded_words_never_cut_a_character_in_two(text: str) -> None:
    words = encoded_words(text, first_room=67).split("\r\n ")

    for word in words:
        assert message_from_string(f"X: {word}\n\n", policy=policy.default)["X"].defects == ()
    assert len(words[0]) <= 67
    assert all(len(word) <= 75 for word in words)


def test_long_names_and_subjects_are_cut() -> None:
    assert len(clean_name("n" * 10_000)) == LONGEST_NAME
    assert len(clean_subject("s" * 10_000)) == LONGEST_SUBJECT


def test_a_name_that_is_nothing_after_cleaning_leaves_the_address_alone() -> None:
    assert mailbox_field("To", "\x00\u202e ", "ada@example.org") == "To: <ada@example.org>\r\n"


def test_an_ascii_subject_folds_between_words_and_needs_no_encoding() -> None:
    subject = " ".join(["newsletter"] * 20)

    assert "=?" not in subject_field(subject)
    assert subject_field(subject).count("\r\n") > 1


@pytest.mark.parametrize(
    "address",
    ["", "ada", "a b@example.org", "a@example.org\r\nBcc: b@example.org", "<a@example.org>"]
    + ["a@example.org,b@example.org", "é@example.org", "=?utf-8?q?x?=@example.org", "a@b@c"]
    + ["a" * 260 + "@example.org", "a..b@example.org", "a@exa mple.org", "a@b.c> <x@y.z"],
)
@pytest.mark.parametrize("name", ["", "Ada", "Ada L. Smith", "Jérôme"])
def test_an_address_that_is_none_is_refused(name: str, address: str) -> None:
    with pytest.raises(ValueError, match="To"):
        mailbox_field("To", name, address)


@pytest.mark.parametrize("length", range(40, 75))
def test_a_mailbox_is_folded_only_where_it_does_not_fit_on_a_line(length: int) -> None:
    name = ("word " * 20)[:length].strip()
    written = mailbox_field("To", name, "ada@example.org")

    assert display_name(written, parsed(written)["To"].addresses[0].display_name) == name
    whole = f"To: {name} <ada@example.org>\r\n"
    assert written == whole if len(whole) <= 80 else written.count("\r\n ") == 1
    assert max(map(len, written.split("\r\n"))) <= 78


@pytest.mark.parametrize(
    "message_id",
    ["", "a@b", "<a>", "<a@b>\r\nBcc: x@y", "<a b@c>", "<a@é>", "<" + "a" * 300 + "@b>"],
)
def test_a_message_id_that_is_none_is_refused(message_id: str) -> None:
    with pytest.raises(ValueError, match="Message-ID"):
        message_id_field(message_id)


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_a_date_is_read_back_to_the_second(moment: datetime, minutes: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    field = date_field(aware)

    assert parsedate_to_datetime(field.removeprefix("Date: ")) == aware.replace(microsecond=0)


def test_a_date_is_written_as_the_table_says() -> None:
    moment = datetime(2026, 11, 21, 10, 0, 0, 999, tzinfo=UTC)

    assert date_field(moment) == "Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n"


def test_one_moment_in_two_zones_is_two_dates() -> None:
    moment = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)
    east = moment.astimezone(timezone(timedelta(hours=1)))

    assert date_field(moment) == "Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n"
    assert date_field(east) == "Date: Sat, 21 Nov 2026 11:00:00 +0100\r\n"


def test_a_moment_without_a_zone_is_no_date() -> None:
    with pytest.raises(ValueError, match="zone"):
        date_field(datetime(2026, 11, 21))


# ------------------------------------------------------------------------------------ list headers


def test_list_unsubscribe_is_one_uri_on_one_line_however_long() -> None:
    url = "https://" + "n" * 35 + "/u/" + "t" * 29
    assert len(url) == 75

    assert unsubscribe_fields(url) == (
        f"List-Unsubscribe: <{url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    )


@pytest.mark.parametrize(
    "url",
    ["https://" + "n" * 68, "mailto:a@example.org", "javascript:alert(1)", "", "//example.org/u/x"]
    + ["https://example.org/u/x>, <https://evil.example/", "https://example.org/\r\nBcc: x@y"]
    + ["https://example.org/é", "https://example.org/a b"],
)
def test_a_link_that_cannot_stand_in_list_unsubscribe_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="List-Unsubscribe"):
        unsubscribe_fields(url)


@given(ANYTHING)
def test_list_id_is_one_line_of_ascii_without_encoded_words(name: str) -> None:
    field = list_id_field(name, "weekly", "news.example.org")

    assert field.count("\r\n") == 1
    assert field.isascii()
    assert "=?" not in field
    assert field.endswith("<weekly.news.example.org>\r\n")


def test_list_id_has_the_name_where_it_is_plain() -> None:
    assert list_id_field("Weekly, news", "weekly", "example.org") == (
        'List-Id: "Weekly, news" <weekly.example.org>\r\n'
    )
    assert list_id_field("Wöchentlich", "weekly", "example.org") == (
        "List-Id: <weekly.example.org>\r\n"
    )


@pytest.mark.parametrize(
    ("label", "domain"),
    [("", "example.org"), ("a b", "example.org"), ("a>", "x"), ("a", "b" * 260)],
)
def test_a_list_id_that_is_none_is_refused(label: str, domain: str) -> None:
    with pytest.raises(ValueError, match="List-Id"):
        list_id_field("Weekly", label, domain)


@given(
    st.integers(1, 10**9),
    st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True),
    st.from_regex(r"[a-z0-9]{5,15}", fullmatch=True),
)
@example(123, "c123", "pennypost")
@example(1, "pennypost", "pennypost")
@example(1, "", "pennypost")
def test_feedback_id_ends_with_the_sender_and_repeats_no_value(
    campaign: int, label: str, sender: str
) -> None:
    values = feedback_id_field(campaign, label, sender).removeprefix("Feedback-ID: ").split(":")

    assert values[-1] == f"{sender}\r\n"
    assert len({value.strip() for value in values}) == len(values) <= 4


@pytest.mark.parametrize("sender", ["", "four", "sixteen-letters-", "with space", "a:b:c:d"])
def test_a_sender_id_that_gmail_does_not_read_is_refused(sender: str) -> None:
    with pytest.raises(ValueError, match="Feedback-ID"):
        feedback_id_field(1, "weekly", sender)
