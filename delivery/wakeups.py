"""A task at a moment that is near: workers start again the instant a limit or a pause is over.

No process sleeps meanwhile. django-q2's own schedule looks every half minute and the coordinator
every minute; a limit of "50/10 seconds" cannot wait for either. A task in the table of the ORM
broker is taken when its lock has run out, so one that is queued with a lock in the future comes
then, within the broker's poll (half a second). With Redis as the broker the coordinator is who
wakes.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q
from django.utils import timezone
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from django_q.tasks import async_task

from delivery.models import ProviderState

# Further away the coordinator's next round will see it.
NEAR = timedelta(minutes=1)


class _Later(ORM):
    """Queues its tasks for later."""

    def __init__(self, wait: timedelta) -> None:
        super().__init__()
        # The broker compares with the host's clock.
        self.moment = timezone.now() + wait

    def enqueue(self, task: str) -> int:
        row = self.get_connection().create(
            key=self.list_key or Conf.CLUSTER_NAME, payload=task, lock=self.moment
        )
        return int(row.pk)


def wake_at(alias: str, moment: datetime, now: datetime) -> bool:
    """Queues one task for a provider at that moment; False when there is one already, or when it
    is the coordinator's."""
    if moment - now > NEAR or not Conf.ORM:
        return False
    # An earlier one that is still to come will look for itself when the next is.
    free = Q(wake_at__isnull=True) | Q(wake_at__lte=now) | Q(wake_at__gt=moment)
    if not ProviderState.objects.filter(free, alias=alias).update(wake_at=moment):
        return False
    queue_later("delivery.tasks.wake_again", alias, group=f"wake {alias}", wait=moment - now)
    return True


def queue_later(task: str, *arguments: str, group: str, wait: timedelta) -> None:
    """Queues a task that is taken when ``wait`` is over; with the ORM broker only."""
    async_task(task, *arguments, group=group, broker=_Later(max(wait, timedelta(0))))
