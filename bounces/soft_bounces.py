"""Which readers bounce softly again and again: the history that policy.bounces_too_often judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from django.db.models import Exists, F, Max, OuterRef, Window
from django.db.models.functions import RowNumber

from bounces.models import Bounce, BounceClassChoices
from bounces.policy import PastLetter, SoftBounceRule, bounces_too_often
from campaigns.models import Suppression
from delivery.models import Delivery
from delivery.states import DeliveryStatus

# The classes that count: the address may live, or nobody said.
COUNTED_CLASSES = (BounceClassChoices.SOFT, BounceClassChoices.UNDETERMINED)
_LEFT = (DeliveryStatus.SENT, DeliveryStatus.UNCONFIRMED, DeliveryStatus.BOUNCED)


def bouncing_too_often(address_keys: Collection[str], rule: SoftBounceRule) -> set[str]:
    """Those of the addresses that the rule gives up, in two queries for all of them."""
    histories = _histories(address_keys, rule.campaigns) if address_keys else {}
    return {key for key, letters in histories.items() if bounces_too_often(letters, rule)}


def _histories(address_keys: Collection[str], campaigns: int) -> dict[str, list[PastLetter]]:
    """The last letters to each address, the newest first."""
    soft = Bounce.objects.filter(
        delivery=OuterRef("pk"), counted=True, replaced=False, bounce_class__in=COUNTED_CLASSES
    )
    letters = (
        Delivery.objects.filter(
            address_key__in=address_keys,
            is_test=False,
            status__in=_LEFT,
            handed_over_at__isnull=False,
        )
        .annotate(
            place=Window(
                RowNumber(), partition_by=F("address_key"), order_by=F("handed_over_at").desc()
            ),
            bounced_softly=Exists(soft),
        )
        .filter(place__lte=campaigns)
        .order_by("address_key", "place")
        .values_list("address_key", "handed_over_at", "bounced_softly")
    )
    # A person who lifts a suppression says that the past does not count.
    lifted = dict(
        Suppression.objects.filter(address_key__in=address_keys, lifted_at__isnull=False)
        .values_list("address_key")
        .annotate(Max("lifted_at"))
        .order_by()
    )
    histories: defaultdict[str, list[PastLetter]] = defaultdict(list)
    for key, at, bounced_softly in letters:
        if at and (key not in lifted or at > lifted[key]):
            histories[key].append(PastLetter(at, bounced_softly))
    return histories
