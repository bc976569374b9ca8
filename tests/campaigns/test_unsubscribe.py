"""The unsubscribe link: one click (RFC 8058), the page with the button, and what neither may do.

The wire tests speak http.client to a real server: it follows no redirect and keeps no cookie.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlencode, urlsplit

import pytest
from django.core.checks import run_checks
from django.test import Client
from django.utils import timezone

from campaigns.conf import campaign_settings
from campaigns.models import Campaign, MailingList, Subscriber, Subscription, SubscriptionEvent
from campaigns.signals import unsubscribed
from campaigns.states import SubscriptionStatus
from campaigns.tokens import Purpose, TokenSigner
from campaigns.unsubscribe import (
    BY_ONE_CLICK,
    NOBODY,
    UNDO_WITHIN,
    masked,
    subscribe_again,
    unsubscribe,
    unsubscribe_url,
)

ONE_CLICK = urlencode({"List-Unsubscribe": "One-Click"}).encode()
URLENCODED = "application/x-www-form-urlencoded"
BOUNDARY = "----Rfc8058"
MULTIPART = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\n'
    f"One-Click\r\n--{BOUNDARY}--\r\n"
).encode()


@dataclass
class Reader:
    """A reader on the lists of a campaign, with the link of her letter."""

    subscriber: Subscriber
    campaign: Campaign
    weekly: MailingList
    offers: MailingList
    other: MailingList

    @property
    def token(self) -> str:
        return unsubscribe_url(self.campaign.pk, self.subscriber.pk).rsplit("/", 1)[1]

    def on(self) -> set[str]:
        """The lists that she is subscribed to now."""
        return set(
            Subscription.objects.filter(
                subscriber=self.subscriber, status=SubscriptionStatus.SUBSCRIBED
            ).values_list("mailing_list__label", flat=True)
        )


def make_reader() -> Reader:
    weekly = MailingList.objects.create(name="The Weekly", label="weekly", description="Each week")
    offers = MailingList.objects.create(name="Offers", label="offers")
    other = MailingList.objects.create(name="Something else", label="other")
    campaign = Campaign.objects.create(name="Spring", from_email="news@example.org")
    campaign.include_lists.set([weekly, offers])
    subscriber = Subscriber.objects.create(email="ada.lovelace@example.org")
    for mailing_list in (weekly, offers, other):
        Subscription.objects.create(subscriber=subscriber, mailing_list=mailing_list)
    return Reader(subscriber, campaign, weekly, offers, other)


@pytest.fixture
def reader(db: None) -> Reader:
    return make_reader()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Wire:
    """A raw client: what a mailbox provider's robot sees."""

    netloc: str
    host: str = field(default="")

    def ask(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> Answer:
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        try:
            headers = {"Content-Type": content_type} if content_type else {}
            if self.host:
                headers["Host"] = self.host
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read().decode(),
            )
        finally:
            connection.close()


@pytest.fixture
def wire(live_server: object) -> Iterator[Wire]:
    yield Wire(urlsplit(str(live_server)).netloc)


def assert_plain_success(answer: Answer) -> None:
    assert answer.status == 200
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-robots-tag"].startswith("noindex")


# ---------------------------------------------------------------------------------- on the wire


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("body", "content_type"),
    [(ONE_CLICK, URLENCODED), (MULTIPART, f"multipart/form-data; boundary={BOUNDARY}")],
    ids=["urlencoded", "multipart"],
)
def test_a_one_click_post_acts_at_once_without_cookie_or_redirect(
    wire: Wire, body: bytes, content_type: str
) -> None:
    reader = make_reader()
    path = f"/u/{reader.token}"
    first = wire.ask("POST", path, body, content_type)
    assert_plain_success(first)
    assert reader.on() == {"other"}
    second = wire.ask("POST", path, body, content_type)
    assert_plain_success(second)
    assert second.body == first.body
    assert SubscriptionEvent.objects.filter(source=BY_ONE_CLICK).count() == 2  # two lists, once


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_opening_the_link_changes_nothing(wire: Wire, method: str) -> None:
    reader = make_reader()
    assert_plain_success(wire.ask(method, f"/u/{reader.token}"))
    assert reader.on() == {"weekly", "offers", "other"}
    assert not SubscriptionEvent.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_post_of_any_other_shape_only_asks(wire: Wire) -> None:
    reader = make_reader()
    for body in (b"", b"List-Unsubscribe=Two-Clicks", b"action=delete", b"\xff\x00"):
        answer = wire.ask("POST", f"/u/{reader.token}", body, URLENCODED)
        assert_plain_success(answer)
        assert "Do you want to unsubscribe?" in answer.body
    assert wire.ask("POST", f"/u/{reader.token}", b"x" * 20_000, URLENCODED).status == 413
    assert wire.ask("DELETE", f"/u/{reader.token}").status == 405
    assert reader.on() == {"weekly", "offers", "other"}


