"""The DELIVERY settings: typed, read once; every mistake in them is a Problem with an id.

One reader serves both sides: ``delivery_settings()`` uses what it understood, and
delivery/checks.py reports what it did not. So a check can never disagree with the engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from delivery.profiles import PROFILE_KEYS, ProfileError, expand
from delivery.providers.base import ActsAsMailbox, Provider
from delivery.rates import Connections, Limit, LimitKind, parse_rate
from delivery.replies import Rule, put_before
from delivery.replies.settings import RuleError, read_rule

DEFAULT_RETRY_AFTER = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 30, 60, 120, 240))


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in the settings: number of the check, what is wrong, what to do."""

    number: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One entry of PROVIDERS. ``options`` are the constructor's keywords and may hold secrets."""

    alias: str
    backend: str
    options: Mapping[str, Any] = field(repr=False)
    limits: tuple[Limit, ...] = ()
    # Open at a time over all hosts; None: what each worker's OPTIONS say, and no more is known.
    connections: Connections | None = None
    # Of this provider over all hosts; None: as many as DELIVERY["WORKERS"].
    workers: int | None = None
    # The mailbox as which it sends (providers.base.ActsAsMailbox); empty for none.
    mailbox: str = ""

    @property
    def tenant(self) -> str:
        """The tenant of Microsoft Entra whose limits it shares; empty without."""
        identity = self.options.get("identity")
        named = identity.get("tenant_id") if isinstance(identity, Mapping) else None
        return str(named or "").lower()

    @property
    def can_confirm(self) -> bool:
        """Whether this provider can look for letters in doubt (providers.base.Confirms)."""
        return hasattr(import_string(self.backend), "confirm")

    def make(self) -> Provider:
        """A new provider, not yet opened."""
        provider: Provider = import_string(self.backend)(**self.options)
        return provider


@dataclass(frozen=True, slots=True)
class GuardRails:
    """When a campaign is stopped until a person has looked. Rates are shares of the letters that
    had an answer, 0.05 for 5 %; None switches a rail off."""

    bounced: float | None = 0.05
    # Bounces that are about us (policy, reputation, authentication), among the others.
    blocked: float | None = 0.01
    complained: float | None = 0.003
    deferred: float | None = 0.5
    unconfirmed: float | None = 0.01
    # No rate is judged on fewer answers.
    at_least: int = 100
    # The circuit breaker: more than this share of the last letters refused alike ...
    alike: float | None = 0.05
    of_last: int = 200
    # ... or so many one after the other.
    in_a_row: int | None = 10


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """How people are told, beside the admin. ``webhook``: an address that gets each alert as JSON;
    empty for none."""

    mail_admins: bool = True
    webhook: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """How letters are sent; the defaults are those of docs/settings.md."""

    workers: int = 5
    cycle_batch_size: int = 100
    send_batch_size: int = 20
    # How long one worker task goes on before it hands over to its successor.
    slice_length: timedelta = timedelta(seconds=20)
    # What runs the connections: "asyncio", "uvloop", or "auto": uvloop where it is installed.
    event_loop: str = "auto"
    # A worker that was not heard of for so long is dead. Renewed at a third of it.
    lease: timedelta = timedelta(seconds=60)
    retry_after: tuple[timedelta, ...] = DEFAULT_RETRY_AFTER
    max_attempts: int = 10
    # Last week's newsletter is worth less than none.
    max_age: timedelta = timedelta(hours=24)
    return_path: str = ""
    # Where workers keep their flight recorders: a folder on this machine's own disk.
    recorders: Path | None = None
    # A campaign that is later than this waits for a person.
    stale_after: timedelta = timedelta(hours=6)
    # How long evidence about a letter in doubt is awaited before it is sent again, where the
    # campaign says so.
    resend_after: timedelta = timedelta(minutes=10)
    guard_rails: GuardRails = GuardRails()
    alerts: AlertSettings = AlertSettings()
    # The installations that this host belongs to: a folder on its own disk. None: every database
    # is trusted.
    installations: Path | None = None
    # What hosts without a lasting disk share instead.
    installation: str = ""
    # Whether DNS is asked for the mail exchangers of readers' domains, in the background.
    look_up_exchanges: bool = True
    # The operator's own rules of classification, before ours.
    reply_rules: tuple[Rule, ...] = ()
    providers: Mapping[str, ProviderSettings] = field(default_factory=dict)
    # Names for several providers at once.
    pools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names_of(self, alias: str) -> tuple[str, ...]:
        """The names by which campaigns reach a provider: its own, and those of its pools."""
        return (alias, *(name for name, members in self.pools.items() if alias in members))

    def members_of(self, name: str) -> tuple[str, ...]:
        """The providers through which a campaign of this name may be sent; none for a name that is
        not in the settings."""
        return self.pools.get(name, (name,) if name in self.providers else ())

    def workers_for(self, alias: str) -> int:
        """How many workers a provider may have at once, over all hosts."""
        provider = self.providers.get(alias)
        return self.workers if provider is None or provider.workers is None else provider.workers


