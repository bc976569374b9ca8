"""Counts made into a bar, a line and a speed."""

from __future__ import annotations

from datetime import datetime, timedelta

from campaigns.models import CampaignTotals
from campaigns.progress import OPEN_STATES, STATES, Progress


def progress(**counts: int) -> Progress:
    return Progress(dict.fromkeys(CampaignTotals.COUNTS, 0) | counts)


def test_every_state_that_is_counted_has_its_place_in_the_bar():
    assert {state for state, _label, _meaning in STATES} == set(CampaignTotals.COUNTS) - {
        "eligible"
    }


def test_what_is_not_open_is_done():
    now = progress(eligible=100, sent=40, bounced=5, deferred=10, queued=40, claimed=3, sending=2)

    assert (now.done, now.left, now.percent) == (45, 55, 45)
    assert now.left == sum(now.counts[state] for state in OPEN_STATES)


def test_a_campaign_without_letters_is_at_nought():
    assert (progress().percent, progress().done) == (0, 0)
    assert all(segment.width == "0.000%" for segment in progress().segments)


def test_a_hundred_percent_means_all_of_them():
    assert progress(eligible=1000, sent=999, queued=1).percent == 99


def test_the_bar_is_as_wide_as_the_counts_say():
    widths = {part.state: part.width for part in progress(eligible=8, sent=3, queued=5).segments}

    assert (widths["sent"], widths["queued"], widths["bounced"]) == ("37.500%", "62.500%", "0.000%")


def test_doubts_are_never_hidden_among_the_sent_or_the_failed():
    line = progress(
        eligible=10_000, sent=9_970, bounced=12, rejected=10, expired=5, unconfirmed=3
    ).headline

    assert line == "9,970 sent · 12 bounced · 15 failed · 3 in doubt"


def test_a_shard_that_is_negative_for_a_moment_breaks_no_bar():
    assert progress(eligible=2, sent=3, queued=-1).left == 0


def test_the_average_counts_from_the_start_to_the_finish(now: datetime):
    done = progress(eligible=100, sent=100)

    assert done.average_per_second(now, now + timedelta(seconds=50)) == 2.0
    assert done.average_per_second(now, now + timedelta(days=1), now + timedelta(seconds=10)) == 10
    assert done.average_per_second(None, now) == 0.0
    assert done.average_per_second(now, now) == 0.0


def test_the_finish_is_foretold_from_what_is_left_and_the_speed():
    now = datetime(2026, 11, 1, 12, 0)
    half_done = progress(eligible=200, sent=100, queued=90, deferred=10)

    assert half_done.expected_finish(now, 0.5) == now + timedelta(seconds=200)
    assert progress(eligible=5, sent=5).expected_finish(now, 0.5) is None
    for speed in (0.0, -1.0, float("nan"), 1e-9, 5e-324):
        assert half_done.expected_finish(now, speed) is None