@pytest.mark.django_db(transaction=True)
def test_every_unknown_token_gets_the_same_answer(wire: Wire) -> None:
    reader = make_reader()
    damaged = ("a" if reader.token[-5] != "a" else "b").join([reader.token[:-5], reader.token[-4:]])
    foreign_key = TokenSigner({1: b"another installation's key"})
    erased = unsubscribe_url(reader.campaign.pk, reader.subscriber.pk + 1).rsplit("/", 1)[1]
    tokens = [
        "x",
        "junk" * 200,
        "%3Cscript%3Ealert(1)%3C/script%3E",
        f"{reader.token}/",
        damaged,
        foreign_key.sign(Purpose.UNSUBSCRIBE, reader.campaign.pk, reader.subscriber.pk),
        # Genuine, but for another purpose.
        campaign_settings().signer.sign(Purpose.RETURN_PATH, reader.campaign.pk),
        erased,
    ]
    answers = [wire.ask("GET", f"/u/{token}") for token in tokens]
    answers += [wire.ask("POST", f"/u/{token}", ONE_CLICK, URLENCODED) for token in tokens]
    assert len({answer.body for answer in answers}) == 1
    for answer in answers:
        assert_plain_success(answer)
    assert reader.on() == {"weekly", "offers", "other"}


@pytest.mark.django_db(transaction=True)
def test_a_host_header_changes_no_link(wire: Wire) -> None:
    reader = make_reader()
    wire.host = "evil.example.com"
    answer = wire.ask("GET", f"/u/{reader.token}")
    assert "evil.example.com" not in answer.body
    assert "evil.example.com" not in unsubscribe_url(1, 2)


# ---------------------------------------------------------------------------------- the pages


def test_junk_tokens_cost_no_query(client: Client, django_assert_num_queries: object) -> None:
    # No database fixture: pytest-django would fail any query in this test.
    for token in ("x", "a" * 29, "7" * 29, "ü" * 29):
        assert client.get(f"/u/{token}").status_code == 200
        answer = client.post(f"/u/{token}", {"List-Unsubscribe": "One-Click"})
        assert answer.status_code == 200


def test_the_page_names_the_lists_and_hides_the_address(client: Client, reader: Reader) -> None:
    page = client.get(f"/u/{reader.token}").content.decode()
    assert "The Weekly" in page
    assert "Offers" in page
    assert "Something else" not in page
    assert "a•••@example.org" in page
    assert "lovelace" not in page
    assert "<script" not in page


def test_the_button_unsubscribes_without_csrf_token_or_cookie(reader: Reader) -> None:
    strict = Client(enforce_csrf_checks=True)
    page = strict.get(f"/u/{reader.token}").content.decode()
    assert re.search(r'<form method="post">', page)
    done = strict.post(f"/u/{reader.token}", {"action": "unsubscribe"})
    assert "You are unsubscribed" in done.content.decode()
    assert not strict.cookies
    assert reader.on() == {"other"}
    assert "You are not subscribed" in strict.get(f"/u/{reader.token}").content.decode()


def test_a_mistake_is_taken_back_for_the_lists_that_this_link_ended(
    client: Client, reader: Reader
) -> None:
    before = Subscription.objects.get(subscriber=reader.subscriber, mailing_list=reader.offers)
    before.move(SubscriptionStatus.UNSUBSCRIBED, source="a person")
    client.post(f"/u/{reader.token}", {"action": "unsubscribe"})
    page = client.post(f"/u/{reader.token}", {"action": "subscribe-again"})
    assert "You are subscribed, as before" in page.content.decode()
    assert "The Weekly" in page.content.decode()
    assert reader.on() == {"weekly", "other"}
    client.post(f"/u/{reader.token}", {"action": "subscribe-again"})
    assert reader.on() == {"weekly", "other"}


def test_another_letters_link_does_not_take_back_what_this_one_ended(
    client: Client, reader: Reader
) -> None:
    summer = Campaign.objects.create(name="Summer", from_email="news@example.org")
    summer.include_lists.set([reader.weekly])
    client.post(f"/u/{reader.token}", {"action": "unsubscribe"})
    link = unsubscribe_url(summer.pk, reader.subscriber.pk)
    client.post(urlsplit(link).path, {"action": "subscribe-again"})
    assert reader.on() == {"other"}


def test_a_mistake_is_not_taken_back_next_year(reader: Reader) -> None:
    unsubscribe(reader.token, source=BY_ONE_CLICK)
    later = timezone.now() + UNDO_WITHIN + timedelta(seconds=1)
    assert subscribe_again(reader.token, source="page", now=later) == []
    assert reader.on() == {"other"}