def has_uvloop() -> bool:
    """Whether the faster event loop is installed: an extra of its own, not for every machine."""
    return find_spec("uvloop") is not None


_SIMPLE: dict[str, tuple[str, type, Callable[[Any], bool], int, str]] = {
    # key: (attribute, type, condition, number of the check, hint)
    "WORKERS": ("workers", int, lambda n: 1 <= n <= 500, 2, "A whole number from 1 to 500."),
    "CYCLE_BATCH_SIZE": (
        "cycle_batch_size", int, lambda n: 1 <= n <= 10_000, 3, "A whole number from 1 to 10000.",
    ),
    "SEND_BATCH_SIZE": (
        "send_batch_size", int, lambda n: 1 <= n <= 10_000, 4,
        "A whole number from 1 to 10000; 1 is the strictest checkpoint.",
    ),
    "SLICE_LENGTH": (
        "slice_length", timedelta,
        lambda t: timedelta(seconds=1) <= t <= timedelta(minutes=10), 5,
        "timedelta(seconds=20); from one second to ten minutes.",
    ),
    "LEASE": (
        "lease", timedelta, lambda t: timedelta(seconds=5) <= t <= timedelta(hours=1), 6,
        "timedelta(seconds=60); from five seconds to an hour.",
    ),
    "MAX_ATTEMPTS": (
        "max_attempts", int, lambda n: 1 <= n <= 100, 7, "A whole number from 1 to 100.",
    ),
    "MAX_AGE": (
        "max_age", timedelta, lambda t: timedelta(minutes=1) <= t <= timedelta(days=5), 8,
        "timedelta(hours=24); from a minute to five days.",
    ),
    "STALE_AFTER": (
        "stale_after", timedelta, lambda t: timedelta(minutes=5) <= t <= timedelta(days=30), 40,
        "timedelta(hours=6); from five minutes to thirty days.",
    ),
    "RESEND_AFTER": (
        "resend_after", timedelta, lambda t: timedelta(minutes=10) <= t <= timedelta(days=3), 41,
        "timedelta(minutes=10), which RFC 5321 section 4.5.3.2.6 gives an answer; up to 3 days.",
    ),
    "EVENT_LOOP": (
        "event_loop", str,
        lambda name: name in {"auto", "asyncio"} or (name == "uvloop" and has_uvloop()), 49,
        '"auto", "asyncio", or "uvloop" where it is installed: pip install "pennypost[speed]".',
    ),
    "LOOK_UP_EXCHANGES": (
        "look_up_exchanges", bool, lambda _flag: True, 50, "True or False.",
    ),
    "INSTALLATION": (
        "installation", str, lambda text: len(text) <= 64 and text.isprintable(), 48,
        "Up to 64 characters, the same on every host of one installation; '' for a file instead.",
    ),
}  # fmt: skip


