"""From a refusal to its Outcome, by the table."""

from __future__ import annotations

from delivery.outcomes import Deferred, Outcome, Rejected, Reply, Unavailable
from delivery.replies.table import RULES, Rule, Verdict


def rule_for(reply: Reply) -> Rule:
    """The first rule that fits. There always is one: the last fits everything."""
    enhanced = str(reply.enhanced or "")
    return next(rule for rule in RULES if rule.fits(reply.phase, reply.code, enhanced, reply.text))


def classify(reply: Reply) -> Outcome:
    """What a refusal before acceptance means. Never Accepted or Unconfirmed: a provider decides
    those by what it wrote and read, not by a text."""
    rule = rule_for(reply)
    match rule.verdict:
        case Verdict.DEFER:
            return Deferred(reply, rule.wait, rule.name)
        case Verdict.REJECT:
            return Rejected(reply, rule=rule.name)
        case Verdict.BAD_ADDRESS:
            return Rejected(reply, address_is_bad=True, rule=rule.name)
        case Verdict.UNAVAILABLE:
            return Unavailable(reply, rule.wait, rule=rule.name)
        case Verdict.STOP:
            return Unavailable(reply, needs_a_person=True, rule=rule.name)
