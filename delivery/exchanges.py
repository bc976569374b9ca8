"""Mail exchangers of the readers' domains, looked up in the background and remembered.

Nothing waits for DNS: a domain that was never looked up is a group of its own, and one whose
look-up fails stays in the group that it had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from django.db import transaction
from dns.exception import DNSException
from dns.name import EmptyLabel, LabelTooLong, NameTooLong
from dns.resolver import NXDOMAIN, NoAnswer, Resolver

from campaigns.models import Subscriber
from delivery.models import DomainWalk, ReceivingDomain
from delivery.receiving import can_be_asked, domain_of, group_by_exchanges, well_known_group

logger = logging.getLogger(__name__)

# The exchangers of a domain, the preferred one first; none where it has none. LookUpError where
# nobody could say.
Ask = Callable[[str], Sequence[str]]

# Who moves to another operator keeps both for some days; who cannot be asked may be tomorrow.
KEPT = timedelta(days=30)
KEPT_AFTER_A_FAILURE = timedelta(hours=6)
FOR_ONE_DOMAIN = timedelta(seconds=5)
AT_ONCE = 10
READERS_AT_ONCE = 10_000


class LookUpError(Exception):
    """DNS could not say."""


def from_dns(resolver: Resolver | None = None) -> Ask:
    """Asks a resolver, this machine's own unless told otherwise."""
    asked = resolver or Resolver()

    def ask(domain: str) -> list[str]:
        try:
            answer = asked.resolve(f"{domain}.", "MX", lifetime=FOR_ONE_DOMAIN.total_seconds())
        except (NXDOMAIN, NoAnswer):
            return []
        except (DNSException, EmptyLabel, LabelTooLong, NameTooLong, OSError) as error:
            raise LookUpError(str(error)) from error
        return [str(mx.exchange) for mx in sorted(answer, key=lambda mx: mx.preference)]

    return ask


def gather(clock: Callable[[], datetime], budget: timedelta) -> int:
    """Remembers the domains of readers who came since the last time, until ``budget`` is over; how
    many readers were looked at. A reader whose address changes later is not looked at again."""
    end = clock() + budget
    done = 0
    while clock() < end and (looked := _gather_page(clock())):
        done += looked
    return done


def _gather_page(now: datetime) -> int:
    with transaction.atomic():
        row = DomainWalk.objects.get_or_create(pk=1)[0]
        walk = DomainWalk.objects.select_for_update().get(pk=row.pk)
        readers = Subscriber.objects.filter(pk__gt=walk.up_to).order_by("pk")
        ids, keys = [], set()
        for pk, key in readers.values_list("pk", "address_key")[:READERS_AT_ONCE]:
            ids.append(pk)
            keys.add(domain_of(key))
        if ids:
            # In the order of names: two hosts that do so at once must not deadlock.
            ReceivingDomain.objects.bulk_create(
                [ReceivingDomain(name=key, group=key, look_up_at=now) for key in sorted(keys)],
                ignore_conflicts=True,
            )
            DomainWalk.objects.filter(pk=walk.pk).update(up_to=ids[-1])
    return len(ids)


def look_up_due(ask: Ask, clock: Callable[[], datetime], budget: timedelta) -> int:
    """Looks up the domains whose time has come, until ``budget`` is over; how many."""
    end = clock() + budget
    done = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while clock() < end:
            due = list(
                ReceivingDomain.objects.filter(look_up_at__lte=clock())
                .order_by("look_up_at")
                .values_list("name", flat=True)[:AT_ONCE]
            )
            if not due:
                break
            # Without the database: its connections belong to this thread.
            answers = list(pool.map(lambda name: _exchanges(ask, name), due))
            for name, exchanges in zip(due, answers, strict=True):
                _remember(name, exchanges, clock())
            done += len(due)
    return done


def _exchanges(ask: Ask, name: str) -> Sequence[str] | None:
    """None where DNS could not say. Well-known and reserved names are not asked for."""
    if well_known_group(name) or not can_be_asked(name):
        return ()
    try:
        return ask(name)
    except LookUpError as error:
        logger.info("delivery.look_up_failed", extra={"domain": name, "error": str(error)[:200]})
        return None


def _remember(name: str, exchanges: Sequence[str] | None, now: datetime) -> None:
    row = ReceivingDomain.objects.filter(pk=name)
    if exchanges is None:
        row.update(look_up_at=now + KEPT_AFTER_A_FAILURE)
        return
    group, exchange = group_by_exchanges(name, exchanges)
    group = well_known_group(name) or group
    row.update(group=group, exchange=exchange[:253], look_up_at=now + KEPT)
