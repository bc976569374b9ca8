"""What all providers over HTTP need: Retry-After, had the letter left, no token to strangers."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from random import Random
from urllib.parse import urlsplit

import httpx

logger = logging.getLogger(__name__)
# httpx logs the address of every request: ours name mailboxes and readers' letters, and the address
# of an upload session is a permission in itself.
logging.getLogger("httpx").setLevel(logging.WARNING)

# Nobody means "come back next month" by it.
LONGEST_WISH = timedelta(hours=24)
SHORTEST_WISH = timedelta(seconds=1)
# Up to a fifth later than told, never earlier: workers must not come back as one wave.
JITTER = 0.2

# The request certainly had not left when one of these was raised: no connection, or no request.
NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.InvalidURL,
)


def retry_after(headers: Mapping[str, str], now: datetime, dice: Random) -> timedelta | None:
    """How long the far side wishes us to stay away (RFC 9110 section 10.2.3); None when it says
    nothing that can be understood.

    Microsoft also sends fractions of a second ("2.128"), which the RFC does not know. A date is
    taken relative to the answer's own Date field, for clocks differ. Negative values and NaN are
    nonsense; zero is a second; more than a day is a day, and logged.
    """
    raw = headers.get("retry-after", "").strip()
    if not raw:
        return None
    seconds = _seconds(raw, headers.get("date", ""), now)
    if seconds is None or math.isnan(seconds) or seconds < 0:
        logger.warning("provider.odd_retry_after", extra={"value": raw[:80]})
        return None
    if seconds > LONGEST_WISH.total_seconds():
        logger.warning("provider.long_retry_after", extra={"value": raw[:80]})
        return LONGEST_WISH
    wish = timedelta(seconds=seconds * (1 + JITTER * dice.random()))
    return min(max(wish, SHORTEST_WISH), LONGEST_WISH)


def _seconds(raw: str, date: str, now: datetime) -> float | None:
    try:
        return float(raw)
    except ValueError:
        pass
    moment = _date(raw)
    if moment is None:
        return None
    # A date that has passed is no nonsense: the wait is over.
    return max(0.0, (moment - (_date(date) or now)).total_seconds())


def _date(raw: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(raw)
    except (ValueError, TypeError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine itself: there an emulator may answer without TLS. False
    for what is no URL."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class ForeignHostError(ValueError):
    """Somebody asked us to send a token where it does not belong."""


def same_origin(url: str, base: str) -> str:
    """``url``, if it has scheme, host and port of ``base``. ForeignHostError otherwise.

    Addresses that an answer names (a next page, say) pass through here before a bearer token goes
    with them. Anything but https is refused except on this machine.
    """
    ours, theirs = urlsplit(base), urlsplit(url)
    if (
        (theirs.scheme, theirs.hostname, theirs.port) != (ours.scheme, ours.hostname, ours.port)
        or theirs.username is not None
        or (theirs.scheme != "https" and not is_loopback(url))
    ):
        raise ForeignHostError(f"{theirs.hostname!r} is not {ours.hostname!r}")
    return url
