"""Addresses: the fast way and email-validator must say the same of every address."""

from __future__ import annotations

from unittest import mock

import pytest
from django.core.exceptions import ValidationError
from hypothesis import example, given
from hypothesis import strategies as st

from campaigns import addresses
from campaigns.addresses import address_key, normalise_address


def verdict(raw: str) -> str | None:
    """The normalised address, or None when it is refused."""
    try:
        return normalise_address(raw)
    except ValidationError:
        return None


def slow_verdict(raw: str) -> str | None:
    """The same with email-validator alone."""
    nothing_is_plain = mock.Mock(fullmatch=lambda text: None)
    with mock.patch.object(addresses, "_PLAIN_ADDRESS", nothing_is_plain):
        return verdict(raw)


PIECES = st.sampled_from(
    ["a", "Z", "9", "_", "+", "-", "--", ".", "..", "@", "'", '"', " ", "\t", "é", "ſ", "K", "İ"]
    + ["xn--", "info", "Postmaster", "test", "local", "LOCALHOST", "arpa", "onion", "invalid"]
    + ["example", ".com", ".co.uk", ".org", "a" * 60, "b" * 63, "\n", "\x00", "1", "。", "@x.org"]
)
NEARLY_ADDRESSES = st.one_of(
    st.lists(PIECES, max_size=12).map("".join),
    st.builds(
        "{}@{}.{}".format,
        st.lists(PIECES, max_size=5).map("".join),
        st.lists(PIECES, max_size=5).map("".join),
        PIECES,
    ),
    st.emails(),
    st.from_regex(addresses._PLAIN_ADDRESS, fullmatch=True),
    st.text(max_size=40).map(lambda text: f"{text}@example.org"),
)


@given(NEARLY_ADDRESSES)
@example("a@b.c")
@example("a@" + "b" * 63 + ".org")
@example("a@" + "b" * 64 + ".org")
@example("a" * 242 + "@example.org")
@example("a" * 243 + "@example.org")
@example("a@ab--cd.org")
@example("a@xn--mnchen-3ya.de")
@example("a@sub.test")
@example("a@test.local.org")
@example("INFO@Example.ORG")
@example("a@b.c1")
@example("a@b.1c")
@example("a@ſ.org")
@example("a@b.org\n")
def test_the_fast_way_says_what_email_validator_says(raw: str) -> None:
    assert verdict(raw) == slow_verdict(raw)


@pytest.mark.parametrize(
    "address", ["ada@example.org", "ada.lovelace+news@mail.example.co.uk", "A_b-9@x1.example.org"]
)
def test_ordinary_addresses_go_the_fast_way(address: str) -> None:
    with mock.patch.object(addresses, "validate_email", side_effect=AssertionError("slow")):
        assert normalise_address(address) == address


def test_the_domain_is_lower_case_and_the_local_part_is_left() -> None:
    assert normalise_address(" Ada.Lovelace@EXAMPLE.Org ") == "Ada.Lovelace@example.org"


def test_a_domain_beyond_ascii_is_written_as_idna() -> None:
    assert normalise_address("ada@münchen.de") == "ada@xn--mnchen-3ya.de"


@pytest.mark.parametrize("raw", ["", "ada", "ada@", "@example.org", "ada@localhost", "ä@x.org"])
def test_what_is_no_address_is_refused_with_a_reason(raw: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        normalise_address(raw)
    assert refusal.value.messages[0]


def test_two_spellings_of_one_address_have_one_key() -> None:
    assert address_key("Ada@Example.org ") == address_key("ada@example.ORG")
