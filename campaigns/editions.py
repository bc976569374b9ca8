"""Freezing: what an author wrote becomes an Edition, the letter that never changes again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache

from django.core.exceptions import ValidationError

from campaigns.addresses import normalise_address
from campaigns.header_fields import clean_name
from campaigns.letter import LetterError, LetterSource
from campaigns.models import Campaign, Edition
from campaigns.trial import Manuscript, typeset


def freeze(campaign: Campaign) -> Edition:
    """The campaign's content as an Edition: a new one, or the one that already has this content.

    LetterError when the letter cannot be made; nothing is written then.
    """
    edition = draft_edition(campaign)
    frozen, _created = Edition.objects.get_or_create(
        campaign=campaign,
        digest=edition.digest,
        defaults={name: getattr(edition, name) for name in LetterSource.__slots__},
    )
    return frozen


def draft_edition(campaign: Campaign, samples: list[dict[str, str]] | None = None) -> Edition:
    """The Edition that freezing would write, unsaved: for previews and preflight.

    Made in a child process, which also fills it for ``samples`` (merge values of some readers).
    LetterError when it cannot be made.
    """
    manuscript = Manuscript(
        subject=campaign.subject,
        preheader=campaign.preheader,
        html=campaign.html,
        text=campaign.text,
    )
    ready = typeset(manuscript, samples) if samples else _typeset(manuscript)
    source = LetterSource(
        from_name=clean_name(campaign.from_name),
        from_email=_address("from", campaign.from_email),
        reply_to=_address("reply-to", campaign.reply_to) if campaign.reply_to else "",
        subject=campaign.subject,
        html=ready.html,
        text=ready.text,
    )
    return Edition(campaign=campaign, digest=digest(source), **asdict(source))


def digest(source: LetterSource) -> str:
    """SHA-256 (hex) of everything that a letter is compiled from."""
    return hashlib.sha256(json.dumps(asdict(source), sort_keys=True).encode()).hexdigest()


# A page shows the same draft several times (frame, text, preflight, freezing); errors are not kept.
_typeset = lru_cache(maxsize=4)(typeset)


def _address(field: str, raw: str) -> str:
    try:
        return normalise_address(raw)
    except ValidationError as error:
        raise LetterError(f"{field}: {' '.join(error.messages)}") from error
