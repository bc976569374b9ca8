"""manage.py test_provider: one letter to oneself, and what was kept of it."""
# ruff: noqa: F811 (a fixture that is imported)

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from delivery import limits, setup_test
from delivery.conf import ProviderSettings
from delivery.outcomes import Phase, Reply, Unavailable
from tests.delivery.graph_world import MAILBOX, world  # noqa: F401
from tests.emulators.graph import Answer, Fault

pytestmark = pytest.mark.django_db(transaction=True)
SETTINGS = ProviderSettings("graph", "", {"mailbox": MAILBOX})


def run(world, to=MAILBOX):
    async def sleep(seconds):
        world.clock.advance(seconds=seconds)

    provider = world.provider()
    return setup_test.run(SETTINGS, MAILBOX, to, world.clock, sleep, provider)


def test_it_tells_what_was_kept_and_that_the_signature_does_not_cover_the_list_fields(world):
    report = run(world)
    assert report.ok
    text = "\n".join(report.findings)
    for name in ("Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "X-Pennypost-Test"):
        assert f"{name}: kept." in text
    (warning,) = report.warnings
    assert "DKIM" in warning


def test_it_finds_out_that_the_message_id_was_replaced(world):
    world.emulator.keeps_message_id = False
    report = run(world)
    assert report.ok
    assert any("Message-ID: replaced by <" in warning for warning in report.warnings)


def test_it_waits_patiently_for_the_copy(world):
    world.emulator.visible_after = timedelta(seconds=30)
    assert any("Message-ID: kept" in finding for finding in run(world).findings)


def test_it_says_so_when_sent_items_may_not_be_read(world):
    world.emulator.may_read = False
    report = run(world)
    assert report.ok
    assert any("Mail.Read" in warning for warning in report.warnings)


def test_a_letter_to_somebody_else_shows_no_signature(world):
    report = run(world, to="me@example.org")
    assert report.ok
    assert report.warnings == []
    assert any("only a received copy" in finding for finding in report.findings)


def test_it_does_not_speak_into_a_silence(world):
    trouble = Unavailable(Reply(Phase.HTTP, 429, "x"), timedelta(minutes=35), rule="total silence")
    limits.pause("graph", trouble, world.clock())
    report = run(world)
    assert not report.ok
    assert "Resting until" in report.warnings[0]
    assert world.emulator.journal == []


def test_what_it_meets_closes_the_provider_for_the_workers_too(world):
    world.emulator.faults = [Fault("sendMail", Answer.error(403, "ErrorSendAsDenied", "No."))]
    report = run(world)
    assert not report.ok
    assert limits.state_of("graph").stopped
    again = run(world)
    assert "Stopped" in again.warnings[0]
    assert len(world.emulator.requests("sendMail")) == 1


def test_the_command_works_with_any_provider(settings):
    out = io.StringIO()
    call_command("test_provider", "default", "--from", "news@example.org", stdout=out)
    assert "Accepted" in out.getvalue()
    assert "cannot read" in out.getvalue()


def test_the_command_names_what_is_missing():
    with pytest.raises(CommandError, match="--from"):
        call_command("test_provider", "default")
    with pytest.raises(CommandError, match="no working entry"):
        call_command("test_provider", "nobody", "--from", "news@example.org")
