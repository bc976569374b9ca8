"""Replies that no rule knows are counted, without what differs from letter to letter."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from delivery import unclassified
from delivery.models import Attempt, UnclassifiedReply
from delivery.outcomes import Phase, Reply
from delivery.providers.memory import MemoryProvider
from delivery.replies import classify, rule_for
from delivery.replies.normalising import LONGEST_NORMALISED, normalised
from delivery.unclassified import OTHERS, note
from tests.delivery.conftest import run_slice

UNKNOWN = Reply(Phase.RCPT, 550, "5.7.1 Case 4711 of <a@example.org> at mx1.example.org")


def decided(*replies: Reply) -> list[tuple[Reply, str]]:
    return [(reply, rule_for(reply).name) for reply in replies]


def rows() -> list[tuple[str, int, str, int]]:
    return list(
        UnclassifiedReply.objects.order_by("id").values_list("phase", "code", "text", "count")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5.7.1 <john.doe@example.org>: No", "5.7.1 (address): No"),
        ("5.7.1 one\n5.7.1 two", "5.7.1 one two"),
        ("No [192.0.2.25] at 17:30", "No (ip) at (n):(n)"),
        ("from 2001:db8::1:2 to us", "from (ip) to us"),
        ("See https://example.org/a?b=c#d now", "See (link) now"),
        ("mx1.mail.example.org says no", "(name) says no"),
        ("id 4Xyz12AbCdEf refused", "id (id) refused"),
        ("deadbeefcafe, 12 of 13", "(id), (n) of (n)"),
        ("  spaced   out ", "spaced out"),
        ("", ""),
    ],
)
def test_equal_replies_become_equal_texts(text, expected):
    assert normalised(text) == expected


def test_a_normalised_text_names_no_reader_and_has_an_end():
    text = normalised("5.7.1 mail to john.doe@example.org (reader 81) refused " + "word " * 200)
    assert "john" not in text
    assert "81" not in text
    assert len(text) <= LONGEST_NORMALISED


@pytest.mark.django_db
def test_unknown_replies_are_counted_and_known_ones_are_not(now):
    known = Reply(Phase.RCPT, 550, "5.1.1 User unknown")
    other = Reply(Phase.RCPT, 550, "5.7.1 Case 4712 of <b@example.org> at mx2.example.org")
    assert note(decided(UNKNOWN, known, other), now) == 2
    assert note(decided(known), now) == 0
    assert note(decided(UNKNOWN), now + timedelta(hours=1)) == 1
    assert rows() == [("rcpt", 550, "5.7.1 Case (n) of (address) at (name)", 3)]
    row = UnclassifiedReply.objects.get()
    assert (row.first_seen, row.last_seen) == (now, now + timedelta(hours=1))
    assert row.rule == classify(UNKNOWN).rule == "unknown, policy"


@pytest.mark.django_db
def test_a_wave_costs_one_statement_beside_the_count_and_known_replies_none(now):
    wave = decided(*(Reply(Phase.RCPT, 550, f"5.7.1 {word} word") for word in ("a", "b", "c") * 9))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        note(wave, now)
    assert len(queries) == 2
    assert sorted(count for _p, _c, _t, count in rows()) == [9, 9, 9]
    with CaptureQueriesContext(connection) as queries:
        note(decided(Reply(Phase.RCPT, 452, "4.2.2 Mailbox full")), now)
    assert len(queries) == 0


@pytest.mark.django_db
def test_a_server_whose_texts_never_repeat_does_not_fill_the_table(now, monkeypatch):
    monkeypatch.setattr(unclassified, "MOST_ROWS", 3)
    words = ["blue", "red", "green", "white", "black", "grey"]
    for word in words:
        note(decided(Reply(Phase.RCPT, 550, f"5.7.1 {word}")), now)
    note(decided(Reply(Phase.RCPT, 550, "5.7.1 blue")), now)
    counted = {text: count for _phase, _code, text, count in rows()}
    assert counted == {"5.7.1 blue": 2, "5.7.1 red": 1, "5.7.1 green": 1, OTHERS: 3}


@pytest.mark.django_db(transaction=True)
def test_settling_a_wave_counts_what_no_rule_knows(campaign, clock):
    MemoryProvider.answer = lambda message: classify(
        Reply(Phase.RCPT, 550, f"5.7.1 <{message.envelope.rcpt_to}> is not for you")
    )
    run_slice(clock)
    refused = Attempt.objects.count()
    assert refused >= 5
    assert rows() == [("rcpt", 550, "5.7.1 (address) is not for you", refused)]


# ---------------------------------------------------------------------------------- the page


@pytest.mark.django_db
def test_the_page_shows_them_the_commonest_first_and_changes_nothing(admin_client, now):
    hostile = Reply(Phase.RCPT, 550, "5.7.1 <script>alert()</script>")
    note(decided(hostile, UNKNOWN, UNKNOWN), now)
    answer = admin_client.get(reverse("admin:delivery_unclassifiedreply_changelist"))
    html = answer.content.decode()
    assert [row.count for row in answer.context["cl"].result_list] == [2, 1]
    assert "5.7.1 Case (n) of (address) at (name)" in html
    assert "<script>alert()" not in html
    assert admin_client.get(reverse("admin:delivery_unclassifiedreply_add")).status_code == 403


@pytest.mark.django_db
def test_the_page_asks_for_a_permission(client, django_user_model, now):
    user = django_user_model.objects.create_user("clerk", password="x", is_staff=True)
    client.force_login(user)
    assert client.get(reverse("admin:delivery_unclassifiedreply_changelist")).status_code == 403
