"""The same mails through every kind of mailbox are the same bounces."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.utils import timezone

from bounces.models import Bounce, ReceivedMail
from bounces.poller import poll
from tests.bounces.samples import SAMPLES
from tests.bounces.test_dovecot import server as server
from tests.bounces.test_killed_poller import far_side

pytestmark = pytest.mark.django_db

SOME = SAMPLES[::6]


def what_came(kind: str, folder: Path, settings, request: pytest.FixtureRequest) -> list[tuple]:
    with far_side(kind, folder, request) as mailbox:
        settings.BOUNCES = settings.BOUNCES | {"MAILBOXES": {kind: mailbox.entry}}
        for sample in SOME:
            mailbox.deliver(sample.read_bytes())
        result = poll(kind, timezone.now())
    assert (result.error, result.taken) == ("", len(SOME))
    mails = ReceivedMail.objects.filter(mailbox=kind).values_list("subject", "verdict", "remark")
    bounces = Bounce.objects.filter(received_mail__mailbox=kind).values_list(
        "recipient", "action", "status", "bounce_class", "diagnostic"
    )
    return sorted([*mails, *bounces])


@pytest.mark.parametrize("kind", ["imap", "pop3", "graph"])
def test_the_same_mails_are_the_same_bounces_as_from_a_maildir(
    kind: str, tmp_path: Path, settings, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "first").mkdir()
    expected = what_came("maildir", tmp_path / "first", settings, request)
    assert len(expected) > len(SOME)
    assert what_came(kind, tmp_path, settings, request) == expected
