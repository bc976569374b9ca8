"""The clone guard: a database that this host does not know, or knows younger, sends nothing."""

from __future__ import annotations

import io
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from bounces.tasks import poll_mailbox
from delivery import installation, tasks
from delivery.conf import DeliverySettings
from delivery.installation import Memory, Standing, adopt, check_in, judge, promise_adoption
from delivery.models import Alert, Delivery, Installation
from delivery.providers.memory import MemoryProvider

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "installations"


@pytest.fixture
def here(folder) -> DeliverySettings:
    """This host."""
    return DeliverySettings(installations=folder)


@pytest.fixture
def elsewhere(tmp_path) -> DeliverySettings:
    """Another host, with a disk of its own, and the same database or a copy of it."""
    return DeliverySettings(installations=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("beat", "memory", "standing"),
    [
        (5, Memory(True, 5), Standing.OURS),
        (9, Memory(True, 5), Standing.OURS),
        (4, Memory(True, 5), Standing.RESTORED),
        (5, Memory(False), Standing.UNKNOWN_HERE),
        (5, Memory(True), Standing.OURS),
    ],
)
def test_a_host_trusts_a_database_that_it_knows_and_that_is_no_younger(beat, memory, standing):
    assert judge(beat, memory) is standing


def test_a_fresh_database_takes_the_first_host_by_itself(here, now):
    assert check_in(here, now) is Standing.OURS
    assert check_in(here, now) is Standing.OURS
    assert Installation.objects.get().beat == 2
    assert not Alert.objects.exists()


def test_a_copy_on_another_machine_sends_nothing_and_says_so(here, elsewhere, now):
    check_in(here, now)
    assert check_in(elsewhere, now) is Standing.UNKNOWN_HERE
    assert check_in(elsewhere, now) is Standing.UNKNOWN_HERE
    alert = Alert.objects.get()
    assert alert.kind == "installation"
    assert installation.host() in alert.title
    assert installation.host_of(alert) == installation.host()
    assert check_in(here, now) is Standing.OURS, "the original goes on"


def test_a_backup_that_was_restored_on_the_same_machine_sends_nothing(here, now):
    for _minute in range(5):
        check_in(here, now)
    Installation.objects.update(beat=3)
    assert check_in(here, now) is Standing.RESTORED
    assert "restored from a backup" in Alert.objects.get().text
    assert Installation.objects.get().beat == 3


def test_a_new_database_beside_an_old_one_is_no_clone(here, now):
    check_in(here, now)
    Installation.objects.all().delete()
    assert check_in(here, now) is Standing.OURS


def test_adopting_turns_sending_on_and_stays(here, elsewhere, now):
    for _minute in range(5):
        check_in(here, now)
    check_in(elsewhere, now)
    adopt(elsewhere, now)
    assert Alert.objects.get().resolved_at == now
    assert check_in(elsewhere, now) is Standing.OURS
    assert check_in(here, now) is Standing.OURS, "two hosts of one installation"
    Installation.objects.update(beat=1)
    assert check_in(here, now) is Standing.RESTORED
    adopt(here, now)
    assert check_in(here, now) is Standing.OURS
    assert check_in(elsewhere, now) is Standing.OURS


def test_hosts_that_share_a_name_need_no_file(now):
    ours = DeliverySettings(installation="newsletter-production")
    assert check_in(ours, now) is Standing.OURS
    assert Installation.objects.get().identity == "newsletter-production"
    staging = DeliverySettings(installation="newsletter-staging")
    assert check_in(staging, now) is Standing.UNKNOWN_HERE
    assert check_in(ours, now) is Standing.OURS


def test_a_host_that_knows_the_database_may_be_given_a_name_later(here, folder, now):
    check_in(here, now)
    named = DeliverySettings(installations=folder, installation="newsletter-production")
    assert check_in(named, now) is Standing.OURS


def test_an_adopted_copy_gets_the_name_of_its_new_place(here, now):
    production = DeliverySettings(installation="production")
    staging = DeliverySettings(installation="staging")
    check_in(production, now)
    assert adopt(staging, now) == "staging"
    assert check_in(staging, now) is Standing.OURS
    assert check_in(production, now) is Standing.UNKNOWN_HERE


