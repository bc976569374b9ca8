"""Named profiles: what is known about a provider, so that nobody must look it up. Pure.

    "PROVIDERS": {"default": {
        "PROFILE": "microsoft365-graph",
        "OPTIONS": {"mailbox": "news@contoso.example", "identity": {...}},
        "LICENCES": 25,
    }}

A profile gives BACKEND, WORKERS, LIMITS and some OPTIONS; what the entry says itself goes before.
Limits are scoped by mailbox and tenant: Graph and SMTP as the same mailbox share one budget, and
all mailboxes of a tenant share the tenant's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from delivery.providers.microsoft_identity import CLOUDS

# Exchange Online, sending limits. Excess over 30 a minute is not refused but delivered later, out
# of sight; so we stay below it.
LETTERS_A_MINUTE = 28
RECIPIENTS_A_DAY = 10_000
# Graph allows 4 requests at once for an application and a mailbox, SMTP 3 connections: one worker
# over all hosts, which has its letters under way at once.
WORKERS = 1
SMTP_CONNECTIONS = 3

PROFILE_KEYS = ("PROFILE", "LICENCES", "WORKERS")


class ProfileError(ValueError):
    """An entry that its profile cannot complete. ``number`` is that of the check."""

    def __init__(self, number: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.number, self.hint = number, hint


def tenant_limit(licences: int) -> int:
    """External recipients a tenant may have in 24 hours (tenant external recipient rate limit,
    Exchange Online 2025): 500 x licences^0.7 + 9,500; 10,000 with one, 72,446 with a thousand."""
    return int(500 * licences**0.7 + 9_500)


def expand(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A provider's entry with its profile filled in; ProfileError when that cannot be done."""
    name = entry.get("PROFILE")
    if name is None:
        if "LICENCES" in entry:
            raise ProfileError(62, "LICENCES stands beside no PROFILE.", "See docs/microsoft365.md")
        return dict(entry)
    profile = PROFILES.get(name) if isinstance(name, str) else None
    if profile is None:
        known = ", ".join(sorted(PROFILES))
        raise ProfileError(60, f"PROFILE {name!r} is unknown.", f"Known profiles: {known}.")
    licences = entry.get("LICENCES", 1)
    if type(licences) is not int or not 1 <= licences <= 10_000_000:
        hint = "How many Exchange Online licences the tenant has; 1 when it is not known."
        raise ProfileError(62, f"LICENCES = {licences!r} cannot be.", hint)
    options = entry.get("OPTIONS")
    if not isinstance(options, Mapping) or not isinstance(options.get("mailbox"), str):
        hint = '"OPTIONS": {"mailbox": "news@contoso.example", "identity": {...}}'
        raise ProfileError(63, "OPTIONS name no mailbox.", hint)
    return profile(options) | {
        "LIMITS": entry.get("LIMITS", _limits(name, options, licences)),
        "WORKERS": entry.get("WORKERS", WORKERS),
    }


def _limits(name: str, options: Mapping[str, Any], licences: int) -> list[dict[str, Any]]:
    mailbox = options["mailbox"].lower()
    identity = options.get("identity")
    tenant = identity.get("tenant_id") if isinstance(identity, Mapping) else None
    tenant = str(tenant or mailbox.rpartition("@")[2]).lower()
    # Graph's requests at once are counted by the mailbox's gate, together with its readers'.
    connections = {"connections": SMTP_CONNECTIONS, "scope": f"smtp:{mailbox}"}
    return [
        *([connections] if name == "microsoft365-smtp" else []),
        {"rate": f"{LETTERS_A_MINUTE}/minute", "scope": f"mailbox:{mailbox}"},
        {"cap": f"{RECIPIENTS_A_DAY}/day", "scope": f"mailbox:{mailbox}"},
        {"cap": f"{tenant_limit(licences)}/day", "scope": f"tenant:{tenant}"},
    ]


def _graph(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"BACKEND": "delivery.providers.graph.GraphProvider", "OPTIONS": dict(options)}


def _smtp(options: Mapping[str, Any]) -> dict[str, Any]:
    identity = options.get("identity")
    cloud = identity.get("cloud", "global") if isinstance(identity, Mapping) else "global"
    defaults = {
        "host": CLOUDS.get(cloud, CLOUDS["global"]).smtp,
        "port": 587,
        "security": "starttls",
        "username": options["mailbox"],
        "connections": SMTP_CONNECTIONS,
        # An idle session is closed after about five minutes.
        "seconds_per_connection": 240.0,
    }
    given = {key: value for key, value in options.items() if key != "mailbox"}
    return {"BACKEND": "delivery.providers.smtp.SMTPProvider", "OPTIONS": defaults | given}


PROFILES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "microsoft365-graph": _graph,
    "microsoft365-smtp": _smtp,
}
