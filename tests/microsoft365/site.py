"""All of Pennypost around one mailbox of the strict emulator, on a clock whose days go by at once.

Coordinator, workers and the reader of bounces are the real ones; they are called in turn, as
django-q2 would call them. Where somebody would wait, the clock goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any

from bounces.mailboxes.graph import GraphMailbox
from bounces.poller import poll
from campaigns.models import Campaign, Suppression
from delivery.audit import audit_campaign
from delivery.clocks import Timer
from delivery.composing import message_id_of
from delivery.conf import delivery_settings
from delivery.limits import closed_until, state_of
from delivery.models import Attempt, Delivery
from delivery.providers import graph
from delivery.providers.graph import GraphProvider
from delivery.providers.microsoft_identity import MicrosoftIdentity
from delivery.worker import PATIENCE, Slice, Worker
from tests.delivery.conftest import Clock, coordinate, make_campaign, make_readers
from tests.delivery.graph_world import World
from tests.emulators.graph import EmulatorWire

MAILBOX = "news@example.org"  # the From address of the tests' campaigns
LONG_STEP = timedelta(hours=1)
IDENTITY = {"tenant_id": "contoso", "client_id": "app", "client_secret": "right"}


class EmulatedTimer(Timer):
    """Waits by letting the emulated clock go on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def ticks(self) -> float:
        return self.clock().timestamp()

    async def sleep(self, seconds: float) -> None:
        until = self.clock() + timedelta(seconds=seconds)
        # Whoever has something to do now does it first.
        await asyncio.sleep(0)
        self.clock.now = max(self.clock(), until)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await self.sleep(seconds)


def settings_for(**changes: Any) -> dict[str, Any]:
    """DELIVERY with the profile of one mailbox, in the product's own words."""
    provider = {
        "PROFILE": "microsoft365-graph",
        "OPTIONS": {"mailbox": MAILBOX, "identity": IDENTITY},
    }
    return {
        "MAX_AGE": timedelta(days=5),
        "SLICE_LENGTH": timedelta(minutes=10),
        "RETURN_PATH": "",
        # A test breaks letters on purpose, and what it asserts is not how many.
        "GUARD_RAILS": dict.fromkeys(("BOUNCED", "DEFERRED", "UNCONFIRMED", "ALIKE", "IN_A_ROW")),
        "PROVIDERS": {
            "default": {"BACKEND": "delivery.providers.memory.MemoryProvider"},
            "graph": provider | changes,
        },
    }


BOUNCES = {
    "MAILBOXES": {
        "graph": {
            "BACKEND": "bounces.mailboxes.graph.GraphMailbox",
            "OPTIONS": {"mailbox": MAILBOX, "identity": IDENTITY},
        }
    }
}


