"""The states of one letter to one reader, and the permitted moves between them."""

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class DeliveryStatus(TextChoices):
    QUEUED = "queued", _("Queued")
    CLAIMED = "claimed", _("Claimed")
    SENDING = "sending", _("Sending")
    DEFERRED = "deferred", _("Deferred")
    SENT = "sent", _("Sent")
    UNCONFIRMED = "unconfirmed", _("Unconfirmed")
    REJECTED = "rejected", _("Rejected")
    EXPIRED = "expired", _("Expired")
    BOUNCED = "bounced", _("Bounced")
    SUPPRESSED = "suppressed", _("Suppressed")
    CANCELLED = "cancelled", _("Cancelled")


# Waiting for its turn: certainly not with the provider.
WAITING = frozenset({DeliveryStatus.QUEUED, DeliveryStatus.DEFERRED})
# Held by a worker under a lease.
IN_HAND = frozenset({DeliveryStatus.CLAIMED, DeliveryStatus.SENDING})
# What a campaign may finish with. SENT may still become BOUNCED; UNCONFIRMED may be resolved.
FINAL = frozenset(set(DeliveryStatus) - WAITING - IN_HAND)
# Final states that are not the normal case.
UNUSUAL = FINAL - {DeliveryStatus.SENT}

_S = DeliveryStatus
MOVES: dict[DeliveryStatus, frozenset[DeliveryStatus]] = {
    _S.QUEUED: frozenset({_S.CLAIMED, _S.SUPPRESSED, _S.CANCELLED}),
    _S.CLAIMED: frozenset({_S.SENDING, _S.QUEUED, _S.DEFERRED, _S.SUPPRESSED, _S.CANCELLED}),
    _S.SENDING: frozenset(
        {_S.SENT, _S.DEFERRED, _S.REJECTED, _S.EXPIRED, _S.QUEUED, _S.UNCONFIRMED}
    ),
    _S.DEFERRED: frozenset({_S.CLAIMED, _S.EXPIRED, _S.SUPPRESSED, _S.CANCELLED}),
    # QUEUED: it came back for a reason of ours (delivery/returned.py).
    _S.SENT: frozenset({_S.BOUNCED, _S.QUEUED}),
    # By evidence, by a person, or by the worker that was taken for dead and knows the answer.
    _S.UNCONFIRMED: frozenset({_S.SENT, _S.QUEUED, _S.BOUNCED, _S.REJECTED}),
    _S.REJECTED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.BOUNCED: frozenset(),
    _S.SUPPRESSED: frozenset(),
    _S.CANCELLED: frozenset(),
}


def permitted(source: str, target: str) -> bool:
    """Whether a letter may go from ``source`` to ``target``."""
    return DeliveryStatus(target) in MOVES[DeliveryStatus(source)]
