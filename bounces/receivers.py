"""What bounces tells upstream when it is asked, and its entry in the schedule."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.models.signals import post_migrate
from django.dispatch import receiver
from django.utils.translation import gettext as _

from bounces.models import Bounce, Kind
from delivery.models import Delivery
from delivery.story import StoryLine, story_asked


@receiver(story_asked)
def tell_what_came_back(sender: Any, delivery: Delivery, **kwargs: Any) -> list[StoryLine]:
    """A line for each bounce of a letter. ``quote``: the far server's words, hostile text; the
    recipient in ``detail`` comes from outside as well."""
    return [_line(bounce) for bounce in delivery.bounces.order_by("id")]


def _line(bounce: Bounce) -> StoryLine:
    if bounce.kind == Kind.COMPLAINT:
        title = _("The reader complained")
    elif bounce.counted:
        title = _("It bounced: %(class)s") % {"class": bounce.get_bounce_class_display()}
    else:
        title = _("Another report, which changed nothing")
    detail = f"{bounce.recipient}: {bounce.action} {bounce.status}".strip()
    if bounce.suppressed:
        detail += "\n" + _("The address was suppressed.")
    tone = "bad" if bounce.suppressed else "warning"
    return StoryLine(bounce.at, title, detail, tone, quote=bounce.diagnostic)


@receiver(post_migrate)
def make_schedule(sender: Any, using: str, **kwargs: Any) -> None:
    """The poll's place in django-q2's schedule; made once, whatever was changed since."""
    if sender.name != "bounces":
        return
    from django_q.models import Schedule

    # `migrate bounces` alone may come before django-q2's tables.
    if Schedule._meta.db_table not in connections[using].introspection.table_names():
        return
    Schedule.objects.using(using).get_or_create(
        name="Poll the bounce mailboxes",
        defaults={
            "func": "bounces.tasks.poll_mailboxes",
            "schedule_type": Schedule.MINUTES,
            "minutes": 1,
            "repeats": -1,
        },
    )
