"""What bounces tells a letter's story."""

from __future__ import annotations

import pytest

from delivery.story import story_of
from tests.bounces.conftest import Deliver, group, report, return_path
from tests.bounces.test_intake import take

pytestmark = pytest.mark.django_db


def test_the_story_of_a_letter_tells_its_bounce(deliver: Deliver, now) -> None:
    letter = deliver()
    take(report(delivered_to=return_path(letter)), now, "1")
    letter.refresh_from_db()
    (line,) = [line for line in story_of(letter) if "bounced" in line.title]
    assert line.at == now
    assert line.quote == "smtp; 550 5.1.1 unknown user"
    assert "suppressed" in line.detail


def test_the_story_tells_which_report_changed_nothing(deliver: Deliver, now) -> None:
    letter = deliver()
    for uid in ("1", "2"):
        take(report(group(), delivered_to=return_path(letter)), now, uid)
    titles = [line.title for line in story_of(letter)]
    assert "Another report, which changed nothing" in titles


def test_a_letter_that_did_not_come_back_has_no_such_line(deliver: Deliver) -> None:
    assert all("bounce" not in line.title.lower() for line in story_of(deliver()))