_OTHERS = {
    "RETRY_AFTER",
    "RETURN_PATH",
    "RECORDERS",
    "INSTALLATIONS",
    "GUARD_RAILS",
    "ALERTS",
    "REPLY_RULES",
    "PROVIDERS",
}
_RATES = ("BOUNCED", "BLOCKED", "COMPLAINED", "DEFERRED", "UNCONFIRMED", "ALIKE")
_COUNTS = ("AT_LEAST", "OF_LAST", "IN_A_ROW")


def read_settings(raw: Any) -> tuple[DeliverySettings, list[Problem]]:
    """What ``raw`` says, as far as it can be understood, and every mistake in it."""
    problems: list[Problem] = []
    if not isinstance(raw, Mapping):
        return DeliverySettings(), [
            Problem(1, "DELIVERY is not a dict.", 'DELIVERY = {"WORKERS": 5, ...}')
        ]
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _SIMPLE:
            attribute, kind, condition, number, hint = _SIMPLE[key]
            if type(value) is not kind or not condition(value):
                problems.append(Problem(number, f"DELIVERY[{key!r}] = {value!r} cannot be.", hint))
            else:
                values[attribute] = value
        elif key not in _OTHERS:
            known = ", ".join(sorted([*_SIMPLE, *_OTHERS]))
            problems.append(
                Problem(9, f"DELIVERY has an unknown key {key!r}.", f"Known keys: {known}.")
            )
    if "RETRY_AFTER" in raw:
        values["retry_after"] = _retry_after(raw["RETRY_AFTER"], problems)
    values["recorders"] = _folder(raw, "RECORDERS", 29, "None keeps no flight recorder.", problems)
    values["installations"] = _folder(
        raw, "INSTALLATIONS", 47, "None trusts every database.", problems
    )
    values["guard_rails"] = _guard_rails(raw.get("GUARD_RAILS", {}), problems)
    values["alerts"] = _alerts(raw.get("ALERTS", {}), problems)
    values["return_path"] = _return_path(raw.get("RETURN_PATH", ""), problems)
    values["reply_rules"] = _reply_rules(raw.get("REPLY_RULES", ()), problems)
    entries = raw.get("PROVIDERS")
    values["providers"] = _providers(entries, problems)
    values["pools"] = _pools(entries, values["providers"], problems)
    return DeliverySettings(**values), problems


def _retry_after(raw: Any, problems: list[Problem]) -> tuple[timedelta, ...]:
    ok = (
        isinstance(raw, (list, tuple))
        and raw
        and all(isinstance(wait, timedelta) and wait > timedelta(0) for wait in raw)
    )
    if not ok:
        hint = "A list of timedeltas, one for each wait; the last one repeats."
        problems.append(Problem(10, f"DELIVERY['RETRY_AFTER'] = {raw!r} cannot be.", hint))
        return DEFAULT_RETRY_AFTER
    return tuple(raw)


def _folder(
    raw: Mapping[str, Any], key: str, number: int, otherwise: str, problems: list[Problem]
) -> Path | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, (str, Path)) or not Path(value).is_absolute():
        hint = f"An absolute path on this machine's own disk; {otherwise}"
        problems.append(Problem(number, f"DELIVERY[{key!r}] = {value!r} cannot be.", hint))
        return None
    return Path(value)


