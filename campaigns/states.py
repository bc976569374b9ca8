"""The states of a campaign and of a subscription, and the moves between them."""

from django.db.models import IntegerChoices, TextChoices
from django.utils.translation import gettext_lazy as _


class CampaignStatus(TextChoices):
    DRAFT = "draft", _("Draft")
    SCHEDULED = "scheduled", _("Scheduled")
    SENDING = "sending", _("Sending")
    PAUSED = "paused", _("Paused")
    FINISHED = "finished", _("Finished")
    CANCELLED = "cancelled", _("Cancelled")


CAMPAIGN_MOVES: dict[CampaignStatus, frozenset[CampaignStatus]] = {
    CampaignStatus.DRAFT: frozenset({CampaignStatus.SCHEDULED, CampaignStatus.CANCELLED}),
    # Back to DRAFT: a person who takes a schedule back may go on writing.
    CampaignStatus.SCHEDULED: frozenset(
        {CampaignStatus.SENDING, CampaignStatus.DRAFT, CampaignStatus.CANCELLED}
    ),
    CampaignStatus.SENDING: frozenset(
        {CampaignStatus.PAUSED, CampaignStatus.FINISHED, CampaignStatus.CANCELLED}
    ),
    CampaignStatus.PAUSED: frozenset({CampaignStatus.SENDING, CampaignStatus.CANCELLED}),
    # Only when a letter in doubt is sent again (Campaign.reopen): the proof of the ledger that
    # finished it must then be made anew.
    CampaignStatus.FINISHED: frozenset({CampaignStatus.SENDING}),
    CampaignStatus.CANCELLED: frozenset(),
}


def permitted_sources(target: CampaignStatus) -> frozenset[CampaignStatus]:
    """The states that a campaign may leave for ``target``."""
    return frozenset(source for source, targets in CAMPAIGN_MOVES.items() if target in targets)


class OnDoubt(TextChoices):
    """What happens by itself to a letter of which nobody knows whether it was taken."""

    HOLD = "hold", _("Hold it for a person: no reader gets two copies")
    RESEND_ONCE = "resend", _("Send it again once: a reader may get two copies")


class Priority(IntegerChoices):
    """Which campaign's letters go first through a provider; equals share it."""

    LOW = -10, _("Low")
    NORMAL = 0, _("Normal")
    HIGH = 10, _("High: before all others")


class SubscriptionStatus(TextChoices):
    PENDING = "pending", _("Pending confirmation")
    SUBSCRIBED = "subscribed", _("Subscribed")
    UNSUBSCRIBED = "unsubscribed", _("Unsubscribed")


class SuppressionReason(TextChoices):
    HARD_BOUNCE = "hard_bounce", _("Hard bounce")
    SOFT_BOUNCES = "soft_bounces", _("Repeated soft bounces")
    COMPLAINT = "complaint", _("Complaint")
    MANUAL = "manual", _("Set by hand")
