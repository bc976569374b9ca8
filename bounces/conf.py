"""The BOUNCES settings: typed, read once; every mistake in them is a Problem with a number.

One reader serves both sides, as in delivery/conf.py: ``bounce_settings()`` uses what it
understood, and checks.py reports the rest as bounces.E001 and on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from bounces.detectors.base import Detector
from bounces.mailboxes.base import MAILBOX_METHODS, Mailbox
from bounces.policy import SoftBounceRule
from delivery.conf import Problem
from delivery.providers.http import is_loopback

# The order is the one in which they are sure: structures first, words last.
DEFAULT_DETECTORS = (
    "bounces.detectors.delivery_status.DeliveryStatusDetector",
    "bounces.detectors.feedback_report.FeedbackReportDetector",
    "bounces.detectors.auto_reply.AutoReplyDetector",
    "bounces.detectors.plain_text.PlainTextDetector",
)
KNOWN_KEYS = frozenset(
    {
        "MAILBOXES",
        "DETECTORS",
        "RAW_RETENTION_DAYS",
        "LARGEST_MAIL_BYTES",
        "SOFT_BOUNCES",
        "SOFT_BOUNCE_CAMPAIGNS",
        "SOFT_BOUNCE_DAYS",
        "MOST_FORGED_A_DAY",
        "NOTIFICATION_URL",
    }
)


@dataclass(frozen=True, slots=True)
class MailboxSettings:
    """One entry of MAILBOXES. ``options`` are the constructor's keywords and may hold secrets."""

    name: str
    backend: str
    options: Mapping[str, Any] = field(repr=False)

    def make(self) -> Mailbox:
        """A new mailbox, not yet opened."""
        mailbox: Mailbox = import_string(self.backend)(**self.options)
        return mailbox


@dataclass(frozen=True, slots=True)
class BounceSettings:
    """How bounces are read. ``detectors`` are dotted paths, the most authoritative first."""

    mailboxes: Mapping[str, MailboxSettings] = field(default_factory=dict)
    detectors: tuple[str, ...] = DEFAULT_DETECTORS
    # How long the raw mail is kept; what was read of it stays.
    raw_retention: timedelta = timedelta(days=90)
    # What is fetched and kept of one mail. The status part comes first in a report, so a longer
    # mail is cut and still read.
    largest_mail_bytes: int = 256 * 1024
    # When soft bounces end a subscription.
    soft_bounces: SoftBounceRule = field(default_factory=SoftBounceRule)
    # Mails with wrong, foreign, old or replayed tokens that stop all marking.
    most_forged_a_day: int = 10_000
    # Where this site is reached from outside, for mailboxes that call when a mail arrives; "" for
    # none.
    notification_url: str = ""


def read_settings(raw: Any) -> tuple[BounceSettings, list[Problem]]:
    """What ``raw`` says, as far as it can be understood, and every mistake in it."""
    if not isinstance(raw, Mapping):
        hint = 'BOUNCES = {"MAILBOXES": {"default": {"BACKEND": ..., "OPTIONS": {...}}}, ...}'
        return BounceSettings(), [Problem(1, "BOUNCES is not a dict.", hint)]
    problems: list[Problem] = []
    for key in raw.keys() - KNOWN_KEYS:
        near = get_close_matches(str(key), KNOWN_KEYS, n=1)
        hint = f"Is {near[0]} meant?" if near else f"Known keys: {', '.join(sorted(KNOWN_KEYS))}."
        problems.append(Problem(2, f"BOUNCES has an unknown key {key!r}.", hint))
    values: dict[str, Any] = {"mailboxes": _mailboxes(raw.get("MAILBOXES", {}), problems)}
    if "DETECTORS" in raw:
        values["detectors"] = _detectors(raw["DETECTORS"], problems)
    if (days := _number(raw, "RAW_RETENTION_DAYS", 1, 3650, 13, problems)) is not None:
        values["raw_retention"] = timedelta(days=days)
    values["soft_bounces"] = _soft_bounces(raw, problems)
    if (most := _number(raw, "MOST_FORGED_A_DAY", 10, 10**9, 20, problems)) is not None:
        values["most_forged_a_day"] = most
    values["notification_url"] = _notification_url(raw, problems)
    octets = _number(raw, "LARGEST_MAIL_BYTES", 16 * 1024, 16 * 1024 * 1024, 14, problems)
    if octets is not None:
        values["largest_mail_bytes"] = octets
    return BounceSettings(**values), problems


