"""The classification table: whose trouble is a reply?

The texts stand in replies.csv, each with the verdict and the rule that must decide. They were said
by real servers: Google's, Microsoft's, Yahoo's and Apple's pages, SES and SendGrid's lists, the
sources of Postfix, Exim, Dovecot and sisimai's collection. Addresses are ours.
"""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import (
    LONGEST_REPLY,
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Speaker,
    Throttle,
    Unavailable,
)
from delivery.providers.smtp import SMTPProvider
from delivery.replies import RULES, Classifier, Rule, Verdict, classify, rule_for
from delivery.replies.wishes import wish
from delivery.settlement import RetryPolicy, settle
from delivery.states import DeliveryStatus
from delivery.status_codes import EnhancedStatus
from tests.smtp_server import At, SMTPServer
from tests.smtp_server import Rule as ServerRule

TEXTS = Path(__file__).parent / "replies.csv"
OURS, THEIRS = Speaker.SUBMISSION, Speaker.READER
GROUP = {Verdict.SLOW, Verdict.PAUSE, Verdict.BLOCKED}


def verdict(reply: Reply, rcpt_to: str = "") -> Verdict:
    """What an outcome says, read from the outcome and not from the rule."""
    match classify(reply, rcpt_to):
        case Rejected(address_is_bad=True):
            return Verdict.BAD_ADDRESS
        case Rejected():
            return Verdict.REJECT
        case Deferred(throttle=Throttle.SLOW):
            return Verdict.SLOW
        case Deferred(throttle=Throttle.PAUSE, needs_a_person=True):
            return Verdict.BLOCKED
        case Deferred(throttle=Throttle.PAUSE):
            return Verdict.PAUSE
        case Deferred():
            return Verdict.DEFER
        case Unavailable(needs_a_person=True):
            return Verdict.STOP
        case Unavailable(throttle=Throttle.SLOW):
            return Verdict.BUSY
        case Unavailable():
            return Verdict.UNAVAILABLE
    raise AssertionError(f"no refusal has this outcome: {classify(reply)}")


def said(phase: Phase, text: str, speaker: Speaker = OURS) -> Verdict:
    """The verdict about "550 5.1.1 ..."."""
    code, _space, rest = text.partition(" ")
    return verdict(Reply(phase, int(code), rest, speaker))


def texts() -> list[tuple[Reply, Verdict, str, str]]:
    with TEXTS.open(encoding="utf-8") as file:
        return [
            (
                Reply(
                    Phase(row["phase"]),
                    int(row["code"]) if row["code"] else None,
                    row["text"].replace("\\n", "\n"),
                    Speaker(row["speaker"]),
                ),
                Verdict(row["verdict"]),
                row["rule"],
                row["rcpt_to"] or "",
            )
            for row in csv.DictReader(file, delimiter="|", quoting=csv.QUOTE_NONE)
        ]


# ---------------------------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("reply", "expected", "rule", "rcpt_to"),
    texts(),
    ids=lambda value: str(value)[:60] if isinstance(value, Reply) else None,
)
def test_a_reply_is_whose_trouble_the_table_says(reply, expected, rule, rcpt_to):
    assert rule_for(reply, rcpt_to).name == rule
    assert verdict(reply, rcpt_to) is expected
    assert classify(reply, rcpt_to).reply is reply


def test_every_rule_decides_about_at_least_one_text():
    decided = Counter(rule for _reply, _verdict, rule, _to in texts())
    assert [rule.name for rule in RULES if not decided[rule.name]] == []
    assert len(texts()) >= 120


def test_every_rule_has_a_source_and_a_name_of_its_own_that_an_attempt_can_hold():
    assert all(rule.source for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(len(rule.name) <= 60 for rule in RULES)


def test_only_rules_by_class_are_defaults_and_they_come_last():
    defaults = [rule.is_default for rule in RULES]
    assert defaults == sorted(defaults)
    assert all(not rule.text for rule in RULES if rule.is_default)


@pytest.mark.parametrize("speaker", Speaker)
@pytest.mark.parametrize("phase", Phase)
def test_every_reply_has_a_rule_and_a_bare_code_condemns_no_address(phase, speaker):
    for code in [None, *range(200, 600), 999]:
        outcome = classify(Reply(phase, code, "", speaker))
        assert isinstance(outcome, Deferred | Rejected | Unavailable), code
        if isinstance(outcome, Rejected):
            # Null MX (RFC 7505): the domain takes no mail, and says so about its reader.
            assert outcome.address_is_bad is (code == 556 and phase is Phase.RCPT), code
            assert phase in {Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.FINAL_DOT}, code


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.AUTH])
def test_before_the_letter_nothing_is_ever_a_readers_trouble(phase):
    for code in [None, *range(200, 600)]:
        for text in ("", "5.1.1 User unknown", "4.2.2 Mailbox full", "5.7.1 Spam"):
            assert isinstance(classify(Reply(phase, code, text)), Unavailable), (code, text)


