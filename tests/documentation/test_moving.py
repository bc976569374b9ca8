"""The way from SQLite to PostgreSQL that the operator's guide tells, with its own command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.utils import timezone

from bounces.models import Bounce, ReceivedMail
from campaigns.editions import freeze
from campaigns.models import Campaign, Subscriber
from delivery.audit import audit_campaign
from delivery.conf import delivery_settings
from delivery.filling import fill_page
from delivery.installation import Standing, check_in
from delivery.models import Delivery
from tests.campaigns.people import a_campaign, a_list, a_reader
from tests.documentation.documents import DOCS, blocks

LEFT_OUT = {"contenttypes", "sessions", "django_q"}


def dump_command() -> list[str]:
    """What the guide says behind manage.py."""
    (told,) = (block for block in blocks(DOCS / "operators-guide.md", "sh") if "dumpdata" in block)
    words = shlex.split(told.replace("\\\n", " "))
    return words[words.index("dumpdata") :]


def counts() -> dict[str, int]:
    return {
        model._meta.label: model._default_manager.count()
        for model in apps.get_models()
        if model._meta.app_label not in LEFT_OUT and model is not Permission
    }


def a_database_in_use() -> Campaign:
    chief = User.objects.create_user("chief", is_staff=True)
    chief.user_permissions.add(Permission.objects.get(codename="lift_suppression"))
    weekly = a_list()
    for name in ("ada", "bob"):
        a_reader(f"{name}@example.org", weekly, city="Zürich")
    campaign = a_campaign(weekly)
    campaign.schedule(timezone.now(), edition=freeze(campaign), by=chief)
    campaign.start(timezone.now())
    assert fill_page(campaign, 100, timezone.now()) == 2
    mail = ReceivedMail.objects.create(
        mailbox="default", uid_validity="v", uid="1", raw=b"\0\xff", received_at=timezone.now()
    )
    letter = Delivery.objects.order_by("pk")[0]
    Bounce.objects.create(received_mail=mail, delivery=letter, at=timezone.now())
    return campaign


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_moved_is_the_same_one_and_goes_on(
    settings: Any, tmp_path: Path
) -> None:
    settings.DELIVERY = settings.DELIVERY | {"INSTALLATIONS": tmp_path / "installations"}
    campaign = a_database_in_use()
    assert check_in(delivery_settings(), timezone.now()) is Standing.OURS
    before = counts()
    file = tmp_path / "everything.jsonl"
    name, *arguments = dump_command()
    call_command(name, *arguments[:-1], str(file), verbosity=0)

    call_command("flush", interactive=False, verbosity=0)
    # A new database gives its permissions other numbers.
    Permission.objects.all().delete()
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
    call_command("loaddata", str(file), verbosity=0)

    assert counts() == before
    assert User.objects.get().has_perm("campaigns.lift_suppression")
    assert bytes(ReceivedMail.objects.get().raw or b"") == b"\0\xff"
    assert audit_campaign(campaign.pk).imbalances == []
    assert check_in(delivery_settings(), timezone.now()) is Standing.OURS
    assert Subscriber.objects.create(email="new@example.org").pk
