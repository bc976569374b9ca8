"""System checks of BASE_URL, SECRET_KEY and the CAMPAIGNS settings: campaigns.E001 to E013.

E020 to E029 keep the unsubscribe address free of redirects (RFC 8058 section 3.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from campaigns.conf import DEFAULT_DOMAIN
from campaigns.list_headers import LONGEST_URI

TOKEN_PATH = len("/u/") + 29
LONGEST_BASE_URL = LONGEST_URI - TOKEN_PATH
SHORTEST_KEY = 16  # characters

_DOMAIN = re.compile(
    r"(?=.{3,190}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*", re.I
)
_SENDER_ID = re.compile(r"[A-Za-z0-9._-]{5,15}")
_KNOWN = frozenset(
    {
        "LIST_ID_DOMAIN",
        "MESSAGE_ID_DOMAIN",
        "SENDER_ID",
        "TOKEN_KEYS",
        "LARGEST_IMPORT_MB",
        "UPLOAD_RETENTION_DAYS",
    }
)


@register()
def campaign_settings_are_right(**_: Any) -> list[CheckMessage]:
    """Every mistake in the settings of campaigns, each with its id and a hint."""
    found = [*_secret_key(), *_base_url()]
    campaigns = getattr(settings, "CAMPAIGNS", {})
    if not isinstance(campaigns, dict):
        return [
            *found,
            _error(12, "CAMPAIGNS is no dict.", 'CAMPAIGNS = {"SENDER_ID": "acmenews"}'),
        ]
    return [*found, *_names(campaigns), *_token_keys(campaigns), *_numbers(campaigns)]


def _error(number: int, message: str, hint: str) -> Error:
    return Error(message, hint=hint, id=f"campaigns.E{number:03}")


def _secret_key() -> Iterator[Error]:
    embedded = settings.DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3"
    insecure = getattr(settings, "INSECURE_KEY", "") == settings.SECRET_KEY
    if insecure and not settings.DEBUG and not embedded:
        yield _error(
            1,
            "SECRET_KEY is the one that everybody knows: sessions and links can be forged.",
            "Set the environment variable SECRET_KEY to 50 random characters, and keep it.",
        )


def _base_url() -> Iterator[Error]:
    url = settings.BASE_URL
    hint = "BASE_URL is where readers reach this site, such as https://news.example.org"
    try:
        parts = urlsplit(url)
        well_formed = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and not (parts.query or parts.fragment or parts.username)
            and bool(re.fullmatch(r"[A-Za-z0-9\[\]._~:/-]+", url))
            and (parts.port or 443) > 0
        )
    except ValueError:
        well_formed = False
    if not well_formed:
        yield _error(2, f"BASE_URL is no web address: {url!r}.", hint)
    if len(url) > LONGEST_BASE_URL:
        yield _error(
            3,
            f"BASE_URL has {len(url)} characters: unsubscribe links would be longer than the "
            f"{LONGEST_URI} that survive in a List-Unsubscribe header.",
            f"Use a host name that keeps it within {LONGEST_BASE_URL}.",
        )


def _names(campaigns: dict[str, Any]) -> Iterator[Error]:
    for number, key in ((4, "LIST_ID_DOMAIN"), (5, "MESSAGE_ID_DOMAIN")):
        domain = campaigns.get(key, DEFAULT_DOMAIN)
        if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
            yield _error(
                number,
                f"CAMPAIGNS[{key!r}] is no domain: {domain!r}.",
                "A domain of yours, in ASCII, such as news.example.org",
            )
    sender = campaigns.get("SENDER_ID", "pennypost")
    if not isinstance(sender, str) or not _SENDER_ID.fullmatch(sender):
        yield _error(
            6,
            f"CAMPAIGNS['SENDER_ID'] is {sender!r}: Gmail reads 5 to 15 characters.",
            "Letters, digits, dot, hyphen and underscore; choose it once and never change it.",
        )
    for key in sorted(map(str, campaigns.keys() - _KNOWN)):
        yield _error(
            11, f"CAMPAIGNS has no setting {key!r}.", f"Known: {', '.join(sorted(_KNOWN))}"
        )


def _token_keys(campaigns: dict[str, Any]) -> Iterator[Error]:
    keys = campaigns.get("TOKEN_KEYS") or {}
    if not isinstance(keys, dict):
        yield _error(
            7, "CAMPAIGNS['TOKEN_KEYS'] is no dict.", '{1: "a secret of 50 random characters"}'
        )
        return
    for number, key in keys.items():
        if type(number) is not int or not 0 <= number <= 255:
            yield _error(
                8,
                f"CAMPAIGNS['TOKEN_KEYS'] has the number {number!r}.",
                "Whole numbers from 0 to 255; the highest one signs, all of them verify.",
            )
        # The number names the key; the key itself is never shown.
        if not isinstance(key, str) or len(key) < SHORTEST_KEY:
            yield _error(
                9,
                f"The key {number!r} in CAMPAIGNS['TOKEN_KEYS'] is too short, or no text.",
                f"At least {SHORTEST_KEY} characters, chosen at random.",
            )


def _numbers(campaigns: dict[str, Any]) -> Iterator[Error]:
    megabytes = campaigns.get("LARGEST_IMPORT_MB", 200)
    if type(megabytes) is not int or megabytes < 1:
        yield _error(
            10,
            f"CAMPAIGNS['LARGEST_IMPORT_MB'] is {megabytes!r}.",
            "The largest file that may be uploaded, as a whole number of megabytes from 1.",
        )
    days = campaigns.get("UPLOAD_RETENTION_DAYS", 90)
    if type(days) is not int or not 1 <= days <= 3650:
        yield _error(
            13,
            f"CAMPAIGNS['UPLOAD_RETENTION_DAYS'] is {days!r}.",
            "How long the file of an unfinished import is kept: a whole number of days, 1 to 3650.",
        )


@register()
def no_redirect_before_unsubscribe(**_: Any) -> list[CheckMessage]:
    """The settings of Django that answer an unsubscribe POST with a redirect."""
    found: list[CheckMessage] = []
    if settings.PREPEND_WWW:
        found.append(
            Error(
                "PREPEND_WWW redirects one-click unsubscribe requests, which RFC 8058 forbids.",
                hint="Leave it off and let the web server before Pennypost redirect people.",
                id="campaigns.E020",
            )
        )
    if settings.SECURE_SSL_REDIRECT and not any(
        re.search(pattern, "u/token") for pattern in settings.SECURE_REDIRECT_EXEMPT
    ):
        found.append(
            Error(
                "SECURE_SSL_REDIRECT redirects one-click unsubscribe requests, "
                "which RFC 8058 forbids.",
                hint=r'Add r"^u/" to SECURE_REDIRECT_EXEMPT.',
                id="campaigns.E021",
            )
        )
    return found
