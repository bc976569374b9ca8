"""Only a signed token says which letter came back."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bounces.correlation import Clues, Finding, correlate
from bounces.detectors.base import IncomingMail
from bounces.envelope import return_path_tokens
from bounces.reading import read_bounce
from campaigns.tokens import Purpose
from delivery.models import AssignedMessageId, Delivery
from delivery.states import DeliveryStatus
from tests.bounces.conftest import Deliver, message_id, report, return_path, token

pytestmark = pytest.mark.django_db


def find(raw: bytes, now: datetime, received_at: datetime | None = None):
    tokens = tuple(return_path_tokens(IncomingMail(raw)))
    return correlate([Clues(tokens, read_bounce(raw), received_at or now)], now)[0]


@pytest.mark.parametrize("field", ["Delivered-To", "X-Original-To", "Envelope-To", "To"])
def test_the_envelope_recipient_names_the_letter(field: str, deliver: Deliver, now) -> None:
    letter = deliver()
    found = find(report(delivered_to=return_path(letter), field=field), now)
    assert (found.finding, found.delivery) == (Finding.MATCHED, letter)


def test_a_server_that_changed_the_case_of_the_address_changes_nothing(deliver, now) -> None:
    letter = deliver()
    found = find(report(delivered_to=f"<{return_path(letter).upper()}>"), now)
    assert found.delivery == letter


def test_the_envelope_comes_before_to(deliver: Deliver, now) -> None:
    ours, others = deliver("ada@example.net"), deliver("eve@example.net")
    raw = b"To: " + return_path(others).encode() + b"\n" + report(delivered_to=return_path(ours))
    assert find(raw, now).delivery == ours


def test_without_a_return_path_the_returned_message_id_names_the_letter(deliver, now) -> None:
    letter = deliver()
    found = find(report(returned=message_id(letter)), now)
    assert (found.finding, found.delivery) == (Finding.MATCHED, letter)


def test_22_a_message_id_that_the_provider_gave_names_the_letter_as_ours_does(deliver, now) -> None:
    letter, other = deliver(), deliver("eve@example.net")
    for one, given in ((letter, "<a@prod.example>"), (other, "<b@prod.example>")):
        AssignedMessageId.objects.create(delivery=one, message_id=given)
    assert find(report(returned="<a@prod.example>"), now).delivery == letter
    assert find(report(returned=message_id(other)), now).delivery == other
    assert find(report(returned="<c@prod.example>"), now).finding is Finding.UNSIGNED


def test_22_microsoft_keeps_ours_in_a_field_of_its_own(deliver, now) -> None:
    letter = deliver()
    returned = f"<new@prod.example>\nX-Microsoft-Original-Message-ID: {message_id(letter)}"
    assert find(report(returned=returned), now).delivery == letter


def test_an_address_alone_names_no_letter(deliver: Deliver, now) -> None:
    deliver("ada@example.net")
    found = find(report(), now)
    assert (found.finding, found.delivery) == (Finding.UNSIGNED, None)


def test_a_wrong_mac_ends_the_search(deliver: Deliver, now) -> None:
    letter = deliver()
    genuine = return_path(letter)
    forged = genuine.replace(genuine[10], "a" if genuine[10] != "a" else "b", 1)
    found = find(report(delivered_to=forged, returned=message_id(letter)), now)
    assert (found.finding, found.delivery) == (Finding.FORGED, None)


def test_a_token_of_another_installation_is_forged(deliver: Deliver, now) -> None:
    foreign = token(Purpose.RETURN_PATH, deliver().pk, key="their secret")
    found = find(report(delivered_to=f"bounce+{foreign}@bounces.example.org"), now)
    assert found.finding is Finding.FORGED


def test_a_token_of_another_purpose_is_no_return_path(deliver: Deliver, now) -> None:
    # Every reader sees the Message-ID; the return path must not be made from it.
    other = token(Purpose.MESSAGE_ID, deliver().pk)
    found = find(report(delivered_to=f"bounce+{other}@bounces.example.org"), now)
    assert found.finding is Finding.FORGED


def test_a_return_path_token_is_no_message_id(deliver: Deliver, now) -> None:
    other = token(Purpose.RETURN_PATH, deliver().pk)
    assert find(report(returned=f"<{other}.1@news.example.org>"), now).finding is Finding.UNSIGNED


def test_a_message_id_of_another_domain_is_not_ours(deliver: Deliver, now) -> None:
    foreign = message_id(deliver()).replace("news.example.org", "news.example.com")
    assert find(report(returned=foreign), now).finding is Finding.UNSIGNED


def test_a_letter_that_left_long_ago_bounces_no_more(deliver: Deliver, now) -> None:
    letter = deliver(ago=timedelta(days=31))
    assert find(report(delivered_to=return_path(letter)), now).finding is Finding.TOO_OLD
    recent = deliver("b@example.net", ago=timedelta(days=29))
    assert find(report(delivered_to=return_path(recent)), now).finding is Finding.MATCHED


def test_a_mail_that_lay_here_unexamined_is_judged_by_when_it_came(deliver: Deliver, now) -> None:
    letter = deliver(ago=timedelta(days=40))
    found = find(
        report(delivered_to=return_path(letter)), now, received_at=now - timedelta(days=39)
    )
    assert found.finding is Finding.MATCHED


def test_a_letter_that_is_not_here_is_nobodys(deliver: Deliver, now) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter))
    letter.delete()
    assert find(raw, now).finding is Finding.UNKNOWN


def test_a_letter_that_never_left_cannot_come_back(deliver: Deliver, now) -> None:
    letter = deliver(status=DeliveryStatus.QUEUED, handed_over=False)
    assert find(report(delivered_to=return_path(letter)), now).finding is Finding.NOT_SENT


@pytest.mark.parametrize(
    ("status", "finding"),
    [
        (DeliveryStatus.SENT, Finding.MATCHED),
        (DeliveryStatus.UNCONFIRMED, Finding.MATCHED),
        (DeliveryStatus.SENDING, Finding.TOO_EARLY),
        (DeliveryStatus.QUEUED, Finding.TOO_EARLY),
        (DeliveryStatus.DEFERRED, Finding.TOO_EARLY),
        (DeliveryStatus.BOUNCED, Finding.ALREADY_BOUNCED),
        (DeliveryStatus.REJECTED, Finding.NOT_OPEN),
        (DeliveryStatus.EXPIRED, Finding.NOT_OPEN),
        (DeliveryStatus.CANCELLED, Finding.NOT_OPEN),
        (DeliveryStatus.SUPPRESSED, Finding.NOT_OPEN),
    ],
)
def test_the_state_of_the_letter_decides(status, finding, deliver: Deliver, now) -> None:
    letter: Delivery = deliver(status=status)
    assert find(report(delivered_to=return_path(letter)), now).finding is finding


def test_a_letter_that_is_never_settled_is_not_waited_for_for_ever(deliver: Deliver, now) -> None:
    letter = deliver(status=DeliveryStatus.SENDING)
    raw = report(delivered_to=return_path(letter))
    found = find(raw, now + timedelta(hours=25), received_at=now)
    assert found.finding is Finding.NOT_OPEN


@pytest.mark.parametrize(
    "address",
    [
        "xbounce+TOKEN@bounces.example.org",
        "bounce+TOKEN@bounces.example.organic",
        "bounce-TOKEN@bounces.example.org",
        "bounce+TOKEN@bounces-example.org",
    ],
)
def test_only_addresses_of_the_shape_of_our_return_path_are_looked_at(address: str) -> None:
    mail = IncomingMail(f"To: {address.replace('TOKEN', 'a' * 24)}\n\n".encode())
    assert list(return_path_tokens(mail)) == []


def test_a_header_full_of_addresses_costs_only_so_many_looks() -> None:
    flood = "bounce+aaaa@bounces.example.org, " * 240
    assert len(list(return_path_tokens(IncomingMail(f"To: {flood}\n\n".encode())))) == 50


def test_an_installation_without_a_return_path_has_the_message_id_alone(
    settings, deliver: Deliver, now
) -> None:
    letter = deliver()
    raw = report(delivered_to=return_path(letter), returned=message_id(letter))
    settings.DELIVERY = settings.DELIVERY | {"RETURN_PATH": ""}
    assert find(raw, now).delivery == letter
