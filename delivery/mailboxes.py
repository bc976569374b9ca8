"""A mailbox that several use: who may touch it now, and when nobody may.

Microsoft counts for an application and a mailbox whatever we ask of it: letters, looks into Sent
Items, reading of bounces, tests. And after certain errors a mailbox answers nothing until half an
hour has passed without *any* request; each one begins that half hour anew. So everybody asks here
before each request, and says when it is over:

- a provider through its gate (providers.base.ActsAsMailbox; ``guard`` gives it one),
- whoever reads, by ``with mailboxes.request(mailbox, allowance, clock) as request``,
- and a process that does not know its requests one by one, by ``resting_until``.

A silence is counted from the last request that ended, whoever made it; it stands in the database,
so that it outlasts restarts, and no person can end it early. A second one within a day lasts
twice as long, and a person is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Count, F, Min, Q, Sum
from django.utils.formats import date_format
from django.utils.timezone import localtime

from delivery import alerts
from delivery.bridge import Bridge
from delivery.conf import delivery_settings
from delivery.models import Alert, MailboxRequest, MailboxState, ProviderState
from delivery.providers.base import ActsAsMailbox, Allowance, Provider, Rest, Turn
from delivery.replies.graph import TOTAL_SILENCE, TOTAL_SILENCE_RULE

Clock = Callable[[], datetime]

# A second silence within this time after the first lasts twice as long.
REMEMBERED = timedelta(days=1)
LONGEST_SILENCE = timedelta(hours=24)
# After a silence: one cheap request, one as usual, and then as ever.
ON_TRIAL = 2
# A request that was not heard of for so long is over: its process is dead.
LOST_AFTER = timedelta(minutes=5)
# While all places are taken, somebody's answer is near: how often to ask, and for how long.
ASK_AGAIN = timedelta(milliseconds=250)
PATIENCE = timedelta(seconds=60)


def resting_until(mailbox: str, now: datetime) -> datetime | None:
    """The end of the mailbox's silence; None while it may be touched."""
    return (
        MailboxState.objects.filter(mailbox=mailbox.lower(), silent_until__gt=now)
        .values_list("silent_until", flat=True)
        .first()
    )


def ask(mailbox: str, allowance: Allowance | None, now: datetime, octets: int = 0) -> Turn | Rest:
    """Leave for one request, which done() ends; or how long there is none."""
    mailbox = mailbox.lower()
    with transaction.atomic():
        state = _locked(mailbox)
        if state.silent_until is not None and state.silent_until > now:
            until = date_format(localtime(state.silent_until), "H:i")
            return Rest(state.silent_until - now, f"resting until {until} ({state.because})")
        requests = MailboxRequest.objects.filter(mailbox=mailbox)
        under_way = requests.filter(ended_at=None, began_at__gt=now - LOST_AFTER)
        if state.on_trial and under_way.exists():
            return Rest(ASK_AGAIN, "the first request after a silence is under way")
        if allowance is not None and (rest := _counted(mailbox, allowance, octets, now)):
            return rest
        made = requests.create(
            mailbox=mailbox,
            channel=allowance.channel if allowance else "",
            began_at=now,
            octets=octets,
        )
    return Turn(made.pk, is_first=state.on_trial == ON_TRIAL)


def done(mailbox: str, turn: Turn, now: datetime, silence: str = "") -> None:
    """A request is over. ``silence``: the answer after which nothing may touch the mailbox.

    One that slipped into a silence, because it was under way when that began, lets it begin anew.
    """
    mailbox = mailbox.lower()
    with transaction.atomic():
        state = _locked(mailbox)
        MailboxRequest.objects.filter(pk=turn.key).update(ended_at=now)
        is_silent = state.silent_until is not None and state.silent_until > now
        if silence or is_silent:
            _be_silent(state, silence, now)
        elif state.on_trial:
            MailboxState.objects.filter(pk=mailbox).update(on_trial=F("on_trial") - 1)


def _be_silent(state: MailboxState, because: str, now: datetime) -> None:
    is_new = state.silent_until is None or state.silent_until <= now
    if is_new:
        is_again = state.silent_until is not None and state.silent_until > now - REMEMBERED
        doubled = min(2 * (state.length or TOTAL_SILENCE), LONGEST_SILENCE)
        state.length = doubled if is_again else TOTAL_SILENCE
        state.because = because
        state.on_trial = ON_TRIAL
    state.silent_until = now + (state.length or TOTAL_SILENCE)
    state.save()
    if is_new and state.length != TOTAL_SILENCE:
        _alert(state, now)
    # Its providers say so too: no worker is started for them, and the admin shows it.
    aliases = [p.alias for p in delivery_settings().providers.values() if p.mailbox == state.pk]
    for alias in aliases:
        ProviderState.objects.get_or_create(alias=alias)
    ProviderState.objects.filter(alias__in=aliases, stopped=False).filter(
        Q(paused_until=None) | Q(paused_until__lt=state.silent_until)
    ).update(
        paused_until=state.silent_until,
        because=state.because,
        rule=TOTAL_SILENCE_RULE,
        paused_at=now,
    )


