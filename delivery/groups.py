"""Groups of receiving domains that asked for less, and what it means for letters to them.

A group is held *at a provider*: paused (nothing until a moment) or slow (a letter a minute until
one). Its letters must not stand in the way of others, nor be looked at again and again. So a claim
that meets them sends them to the end of the pause (``due_at``): each letter is touched once in a
pause, by the index that the claim reads anyway, and whoever asks when there is work again needs to
know nothing of groups. Without a held group a claim asks nothing at all.

Who holds a letter when its group begins to be held gives it back (ProviderState.groups_held).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Greatest
from django.utils.translation import gettext as _

from campaigns.models import Campaign
from campaigns.states import CampaignStatus
from delivery import alerts, queue_pages
from delivery.models import Alert, Delivery, GroupState, ProviderState, ReceivingDomain
from delivery.outcomes import Deferred, Throttle
from delivery.receiving import domain_of, well_known_group
from delivery.sql import in_order_of_an_index
from delivery.states import WAITING

logger = logging.getLogger(__name__)

# KumoMTA's default after "temporarily deferred" and the like: one letter a minute.
INTERVAL = timedelta(minutes=1)
# A turn may come so much early: claims are no clockwork.
TOLERANCE = timedelta(seconds=6)
# Where a rule names no time.
DEFAULT_WAIT = timedelta(minutes=15)
# So many times the letters that it wants a claim looks at to find some whose group is not held;
# then twice as many, and so on, up to MOST_AHEAD at once and LOOKS times.
AHEAD = 2
MOST_AHEAD = 5000
LOOKS = 12
# When to look again after letters that only other members of a pool may take.
PATIENCE = timedelta(seconds=2)
AT_ONCE = 10_000
# In so many words, and with the condition of the partial index delivery_alone, or SQLite does not
# see that it holds them all.
WAITING_ALONE = "waits_alone AND status IN ('queued', 'deferred')"


# ---------------------------------------------------------------------------------- which group


def groups_of(domains: Collection[str]) -> dict[str, str]:
    """The group of each domain: as DNS said, else as is well known, else the domain itself."""
    known = dict(
        ReceivingDomain.objects.filter(name__in=domains).values_list("name", "group").order_by()
    )
    return {
        domain: known[domain]
        if known.get(domain, domain) != domain
        else well_known_group(domain) or domain
        for domain in domains
    }


# ---------------------------------------------------------------------------------- holding


def hold(alias: str, refusals: Sequence[tuple[str, Deferred]], now: datetime) -> None:
    """Holds the groups of these addresses, whose servers asked for it (``throttle``). In a
    transaction of the caller's the provider's row is not yet locked."""
    refusals = [(domain_of(address), outcome) for address, outcome in refusals]
    groups = groups_of({domain for domain, _outcome in refusals})
    gravest: dict[str, Deferred] = {}
    for domain, outcome in refusals:
        group = groups[domain]
        gravest[group] = max(gravest.get(group, outcome), outcome, key=_gravity)
    with transaction.atomic():
        # In the order of names: two workers that meet the same trouble must not deadlock.
        for group, outcome in sorted(gravest.items()):
            _hold(alias, group, outcome, now)


def _gravity(outcome: Deferred) -> tuple[bool, bool, timedelta]:
    is_pause = outcome.throttle is Throttle.PAUSE
    return outcome.needs_a_person, is_pause, outcome.retry_after or DEFAULT_WAIT


def _hold(alias: str, group: str, outcome: Deferred, now: datetime) -> None:
    """A longer hold of the same kind is kept."""
    GroupState.objects.bulk_create([GroupState(provider=alias, group=group)], ignore_conflicts=True)
    state = GroupState.objects.select_for_update().get(provider=alias, group=group)
    kind = "paused_until" if outcome.throttle is Throttle.PAUSE else "slow_until"
    until = now + (outcome.retry_after or DEFAULT_WAIT)
    until = until.replace(microsecond=state.pk % 1_000_000)
    before = getattr(state, kind)
    if before is not None and before >= until:
        return
    setattr(state, kind, until)
    state.because, state.rule, state.since = str(outcome.reply), outcome.rule, now
    state.save()
    begins = before is None or before <= now
    ProviderState.objects.get_or_create(alias=alias)
    ProviderState.objects.filter(alias=alias).update(
        groups_held=F("groups_held") + int(begins),
        groups_held_until=Greatest(Coalesce("groups_held_until", until), until),
    )
    if outcome.needs_a_person:
        alerts.raise_alert(
            Alert.Kind.GROUP,
            alerts.cause_of_group(state),
            _("%(group)s refuses us at the provider %(provider)s")
            % {"group": group, "provider": alias},
            _("Letters to it wait, and waiting alone will not mend it. It said:\n%(reply)s")
            % {"reply": state.because},
            now,
        )
    logger.warning(
        "delivery.group_held", extra={"provider": alias, "group": group, "rule": outcome.rule}
    )


def held_until(state: GroupState, now: datetime) -> datetime | None:
    """When a held group is free again; None when it is."""
    moments = [m for m in (state.paused_until, state.slow_until) if m is not None and m > now]
    return max(moments, default=None)


def held_now(aliases: Collection[str], now: datetime) -> list[GroupState]:
    """The groups that these providers hold."""
    held = Q(paused_until__gt=now) | Q(slow_until__gt=now)
    return list(GroupState.objects.filter(held, provider__in=aliases).order_by("group", "provider"))


# ---------------------------------------------------------------------------------- resuming


def resume(state: GroupState, now: datetime) -> bool:
    """Opens a group, as a person asked; False when it was open. Its letters are called back by
    ``call_back``, behind those that wait already: nothing is caught up."""
    return bool(
        GroupState.objects.filter(pk=state.pk)
        .filter(Q(paused_until__gt=now) | Q(slow_until__gt=now))
        .update(
            call_back=Coalesce("paused_until", "slow_until"),
            paused_until=None,
            slow_until=None,
            next_at=None,
            turns_until=None,
        )
    )


def call_back(names_of: Callable[[str], Sequence[str]], clock: Callable[[], datetime],
              end: datetime) -> bool:  # fmt: skip
    """Letters that wait for the end of a pause that a person ended are due; True when time ran out
    first. ``names_of``: the names by which campaigns reach a provider."""
    for state in GroupState.objects.filter(call_back__isnull=False):
        campaigns = Campaign.objects.filter(
            provider__in=names_of(state.provider),
            status__in=[CampaignStatus.SENDING, CampaignStatus.PAUSED],
        )
        for campaign_id in campaigns.order_by("pk").values_list("pk", flat=True):
            while state.call_back and _move(campaign_id, state.call_back, clock()):
                if clock() >= end:
                    return True
        GroupState.objects.filter(pk=state.pk, call_back=state.call_back).update(call_back=None)
    return False


def _move(campaign_id: int, moment: datetime, now: datetime) -> int:
    with transaction.atomic():
        waiting = Delivery.objects.filter(
            campaign_id=campaign_id, due_at=moment, is_test=False
        ).extra(where=[WAITING_ALONE])
        in_order = waiting.order_by("campaign_id", "due_at", "id")
        with in_order_of_an_index():
            locked = in_order.select_for_update(skip_locked=True)
            ids = list(locked.values_list("pk", flat=True)[:AT_ONCE])
        return Delivery.objects.filter(pk__in=ids, status__in=WAITING).update(due_at=now)


# ---------------------------------------------------------------------------------- in a claim


@dataclass(slots=True)
class Held:
    """The groups that a provider holds, as one claim of its sees them.

    ``members_of``: the providers that a campaign's provider name stands for. ``left_to_others``:
    letters were passed over that another member of a pool may take.
    """

    alias: str
    members_of: Callable[[str], Sequence[str]]
    states: dict[tuple[str, str], GroupState] = field(default_factory=dict)
    left_to_others: bool = False
    # Letters to slow groups whose turn it is in this claim.
    turns: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls, state: ProviderState, members_of: Callable[[str], Sequence[str]], now: datetime
    ) -> Held | None:
        """None when no group is held, which the provider's row knows."""
        if state.groups_held_until is None or state.groups_held_until <= now:
            return None
        aliases = {state.alias}
        for name in (
            Campaign.objects.filter(status=CampaignStatus.SENDING)
            .values_list("provider", flat=True)
            .distinct()
        ):
            members = members_of(name)
            if state.alias in members:
                aliases.update(members)
        states = {(row.provider, row.group): row for row in held_now(aliases, now)}
        if not any(alias == state.alias for alias, _group in states):
            return None
        return cls(state.alias, members_of, states)

    def free_letters(self, campaign_id: int, wanted: int, now: datetime) -> list[int]:
        """Due letters of a campaign that may be claimed, at least ``wanted`` where there are so
        many; those of held groups go to the ends of their pauses. In the claim's transaction."""
        name = Campaign.objects.values_list("provider", flat=True).get(pk=campaign_id)
        members = self.members_of(name)
        free: list[int] = []
        for look in range(LOOKS):
            ahead = min(AHEAD * 2**look * wanted, max(MOST_AHEAD, wanted))
            letters = _due(campaign_id, ahead, now)
            if queue_pages.spread(campaign_id, ahead - len(letters)):
                letters = _due(campaign_id, ahead, now)
            free, later = self._sorted(letters, members, wanted, now)
            moved = _send_later(later, now)
            if len(free) >= wanted or len(letters) < ahead:
                break
            if ahead == max(MOST_AHEAD, wanted) and not moved:
                break
        return free

    def _sorted(
        self, letters: Sequence[tuple[int, str]], members: Sequence[str], wanted: int, now: datetime
    ) -> tuple[list[int], list[tuple[int, datetime]]]:
        """(letters that may leave, letters that may not and until when)."""
        domains = [domain_of(address) for _id, address in letters]
        groups = groups_of(set(domains))
        free: list[int] = []
        later: list[tuple[int, datetime]] = []
        slow: dict[int, GroupState] = {}
        for (letter, _address), domain in zip(letters, domains, strict=True):
            state = self.states.get((self.alias, groups[domain]))
            if state is None or held_until(state, now) is None:
                free.append(letter)
            elif self._others_may_take(groups[domain], members, now):
                self.left_to_others = True
            elif state.paused_until is not None and state.paused_until > now:
                later.append((letter, state.paused_until))
            elif letter in self.turns or (len(free) < wanted and _takes_a_turn(state, now)):
                self.turns.add(letter)
                free.append(letter)
            else:
                later.append((letter, _next_turn(state, now)))
                slow[state.pk] = state
        for pk, state in slow.items():
            GroupState.objects.filter(pk=pk).update(turns_until=state.turns_until)
        return free, later

    def _others_may_take(self, group: str, members: Sequence[str], now: datetime) -> bool:
        states = [self.states.get((m, group)) for m in members if m != self.alias]
        return any(state is None or held_until(state, now) is None for state in states)


