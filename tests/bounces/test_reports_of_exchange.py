"""What Exchange and the servers behind it report (scenario 25).

Of a, b, c, d, e, g, i and j one mail each, from the samples; the rest are written here. That all
samples are read as they should be, in whatever bytes, is test_samples.py's; that IMAP, POP3 and
Graph give the same, test_kinds_of_mailboxes.py's; that Exchange's own quota is no bounce (f),
test_about_us.py's.
"""

from __future__ import annotations

from datetime import datetime

import pytest

from bounces.models import Bounce, ReceivedMail, Verdict
from bounces.policy import class_of
from bounces.reading import read_bounce
from campaigns.models import Suppression
from delivery.models import Delivery
from tests.bounces.conftest import Deliver, group, message_id, report, return_path
from tests.bounces.reencodings import HARMLESS
from tests.bounces.samples import raw_sample
from tests.bounces.test_intake import take


def classes(raw: bytes) -> list[str]:
    return [str(class_of(one)) for one in read_bounce(raw)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("exchange-recipient-not-found", ["hard"], id="a 5.1.10"),
        pytest.param("office-365-german", ["hard"], id="b subject in German"),
        pytest.param("exchange-2010-text", ["hard"], id="c text only"),
        pytest.param("exchange-remote-answer-wrapped", ["blocked"], id="d 5.7.350, spam"),
        pytest.param("office-365-french-wrapped-spam", ["blocked"], id="d 5.7.350, in French"),
        pytest.param("delayed-four-hours-office-365", [], id="e delayed, 4.4.7"),
        pytest.param("postmaster-is-out-of-office", [], id="g out of office"),
        pytest.param("ses-bounce-with-two-recipients", ["hard", "soft"], id="i two readers"),
    ],
)
def test_25_each_report_is_what_it_says(name: str, expected: list[str]) -> None:
    raw = raw_sample(name)
    assert classes(raw) == expected
    for reencoded in HARMLESS:  # j: base64, CR LF or LF, 8-bit text
        assert classes(reencoded(raw)) == expected


@pytest.mark.django_db
def test_25_h_an_original_of_which_only_the_headers_came_back_is_found_by_its_message_id(
    deliver: Deliver, now: datetime
) -> None:
    letter = deliver()
    raw = report(group(status="5.1.10"), returned=message_id(letter))
    assert b"text/rfc822-headers" in raw
    assert take(raw, now) is Verdict.BOUNCE
    assert Bounce.objects.get(counted=True).delivery == letter
    assert Suppression.objects.get().address_key == letter.address_key


@pytest.mark.django_db
def test_25_k_a_forged_token_changes_nobody_and_is_noted(deliver: Deliver, now: datetime) -> None:
    letter = deliver()
    genuine = return_path(letter)
    forged = genuine.replace(genuine[10], "a" if genuine[10] != "a" else "b", 1)
    take(report(group(status="5.1.10"), delivered_to=forged), now)
    assert Delivery.objects.get().status == "sent"
    assert not Suppression.objects.exists()
    assert not Bounce.objects.filter(counted=True).exists()
    assert ReceivedMail.objects.count() == 1


@pytest.mark.django_db
def test_25_l_of_a_report_with_an_original_of_five_megabytes_no_more_is_kept_than_allowed(
    settings, deliver: Deliver, now: datetime
) -> None:
    settings.BOUNCES = settings.BOUNCES | {"LARGEST_MAIL_BYTES": 1024 * 1024}
    letter = deliver()
    raw = report(group(status="5.1.10"), returned=message_id(letter))
    assert take(raw + b"x" * 5_000_000, now) is Verdict.BOUNCE
    mail = ReceivedMail.objects.get()
    assert mail.truncated and len(mail.raw) == 1024 * 1024
    assert Bounce.objects.get(counted=True).delivery == letter
