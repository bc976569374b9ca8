"""The site of a test: settings by the profile, one mailbox, and the promises at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from campaigns.models import MailingList
from delivery.providers import graph
from tests.delivery.conftest import Clock
from tests.microsoft365.site import BOUNCES, Site, settings_for


@pytest.fixture
def clock(now: datetime) -> Clock:
    return Clock(now)


@pytest.fixture
def mailing_list(db: None) -> MailingList:
    return MailingList.objects.create(name="Weekly", label="weekly")


@pytest.fixture
def make_site(
    settings: Any, clock: Clock, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Site]]:
    """Makes the site, with options of the emulator and entries of the provider's settings."""
    settings.BASE_URL = "https://news.example.org"
    made: list[Site] = []

    def make(provider: dict[str, Any] | None = None, **options: Any) -> Site:
        settings.DELIVERY = settings_for(**(provider or {}))
        settings.BOUNCES = settings.BOUNCES | BOUNCES
        site = Site(clock, **options)
        monkeypatch.setattr("bounces.conf.MailboxSettings.make", lambda self: site.new_reader())
        made.append(site)
        return site

    yield make
    for site in made:
        site.assert_promises(doubled=site.doubled)
    graph._mailboxes.clear()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()
