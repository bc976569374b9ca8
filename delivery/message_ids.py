"""The Message-IDs that a provider gave letters in place of ours: bounces come back with either.

Microsoft's consumer mailboxes always replace ours, some others do. Only the replaced ones are
stored; ours is computed from the delivery (composing.message_id_of).
"""

from __future__ import annotations

from collections.abc import Iterable

from delivery.models import AssignedMessageId
from delivery.outcomes import Accepted, Outcome, Unconfirmed

LONGEST = 320


def note_assigned(outcomes: Iterable[tuple[int, Outcome]]) -> None:
    """Stores what the outcomes of these deliveries say. In the caller's transaction."""
    rows = [
        AssignedMessageId(delivery_id=delivery_id, message_id=outcome.provider_message_id)
        for delivery_id, outcome in outcomes
        if isinstance(outcome, Accepted | Unconfirmed)
        and 0 < len(outcome.provider_message_id) <= LONGEST
    ]
    if rows:
        AssignedMessageId.objects.bulk_create(rows)


def deliveries_of(message_ids: Iterable[str]) -> dict[str, int]:
    """The deliveries whose letters were given these Message-IDs, with their angle brackets."""
    wanted = {message_id for message_id in message_ids if message_id}
    if not wanted:
        return {}
    rows = AssignedMessageId.objects.filter(message_id__in=wanted)
    return dict(rows.values_list("message_id", "delivery_id"))


def assigned_to(delivery_ids: Iterable[int]) -> dict[int, str]:
    """The Message-ID that each of these letters was last given, where it was given one."""
    rows = AssignedMessageId.objects.filter(delivery__in=list(delivery_ids)).order_by("pk")
    return dict(rows.values_list("delivery_id", "message_id"))