class Site(World):
    """``opens``: whether a person opens a stopped provider after an hour."""

    alias = "graph"  # the provider in the settings

    def __init__(self, clock: Clock, **options: Any) -> None:
        graph._mailboxes.clear()
        super().__init__(clock, mailboxes=[MAILBOX], **options)
        self.timer = EmulatedTimer(clock)
        self.mode = "sendmail"
        self.opens: Callable[[str], None] | None = None
        self._identities: dict[str, MicrosoftIdentity] = {}
        self._wake_at: dict[str, datetime | None] = {}
        self._reads_at: datetime | None = None
        self.slices = 0

    # ------------------------------------------------------------------ who works here

    def identity_of(self, alias: str) -> MicrosoftIdentity:
        """One for the whole site, as in a process that lives long."""
        return self._identities.setdefault(alias, self.identity())

    def new_provider(self, alias: str) -> GraphProvider:
        return self.provider(
            mailbox=delivery_settings().providers[alias].options["mailbox"],
            identity=self.identity_of(alias),
            mode=self.mode,
        )

    def work(self, alias: str = "graph", provider: Any = None) -> Slice:
        """One slice of a worker."""
        self.slices += 1
        worker = Worker(
            delivery_settings(),
            delivery_settings().providers[alias],
            provider or self.new_provider(alias),
            clock=self.clock,
            dice=Random(self.slices),
            holder=f"site:{self.slices}",
            limit_clock=self.clock,
            timer=self.timer,
        )
        return asyncio.run(worker.run_slice())

    def read(self) -> Any:
        """One poll of the mailbox for bounces."""
        return poll("graph", self.clock(), at_once=True)

    def new_reader(self) -> GraphMailbox:
        return GraphMailbox(
            MAILBOX,
            token_source=self.identity_of("reader"),
            transport=EmulatorWire(self.emulator),
            clock=self.clock,
            dice=Random(1),
        )

    # ------------------------------------------------------------------ time goes by

    def live(
        self,
        length: timedelta,
        *,
        until: Callable[[], bool] = lambda: False,
        step: timedelta = timedelta(minutes=1),
        reads_every: timedelta | None = None,
    ) -> None:
        """So much time, or until something is so: coordinator each ``step``, workers when it or
        they themselves ask for them, the reader of bounces every so often."""
        end = self.clock() + length
        while self.clock() < end and not until():
            self._let_a_person_look()
            self._read_if_due(reads_every)
            began, started = self.clock(), coordinate(self.clock)
            for alias in sorted(set(started) | self._woken()):
                self._wake_at[alias] = self.work(alias).wait_until
            soon = [at for at in self._wake_at.values() if at and at <= self.clock() + PATIENCE]
            if soon:
                self.clock.now = max(self.clock(), min(soon))
            elif self.clock() == began and reads_every is None and self._all_is_done():
                self.clock.now = end
            elif self.clock() == began:
                self.clock.now += min(self._until_something_may_happen(step), end - began)

    def _until_something_may_happen(self, step: timedelta) -> timedelta:
        """While a limit or a pause is waited for, longer than a step: fewer looks at nothing."""
        waits = [at - self.clock() for at in self._wake_at.values() if at]
        closed = self.rest or (LONG_STEP if waits else step)
        return max(step, min([*waits, closed, LONG_STEP]))

    def _all_is_done(self) -> bool:
        """Nothing is to be sent and nothing to be looked for, however much time goes by."""
        in_doubt = Delivery.objects.filter(status="unconfirmed")
        return not Campaign.objects.filter(status="sending").exists() and not in_doubt.exists()

    def _read_if_due(self, every: timedelta | None) -> None:
        if every is not None and (self._reads_at is None or self.clock() >= self._reads_at):
            self._reads_at = self.clock() + every
            self.read()

    def _woken(self) -> set[str]:
        """The providers for which a task is due that wakes their workers."""
        due = {alias for alias, at in self._wake_at.items() if at and at <= self.clock()}
        for alias in due:
            self._wake_at[alias] = None
        return due

    def _let_a_person_look(self) -> None:
        if self.opens is not None and state_of(self.alias).stopped:
            self.opens(self.alias)

    @property
    def rest(self) -> timedelta | None:
        """How long the provider is closed from now on."""
        until = closed_until(state_of(self.alias), self.clock())
        return until - self.clock() if until else None

    # ------------------------------------------------------------------ what is promised

    def asked(self, part: str = "/users/") -> int:
        """How many requests of the mailbox there were."""
        return len(self.emulator.requests(part))

    def taken(self) -> Counter[str]:
        """Our Message-IDs of the letters that the far side took, and how often each."""
        return Counter(one.own_message_id for one in self.emulator.delivered)

    def assert_promises(self, *, doubled: int = 0) -> None:
        """What holds at the end of every test, whatever went wrong in it."""
        self.emulator.assert_promises(doubled=doubled)
        for campaign in Campaign.objects.all():
            audit = audit_campaign(campaign.pk)
            assert audit.imbalances == [], audit.imbalances
        self.assert_every_accepted_letter_is_accounted_for()

    def assert_every_accepted_letter_is_accounted_for(self) -> None:
        """What the far side took is sent, or came back, or is in doubt with a reason; and nothing
        counts as sent that it did not take."""
        letters = Delivery.objects.filter(provider__in=[self.alias, "again"])
        states = {message_id_of(row.pk, row.campaign_id): row.status for row in letters}
        taken = self.taken()
        known = {"sent", "unconfirmed", "sending", "bounced"}
        for message_id in taken:
            assert states[message_id] in known, (message_id, states[message_id])
        came_back = {one.own_message_id for one in self.emulator.returned}
        for message_id, status in states.items():
            if status == "sent":
                assert message_id in taken.keys() | came_back, message_id
        for row in letters.filter(status="unconfirmed"):
            last = Attempt.objects.filter(delivery=row).last()
            assert last is not None and last.reply, row

    def assert_no_limit_was_passed(self) -> None:
        """Of those that the emulator enforces, and of the one that it does not tell of."""
        assert self.emulator.over_limits == []
        assert self.emulator.longest_wait < timedelta(seconds=30)

    def assert_only_these_are_marked(self, *addresses: str) -> None:
        marked = set(Suppression.objects.values_list("address_key", flat=True))
        assert marked == set(addresses)


def campaign_of(
    clock: Clock,
    mailing_list: Any,
    readers: int,
    *,
    provider: str = "graph",
    prefix: str = "reader",
) -> Campaign:
    """A campaign to so many readers that is sending."""
    make_readers(mailing_list, readers, prefix)
    campaign = make_campaign(mailing_list, clock(), provider=provider)
    coordinate(clock)
    campaign.refresh_from_db()
    return campaign