def test_a_test_letters_link_says_so_and_unsubscribes_nobody(
    client: Client, reader: Reader
) -> None:
    path = urlsplit(unsubscribe_url(reader.campaign.pk, NOBODY)).path
    for answer in (client.get(path), client.post(path, {"List-Unsubscribe": "One-Click"})):
        assert "test letter" in answer.content.decode()
    assert reader.on() == {"weekly", "offers", "other"}


def test_a_list_name_cannot_bring_markup_into_the_page(client: Client, reader: Reader) -> None:
    MailingList.objects.filter(pk=reader.weekly.pk).update(name="<img src=x onerror=alert(1)>")
    page = client.get(f"/u/{reader.token}")
    assert "<img" not in page.content.decode()
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.django_db
def test_the_front_page_says_what_this_host_is(client: Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "newsletters" in answer.content.decode()
    assert not answer.cookies


# ---------------------------------------------------------------------------------- the function


def test_the_link_ends_all_lists_of_its_campaign_and_no_other(reader: Reader) -> None:
    done = unsubscribe(reader.token, source=BY_ONE_CLICK)
    assert done is not None
    assert done.reader == reader.subscriber
    assert {mailing_list.label for mailing_list in done.lists} == {"weekly", "offers"}
    event = SubscriptionEvent.objects.get(subscription__mailing_list=reader.weekly)
    assert (event.source, event.campaign) == (BY_ONE_CLICK, reader.campaign)
    again = unsubscribe(reader.token, source=BY_ONE_CLICK)
    assert again is not None
    assert again.lists == []


def test_a_token_of_another_purpose_unsubscribes_nobody(reader: Reader) -> None:
    signer = campaign_settings().signer
    for purpose in (Purpose.RETURN_PATH, Purpose.MESSAGE_ID):
        assert unsubscribe(signer.sign(purpose, 1), source="test") is None
    assert reader.on() == {"weekly", "offers", "other"}


def test_an_old_key_still_reads_old_letters(reader: Reader, settings: object) -> None:
    settings.CAMPAIGNS = {**settings.CAMPAIGNS, "TOKEN_KEYS": {1: "old"}}
    old_token = reader.token
    settings.CAMPAIGNS = {**settings.CAMPAIGNS, "TOKEN_KEYS": {1: "old", 2: "new"}}
    assert reader.token != old_token
    assert unsubscribe(old_token, source=BY_ONE_CLICK) is not None
    assert reader.on() == {"other"}


def test_the_link_fits_a_header_of_75_characters(settings: object) -> None:
    settings.BASE_URL = "https://" + "n" * 35
    assert len(unsubscribe_url(2**32 - 1, 2**40 - 1)) == 75


@pytest.mark.django_db
def test_delivery_hears_of_it_after_the_commit(
    reader: Reader, django_capture_on_commit_callbacks: object
) -> None:
    heard: list[tuple[int, int]] = []

    def listen(*, campaign_id: int, subscriber_id: int, **_: object) -> None:
        heard.append((campaign_id, subscriber_id))

    unsubscribed.connect(listen)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            unsubscribe(reader.token, source=BY_ONE_CLICK)
            assert heard == []
    finally:
        unsubscribed.disconnect(listen)
    assert heard == [(reader.campaign.pk, reader.subscriber.pk)]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("ada@example.org", "a•••@example.org"),
        ("x@example.org", "x•••@example.org"),
        ('"a@b"@example.org', '"•••@example.org'),
    ],
)
def test_an_address_is_masked(address: str, shown: str) -> None:
    assert masked(address) == shown


# ---------------------------------------------------------------------------------- the settings


def test_settings_that_redirect_people_do_not_redirect_a_one_click_post(
    reader: Reader, settings: object
) -> None:
    settings.SECURE_SSL_REDIRECT = True
    settings.APPEND_SLASH = True
    client = Client()  # loads its middleware now, with these settings
    assert client.get("/").status_code == 301  # the trap is set
    for token in (reader.token, "junk"):
        answer = client.post(f"/u/{token}", {"List-Unsubscribe": "One-Click"})
        assert answer.status_code == 200
        assert "Location" not in answer.headers
    assert reader.on() == {"other"}


def found_ids() -> set[str]:
    return {message.id or "" for message in run_checks()}


def test_the_checks_find_no_redirect_in_our_own_settings() -> None:
    assert not {"campaigns.E020", "campaigns.E021", "campaigns.E003"} & found_ids()


def test_the_checks_refuse_settings_that_redirect_a_one_click_post(settings: object) -> None:
    settings.PREPEND_WWW = True
    settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_REDIRECT_EXEMPT = [r"^health$"]
    settings.BASE_URL = "https://" + "n" * 36
    assert {"campaigns.E020", "campaigns.E021", "campaigns.E003"} <= found_ids()