def test_what_our_own_server_says_never_slows_a_group_of_readers():
    """A submission server's rate or block is one for all readers alike."""
    ours = [rule for rule in RULES if rule.verdict in GROUP]
    assert {rule.speaker for rule in ours if not rule.is_default} == {THEIRS}
    for reply, expected, _rule, _to in texts():
        if reply.speaker is OURS:
            assert expected not in GROUP, reply


def test_the_providers_trouble_uses_no_attempt_and_marks_no_reader(now):
    policy = RetryPolicy([timedelta(minutes=5)], 10, timedelta(hours=24))
    ours = {Verdict.BUSY, Verdict.UNAVAILABLE, Verdict.STOP}
    for reply, expected, _rule, to in texts():
        settled = settle(
            classify(reply, to), attempts=0, queued_at=now, now=now, policy=policy, dice=Random(1)
        )
        assert settled.used_an_attempt is (expected not in ours), reply
        assert settled.suppress is (expected is Verdict.BAD_ADDRESS), reply
        assert (settled.status is DeliveryStatus.QUEUED) is (expected in ours), reply


# ---------------------------------------------------------------------------------- hard pairs
#
# The same code, and another meaning.


def test_550_5_7_1_is_a_quota_of_ours_or_a_policy_of_the_readers():
    quota = "550 5.7.1 Daily SMTP relay sending limit exceeded for this customer. - gsmtp"
    policy = "550 5.7.1 The user or domain that you are sending to (or from) has a policy that ..."
    assert said(Phase.RCPT, quota) is Verdict.UNAVAILABLE
    assert said(Phase.RCPT, policy) is Verdict.REJECT


def test_550_5_7_1_is_a_rate_or_spam():
    rate = "550 5.7.1 This email has been rate limited. - gsmtp"
    spam = "550 5.7.1 This message is likely unsolicited email. To reduce the amount of spam ..."
    assert said(Phase.FINAL_DOT, rate, THEIRS) is Verdict.DEFER
    assert said(Phase.FINAL_DOT, spam, THEIRS) is Verdict.REJECT


def test_550_5_7_1_is_our_reputation_or_our_letters_form():
    reputation = "550 5.7.1 This message is likely suspicious due to the very low reputation of ..."
    form = "550 5.7.1 This message is not RFC 5322 compliant because it has duplicate headers."
    assert said(Phase.FINAL_DOT, reputation, THEIRS) is Verdict.BLOCKED
    assert said(Phase.FINAL_DOT, form, THEIRS) is Verdict.REJECT


def test_554_5_7_1_is_a_relay_that_does_not_know_us_or_a_readers_broken_mx():
    text = "554 5.7.1 <reader@example.org>: Relay access denied"
    assert said(Phase.RCPT, text, OURS) is Verdict.STOP
    assert said(Phase.RCPT, text, THEIRS) is Verdict.REJECT


@pytest.mark.parametrize("local_part", ["ada%example.net", "example.net!ada"])
def test_a_reader_cannot_stop_a_provider_by_an_address_that_names_a_route(local_part):
    """Servers refuse to relay to what they read in it. Nor is the reader refused: it may be us."""
    refusal = Reply(Phase.RCPT, 550, "5.7.1 Relaying denied")
    assert verdict(refusal, f"{local_part}@example.org") is Verdict.DEFER
    assert verdict(refusal, "ada@example.org") is Verdict.STOP
    assert verdict(Reply(Phase.MAIL, 550, "5.7.1 Relaying denied")) is Verdict.STOP


def test_554_5_7_1_is_our_listed_host_or_a_listed_link_in_the_letter():
    host = "554 5.7.1 Service unavailable; Client host [192.0.2.25] blocked using zen.spamhaus.org"
    link = "554 5.7.1 Message contains a link in dbl.spamhaus.org"
    assert said(Phase.RCPT, host) is Verdict.UNAVAILABLE
    assert said(Phase.FINAL_DOT, link) is Verdict.REJECT


def test_550_5_7_30_is_a_login_refused_or_dkim():
    login = "550 5.7.30 Basic authentication is not supported for Client Submission."
    dkim = "550 5.7.30 This mail has been blocked because DKIM does not pass."
    assert said(Phase.AUTH, login) is Verdict.STOP
    assert said(Phase.FINAL_DOT, dkim, THEIRS) is Verdict.BLOCKED


