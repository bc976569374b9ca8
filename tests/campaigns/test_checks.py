"""``manage.py check`` refuses each wrong setting with an id of its own and a hint."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks

from campaigns.checks import campaign_settings_are_right
from campaigns.conf import campaign_settings

KEY = "a secret that is long enough"


@pytest.fixture(autouse=True)
def a_key_of_our_own(settings: Any) -> None:
    settings.SECRET_KEY = KEY


def found() -> dict[str, str]:
    return {error.id: error.hint for error in campaign_settings_are_right()}  # type: ignore[misc]


def test_the_settings_that_we_ship_are_right() -> None:
    assert found() == {}


def test_an_empty_dict_is_right(settings: Any) -> None:
    settings.CAMPAIGNS = {}

    assert found() == {}


@pytest.mark.parametrize("key", ["LIST_ID_DOMAIN", "MESSAGE_ID_DOMAIN"])
def test_the_domain_that_stands_in_for_a_missing_one_is_the_one_that_was_checked(
    settings: Any, key: str
) -> None:
    settings.CAMPAIGNS = {}
    in_use = getattr(campaign_settings(), key.lower())

    settings.CAMPAIGNS = {key: in_use}

    assert found() == {}


@pytest.mark.parametrize(
    ("key", "value", "number"),
    [
        ("LIST_ID_DOMAIN", "news", 4),
        ("LIST_ID_DOMAIN", "a b.example.org", 4),
        ("LIST_ID_DOMAIN", None, 4),
        ("MESSAGE_ID_DOMAIN", "münchen.example", 5),
        ("MESSAGE_ID_DOMAIN", "x@example.org", 5),
        ("SENDER_ID", "four", 6),
        ("SENDER_ID", "sixteen-letters-", 6),
        ("SENDER_ID", "acme:news", 6),
        ("TOKEN_KEYS", [KEY], 7),
        ("TOKEN_KEYS", {"1": KEY}, 8),
        ("TOKEN_KEYS", {256: KEY}, 8),
        ("TOKEN_KEYS", {True: KEY}, 8),
        ("TOKEN_KEYS", {1: "short"}, 9),
        ("TOKEN_KEYS", {1: KEY.encode()}, 9),
        ("LARGEST_IMPORT_MB", 0, 10),
        ("LARGEST_IMPORT_MB", "200", 10),
        ("SENDER", "acmenews", 11),
        ("UPLOAD_RETENTION_DAYS", 0, 13),
        ("UPLOAD_RETENTION_DAYS", 3651, 13),
        ("UPLOAD_RETENTION_DAYS", "90", 13),
        ("UPLOAD_RETENTION_DAYS", True, 13),
    ],
)
def test_a_wrong_value_is_refused(settings: Any, key: str, value: object, number: int) -> None:
    settings.CAMPAIGNS = {key: value}

    assert list(found()) == [f"campaigns.E{number:03}"]
    assert all(found().values())


def test_a_short_key_is_not_shown(settings: Any) -> None:
    settings.CAMPAIGNS = {"TOKEN_KEYS": {1: "hush"}}

    (error,) = campaign_settings_are_right()
    assert "hush" not in str(error)


def test_campaigns_must_be_a_dict(settings: Any) -> None:
    settings.CAMPAIGNS = ["SENDER_ID"]

    assert list(found()) == ["campaigns.E012"]


@pytest.mark.parametrize(
    "url",
    ["", "news.example.org", "ftp://news.example.org", "https://", "https://a.example/?x=1"]
    + ["https://user@a.example", "https://a.example:port", "https://a b", "https://[::1"],
)
def test_a_base_url_that_is_none_is_refused(settings: Any, url: str) -> None:
    settings.BASE_URL = url

    assert list(found()) == ["campaigns.E002"]


def test_a_base_url_must_leave_room_for_a_token(settings: Any) -> None:
    settings.BASE_URL = "https://" + "n" * 28 + ".org"
    assert len(settings.BASE_URL) == 40
    assert found() == {}

    settings.BASE_URL = "https://" + "n" * 36 + ".org"
    assert list(found()) == ["campaigns.E003"]


@pytest.mark.parametrize(
    ("engine", "debug", "expected"),
    [
        ("django.db.backends.postgresql", False, ["campaigns.E001"]),
        ("django.db.backends.postgresql", True, []),
        ("django.db.backends.sqlite3", False, []),
    ],
)
def test_the_key_that_everybody_knows_is_for_development_and_the_embedded_database(
    settings: Any, monkeypatch: pytest.MonkeyPatch, engine: str, debug: bool, expected: list[str]
) -> None:
    settings.SECRET_KEY = settings.INSECURE_KEY
    settings.DEBUG = debug
    monkeypatch.setitem(settings.DATABASES["default"], "ENGINE", engine)

    assert list(found()) == expected


def test_the_checks_are_registered(settings: Any) -> None:
    settings.CAMPAIGNS = {"SENDER_ID": "x"}

    assert "campaigns.E006" in {message.id for message in run_checks()}