def _guard_rails(raw: Any, problems: list[Problem]) -> GuardRails:
    known = ", ".join([*_RATES, *_COUNTS])
    if not isinstance(raw, Mapping) or set(raw) - {*_RATES, *_COUNTS}:
        hint = f"A dict with any of {known}."
        problems.append(Problem(42, f"DELIVERY['GUARD_RAILS'] = {raw!r} cannot be.", hint))
        return GuardRails()
    values: dict[str, Any] = {}
    for key, value in raw.items():
        may_be_off = key in _RATES or key == "IN_A_ROW"
        if value is None and may_be_off:
            values[key.lower()] = None
        elif key in _RATES and _is_share(value):
            values[key.lower()] = float(value)
        elif key in _COUNTS and type(value) is int and 1 <= value <= 1000:
            values[key.lower()] = value
        else:
            number, hint = (
                (43, "A share between 0 and 1, 0.05 for 5 %; None for no such rail.")
                if key in _RATES
                else (44, "A whole number from 1 to 1000.")
            )
            message = f"DELIVERY['GUARD_RAILS'][{key!r}] = {value!r} cannot be."
            problems.append(Problem(number, message, hint))
    return GuardRails(**values)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1


def _alerts(raw: Any, problems: list[Problem]) -> AlertSettings:
    """Plain http only where ALLOW_HTTP says so: an alert names campaigns and quotes replies."""
    if not isinstance(raw, Mapping) or set(raw) - {"MAIL_ADMINS", "WEBHOOK", "ALLOW_HTTP"}:
        hint = "A dict with any of MAIL_ADMINS, WEBHOOK, ALLOW_HTTP."
        problems.append(Problem(45, "DELIVERY['ALERTS'] has an unknown key, or is no dict.", hint))
        return AlertSettings()
    webhook = raw.get("WEBHOOK", "")
    schemes = {"https", "http"} if raw.get("ALLOW_HTTP") else {"https"}
    if webhook and not _is_address(webhook, schemes):
        # The address is not quoted: it often holds a secret.
        hint = "https://host/path; http:// only with ALLOW_HTTP."
        problems.append(Problem(46, "DELIVERY['ALERTS']['WEBHOOK'] cannot be.", hint))
        webhook = ""
    return AlertSettings(mail_admins=bool(raw.get("MAIL_ADMINS", True)), webhook=webhook)