def test_550_5_7_26_stops_us_at_our_server_and_one_group_at_a_readers():
    text = "550 5.7.26 Unauthenticated email from example.org is not accepted due to DMARC policy."
    assert said(Phase.FINAL_DOT, text, OURS) is Verdict.STOP
    assert said(Phase.FINAL_DOT, text, THEIRS) is Verdict.BLOCKED


def test_450_4_2_1_is_a_busy_reader_or_our_peak_limit():
    """KumoMTA files "receiving mail too quickly" under inactive mailboxes: live readers."""
    reader = "450 4.2.1 The user you are trying to contact is receiving email too quickly."
    peak = "450 4.2.1 Peak SMTP relay limit exceeded for this customer."
    assert said(Phase.RCPT, reader) is Verdict.DEFER
    assert said(Phase.RCPT, peak) is Verdict.BUSY


def test_550_5_2_1_is_a_busy_reader_or_a_closed_mailbox():
    busy = "550 5.2.1 The user you are trying to contact is receiving email at a rate that ..."
    closed = "550 5.2.1 The email account that you tried to reach is inactive."
    assert said(Phase.RCPT, busy) is Verdict.DEFER
    assert said(Phase.RCPT, closed) is Verdict.BAD_ADDRESS


def test_554_5_2_2_is_our_full_mailbox_or_the_readers():
    ours = "554 5.2.2 mailbox full; STOREDRV.Submission.Exception:QuotaExceededException.MapiExce"
    assert said(Phase.FINAL_DOT, ours) is Verdict.STOP
    assert said(Phase.FINAL_DOT, "554 5.2.2 mailbox full") is Verdict.DEFER


def test_554_5_2_0_is_our_quota_or_nothing_known():
    quota = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; ..."
    assert said(Phase.FINAL_DOT, quota) is Verdict.UNAVAILABLE
    assert said(Phase.FINAL_DOT, "554 5.2.0 STOREDRV.Deliver; rejected") is Verdict.REJECT


def test_552_is_a_full_mailbox_or_a_large_letter():
    """KumoMTA files 552 5.3.4 under quota: the letter would come again and again."""
    assert said(Phase.RCPT, "552 5.2.2 user is over quota") is Verdict.DEFER
    assert said(Phase.FINAL_DOT, "552 5.3.4 Message too big for system") is Verdict.STOP
    assert said(Phase.FINAL_DOT, "552 5.3.4 Message too big", THEIRS) is Verdict.REJECT
    assert said(Phase.FINAL_DOT, "552 5.2.3 Message length exceeds limit") is Verdict.REJECT


def test_552_at_the_dot_is_a_size_or_yahoos_unknown_mailbox():
    nobody = "552 1 Requested mail action aborted, mailbox not found"
    size = "552 Requested mail action aborted: message size exceeded"
    assert said(Phase.FINAL_DOT, nobody, THEIRS) is Verdict.BAD_ADDRESS
    assert said(Phase.FINAL_DOT, size, THEIRS) is Verdict.REJECT


def test_432_4_3_2_is_our_concurrency_or_the_readers():
    ours = "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"
    theirs = "432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded"
    assert said(Phase.FINAL_DOT, ours) is Verdict.BUSY
    assert said(Phase.FINAL_DOT, theirs) is Verdict.DEFER


def test_452_is_our_servers_disk_the_readers_quota_or_a_count():
    assert said(Phase.RCPT, "452 4.3.1 Insufficient system storage") is Verdict.UNAVAILABLE
    assert said(Phase.RCPT, "452 4.2.2 Mailbox full") is Verdict.DEFER
    assert said(Phase.RCPT, "452 4.5.3 Too many recipients") is Verdict.DEFER
    assert rule_for(Reply(Phase.RCPT, 452, "4.5.3 Too many recipients")).wait == timedelta(
        minutes=1
    )


def test_454_is_a_throttle_a_quota_or_a_login():
    assert (
        said(Phase.MAIL, "454 Throttling failure: Maximum sending rate exceeded.") is Verdict.BUSY
    )
    quota = "454 Throttling failure: Daily message quota exceeded."
    assert said(Phase.MAIL, quota) is Verdict.UNAVAILABLE
    assert said(Phase.AUTH, "454 4.7.0 Too many login attempts") is Verdict.UNAVAILABLE


def test_421_4_7_28_is_a_rate_or_a_fault_of_ours():
    rate = "421 4.7.28 Gmail has detected an unusual rate of email originating from your IP address"
    fault = "421 4.7.28 ... exceeded the quota for sending messages that have the same Message-ID:."
    assert said(Phase.FINAL_DOT, rate, THEIRS) is Verdict.PAUSE
    assert said(Phase.FINAL_DOT, fault, THEIRS) is Verdict.STOP


