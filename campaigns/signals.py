"""What campaigns announces; delivery listens. Upstream never calls downstream by name."""

from django.dispatch import Signal

# A campaign was scheduled, resumed, paused or cancelled. Sent after commit. Arguments: campaign.
campaign_moved = Signal()

# A person wants a test letter. Sent inside the transaction that froze the edition.
# Arguments: campaign, edition, addresses (normalised, list of str), reader (Subscriber or None).
# Receivers create the deliveries; whoever sends it may rely on at least one receiver.
test_requested = Signal()