def _is_address(value: Any, schemes: set[str]) -> bool:
    try:
        parts = urlsplit(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return isinstance(value, str) and parts.scheme in schemes and bool(parts.hostname)


def _reply_rules(raw: Any, problems: list[Problem]) -> tuple[Rule, ...]:
    """The rules that can be understood; a mistaken one is left out, never guessed."""
    if not isinstance(raw, (list, tuple)):
        hint = '[{"name": ..., "verdict": "defer", "code": "4..", "text": ...}]: docs/replies.md'
        problems.append(Problem(70, "DELIVERY['REPLY_RULES'] is no list.", hint))
        return ()
    rules: dict[str, Rule] = {}
    for entry in raw:
        try:
            rule = read_rule(entry, rules)
        except RuleError as error:
            message = f"DELIVERY['REPLY_RULES']: {error}"
            problems.append(Problem(error.number, message, error.hint))
        else:
            rules[rule.name] = rule
    return tuple(rules.values())


def _return_path(raw: Any, problems: list[Problem]) -> str:
    """The VERP pattern; RFC 5321 section 4.5.3.1.1 allows 64 octets before the @."""
    hint = '"bounce+{token}@bounces.example.org"; "" only where the provider sets the envelope.'
    if raw == "":
        return ""
    if (
        not isinstance(raw, str)
        or raw.count("{token}") != 1
        or raw.count("@") != 1
        or "{token}" not in raw.partition("@")[0]
        or not raw.partition("@")[2]
        or not raw.isascii()
        or any(c.isspace() for c in raw)
    ):
        problems.append(Problem(11, f"DELIVERY['RETURN_PATH'] = {raw!r} cannot be.", hint))
        return ""
    if len(raw.partition("@")[0].replace("{token}", "x" * 24)) > 64:
        problems.append(
            Problem(
                12,
                "DELIVERY['RETURN_PATH'] has over 64 octets before the @.",
                "RFC 5321 section 4.5.3.1.1; the token takes 24 of them.",
            )
        )
        return ""
    return raw


def _providers(raw: Any, problems: list[Problem]) -> dict[str, ProviderSettings]:
    if not isinstance(raw, Mapping) or not raw:
        problems.append(
            Problem(
                13,
                "DELIVERY names no provider.",
                'DELIVERY["PROVIDERS"] = {"default": {"BACKEND": ..., "OPTIONS": {...}}}',
            )
        )
        return {}
    if "default" not in raw:
        problems.append(
            Problem(14, "DELIVERY['PROVIDERS'] has no 'default'.", "New campaigns use that name.")
        )
    providers = {}
    for alias, entry in raw.items():
        if _is_pool(entry):
            continue
        if not isinstance(alias, str) or not alias or len(alias) > 60:
            problems.append(
                Problem(15, f"{alias!r} cannot name a provider.", "A text of 1 to 60 characters.")
            )
        elif provider := _provider(alias, entry, problems):
            providers[alias] = provider
    return providers


def _is_pool(entry: Any) -> bool:
    return isinstance(entry, Mapping) and "POOL" in entry


def _pools(
    raw: Any, providers: Mapping[str, ProviderSettings], problems: list[Problem]
) -> dict[str, tuple[str, ...]]:
    """The pools; members that are no providers are left out."""
    pools: dict[str, tuple[str, ...]] = {}
    for name, entry in raw.items() if isinstance(raw, Mapping) else ():
        if not _is_pool(entry):
            continue
        where, members = f"DELIVERY['PROVIDERS'][{name!r}]", entry["POOL"]
        if not isinstance(name, str) or not 0 < len(name) <= 60:
            problem = Problem(15, f"{name!r} cannot name a pool.", "A text of 1 to 60 characters.")
            problems.append(problem)
            continue
        if set(entry) != {"POOL"} or not isinstance(members, (list, tuple)) or not members:
            hint = '{"POOL": ["relay-a", "relay-b"]}, and nothing else: limits are its members\'.'
            problems.append(Problem(64, f"{where} is no pool.", hint))
            continue
        known = [alias for alias in members if isinstance(alias, str) and alias in providers]
        for alias in members:
            if alias not in known or members.count(alias) > 1:
                hint = "Each member is another provider of PROVIDERS, named once; never a pool."
                problems.append(Problem(65, f"{where} cannot have the member {alias!r}.", hint))
        pools[name] = tuple(dict.fromkeys(known))
    return pools


def _provider(alias: str, entry: Any, problems: list[Problem]) -> ProviderSettings | None:
    where = f"DELIVERY['PROVIDERS'][{alias!r}]"
    known = {"BACKEND", "OPTIONS", "LIMITS", *PROFILE_KEYS}
    if isinstance(entry, Mapping):
        for key in set(entry) - known:
            hint = f"Known keys: {', '.join(sorted(known))}."
            problems.append(Problem(17, f"{where} has an unknown key {key!r}.", hint))
        try:
            entry = expand(entry)
        except ProfileError as error:
            problems.append(Problem(error.number, f"{where}: {error}", error.hint))
            return None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("BACKEND"), str):
        problems.append(Problem(16, f"{where} has no BACKEND.", "The dotted path of a provider."))
        return None
    options = entry.get("OPTIONS", {})
    if not isinstance(options, Mapping):
        problems.append(Problem(18, f"{where}['OPTIONS'] is not a dict.", "{'host': ...}"))
        options = {}
    limits = _limits(alias, where, entry.get("LIMITS", []), problems)
    connections = _connections(alias, where, entry.get("LIMITS", []), problems)
    workers = entry.get("WORKERS")
    if workers is not None and (type(workers) is not int or not 1 <= workers <= 500):
        hint = "A whole number from 1 to 500, over all hosts."
        problems.append(Problem(61, f"{where}['WORKERS'] = {workers!r} cannot be.", hint))
        workers = None
    try:
        backend = import_string(entry["BACKEND"])
    except ImportError as error:
        problems.append(
            Problem(
                19,
                f"{where}: {entry['BACKEND']!r} cannot be imported: {error}.",
                "Such as delivery.providers.smtp.SMTPProvider.",
            )
        )
        return None
    missing = [name for name in ("open", "send", "close") if not hasattr(backend, name)]
    if missing:
        problems.append(
            Problem(
                20,
                f"{where}: {entry['BACKEND']} has no {', '.join(missing)}.",
                "delivery/providers/base.py says what a provider is.",
            )
        )
        return None
    try:
        inspect.signature(backend).bind(**options)
    except TypeError as error:
        hint = f"It takes: {', '.join(inspect.signature(backend).parameters)}."
        problems.append(Problem(21, f"{where}['OPTIONS']: {error}.", hint))
        return None
    try:
        # A constructor opens nothing: it only looks at its options.
        provider = backend(**options)
    except (ValueError, TypeError, OSError) as error:
        problems.append(
            Problem(22, f"{where}['OPTIONS']: {error}.", "See the provider's docstring.")
        )
        return None
    if not isinstance(getattr(provider, "concurrency", None), int) or provider.concurrency < 1:
        hint = "A whole number from 1: how many letters may be on their way at once."
        problems.append(Problem(28, f"{where}: {entry['BACKEND']} has no concurrency.", hint))
        return None
    mailbox = provider.mailbox if isinstance(provider, ActsAsMailbox) else ""
    return ProviderSettings(
        alias, entry["BACKEND"], dict(options), limits, connections, workers, mailbox
    )


