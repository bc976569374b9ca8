"""How long the far side wishes us to stay away, where its text says so."""

from __future__ import annotations

import re
from datetime import timedelta

# Nobody means "come back next month" by it; and zero would be a loop.
LONGEST_WISH = timedelta(hours=24)
SHORTEST_WISH = timedelta(seconds=1)

_UNITS = {"s": 1, "m": 60, "h": 3600}
# "try again in 300 seconds", "please wait 5 min", "greylisted for 5 minutes", "retry after 1 hour"
_IN_UNITS = re.compile(
    r"(?:again|retry|back|wait|later|after|greylisted|deferred|delayed|blocked|limited|resend)\b"
    r"[^.;\d]{0,30}?\b(?:in|for|after|wait|at least|within)?\s*(\d{1,6})\s*"
    r"(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b"
)
# "please come back in 00:04:59" (milter-greylist)
_AS_CLOCK = re.compile(r"\b(?:in|for|after)\s+(\d{1,2}):(\d\d):(\d\d)\b")


def wish(text: str) -> timedelta | None:
    """The wait that a reply names, from a second to a day; None when it names none.

    ``text`` is in lower case. A number without a unit is no wish: it may be an id.
    """
    if match := _IN_UNITS.search(text):
        seconds = int(match[1]) * _UNITS[match[2][0]]
    elif match := _AS_CLOCK.search(text):
        seconds = int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])
    else:
        return None
    return min(max(timedelta(seconds=seconds), SHORTEST_WISH), LONGEST_WISH)
