"""What a rule of the classification table is, and what it can say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from delivery.outcomes import Phase, Speaker

# What stands for "no reply at all" in a rule's ``code``.
NO_CODE = "none"


def names_a_route(address: str) -> bool:
    """Whether a server may read a second address in this one: "ada%example.net@example.org" and
    "example.net!ada@example.org" once meant "send it on from there" (RFC 1123 section 5.2.16)."""
    local_part = address.rpartition("@")[0]
    return "%" in local_part or "!" in local_part


class Verdict(StrEnum):
    """Whose trouble it is, and what follows."""

    DEFER = "defer"  # the reader's side, later
    SLOW = "slow"  # later, and more slowly to this reader's group of domains
    PAUSE = "pause"  # later, and nothing to this group until then
    BLOCKED = "blocked"  # as PAUSE, and a person should know: waiting alone mends nothing
    REJECT = "reject"  # this letter, this reader; the address stays
    BAD_ADDRESS = "bad address"  # no such mailbox or domain: suppress
    BUSY = "busy"  # the provider's side, later, and with fewer connections
    UNAVAILABLE = "unavailable"  # the provider's side, later
    STOP = "stop"  # the provider's side, and only a person can mend it


@dataclass(frozen=True, slots=True)
class Rule:
    """Fits when every part that is given fits.

    ``code`` and ``enhanced`` are regular expressions for the whole "550" and "5.1.1"; code "none"
    means that there was no reply, and no other rule fits then. ``text`` is searched without regard
    to case in the reply as one line. ``wait`` is ours; the far side's own wish goes before it.
    ``is_default``: knows nothing but the class of the code; what it decides is listed as
    unclassified. ``to_a_route``: only about addresses that name_a_route().
    """

    name: str
    verdict: Verdict
    source: str
    phases: frozenset[Phase] | None = None
    speaker: Speaker | None = None
    code: str = ""
    enhanced: str = ""
    text: str = ""
    wait: timedelta | None = None
    is_default: bool = False
    to_a_route: bool = False
    pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The text is compared in lower case; a pattern in lower case needs no flag, and is faster.
        flags = re.NOFLAG if self.text == self.text.lower() else re.IGNORECASE
        object.__setattr__(self, "pattern", re.compile(self.text, flags) if self.text else None)

    def may_fit(
        self, phase: Phase, speaker: Speaker, code: int | None, enhanced: str, to_a_route: bool
    ) -> bool:
        """Whether all but the text fits."""
        if (code is None) != (self.code == NO_CODE):
            return False
        return (
            (to_a_route or not self.to_a_route)
            and (self.phases is None or phase in self.phases)
            and (self.speaker is None or speaker is self.speaker)
            and (not self.code or code is None or re.fullmatch(self.code, str(code)) is not None)
            and (not self.enhanced or re.fullmatch(self.enhanced, enhanced) is not None)
        )
