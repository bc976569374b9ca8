"""The classification table: whose trouble is a reply?"""

import pytest

from delivery.outcomes import LONGEST_REPLY, Deferred, Phase, Rejected, Reply, Unavailable
from delivery.replies import RULES, classify
from delivery.status_codes import EnhancedStatus

BAD, KEPT, LATER, PAUSE, STOP = "bad address", "rejected", "deferred", "unavailable", "stop"


def verdict(reply: Reply) -> str:
    match classify(reply):
        case Rejected(address_is_bad=True):
            return BAD
        case Rejected():
            return KEPT
        case Deferred():
            return LATER
        case Unavailable(needs_a_person=True):
            return STOP
        case Unavailable():
            return PAUSE


@pytest.mark.parametrize(
    ("phase", "code", "text", "expected"),
    [
        (Phase.RCPT, 550, "5.1.1 <a@x>: Recipient address rejected: User unknown", BAD),
        (Phase.RCPT, 550, "5.1.10 RESOLVER.ADR.RecipientNotFound; not found", BAD),
        (Phase.RCPT, 556, "5.1.10 Recipient address has null MX", BAD),
        (Phase.RCPT, 550, "5.1.1 Mail refused: sender is on a blacklist", KEPT),
        (Phase.RCPT, 550, "5.7.1 Message rejected due to local policy", KEPT),
        (Phase.RCPT, 550, "No such user here", KEPT),
        (Phase.FINAL_DOT, 550, "5.1.1 No such user", KEPT),
        (Phase.FINAL_DOT, 554, "5.7.1 Spam message rejected", KEPT),
        (Phase.RCPT, 554, "5.7.1 <a@x>: Relay access denied", STOP),
        (Phase.RCPT, 450, "4.2.0 Greylisted, try again later", LATER),
        (Phase.RCPT, 452, "4.2.2 Mailbox full", LATER),
        (Phase.RCPT, 552, "5.2.2 Mailbox full", LATER),
        (Phase.RCPT, 550, "5.2.1 The user is receiving mail at a rate that prevents ...", LATER),
        (Phase.RCPT, 421, "4.7.0 Try again later, closing connection", LATER),
        (Phase.FINAL_DOT, 451, "4.3.0 Queue file write error", LATER),
        (Phase.DATA, 503, "5.5.1 Bad sequence", LATER),
        (Phase.GREETING, 421, "4.3.2 Service not available", PAUSE),
        (Phase.GREETING, 554, "5.7.1 Your host is not welcome", PAUSE),
        (Phase.EHLO, 501, "5.5.4 Invalid domain name", STOP),
        (Phase.STARTTLS, 454, "4.7.0 TLS not available", PAUSE),
        (Phase.STARTTLS, 502, "5.5.1 Not implemented", STOP),
        (Phase.AUTH, 454, "4.7.0 Temporary authentication failure", PAUSE),
        (Phase.AUTH, 432, "4.3.2 STOREDRV.ClientSubmit; concurrent connections exceeded", PAUSE),
        (Phase.AUTH, 535, "5.7.8 Authentication credentials invalid", STOP),
        (Phase.AUTH, 550, "5.7.30 Basic authentication is not supported", STOP),
        (Phase.MAIL, 530, "5.7.0 Authentication required", STOP),
        (Phase.MAIL, 550, "5.7.60 SMTP; Client does not have permissions to send as", STOP),
        (Phase.MAIL, 552, "5.3.4 Message size exceeds fixed limit", STOP),
        (Phase.MAIL, 451, "4.7.500 Server busy. Please try again later", PAUSE),
        (Phase.MAIL, 454, "Throttling failure: Maximum sending rate exceeded.", PAUSE),
        (Phase.FINAL_DOT, 454, "Throttling failure: Daily message quota exceeded.", PAUSE),
        (Phase.FINAL_DOT, 550, "5.4.5 Daily user sending limit exceeded", PAUSE),
        (Phase.FINAL_DOT, 554, "5.2.0 STOREDRV.Submission; SubmissionQuotaExceeded", PAUSE),
        (Phase.FINAL_DOT, 550, "5.7.515 Access denied, sending domain does not pass", STOP),
    ],
)
def test_a_reply_is_whose_trouble_the_table_says(phase, code, text, expected):
    assert verdict(Reply(phase, code, text)) == expected


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("code", [*range(200, 600, 7), 421, 450, 500, 550, 999])
def test_every_reply_has_a_rule_and_only_rcpt_condemns_an_address(phase, code):
    outcome = classify(Reply(phase, code, ""))
    assert isinstance(outcome, Deferred | Rejected | Unavailable)
    if isinstance(outcome, Rejected) and outcome.address_is_bad:
        assert phase is Phase.RCPT


def test_every_rule_has_a_source_and_a_name_of_its_own():
    assert all(rule.source for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)


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
