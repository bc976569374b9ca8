"""What campaigns announces; delivery listens. Upstream never calls downstream by name."""

from django.dispatch import Signal

# A campaign was scheduled, resumed, paused or cancelled. Sent after commit. Arguments: campaign.
campaign_moved = Signal()

# A person wants a test letter. Sent inside the transaction that froze the edition.
# Arguments: campaign, edition, addresses (normalised, list of str), reader (Subscriber or None).
# Receivers create the deliveries; whoever sends it may rely on at least one receiver.
test_requested = Signal()

# A page wants to say what an open campaign is waiting for. Arguments: campaign.
# Receivers return one sentence for a person, or None when they hold nothing up.
waiting_asked = Signal()

# A page wants to say when a campaign that were sent now would be done. Arguments: campaign, readers
# (how many). Receivers return one sentence for a person, or None.
forecast_asked = Signal()

# A reader used the unsubscribe link of a campaign's letter, perhaps for the second time: so the
# letter had arrived. Sent after commit. Arguments: campaign_id, subscriber_id.
unsubscribed = Signal()
