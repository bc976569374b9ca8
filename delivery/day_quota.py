"""Quotas of a rolling day: for how long they are spent, and for which providers.

Microsoft counts recipients in any 24 hours, for a mailbox and for the whole tenant, and does not
say when there is room again. Our own log of the limits does: when the first of the letters that
we sent in the last day leaves it.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from django.db.models import Min

from delivery.conf import ProviderSettings, delivery_settings
from delivery.models import QuotaWindow
from delivery.outcomes import Unavailable

DAY = timedelta(hours=24)
# Rules of both tables (delivery/replies) that speak of such a quota.
RULES = frozenset({"daily quota", "submission quota", "tenant's quota"})
# The log is kept in steps and Microsoft's clock is another one.
MARGIN = timedelta(minutes=5)
_OF_THE_TENANT = re.compile(r"5\.7\.23[23]|tenant", re.IGNORECASE)


def spent(alias: str, trouble: Unavailable, now: datetime) -> tuple[list[str], timedelta] | None:
    """The providers for which the quota is spent, and for how long; None where the trouble is
    another one, or the provider no mailbox of Microsoft."""
    provider = delivery_settings().providers.get(alias)
    if trouble.rule not in RULES or provider is None or not provider.mailbox:
        return None
    of_tenant = _OF_THE_TENANT.search(trouble.reply.text) is not None
    aliases = [
        other.alias
        for other in delivery_settings().providers.values()
        if other.mailbox == provider.mailbox
        or (of_tenant and provider.tenant and other.tenant == provider.tenant)
    ]
    return aliases, room_at(provider, now, of_tenant=of_tenant) - now


def room_at(provider: ProviderSettings, now: datetime, *, of_tenant: bool = False) -> datetime:
    """When the first of our letters of the last day leaves the window of the mailbox's or the
    tenant's quota; in a day where our log knows of none, for then others have spent it."""
    keys = [
        limit.key
        for limit in provider.limits
        if limit.window == DAY and limit.scope.startswith("tenant:") == of_tenant
    ]
    counted = QuotaWindow.objects.filter(key__in=keys, at__gt=now - DAY)
    first = counted.aggregate(at=Min("at"))["at"]
    return min(first + DAY + MARGIN, now + DAY) if first else now + DAY
