"""The requests of a bounce mailbox whose account sends as well: they share its silence, and what
Microsoft allows all its users together (delivery/mailboxes.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

from bounces.mailboxes.base import AccountRequest, Gate, MailboxRestsError
from delivery import mailboxes
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.providers.graph_http import ALLOWANCE


def gate(account: str, now: datetime) -> Gate:
    """What a mailbox of this account passes with each request, from ``now`` on.

    MailboxRestsError when the account rests already: then not even a token is asked for."""
    until = mailboxes.resting_until(account, now)
    if until is not None:
        raise _rest(account, until - now, "")
    began = monotonic()
    return partial(_request, account, lambda: now + timedelta(seconds=monotonic() - began))


@contextmanager
def _request(account: str, clock: Callable[[], datetime]) -> Iterator[AccountRequest]:
    """Around one request; MailboxRestsError when none may be made now."""
    try:
        with mailboxes.request(account, ALLOWANCE, clock) as counted:
            under_way = AccountRequest()
            try:
                yield under_way
            finally:
                counted.silence = under_way.silence
    except mailboxes.MailboxRestsError as rest:
        raise _rest(account, rest.until - clock(), str(rest)) from None


def _rest(account: str, wait: timedelta, because: str) -> MailboxRestsError:
    reply = Reply.of(Phase.LOCAL, None, f"Nobody may touch {account}: {because or 'it rests'}")
    return MailboxRestsError(Unavailable(reply, wait, rule="mailbox rests"))
