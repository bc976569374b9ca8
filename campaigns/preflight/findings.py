"""One thing that preflight found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

Level = Literal["fail", "warn"]


@dataclass(frozen=True)
class Finding:
    """``fail`` forbids sending, ``warn`` wants to be seen. ``detail``: where, what exactly."""

    level: Level
    code: str
    sentence: str | _StrPromise
    detail: str = ""
