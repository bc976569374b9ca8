"""An operator's own rules in the settings, before ours; each mistake has its id and a hint."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from delivery.checks import check_delivery_settings
from delivery.conf import delivery_settings, read_settings
from delivery.outcomes import Deferred, Phase, Rejected, Reply, Speaker, Unavailable
from delivery.replies import RULES, Verdict, classify, rule_for

PROVIDERS = {"default": {"BACKEND": "delivery.providers.memory.MemoryProvider"}}
REPLY = Reply(Phase.RCPT, 550, "5.7.1 Our house rule 7 forbids it")
GOOD = {
    "name": "house rule",
    "verdict": "unavailable",
    "phases": ["rcpt"],
    "code": "550",
    "enhanced": r"5\.7\.1",
    "text": "House Rule 7",
    "wait": timedelta(minutes=30),
    "source": "ticket 81",
}


def with_rules(*rules):
    return {"PROVIDERS": PROVIDERS, "REPLY_RULES": list(rules)}


def test_an_operators_rule_goes_before_ours(settings):
    assert isinstance(classify(REPLY), Rejected)
    settings.DELIVERY = with_rules(GOOD)
    delivery_settings()
    outcome = classify(REPLY)
    assert outcome == Unavailable(REPLY, timedelta(minutes=30), rule="house rule")
    assert rule_for(REPLY).source == "ticket 81"
    # Another phase is not the operator's business.
    assert isinstance(classify(Reply(Phase.FINAL_DOT, 550, REPLY.text)), Rejected)


def test_without_the_setting_only_our_rules_are_in_force(settings):
    settings.DELIVERY = with_rules(GOOD)
    delivery_settings()
    settings.DELIVERY = with_rules()
    assert rule_for(REPLY) in RULES


def test_a_rule_may_name_its_speaker_and_any_verdict(settings):
    for verdict in Verdict:
        rule = {"name": "x", "verdict": verdict.value, "speaker": "reader", "text": "house rule"}
        settings.DELIVERY = with_rules(rule)
        understood = delivery_settings()
        assert understood.reply_rules[0].verdict is verdict
        theirs = Reply(Phase.RCPT, 550, REPLY.text, Speaker.READER)
        assert classify(theirs).rule == "x"
        assert classify(REPLY).rule != "x"


def test_a_rule_for_lost_connections_says_none(settings):
    settings.DELIVERY = with_rules({"name": "lost", "verdict": "defer", "code": "none"})
    delivery_settings()
    lost = Reply(Phase.CONNECT, None, "Connection refused")
    assert classify(lost) == Deferred(lost, None, "lost")
    assert rule_for(REPLY) in RULES


@pytest.mark.parametrize(
    ("rules", "number"),
    [
        ("defer everything", 70),
        (["defer"], 71),
        ([GOOD | {"pattern": "x"}], 71),
        ([GOOD | {"name": ""}], 72),
        ([GOOD | {"name": "x" * 61}], 72),
        ([GOOD, GOOD], 72),
        ([GOOD | {"name": "greylisted"}], 72),
        ([GOOD | {"verdict": "retry"}], 73),
        ([GOOD | {"phases": ["recipient"]}], 73),
        ([GOOD | {"phases": "rcpt"}], 73),
        ([GOOD | {"speaker": "us"}], 73),
        ([GOOD | {"text": "(unclosed"}], 74),
        ([GOOD | {"code": 550}], 74),
        ([GOOD | {"code": "5xx"}], 74),
        ([GOOD | {"wait": 30}], 75),
        ([GOOD | {"wait": timedelta(days=2)}], 75),
        ([{"name": "all", "verdict": "defer", "phases": ["rcpt"]}], 76),
        ([{"name": "all", "verdict": "bad address", "code": "5.."}], 77),
    ],
)
def test_a_wrong_rule_has_its_own_id_and_a_hint_and_is_left_out(settings, rules, number):
    settings.DELIVERY = {"PROVIDERS": PROVIDERS, "REPLY_RULES": rules}
    found = check_delivery_settings()
    assert [message.id for message in found] == [f"delivery.E{number:03}"]
    assert all(message.hint for message in found)
    understood, _problems = read_settings(settings.DELIVERY)
    assert [rule.name for rule in understood.reply_rules] == (
        ["house rule"] if rules == [GOOD, GOOD] else []
    )


def test_a_person_can_ask_which_rule_decides(settings, capsys):
    settings.DELIVERY = with_rules(GOOD)
    call_command("explain_reply", "550 5.7.1 Our house rule 7 forbids it, wait 2 minutes")
    told = capsys.readouterr().out
    assert "verdict  unavailable\nrule     house rule\nsource   ticket 81\n" in told
    assert "wait     0:02:00" in told
    call_command("explain_reply", "550 5.7.1 No", "--phase", "final dot", "--speaker", "reader")
    assert "unknown, policy (unclassified)" in capsys.readouterr().out
    with pytest.raises(CommandError, match="begins with its code"):
        call_command("explain_reply", "no")