def _alert(state: MailboxState, now: datetime) -> None:
    alerts.raise_alert(
        Alert.Kind.PROVIDER,
        alerts.cause_of_silence(state.mailbox),
        f"The mailbox {state.mailbox} had to be left alone again",
        "Microsoft refused everything once more soon after a rest; the mailbox now rests twice as"
        " long. Does another application use it too? It said:\n" + state.because,
        now,
    )


def _counted(mailbox: str, allowance: Allowance, octets: int, now: datetime) -> Rest | None:
    """None when one more request of so many octets is within the allowance.

    A request counts from its beginning until one window after its end, for the server counts it
    somewhere in between.
    """
    longest = max(allowance.requests_window, allowance.octets_window, LOST_AFTER)
    mine = MailboxRequest.objects.filter(mailbox=mailbox, channel=allowance.channel)
    mine.filter(began_at__lt=now - 2 * longest).delete()
    alive = Q(ended_at=None, began_at__gt=now - LOST_AFTER)
    of_requests = Q(ended_at__gt=now - allowance.requests_window) | alive
    of_octets = Q(ended_at__gt=now - allowance.octets_window) | alive
    sums = mine.aggregate(
        under_way=Count("pk", filter=alive),
        requests=Count("pk", filter=of_requests),
        volume=Sum("octets", filter=of_octets),
        first=Min("ended_at", filter=of_requests),
        first_octets=Min("ended_at", filter=of_octets & Q(octets__gt=0)),
    )
    if sums["under_way"] >= allowance.at_once:
        return Rest(ASK_AGAIN, "as many requests are under way as Microsoft allows")
    if sums["requests"] >= allowance.requests:
        ends = (sums["first"] or now) + allowance.requests_window
        return Rest(max(ends - now, ASK_AGAIN), "as many requests as Microsoft allows in a while")
    if octets and (sums["volume"] or 0) + octets > allowance.octets:
        ends = (sums["first_octets"] or now) + allowance.octets_window
        return Rest(max(ends - now, ASK_AGAIN), "as many octets as Microsoft allows in a while")
    return None


def _locked(mailbox: str) -> MailboxState:
    rows = MailboxState.objects.select_for_update().filter(mailbox=mailbox)
    state = rows.first()
    if state is None:
        MailboxState.objects.bulk_create([MailboxState(mailbox=mailbox)], ignore_conflicts=True)
        state = rows.get()
    return state


# ---------------------------------------------------------------------------------- who asks


class MailboxGate:
    """The gate of a provider in a worker: asks through the bridge, and waits where others have an
    answer to come."""

    def __init__(
        self, mailbox: str, allowance: Allowance | None, bridge: Bridge, clock: Clock
    ) -> None:
        self.mailbox, self.allowance = mailbox, allowance
        self.bridge, self.clock = bridge, clock

    async def ask(self, octets: int = 0) -> Turn | Rest:
        """Leave, or the rest that is too long to be waited for."""
        give_up = time.monotonic() + PATIENCE.total_seconds()
        while True:
            turn = await self.bridge.call(ask, self.mailbox, self.allowance, self.clock(), octets)
            if isinstance(turn, Turn) or turn.wait > ASK_AGAIN or time.monotonic() > give_up:
                return turn
            await asyncio.sleep(turn.wait.total_seconds())

    async def done(self, turn: Turn, silence: str = "") -> None:
        """Writes that the request is over."""
        await self.bridge.call(done, self.mailbox, turn, self.clock(), silence)


def guard(provider: Provider, bridge: Bridge, clock: Clock) -> None:
    """Gives a provider that acts as a mailbox the gate of that mailbox."""
    if isinstance(provider, ActsAsMailbox) and provider.mailbox:
        provider.guard(MailboxGate(provider.mailbox, provider.allowance, bridge, clock))


class MailboxRestsError(Exception):
    """No request may be made now. ``until``: when it is worth asking again."""

    def __init__(self, rest: Rest, now: datetime) -> None:
        super().__init__(rest.because)
        self.until = now + rest.wait


@dataclass(slots=True)
class Request:
    """A request under way. Set ``silence`` to the answer after which nothing may touch the
    mailbox (its rule in delivery/replies/graph.py is TOTAL_SILENCE_RULE)."""

    is_first: bool
    silence: str = ""


@contextmanager
def request(
    mailbox: str, allowance: Allowance | None, clock: Clock, octets: int = 0
) -> Iterator[Request]:
    """Around one request of a process without an event loop; MailboxRestsError when it may not be
    made. Waits up to PATIENCE while others have an answer to come. Not within a transaction: the
    others must see it."""
    give_up = time.monotonic() + PATIENCE.total_seconds()
    while isinstance(turn := ask(mailbox, allowance, clock(), octets), Rest):
        if turn.wait > ASK_AGAIN or time.monotonic() > give_up:
            raise MailboxRestsError(turn, clock())
        time.sleep(turn.wait.total_seconds())
    under_way = Request(turn.is_first)
    try:
        yield under_way
    finally:
        done(mailbox, turn, clock(), under_way.silence)
