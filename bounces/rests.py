"""The requests of a bounce mailbox whose account sends as well: they share its silence.

After certain errors a mailbox of Microsoft 365 answers nothing until half an hour has passed
without any request, and each one begins that half hour anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

from bounces.mailboxes.base import AccountRequest, Gate, MailboxRestsError
from delivery import limits
from delivery.conf import delivery_settings
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.replies.graph import TOTAL_SILENCE, TOTAL_SILENCE_RULE


def gate(account: str, now: datetime) -> Gate:
    """What a mailbox of this account passes with each request, from ``now`` on."""
    began = monotonic()
    return partial(_request, account, lambda: now + timedelta(seconds=monotonic() - began))


@contextmanager
def _request(account: str, clock: Callable[[], datetime]) -> Iterator[AccountRequest]:
    """Around one request; MailboxRestsError when none may be made now."""
    now = clock()
    aliases = [
        alias
        for alias, provider in delivery_settings().providers.items()
        if str(provider.options.get("mailbox", "")).lower() == account.lower()
    ]
    states = [limits.state_of(alias) for alias in aliases]
    for state in states:
        until = limits.closed_until(state, now) if state.rule == TOTAL_SILENCE_RULE else None
        if until is not None:
            reply = Reply.of(Phase.LOCAL, None, f"Nobody may touch {account}: {state.because}")
            raise MailboxRestsError(Unavailable(reply, until - now, rule=TOTAL_SILENCE_RULE))
    under_way = AccountRequest()
    try:
        yield under_way
    finally:
        if under_way.silence:
            reply = Reply.of(Phase.HTTP, None, under_way.silence)
            for alias in aliases:
                trouble = Unavailable(reply, TOTAL_SILENCE, rule=TOTAL_SILENCE_RULE)
                limits.pause(alias, trouble, clock())