def test_550_5_1_1_is_nobody_or_a_policy_in_disguise():
    assert said(Phase.RCPT, "550 5.1.1 User unknown") is Verdict.BAD_ADDRESS
    assert said(Phase.RCPT, "550 5.1.1 Mail refused: sender is on a blacklist") is Verdict.REJECT
    assert said(Phase.RCPT, "550 5.7.1 User unknown") is Verdict.REJECT


def test_550_5_1_8_is_our_blocked_account_or_a_reader_who_cannot_find_our_domain():
    ours = "550 5.1.8 Access denied, bad outbound sender"
    theirs = "450 4.1.8 <news@example.org>: Sender address rejected: Domain not found"
    assert said(Phase.FINAL_DOT, ours) is Verdict.STOP
    assert said(Phase.RCPT, theirs, OURS) is Verdict.UNAVAILABLE
    assert said(Phase.RCPT, theirs, THEIRS) is Verdict.BLOCKED


def test_550_5_4_x_is_our_daily_limit_a_hidden_unknown_or_a_lost_domain():
    assert said(Phase.RCPT, "550 5.4.5 Daily user sending limit exceeded.") is Verdict.UNAVAILABLE
    hidden = "550 5.4.1 Recipient address rejected: Access denied."
    assert said(Phase.RCPT, hidden) is Verdict.REJECT
    assert said(Phase.RCPT, "550 5.4.4 no MX") is Verdict.DEFER


def test_550_5_2_252_is_a_punishment_and_554_5_2_252_its_cause():
    cause = "554 5.2.252 SendAsDenied; a@example.org not allowed to send as b@example.org"
    punished = "550 5.2.252 Sender throttled due to continuous send as denied errors."
    assert said(Phase.FINAL_DOT, cause) is Verdict.STOP
    assert said(Phase.MAIL, punished) is Verdict.STOP
    assert rule_for(Reply(Phase.MAIL, 550, punished[4:])).name == "continuous errors of ours"


def test_421_tells_who_is_closing_and_whether_the_letter_did_it():
    assert said(Phase.RCPT, "421 4.3.2 Service shutting down") is Verdict.BUSY
    assert said(Phase.RCPT, "421 4.3.2 Service shutting down", THEIRS) is Verdict.SLOW
    # No attempt is ever used up above; a letter that ends each connection must come to an end.
    assert said(Phase.FINAL_DOT, "421 Goodbye") is Verdict.DEFER


# ---------------------------------------------------------------------------------- the speaker


def test_a_relay_that_hands_on_what_it_was_told_is_not_the_speaker():
    refused = "421 4.7.0 [TSS04] Messages from 192.0.2.25 temporarily deferred"
    handed_on = (
        f"451 host mx.example.org[192.0.2.9] said: {refused} (in reply to MAIL FROM command)"
    )
    assert said(Phase.RCPT, handed_on) is Verdict.PAUSE
    throttled = "450 host mx.example.org[192.0.2.9] said: 450 4.7.1 Error: too much mail from you"
    assert said(Phase.RCPT, throttled) is Verdict.SLOW


@pytest.mark.parametrize(
    ("speaker", "expected"), [("submission", Verdict.UNAVAILABLE), ("reader", Verdict.BLOCKED)]
)
def test_a_providers_option_says_who_speaks(speaker, expected):
    refusal = (
        "554 5.7.1 Service unavailable; Client host [192.0.2.25] blocked using zen.spamhaus.org"
    )
    letter = OutgoingMessage(
        1, Envelope("bounce@example.org", "a@example.org"), [b"Subject: x\r\n\r\nx\r\n"], "<1@x>"
    )

    async def send(server: SMTPServer) -> Outcome:
        provider = SMTPProvider(server.host, server.port, security="none", speaker=speaker)
        await provider.open()
        try:
            return await provider.send(letter)
        finally:
            await provider.close()

    with SMTPServer(rules=[ServerRule(At.RCPT, refusal)]) as server:
        outcome = asyncio.run(send(server))
    assert outcome.reply.speaker == speaker
    assert verdict(outcome.reply) is expected


def test_a_speaker_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Speaker"):
        SMTPProvider("localhost", security="none", speaker="postman")


def test_the_status_is_read_from_the_quotation_when_the_relay_gives_none():
    text = "550 host mx.example.org[192.0.2.9] said: 550 5.1.1 <a@example.org> Unknown"
    assert said(Phase.RCPT, text) is Verdict.BAD_ADDRESS
    assert said(Phase.RCPT, text.replace("550 host", "550 5.7.1 host")) is Verdict.REJECT