def _due(campaign_id: int, most: int, now: datetime) -> list[tuple[int, str]]:
    in_order = (
        Delivery.objects.filter(campaign_id=campaign_id, is_test=False, due_at__lte=now)
        .extra(where=[WAITING_ALONE])
        .order_by("campaign_id", "due_at", "id")
    )
    with in_order_of_an_index():
        return list(in_order.values_list("id", "rcpt_to")[:most])


def _takes_a_turn(state: GroupState, now: datetime) -> bool:
    """Whether a letter to a slow group may leave now; nobody else may for an INTERVAL then."""
    if state.next_at is not None and state.next_at > now + TOLERANCE:
        return False
    free = Q(next_at__isnull=True) | Q(next_at__lte=now + TOLERANCE)
    state.next_at = now + INTERVAL
    return bool(GroupState.objects.filter(free, pk=state.pk).update(next_at=state.next_at))


def _next_turn(state: GroupState, now: datetime) -> datetime:
    """A moment of its own for each letter that waits, as far as the group is slow."""
    assert state.slow_until is not None
    if state.turns_until is not None and state.turns_until >= state.slow_until:
        return state.slow_until
    state.turns_until = max(state.turns_until or now, now) + INTERVAL
    return min(state.turns_until, state.slow_until)


def _send_later(letters: Sequence[tuple[int, datetime]], now: datetime) -> int:
    """Changes when letters are due; how many. Those that somebody else has locked are theirs."""
    moved = 0
    by_moment: dict[datetime, list[int]] = {}
    for letter, moment in letters:
        by_moment.setdefault(moment, []).append(letter)
    waiting = Delivery.objects.filter(status__in=WAITING, due_at__lte=now)
    for moment, ids in by_moment.items():
        locked = waiting.filter(pk__in=ids).order_by("pk").select_for_update(skip_locked=True)
        mine = list(locked.values_list("pk", flat=True))
        moved += Delivery.objects.filter(pk__in=mine).update(due_at=moment)
    return moved
