"""Recipients as status parts write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bounces.detectors.addresses import is_address, read_recipient, without_comments
from bounces.report import BounceReport, names, printable, spellings


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("rfc822; ada@example.net", "ada@example.net"),
        ("rfc822;ada@example.net", "ada@example.net"),
        ("RFC822 ; <ada@example.net>", "ada@example.net"),
        ("rfc/822; ada@example.net", "ada@example.net"),
        ("<ada@example.net>", "ada@example.net"),
        ("ada@example.net", "ada@example.net"),
        ("rfc822; ada@example.net (Ada (Countess) Lovelace)", "ada@example.net"),
        ("(before) rfc822 (after); ada@example.net;", "ada@example.net"),
        ("rfc822; Ada Lovelace <ada@example.net>", "ada@example.net"),
        ("rfc822; <@a.example,@b.example:ada@example.net>", "ada@example.net"),
        ('rfc822; "ada lovelace"@example.net', '"ada lovelace"@example.net'),
        ('rfc822; "a(b)c"@example.net', '"a(b)c"@example.net'),
        ("rfc822; ada@[192.0.2.1]", "ada@[192.0.2.1]"),
        ("rfc822; ada@[IPv6:2001:db8::1]", "ada@[IPv6:2001:db8::1]"),
        ("utf-8; žofie@bücher.example", "žofie@bücher.example"),
        (r"utf-8; \x{17E}ofie@example.net", "žofie@example.net"),
        (r"rfc822; \x{17E}ofie@example.net", r"\x{17E}ofie@example.net"),
        ("rfc822; =?utf-8?q?a=2Eb?=@example.net", "=?utf-8?q?a=2Eb?=@example.net"),
        ("X400; /S=LOVELACE/C=GB/", ""),
        ("rfc822; |/usr/bin/filter ada@example.net", ""),
        ("rfc822; /dev/null", ""),
        ("rfc822; root", ""),
        ("rfc822; @example.net", ""),
        ("rfc822;", ""),
        ("", ""),
        ("rfc822; " + "a" * 400 + "@example.net", ""),
        ("rfc822; a\x00b@example.net", ""),
    ],
)
def test_a_recipient_field_gives_its_address(value: str, address: str) -> None:
    assert read_recipient(value) == address


@given(st.text(max_size=500))
def test_whatever_is_read_has_the_shape_of_an_address(value: str) -> None:
    address = read_recipient(value)
    assert address == "" or is_address(address)


@given(st.text(alphabet='()\\" a', max_size=60))
def test_comments_are_removed_without_losing_what_is_never_closed(text: str) -> None:
    kept = without_comments(text)
    assert len(kept) <= len(text)
    if "(" not in text:
        assert kept == text


def test_xtext_that_was_left_undecoded_names_the_reader_too() -> None:
    report = BounceReport("anna+2Bnews@example.org", "failed", "5.1.1", True, "")
    assert names(report, "anna+news@example.org")
    assert names(report, "anna+2bnews@example.org")
    assert not names(report, "anna@example.org")


def test_the_literal_spelling_comes_first() -> None:
    assert next(spellings("anna+AB@example.org")) == "anna+AB@example.org"


def test_an_encoded_word_in_the_local_part_is_tried_decoded() -> None:
    assert "a.b@example.org" in spellings("=?utf-8?q?a=2Eb?=@example.org")
    assert len(list(spellings("=?no-such-charset?q?a?=@example.org"))) == 1


def test_either_recipient_of_a_report_may_be_the_reader() -> None:
    report = BounceReport(
        "ada@example.net", "failed", "5.1.1", True, "", "ada@example.net", "al@host.example"
    )
    assert names(report, "ada@example.net")
    assert names(report, "al@host.example")


@given(st.text())
def test_text_from_outside_is_one_printable_line(text: str) -> None:
    clean = printable(text, 100)
    assert len(clean) <= 100
    assert clean.isprintable()
    clean.encode("utf-8")


def test_bidi_overrides_do_not_reach_a_page() -> None:
    assert printable("550 \u202egnp.exe") == "550 gnp.exe"