def test_the_words_of_a_connection_that_we_lost_match_no_servers_rule():
    """A pause that produces a text that prolongs the pause would never end."""
    for words in ("blocked using zen.spamhaus.org", "Throttling failure", "User unknown"):
        assert verdict(Reply(Phase.RCPT, None, f"5.1.1 {words}")) is Verdict.DEFER


def test_an_address_in_a_reply_cannot_steer_the_verdict():
    """Readers choose their addresses; servers repeat them."""
    for local in ("throttling", "daily-quota-exceeded", "spamhaus", "relay.denied", "mailbox.full"):
        text = f"451 4.3.0 <{local}@too-many-connections.example.org>: Temporary lookup failure"
        assert said(Phase.RCPT, text) is Verdict.DEFER
        assert rule_for(Reply(Phase.RCPT, 451, text[4:])).name == "refused for now"
    assert said(Phase.RCPT, "550 5.1.1 <spam@example.org>: User unknown") is Verdict.BAD_ADDRESS


# ---------------------------------------------------------------------------------- the reading


def test_a_phrase_is_found_across_the_lines_of_a_reply():
    """Gmail repeats its status on every line, in the middle of its sentences."""
    text = (
        "5.7.1 This email has been rate\n5.7.1 limited. For more information, go to\n5.7.1 - gsmtp"
    )
    assert verdict(Reply(Phase.FINAL_DOT, 550, text)) is Verdict.UNAVAILABLE


def test_an_enhanced_status_is_read_only_at_the_beginning():
    assert str(EnhancedStatus.leading("5.1.1 No such user")) == "5.1.1"
    assert EnhancedStatus.leading("see 5.1.1") is None
    assert EnhancedStatus.leading("5.1.1.7 is a host") is None
    assert EnhancedStatus.leading("2.0.0 Ok").is_permanent is False


def test_a_reply_is_stored_without_control_characters_and_cut():
    reply = Reply.of(Phase.RCPT, 550, "5.1.1 a\x00b\x1b[31m\udcff\nsecond" + "x" * 5000)
    assert "\x00" not in reply.text
    assert "\x1b" not in reply.text
    assert "\nsecond" in reply.text
    assert len(reply.text) == LONGEST_REPLY
    reply.text.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("greylisted, please try again in 300 seconds", 300),
        ("4.7.1 greylisted for 5 minutes", 300),
        ("please retry after 1 hour", 3600),
        ("try again later, please wait at least 20 min", 1200),
        ("greylisting in action, please come back in 00:04:59", 299),
        ("wait 0 seconds", 1),
        ("try again in 90000 minutes", 86400),
    ],
)
def test_a_wish_in_the_text_is_read_and_kept_within_a_day(text, seconds):
    assert wish(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "try again later from [192.0.2.25]. (s77714)",
        "try again later",
        "5.7.1 blocked, see rfc 5321 section 3 minutes of the meeting",
        "message exceeded 50 hops",
        "retry 4",
        "quota of 200 per 1 hour",
    ],
)
def test_a_number_that_is_no_wait_is_no_wish(text):
    assert wish(text) is None


def test_the_far_sides_wish_goes_before_our_wait():
    greylisted = classify(Reply(Phase.RCPT, 450, "4.2.0 Greylisted, try again in 42 seconds"))
    assert greylisted == Deferred(greylisted.reply, timedelta(seconds=42), "greylisted")
    throttled = classify(Reply(Phase.MAIL, 454, "Throttling failure. Please wait 10 minutes"))
    assert isinstance(throttled, Unavailable)
    assert throttled.retry_after == timedelta(minutes=10)


# ---------------------------------------------------------------------------------- a table's order


def test_the_first_rule_that_fits_decides():
    one = Rule("one", Verdict.DEFER, "test", code="550", text="blue")
    two = Rule("two", Verdict.REJECT, "test", code="5..")
    table = Classifier([one, two])
    assert table.rule_for(Reply(Phase.RCPT, 550, "5.1.1 Blue moon")) is one
    assert table.rule_for(Reply(Phase.RCPT, 550, "5.1.1 Red moon")) is two
    assert Classifier([two, one]).rule_for(Reply(Phase.RCPT, 550, "Blue")) is two


def test_statuses_that_nobody_has_seen_do_not_fill_the_memory():
    table = Classifier(RULES)
    for number in range(6000):
        table.rule_for(Reply(Phase.RCPT, 550, f"5.{number % 1000}.{number // 10} No"))
    assert table._candidates.cache_info().currsize <= 4096
