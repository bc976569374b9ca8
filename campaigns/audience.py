"""Who receives a campaign: one query, read in pages by subscriber id in constant memory."""

from __future__ import annotations

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery, Value

from campaigns.models import Campaign, MailingList, Subscriber, Subscription, Suppression
from campaigns.states import SubscriptionStatus


def audience(
    campaign: Campaign, after_id: int = 0, up_to: int | None = None
) -> QuerySet[Subscriber]:
    """The readers of a campaign behind subscriber ``after_id``, the last of them ``up_to``, each
    once, in no particular order.

    Subscribed to an included list and to no excluded one, and not suppressed now. ``through_list``
    is the lowest id of the included lists through which a reader is chosen; it gives List-Id and
    is what an unsubscribe link ends.
    """
    lists = _ids(campaign.include_lists.all())
    included = _subscriptions(lists)
    excluded = _subscriptions(_ids(campaign.exclude_lists.all()))
    suppressed = Suppression.in_force().filter(address_key=OuterRef("address_key"))
    # Of one list, as nearly always, nobody has to ask for each reader.
    through_list = (
        Value(lists[0])
        if len(lists) == 1
        else Subquery(included.order_by("mailing_list_id").values("mailing_list_id")[:1])
    )
    # EXISTS, not a join: a reader on three lists is one row without DISTINCT. Where the page begins
    # and ends is said of the subscriptions, too: a merge join would read all those that lie before
    # it, and so, for a million readers, the list fifty times.
    between = Q(subscriber_id__gt=after_id)
    readers = Subscriber.objects.filter(pk__gt=after_id)
    if up_to is not None:
        between &= Q(subscriber_id__lte=up_to)
        readers = readers.filter(pk__lte=up_to)
    return (
        readers.filter(Exists(included.filter(between)), ~Exists(excluded), ~Exists(suppressed))
        .annotate(through_list=through_list)
        .order_by()
    )


def audience_page(campaign: Campaign, after_id: int, size: int) -> QuerySet[Subscriber]:
    """The next ``size`` readers behind subscriber ``after_id``, by id."""
    return audience(campaign, after_id).order_by("pk")[:size]


def audience_count(campaign: Campaign) -> int:
    """How many readers the campaign has now."""
    return audience(campaign).count()


def _ids(lists: QuerySet[MailingList]) -> list[int]:
    return list(lists.values_list("pk", flat=True))


def _subscriptions(lists: list[int]) -> QuerySet[Subscription]:
    """The outer subscriber's live subscriptions to one of these lists."""
    return Subscription.objects.filter(
        subscriber=OuterRef("pk"),
        mailing_list__in=lists,
        status=SubscriptionStatus.SUBSCRIBED,
    )
