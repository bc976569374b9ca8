"""An operator's own rules, as DELIVERY["REPLY_RULES"] writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from delivery.outcomes import Phase, Speaker
from delivery.replies.rules import NO_CODE, Rule, Verdict
from delivery.replies.table import RULES
from delivery.replies.wishes import LONGEST_WISH

KEYS = frozenset(
    {"name", "verdict", "phases", "speaker", "code", "enhanced", "text", "wait", "source"}
)
LONGEST_NAME = 60
_OUR_NAMES = frozenset(rule.name for rule in RULES)
# What a rule must not condemn an address by: the class of a code, or nothing at all.
_BARE = {"", "5..", "[45]..", "..."}

E = TypeVar("E", bound=StrEnum)


class RuleError(ValueError):
    """A mistake in a rule: the number of its check, what is wrong, what to do."""

    def __init__(self, number: int, message: str, hint: str) -> None:
        super().__init__(message)
        self.number, self.message, self.hint = number, message, hint


def read_rule(raw: Any, taken: Iterable[str] = ()) -> Rule:
    """One entry as a Rule. RuleError for the first mistake in it. ``taken``: names of the rules
    before it; ours are taken as well, for the name is what an attempt's story shows."""
    if not isinstance(raw, Mapping) or set(raw) - KEYS:
        raise RuleError(71, f"{raw!r} is no rule.", f"A dict with {', '.join(sorted(KEYS))}.")
    name = raw.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise RuleError(72, f"{name!r} cannot name a rule.", "A text of 1 to 60 characters.")
    if name in _OUR_NAMES or name in taken:
        raise RuleError(72, f"Two rules are called {name!r}.", "Attempts show which rule decided.")
    verdict = _member(Verdict, name, "verdict", raw.get("verdict"))
    phases = raw.get("phases")
    if phases is not None and (isinstance(phases, str) or not isinstance(phases, Iterable)):
        raise RuleError(73, f"The phases of {name!r} are no list.", '"phases": ["rcpt"]')
    speaker = raw.get("speaker")
    patterns = {part: _pattern(name, part, raw.get(part, "")) for part in _PARTS}
    if not any(patterns.values()):
        raise RuleError(
            76, f"{name!r} would fit every reply.", "Give a code, an enhanced status or a text."
        )
    if (
        verdict is Verdict.BAD_ADDRESS
        and patterns["code"] in _BARE
        and not (patterns["enhanced"] or patterns["text"])
    ):
        raise RuleError(
            77,
            f"{name!r} would suppress an address for the class of a code.",
            "Give an enhanced status or a text: one misconfigured relay would end a whole list.",
        )
    return Rule(
        name,
        verdict,
        str(raw.get("source", "settings")),
        phases=None
        if phases is None
        else frozenset(_member(Phase, name, "phases", phase) for phase in phases),
        speaker=None if speaker is None else _member(Speaker, name, "speaker", speaker),
        wait=_wait(name, raw.get("wait")),
        code=patterns["code"],
        enhanced=patterns["enhanced"],
        text=patterns["text"],
    )


_PARTS = ("code", "enhanced", "text")


def _member(kind: type[E], name: str, part: str, value: Any) -> E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(f'"{member}"' for member in kind)
        raise RuleError(73, f"{name!r}: {part} cannot be {value!r}.", f"One of {known}.") from None


def _pattern(name: str, part: str, value: Any) -> str:
    hint = {
        "code": 'A regular expression for the whole code: "550", "4..", or "none".',
        "enhanced": r'A regular expression for the whole status: r"5\.7\.(1|26)".',
        "text": "A regular expression that is searched in the text, without regard to case.",
    }[part]
    if not isinstance(value, str):
        raise RuleError(74, f"{name!r}: {part} is no text.", hint)
    try:
        re.compile(value)
    except re.error as error:
        raise RuleError(74, f"{name!r}: {part} {value!r}: {error}.", hint) from None
    if part == "code" and value and value != NO_CODE and not _fits_a_code(value):
        raise RuleError(74, f"{name!r}: no code is {value!r}.", hint)
    return value


def _fits_a_code(pattern: str) -> bool:
    return any(re.fullmatch(pattern, str(code)) for code in range(200, 600))


def _wait(name: str, value: Any) -> timedelta | None:
    if value is None:
        return None
    if not isinstance(value, timedelta) or not timedelta(0) < value <= LONGEST_WISH:
        hint = "timedelta(minutes=30); more than nothing, and up to 24 hours."
        raise RuleError(75, f"{name!r}: wait cannot be {value!r}.", hint)
    return value