def test_a_persons_word_in_the_admin_is_used_once_and_soon(here, elsewhere, now):
    check_in(here, now)
    check_in(elsewhere, now)
    assert promise_adoption(installation.host(), now)
    assert check_in(elsewhere, now + timedelta(hours=1)) is Standing.UNKNOWN_HERE
    promise_adoption("another-host", now)
    assert check_in(elsewhere, now) is Standing.UNKNOWN_HERE
    promise_adoption(installation.host(), now)
    assert check_in(elsewhere, now) is Standing.OURS
    assert Installation.objects.get().adopt_host == ""


def test_without_a_folder_and_a_name_every_database_is_trusted(now):
    assert check_in(DeliverySettings(), now) is Standing.OURS
    assert not Installation.objects.exists()


def test_an_identity_cannot_lead_out_of_the_folder(here, folder, now):
    Installation.objects.create(identity="../../etc/passwd")
    assert check_in(here, now) is Standing.UNKNOWN_HERE
    adopt(here, now)
    assert check_in(here, now) is Standing.OURS
    assert [path.parent for path in folder.rglob("*")] == [folder]


def test_a_folder_that_cannot_be_written_leaves_the_database_without_an_identity(tmp_path, now):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check_in(DeliverySettings(installations=tmp_path / "file"), now)
    assert not Installation.objects.exists()


def test_a_torn_file_still_says_that_the_host_belongs(here, folder, now):
    check_in(here, now)
    next(folder.iterdir()).write_text("")
    assert check_in(here, now) is Standing.OURS
    assert next(folder.iterdir()).read_text() == "2"


def test_the_remembered_beat_never_goes_back(here, folder, now):
    for _minute in range(3):
        check_in(here, now)
    row = Installation.objects.get()
    installation._write(row.identity, 1, here)
    assert next(folder.iterdir()).read_text() == "3"


# ------------------------------------------------------------------------------ what is held off


@pytest.fixture
def off(settings, tmp_path, now) -> None:
    """A host that does not know the database."""
    check_in(DeliverySettings(installations=tmp_path / "elsewhere"), now)
    settings.DELIVERY = settings.DELIVERY | {"INSTALLATIONS": tmp_path / "here"}


@pytest.mark.django_db(transaction=True)
def test_neither_coordinator_nor_worker_nor_poll_do_anything_where_sending_is_off(
    campaign, off, mailoutbox, settings
):
    settings.ADMINS = [("Ada", "ada@example.org")]
    before = list(Delivery.objects.order_by("pk").values())
    assert "sending is off" in tasks.coordinate()
    assert "sending is off" in tasks.run_worker("default")
    assert "sending is off" in poll_mailbox("default")
    assert MemoryProvider.outbox == []
    assert list(Delivery.objects.order_by("pk").values()) == before
    assert len(mailoutbox) == 1 and "Sending is off" in mailoutbox[0].subject


@pytest.mark.django_db(transaction=True)
def test_the_command_adopts_and_then_letters_leave(campaign, off, settings):
    out = io.StringIO()
    call_command("adopt_installation", yes=True, stdout=out)
    assert "Sending is on" in out.getvalue()
    assert tasks.run_worker("default") == "12 letters"


def test_the_command_asks_first(off, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "no")
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("adopt_installation")
    assert "sending is off" in tasks.run_worker("default")


def test_without_a_terminal_the_command_changes_nothing(off, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("adopt_installation")
    assert "sending is off" in tasks.run_worker("default")


def test_the_command_says_when_there_is_no_guard():
    with pytest.raises(CommandError, match="every database is trusted"):
        call_command("adopt_installation", yes=True)


def healthcheck(**options) -> str:
    out = io.StringIO()
    call_command("healthcheck", stdout=out, **options)
    return out.getvalue()


def test_a_host_that_works_is_healthy_and_one_that_fell_silent_is_not(settings, here, folder, now):
    settings.DELIVERY = settings.DELIVERY | {"INSTALLATIONS": folder}
    with pytest.raises(CommandError, match="ever worked"):
        healthcheck()
    check_in(here, now)
    assert "The last task began here" in healthcheck()
    (file,) = folder.iterdir()
    os.utime(file, (time.time() - 720, time.time() - 720))
    with pytest.raises(CommandError, match="Nothing has run here for 12 min"):
        healthcheck()
    assert "The last task began here" in healthcheck(minutes=15)
    check_in(here, now)
    assert "The last task began here" in healthcheck()


def test_a_host_that_remembers_nothing_cannot_say_whether_it_is_healthy(settings):
    settings.DELIVERY = settings.DELIVERY | {"INSTALLATIONS": None}
    with pytest.raises(CommandError, match="INSTALLATIONS"):
        healthcheck()