def _soft_bounces(raw: Mapping[str, Any], problems: list[Problem]) -> SoftBounceRule:
    rule = SoftBounceRule()
    bounces = _number(raw, "SOFT_BOUNCES", 1, 100, 17, problems)
    campaigns = _number(raw, "SOFT_BOUNCE_CAMPAIGNS", 1, 1000, 18, problems)
    days = _number(raw, "SOFT_BOUNCE_DAYS", 0, 3650, 19, problems)
    rule = SoftBounceRule(
        bounces=rule.bounces if bounces is None else bounces,
        campaigns=rule.campaigns if campaigns is None else campaigns,
        period=rule.period if days is None else timedelta(days=days),
    )
    if rule.bounces > rule.campaigns:
        hint = "SOFT_BOUNCES of the last SOFT_BOUNCE_CAMPAIGNS campaigns: at most all of them."
        message = f"{rule.bounces} soft bounces among {rule.campaigns} campaigns cannot be."
        problems.append(Problem(21, message, hint))
        return SoftBounceRule()
    return rule


def _number(
    raw: Mapping[str, Any],
    key: str,
    least: int,
    most: int,
    number: int,
    problems: list[Problem],
) -> int | None:
    """A whole number within its bounds; None where it is missing or wrong."""
    if key not in raw:
        return None
    value = raw[key]
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    hint = f"A whole number from {least} to {most}."
    problems.append(Problem(number, f"BOUNCES[{key!r}] = {value!r} cannot be.", hint))
    return None


def _notification_url(raw: Mapping[str, Any], problems: list[Problem]) -> str:
    """The site's address, without a path; http on this machine alone, for an emulator."""
    value = raw.get("NOTIFICATION_URL", "")
    if value == "":
        return ""
    if isinstance(value, str) and _is_site(value):
        return value.rstrip("/")
    hint = '"https://news.example.org": https, and no path; "" for no notifications.'
    problems.append(Problem(22, f"BOUNCES['NOTIFICATION_URL'] = {value!r} cannot be.", hint))
    return ""


def _is_site(value: str) -> bool:
    try:
        parts = urlsplit(value)
    except ValueError:  # half an IPv6 address
        return False
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(value))
    return safe and bool(parts.hostname) and parts.path in {"", "/"} and not parts.query


def _mailboxes(raw: Any, problems: list[Problem]) -> dict[str, MailboxSettings]:
    if not isinstance(raw, Mapping):
        hint = '{"default": {"BACKEND": ..., "OPTIONS": {...}}}'
        problems.append(Problem(3, "BOUNCES['MAILBOXES'] is not a dict.", hint))
        return {}
    mailboxes = {}
    for name, entry in raw.items():
        if not isinstance(name, str) or not name or len(name) > 60:
            hint = "A text of 1 to 60 characters; received mail is filed under it."
            problems.append(Problem(4, f"{name!r} cannot name a mailbox.", hint))
        elif mailbox := _mailbox(name, entry, problems):
            mailboxes[name] = mailbox
    return mailboxes


