"""What bounces tells upstream when it is asked."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.dispatch import receiver
from django.utils.translation import gettext as _

from bounces.models import Bounce, BounceClassChoices, Kind
from delivery.audit import bounced_asked
from delivery.guard_rails import blocked_asked, complaints_asked
from delivery.models import Delivery
from delivery.story import StoryLine, story_asked


@receiver(story_asked)
def tell_what_came_back(sender: Any, delivery: Delivery, **kwargs: Any) -> list[StoryLine]:
    """A line for each bounce of a letter. ``quote``: the far server's words, hostile text; the
    recipient in ``detail`` comes from outside as well."""
    return [_line(bounce) for bounce in delivery.bounces.order_by("id")]


@receiver(complaints_asked)
def count_complaints(sender: Any, campaign_id: int, **kwargs: Any) -> int:
    """How many letters of a campaign their readers complained about."""
    complaints = Bounce.objects.filter(
        campaign_id=campaign_id, kind=Kind.COMPLAINT, replaced=False, delivery__isnull=False
    )
    return complaints.values("delivery").distinct().count()


@receiver(blocked_asked)
def count_blocked(sender: Any, campaign_id: int, **kwargs: Any) -> int:
    """How many letters of a campaign came back because of us."""
    blocked = Bounce.objects.filter(
        campaign_id=campaign_id,
        bounce_class=BounceClassChoices.BLOCKED,
        counted=True,
        replaced=False,
        delivery__is_test=False,
    )
    return blocked.values("delivery").distinct().count()


@receiver(bounced_asked)
def letters_that_came_back(sender: Any, campaign_id: int, **kwargs: Any) -> QuerySet[Any, Any]:
    """The letters of a campaign that a bounce moved."""
    return Bounce.objects.filter(
        campaign_id=campaign_id, counted=True, delivery__isnull=False
    ).values("delivery")


def _line(bounce: Bounce) -> StoryLine:
    if bounce.kind == Kind.COMPLAINT:
        title = _("The reader complained")
    elif bounce.counted:
        title = _("It bounced: %(class)s") % {"class": bounce.get_bounce_class_display()}
    else:
        title = _("Another report, which changed nothing")
    detail = f"{bounce.recipient}: {bounce.action} {bounce.status}".strip()
    if bounce.suppressed and bounce.undone_at:
        detail += "\n" + _("The address was suppressed, and a person has undone that.")
    elif bounce.suppressed:
        detail += "\n" + _("The address was suppressed.")
    tone = "bad" if bounce.suppressed else "warning"
    return StoryLine(bounce.at, title, detail, tone, quote=bounce.diagnostic)
