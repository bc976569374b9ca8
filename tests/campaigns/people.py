"""Lists, readers and campaigns for tests: one short call each."""

from __future__ import annotations

from campaigns.models import Campaign, MailingList, Subscriber, Subscription
from campaigns.states import SubscriptionStatus

HTML = '<p>Dear {{ name | default("reader") }}, <a href="{{ unsubscribe_url }}">leave</a></p>'


def a_list(label: str = "weekly") -> MailingList:
    return MailingList.objects.create(name=label.title(), label=label)


def a_reader(
    email: str,
    *lists: MailingList,
    status: str = SubscriptionStatus.SUBSCRIBED,
    name: str = "",
    **attributes: object,
) -> Subscriber:
    reader = Subscriber.objects.create(email=email, name=name, attributes=attributes)
    for mailing_list in lists:
        Subscription.objects.create(subscriber=reader, mailing_list=mailing_list, status=status)
    return reader


def a_campaign(
    *include: MailingList, exclude: tuple[MailingList, ...] = (), **fields: str
) -> Campaign:
    texts = {
        "name": "November",
        "from_name": "Brand",
        "from_email": "news@example.com",
        "subject": "The news of November",
        "html": HTML,
    }
    campaign = Campaign.objects.create(**(texts | fields))
    campaign.include_lists.set(include)
    campaign.exclude_lists.set(exclude)
    return campaign