def _limits(alias: str, where: str, raw: Any, problems: list[Problem]) -> tuple[Limit, ...]:
    hint = (
        '[{"rate": "30/minute"}, {"cap": "10000/day", "scope": "tenant:contoso"},'
        ' {"connections": 3}]'
    )
    if not isinstance(raw, (list, tuple)):
        problems.append(Problem(23, f"{where}['LIMITS'] is not a list.", hint))
        return ()
    limits = []
    for entry in raw:
        if isinstance(entry, Mapping) and "connections" in entry:
            continue
        kinds = set(entry) & set(LimitKind) if isinstance(entry, Mapping) else set()
        if len(kinds) != 1 or set(entry) - set(LimitKind) - {"scope"}:
            problems.append(Problem(24, f"{where}: {entry!r} is no limit.", hint))
            continue
        kind = LimitKind(kinds.pop())
        try:
            permits, window = parse_rate(str(entry[kind]))
        except ValueError as error:
            problems.append(Problem(25, f"{where}: {error}.", hint))
            continue
        limits.append(Limit(kind, permits, window, str(entry.get("scope", f"provider:{alias}"))))
    return tuple(limits)


def _connections(alias: str, where: str, raw: Any, problems: list[Problem]) -> Connections | None:
    entries = [
        entry
        for entry in (raw if isinstance(raw, (list, tuple)) else [])
        if isinstance(entry, Mapping) and "connections" in entry
    ]
    if not entries:
        return None
    entry, most = entries[0], entries[0]["connections"]
    hint = '{"connections": 3}, once; from 1 to 1000. A "scope" shares it with other providers.'
    if len(entries) > 1 or set(entry) - {"connections", "scope"}:
        problems.append(Problem(24, f"{where}: {entries!r} is no limit.", hint))
        return None
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= 1000:
        problems.append(Problem(25, f"{where}: {most!r} connections cannot be.", hint))
        return None
    return Connections(most, str(entry.get("scope", f"provider:{alias}")))


@lru_cache(maxsize=1)
def delivery_settings() -> DeliverySettings:
    """The settings in force. What could not be understood has its default, and fails the checks."""
    understood = read_settings(getattr(settings, "DELIVERY", None))[0]
    # Providers are values and see no settings, so their table is told here.
    put_before(understood.reply_rules)
    return understood


def _forget(*, setting: str, **_: object) -> None:
    if setting == "DELIVERY":
        delivery_settings.cache_clear()
        put_before(())


setting_changed.connect(_forget)
