"""How the world treats a letter: decided by the reader's address alone.

The readers' file is made with it and the SMTP server acts on it, so the numbers at the end of a
demo are known beforehand, whatever the order in which letters travel.
"""

from __future__ import annotations

from enum import StrEnum


class Fate(StrEnum):
    """What happens to a letter, with the beginning of the local parts that meet it."""

    TAKEN = ""
    REFUSED = "gone-"  # 550 5.1.1 to RCPT
    DEFERRED_ONCE = "greylisted-"  # 450 4.2.0 to the first RCPT, then taken
    REPORTED = "bounces-"  # taken, and a delivery status notification afterwards


def fate_of(address: str) -> Fate:
    """The fate of letters to this address; upper and lower case are one."""
    local_part = address.lower()
    return next((fate for fate in Fate if fate and local_part.startswith(fate)), Fate.TAKEN)
