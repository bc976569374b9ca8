"""Tokens: short, bound to a purpose, and worth nothing when a character changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.tokens import WIDTHS, Purpose, TokenSigner

SIGNER = TokenSigner({1: b"a key that is long enough", 7: b"another key, newer than that"})
PURPOSES = st.sampled_from(list(Purpose))


@st.composite
def signed(draw: st.DrawFn) -> tuple[Purpose, tuple[int, ...]]:
    purpose = draw(PURPOSES)
    return purpose, tuple(draw(st.integers(0, 256**width - 1)) for width in WIDTHS[purpose])


@given(signed())
def test_a_token_is_read_back_in_any_case(what: tuple[Purpose, tuple[int, ...]]) -> None:
    purpose, numbers = what
    token = SIGNER.sign(purpose, *numbers)

    assert token == token.lower()
    assert token.isalnum()
    assert SIGNER.read(purpose, token) == SIGNER.read(purpose, token.upper()) == numbers


LETTERS = st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**40 - 1))


@given(st.lists(LETTERS, max_size=60))
def test_the_tokens_of_letters_are_those_that_are_signed_one_by_one(
    letters: list[tuple[int, int, int]],
) -> None:
    assert SIGNER.sign_letters(letters) == [
        (
            SIGNER.sign(Purpose.RETURN_PATH, delivery),
            SIGNER.sign(Purpose.MESSAGE_ID, delivery),
            SIGNER.sign(Purpose.UNSUBSCRIBE, campaign, subscriber),
        )
        for delivery, campaign, subscriber in letters
    ]


def test_two_threads_may_sign_their_first_letters_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signer, prepare, others = TokenSigner(SIGNER.keys), TokenSigner._ready, []

    def interrupted(self: TokenSigner, *key: Any) -> Any:
        if not others:
            others.append(None)
            others.append(signer.sign_letters([(1, 2, 3)]))
        return prepare(self, *key)

    monkeypatch.setattr(TokenSigner, "_ready", interrupted)
    assert signer.sign_letters([(1, 2, 3)]) == others[1] == signer.sign_letters([(1, 2, 3)])


def test_a_token_looks_as_it_always_did() -> None:
    assert SIGNER.sign(Purpose.RETURN_PATH, 5) == "a4aaaaaaaacuw7u7letmqpmd"
    assert SIGNER.sign(Purpose.MESSAGE_ID, 5) == "a4aaaaaaaac2h2uuzqgvagkl"
    assert SIGNER.sign(Purpose.UNSUBSCRIBE, 12, 2**40 - 1) == "a4aaaaam77777777js6c6qwwt24k2"


@given(signed(), PURPOSES)
def test_a_token_is_good_for_its_own_purpose_only(
    what: tuple[Purpose, tuple[int, ...]], other: Purpose
) -> None:
    purpose, numbers = what
    if other is not purpose:
        assert SIGNER.read(other, SIGNER.sign(purpose, *numbers)) is None


@given(signed(), st.integers(0, 40), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_token_with_one_character_changed_is_nothing(
    what: tuple[Purpose, tuple[int, ...]], position: int, character: str
) -> None:
    purpose, numbers = what
    token = SIGNER.sign(purpose, *numbers)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]

    if changed != token:
        assert SIGNER.read(purpose, changed) is None


@given(PURPOSES, st.text(max_size=60) | st.from_regex(r"[a-z2-7]{24,29}", fullmatch=True))
def test_nothing_else_is_a_token_and_nothing_raises(purpose: Purpose, text: str) -> None:
    assert SIGNER.read(purpose, text) is None


def test_tokens_are_short_enough_for_a_local_part_and_a_list_unsubscribe_uri() -> None:
    assert len(SIGNER.sign(Purpose.RETURN_PATH, 2**48 - 1)) == 24
    assert len(SIGNER.sign(Purpose.UNSUBSCRIBE, 2**32 - 1, 2**40 - 1)) == 29


def test_an_old_key_still_reads_and_the_newest_signs() -> None:
    old = TokenSigner({1: SIGNER.keys[1]})
    new = TokenSigner({7: SIGNER.keys[7]})

    assert SIGNER.read(Purpose.RETURN_PATH, old.sign(Purpose.RETURN_PATH, 5)) == (5,)
    assert new.read(Purpose.RETURN_PATH, SIGNER.sign(Purpose.RETURN_PATH, 5)) == (5,)
    assert new.read(Purpose.RETURN_PATH, old.sign(Purpose.RETURN_PATH, 5)) is None


def test_a_token_of_another_installation_is_nothing() -> None:
    stranger = TokenSigner({7: b"the key of somebody else"})

    assert SIGNER.read(Purpose.UNSUBSCRIBE, stranger.sign(Purpose.UNSUBSCRIBE, 1, 2)) is None


@pytest.mark.parametrize("numbers", [(2**32, 1), (1, 2**40), (-1, 1), (1, -1)])
def test_a_number_that_does_not_fit_is_refused(numbers: tuple[int, int]) -> None:
    with pytest.raises(OverflowError):
        SIGNER.sign(Purpose.UNSUBSCRIBE, *numbers)
    with pytest.raises(OverflowError):
        SIGNER.sign_letters([(1, 2, 3), (1, *numbers)])
