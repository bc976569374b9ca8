"""The classification table. Each rule names its source; the order is part of its meaning.

Texts come first, then phases, then enhanced statuses, then the class of the code: the same
number means different things from different speakers (550 5.7.1 is a block list, a policy or
a relay that does not know us). Rules that suppress an address are few and sure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from delivery.outcomes import Phase


class Verdict(StrEnum):
    """Whose trouble it is, and what follows."""

    DEFER = "defer"  # the reader's side, later
    REJECT = "reject"  # this letter, this reader; the address stays
    BAD_ADDRESS = "bad address"  # no such mailbox or domain: suppress
    UNAVAILABLE = "unavailable"  # the provider's side, later
    STOP = "stop"  # the provider's side, and only a person can mend it


@dataclass(frozen=True, slots=True)
class Rule:
    """Fits when every part that is given fits. ``code`` and ``enhanced`` are regular expressions
    for the whole "550" and "5.1.1", ``text`` is searched in the reply without regard to case."""

    name: str
    verdict: Verdict
    source: str
    phases: frozenset[Phase] | None = None
    code: str = ""
    enhanced: str = ""
    text: str = ""
    wait: timedelta | None = None

    def fits(self, phase: Phase, code: int | None, enhanced: str, text: str) -> bool:
        """Whether this rule speaks about that reply."""
        return (
            (self.phases is None or phase in self.phases)
            and (not self.code or re.fullmatch(self.code, str(code or "")) is not None)
            and (not self.enhanced or re.fullmatch(self.enhanced, enhanced) is not None)
            and (not self.text or re.search(self.text, text, re.IGNORECASE) is not None)
        )


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


SESSION = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
RCPT = frozenset({Phase.RCPT})
MAIL = frozenset({Phase.MAIL})
ENVELOPE = frozenset({Phase.MAIL, Phase.RCPT, Phase.FINAL_DOT})
RECIPIENT = frozenset({Phase.RCPT, Phase.DATA, Phase.FINAL_DOT})

RULES: tuple[Rule, ...] = (
    # ------------------------------------------------ before any letter: always the provider's side
    Rule(
        "too many connections", Verdict.UNAVAILABLE, "Exchange Online, SMTP submission limits",
        phases=SESSION | MAIL, code="432|421", text=r"concurrent|too many connections",
        wait=minutes(1),
    ),
    Rule(
        "login refused for now", Verdict.UNAVAILABLE, "RFC 4954 section 4.7.0; Gmail",
        phases=frozenset({Phase.AUTH}), code="4..", wait=minutes(15),
    ),
    Rule(
        "login refused", Verdict.STOP, "RFC 4954 section 6; Exchange 5.7.139, 5.7.30",
        phases=frozenset({Phase.AUTH}), code="5..",
    ),
    Rule(
        "login required", Verdict.STOP, "RFC 4954 section 6", phases=ENVELOPE, code="530|535|538",
    ),
    Rule(
        "no encryption for now", Verdict.UNAVAILABLE, "RFC 3207 section 4",
        phases=frozenset({Phase.STARTTLS}), code="4..", wait=minutes(5),
    ),
    Rule(
        "no encryption", Verdict.STOP, "RFC 3207 section 4; never fall back to clear text",
        phases=frozenset({Phase.STARTTLS}),
    ),
    Rule(
        "our host name refused", Verdict.STOP, "RFC 5321 section 4.1.4",
        phases=frozenset({Phase.EHLO}), code="5..",
    ),
    Rule(
        "host refuses us", Verdict.UNAVAILABLE, "RFC 5321 section 3.1; as Postfix does",
        phases=frozenset({Phase.GREETING}), code="5..", wait=minutes(15),
    ),
    Rule("host not ready", Verdict.UNAVAILABLE, "RFC 5321 section 3.8", phases=SESSION),
    # ------------------------------------------------ our sending quota, whatever the phase
    Rule(
        "daily quota", Verdict.UNAVAILABLE, "SES; Gmail 5.4.5; Exchange 5.2.0, 5.7.232/233",
        phases=ENVELOPE, wait=minutes(60),
        text=r"daily (message |sending )?quota|daily (user )?sending (limit|quota)"
        r"|SubmissionQuotaExceeded|exceeded (the|your) (tenant|daily)|TenantOutbound"
        r"|recipient rate limit",
    ),
    Rule(
        "sending rate", Verdict.UNAVAILABLE, "SES: Throttling failure", phases=ENVELOPE, code="4..",
        text=r"throttling failure|maximum sending rate", wait=minutes(1),
    ),
    # ------------------------------------------------ MAIL: our sender, our account
    Rule(
        "message too large", Verdict.STOP, "RFC 1870 section 6.1; all letters have that size",
        phases=MAIL, code="552|555",
    ),
    Rule("server too busy", Verdict.UNAVAILABLE, "RFC 5321 section 3.8", phases=MAIL, code="4.."),
    Rule("lost step", Verdict.DEFER, "RFC 5321 section 4.1.4: 503", code="503", wait=minutes(1)),
    Rule(
        "sender refused", Verdict.STOP, "RFC 3463 5.1.7, 5.1.8; Exchange 5.7.60 SendAsDenied",
        phases=MAIL, code="5..",
    ),
    # ------------------------------------------------ any later phase: the connection is going
    Rule(
        "service closing", Verdict.DEFER, "RFC 5321 section 3.8", phases=RECIPIENT, code="421",
        wait=minutes(5),
    ),
    # ------------------------------------------------ temporary, though it says 5
    Rule(
        "reader gets too much mail", Verdict.DEFER, "Gmail 4.2.1/5.2.1: receiving mail at a rate",
        phases=RECIPIENT, text=r"receiving mail (too quickly|at a rate)", wait=minutes(60),
    ),
    Rule(
        "rate limited", Verdict.DEFER, "Gmail 5.7.1: this email has been rate limited",
        phases=RECIPIENT, text=r"has been rate limited", wait=minutes(60),
    ),
    Rule(
        "mailbox full", Verdict.DEFER, "RFC 3463 X.2.2", phases=RECIPIENT, enhanced=r"[45]\.2\.2",
        wait=minutes(240),
    ),
    Rule("temporary", Verdict.DEFER, "RFC 5321 section 4.2.1: 4yz", phases=RECIPIENT, code="4.."),
    # ------------------------------------------------ a relay that does not relay for us
    Rule(
        "relaying denied", Verdict.STOP, "Postfix, Exim, Exchange 5.7.54, 5.7.64",
        phases=RCPT, code="55.",
        text=r"relay(ing)? (access )?(denied|not (permitted|allowed))|unable to relay"
        r"|tenantattribution",
    ),
    Rule(
        "our authentication", Verdict.STOP, "Microsoft 5.7.515, 5.7.509; Gmail 5.7.26-5.7.32",
        phases=RECIPIENT, enhanced=r"5\.7\.(515|509|26|27|29|30|31|32|40)",
    ),
    # ------------------------------------------------ the address does not exist
    Rule(
        "policy word", Verdict.REJECT, "measured: no policy word beside a user-unknown code",
        phases=RECIPIENT, code="5..", enhanced=r"5\.1\.\d+",
        text=r"spam|block(ed|list)|blacklist|policy|reputation|denied by|unsolicited|dmarc"
        r"|\bspf\b|dkim",
    ),
    Rule(
        "no such mailbox", Verdict.BAD_ADDRESS, "RFC 3463 X.1.1, X.1.3, X.1.6; Exchange 5.1.10",
        phases=RCPT, code="5..", enhanced=r"5\.1\.(1|3|6|10)",
    ),
    Rule(
        "domain takes no mail", Verdict.BAD_ADDRESS, "RFC 7505: null MX", phases=RCPT, code="556",
    ),
    # ------------------------------------------------ what remains
    Rule("permanent", Verdict.REJECT, "RFC 5321 section 4.2.1: 5yz", code="5.."),
    Rule("temporary, early", Verdict.UNAVAILABLE, "RFC 5321 section 4.2.1: 4yz", code="4.."),
    # 2yz or 3yz where it has no place, or nonsense: the dialogue lost its step.
    Rule("out of step", Verdict.DEFER, "RFC 5321 section 4.2.1", wait=minutes(5)),
)  # fmt: skip
