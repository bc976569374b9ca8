"""What an operator mistypes in the environment ends every command, by the variable's name."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.settings import flag, number, token_keys, waits

ROOT = Path(__file__).parents[1]


def test_a_command_names_the_variable_and_shows_no_secret(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env=os.environ | {"TOKEN_KEYS": "not-to-be-shown", "PENNYPOST_VAR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "TOKEN_KEYS is not a list" in done.stderr
    assert "not-to-be-shown" not in done.stderr


@pytest.mark.parametrize("word", ["abc", "25.5", "1e3"])
def test_what_is_no_number_is_no_default(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PORT", word)
    with pytest.raises(ImproperlyConfigured, match="SMTP_PORT is not a whole number"):
        number("SMTP_PORT", 25)


@pytest.mark.parametrize(("word", "expected"), [("587", 587), (" 587 ", 587), ("", 25)])
def test_a_number_is_read_and_nothing_is_the_default(
    word: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_PORT", word)
    assert number("SMTP_PORT", 25) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", True), ("Yes", True), ("on", True), ("0", False), ("off", False), ("", True)],
)
def test_a_flag_is_on_or_off(word: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIVERY_RECORDERS", word)
    assert flag("DELIVERY_RECORDERS", True) is expected


def test_a_mistyped_flag_is_not_taken_for_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHIND_PROXY", "ture")
    with pytest.raises(ImproperlyConfigured, match="BEHIND_PROXY"):
        flag("BEHIND_PROXY", False)


def test_keys_and_waits_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_KEYS", "1:first, 2:with:colons")
    assert token_keys() == {1: "first", 2: "with:colons"}
    monkeypatch.setenv("DELIVERY_RETRY_SECONDS", "0.5, 60")
    assert waits() == [timedelta(seconds=0.5), timedelta(minutes=1)]


@pytest.mark.parametrize("word", ["300,soon", "nan", "inf"])
def test_a_wait_that_is_none_is_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELIVERY_RETRY_SECONDS", word)
    with pytest.raises(ImproperlyConfigured, match="DELIVERY_RETRY_SECONDS"):
        waits()
