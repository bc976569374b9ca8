"""The CAMPAIGNS settings, typed and read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from campaigns.tokens import TokenSigner

# Where a setting names none: a domain to every reader of it, and nobody's.
DEFAULT_DOMAIN = "localhost.localdomain"


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """What letters need to know of this installation.

    ``signer`` holds the TOKEN_KEYS, key numbers 0..255 to secrets: the highest one signs, all
    verify.
    """

    base_url: str
    list_id_domain: str
    message_id_domain: str
    sender_id: str
    signer: TokenSigner = field(repr=False)
    largest_import_bytes: int
    # How long the uploaded file of an import that was never finished is kept.
    upload_retention: timedelta


@lru_cache(maxsize=1)
def campaign_settings() -> CampaignSettings:
    """The settings in force. Wrong values are what campaigns/checks.py reports."""
    raw: dict[str, Any] = getattr(settings, "CAMPAIGNS", {})
    keys = raw.get("TOKEN_KEYS") or {1: settings.SECRET_KEY}
    return CampaignSettings(
        base_url=settings.BASE_URL,
        list_id_domain=raw.get("LIST_ID_DOMAIN", DEFAULT_DOMAIN),
        message_id_domain=raw.get("MESSAGE_ID_DOMAIN", DEFAULT_DOMAIN),
        sender_id=raw.get("SENDER_ID", "pennypost"),
        signer=TokenSigner({number: str(key).encode() for number, key in keys.items()}),
        largest_import_bytes=int(raw.get("LARGEST_IMPORT_MB", 200)) * 1024 * 1024,
        upload_retention=timedelta(days=int(raw.get("UPLOAD_RETENTION_DAYS", 90))),
    )


def provider_aliases() -> list[str]:
    """The names under which the settings file offers providers; the campaign form's choices.

    Read from the settings, not from delivery: campaigns knows that providers have names,
    and nothing else of them.
    """
    return list(getattr(settings, "DELIVERY", {}).get("PROVIDERS", {}))


def _forget(*, setting: str, **_: object) -> None:
    if setting in {"CAMPAIGNS", "BASE_URL", "SECRET_KEY"}:
        campaign_settings.cache_clear()


setting_changed.connect(_forget)
