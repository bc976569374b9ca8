"""Some readers of the audience, for whom a letter is tried."""

from __future__ import annotations

from functools import cached_property

from django.utils import timezone

from campaigns.audience import audience
from campaigns.conf import campaign_settings
from campaigns.letter import Addressee, merge_text
from campaigns.models import Campaign, MailingList, Subscriber
from campaigns.unsubscribe import NOBODY, unsubscribe_url

SAMPLE_SIZE = 500  # readers looked at from either end of the audience


class Sample:
    """Some readers of the audience: those at either end, by id. Enough to know their attributes
    and to find odd ones, and as fast for a million readers as for ten."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign

    @cached_property
    def readers(self) -> list[Subscriber]:
        everybody = audience(self._campaign)
        first = list(everybody.order_by("pk")[:SAMPLE_SIZE])
        if len(first) < SAMPLE_SIZE:
            return first
        last = everybody.filter(pk__gt=first[-1].pk).order_by("-pk")[:SAMPLE_SIZE]
        return first + list(last)[::-1]

    @cached_property
    def attribute_names(self) -> set[str]:
        return {name for reader in self.readers for name in attributes_of(reader)}

    @cached_property
    def odd_readers(self) -> list[Subscriber]:
        """The first, the last, the one with the longest name, and the one with least to say."""
        if not self.readers:
            return []
        odd = [
            self.readers[0],
            self.readers[-1],
            max(self.readers, key=lambda reader: len(reader.name)),
            min(self.readers, key=lambda reader: (len(attributes_of(reader)), bool(reader.name))),
        ]
        return list({reader.pk: reader for reader in odd}.values())

    @cached_property
    def addressees(self) -> list[Addressee]:
        """The odd readers as a letter knows them; an example reader where there is none. Their
        unsubscribe link is a test letter's: it ends nothing."""
        lists = MailingList.objects.in_bulk(
            [reader.through_list for reader in self.odd_readers]  # type: ignore[attr-defined]
        )
        return [
            self._addressee(reader, lists[reader.through_list])  # type: ignore[attr-defined]
            for reader in self.odd_readers
        ] or [self._addressee(Subscriber(email="reader@example.org"), None)]

    def _addressee(self, reader: Subscriber, mailing_list: MailingList | None) -> Addressee:
        return Addressee(
            rcpt_to=reader.email,
            name=reader.name,
            language=reader.language,
            attributes=attributes_of(reader),
            campaign_id=self._campaign.pk,
            list_name=mailing_list.name if mailing_list else "",
            list_label=mailing_list.label if mailing_list else "",
            message_id=f"<preflight@{campaign_settings().message_id_domain}>",
            unsubscribe_url=unsubscribe_url(self._campaign.pk, NOBODY),
            date=timezone.now(),
        )


def attributes_of(reader: Subscriber) -> dict[str, object]:
    """The attributes with something in them; JSON that is no object has none."""
    attributes = reader.attributes if isinstance(reader.attributes, dict) else {}
    return {name: value for name, value in attributes.items() if merge_text(value)}