def _mailbox(name: str, entry: Any, problems: list[Problem]) -> MailboxSettings | None:
    where = f"BOUNCES['MAILBOXES'][{name!r}]"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("BACKEND"), str):
        hint = "The dotted path of a mailbox, such as bounces.mailboxes.maildir.MaildirMailbox."
        problems.append(Problem(5, f"{where} has no BACKEND.", hint))
        return None
    for key in entry.keys() - {"BACKEND", "OPTIONS"}:
        hint = "Known keys: BACKEND, OPTIONS. What a mailbox is made with belongs into OPTIONS."
        problems.append(Problem(6, f"{where} has an unknown key {key!r}.", hint))
    path, options = entry["BACKEND"], entry.get("OPTIONS", {})
    try:
        backend = import_string(path)
    except ImportError as error:
        hint = "Such as bounces.mailboxes.maildir.MaildirMailbox."
        problems.append(Problem(7, f"{where}: {path!r} cannot be imported: {error}.", hint))
        return None
    missing = [method for method in MAILBOX_METHODS if not hasattr(backend, method)]
    if missing:
        hint = "bounces/mailboxes/base.py says what a mailbox is."
        problems.append(Problem(8, f"{where}: {path} has no {', '.join(missing)}.", hint))
        return None
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        hint = "A dict of the constructor's keywords."
        problems.append(Problem(9, f"{where}['OPTIONS'] is not a dict with names as keys.", hint))
        return None
    try:
        inspect.signature(backend).bind(**options)
    except TypeError as error:
        hint = f"It takes: {', '.join(inspect.signature(backend).parameters) or 'nothing'}."
        problems.append(Problem(10, f"{where}['OPTIONS']: {error}.", hint))
        return None
    try:
        # A constructor opens nothing: it only looks at its options.
        backend(**options)
    except (ValueError, TypeError) as error:
        hint = "See the mailbox's docstring."
        problems.append(Problem(11, f"{where}['OPTIONS']: {error}.", hint))
        return None
    return MailboxSettings(name, path, dict(options))


def _detectors(raw: Any, problems: list[Problem]) -> tuple[str, ...]:
    """The detectors that can be used; one wrong path does not silence the others."""
    if not isinstance(raw, (list, tuple)) or not raw:
        hint = f'["{DEFAULT_DETECTORS[0]}", ...], the most authoritative first.'
        problems.append(Problem(12, "BOUNCES['DETECTORS'] is not a list of dotted paths.", hint))
        return DEFAULT_DETECTORS
    usable = []
    for path in raw:
        wrong = _why_unusable(path)
        if wrong:
            problems.append(Problem(15, f"BOUNCES['DETECTORS']: {path!r} {wrong}.", _DETECTOR_HINT))
        elif path in usable:
            hint = "The first answer counts: a detector needs to be asked once."
            problems.append(Problem(16, f"BOUNCES['DETECTORS'] names {path!r} twice.", hint))
        else:
            usable.append(path)
    return tuple(usable)


_DETECTOR_HINT = "A class that is made without arguments and has detect(mail): docs/extending.md."


def _why_unusable(path: Any) -> str:
    """What is wrong with a detector; "" when it can be used."""
    if not isinstance(path, str):
        return "is no dotted path"
    try:
        detector = import_string(path)
    except ImportError as error:
        return f"cannot be imported: {error}"
    if not isinstance(detector, type) or not callable(getattr(detector, "detect", None)):
        return "is no class with a method detect"
    try:
        inspect.signature(detector).bind()
    except TypeError as error:
        return f"cannot be made without arguments: {error}"
    return ""


@lru_cache(maxsize=1)
def bounce_settings() -> BounceSettings:
    """The settings in force. What could not be understood has its default, and fails the checks."""
    return read_settings(getattr(settings, "BOUNCES", {}))[0]


@lru_cache(maxsize=1)
def detectors() -> tuple[tuple[str, Detector], ...]:
    """The configured detectors with their dotted paths, made once: they hold no state."""
    return tuple((path, import_string(path)()) for path in bounce_settings().detectors)


def _forget(*, setting: str, **_: object) -> None:
    if setting == "BOUNCES":
        bounce_settings.cache_clear()
        detectors.cache_clear()


setting_changed.connect(_forget)
