"""The Message-IDs that a provider gave letters in place of ours: bounces come back with either.

Microsoft's consumer mailboxes always replace ours, some others do. Only the replaced ones are
stored; ours is computed from the delivery (composing.message_id_of).
"""

from __future__ import annotations

from collections.abc import Iterable

from delivery.models import AssignedMessageId
from delivery.outcomes import Accepted, Outcome, Unconfirmed

LONGEST = 320


def assigned_id(outcome: Outcome) -> str:
    """The Message-ID that the provider gave this letter in place of ours; empty for none, and for
    one that is no address of a letter any more by its length."""
    if not isinstance(outcome, (Accepted, Unconfirmed)):
        return ""
    given = outcome.provider_message_id
    return given if len(given) <= LONGEST else ""


def note_assigned(outcomes: Iterable[tuple[int, Outcome]]) -> None:
    """Stores what the outcomes of these deliveries say. In the caller's transaction."""
    rows = [
        AssignedMessageId(delivery_id=delivery_id, message_id=given)
        for delivery_id, outcome in outcomes
        if (given := assigned_id(outcome))
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
