"""From a refusal to its Outcome, by the table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from delivery.outcomes import (
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Speaker,
    Throttle,
    Unavailable,
)
from delivery.replies.rules import Rule, Verdict, names_a_route
from delivery.replies.table import RULES
from delivery.replies.wishes import wish
from delivery.status_codes import EnhancedStatus

# Gmail repeats the enhanced status on every line, in the middle of its sentences.
_LINE_END = re.compile(r"\s*\n\s*(?:[245]\.\d{1,3}\.\d{1,3}(?=\s))?\s*|\s{2,}")
# Readers choose their addresses, and servers repeat them: throttling@example.org slows nobody.
_ADDRESS = re.compile(r"[^\s<>()\[\]\"',;:]{1,64}@[^\s<>()\[\]\"',;]+")
# A relay that hands on what it was told: "host mx.example.org said: 550 5.1.1 ...", Exim's "SMTP
# error from remote mail server", "(in reply to RCPT TO command)".
_QUOTES = re.compile(r"\bsaid: |remote (?:mail )?server|remote host|\(in reply to ")
_QUOTED = re.compile(r"(?:said|command\)?|server\b[^:]{0,120}): ?[45]\d\d[ -](?=[245]\.)")
_QUOTABLE = frozenset({Phase.RCPT, Phase.DATA, Phase.FINAL_DOT})
# Enhanced statuses come from outside: what was not seen before must not grow our memory.
_REMEMBERED = 4096


class Classifier:
    """An ordered table made ready: of each reply only the rules that its phase, speaker, code and
    enhanced status allow are tried against its text."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._candidates = lru_cache(maxsize=_REMEMBERED)(self._find_candidates)

    def _find_candidates(
        self, phase: Phase, speaker: Speaker, code: int | None, enhanced: str, to_a_route: bool
    ) -> tuple[Rule, ...]:
        found = []
        for rule in self.rules:
            if rule.may_fit(phase, speaker, code, enhanced, to_a_route):
                found.append(rule)
                if rule.pattern is None:
                    break  # it fits whatever the text: the rest is never asked
        return tuple(found)

    def rule_for(self, reply: Reply, rcpt_to: str = "") -> Rule:
        """The first rule that fits. There always is one: the last fits everything."""
        return self._rule_for(reply, one_line(reply.text), rcpt_to)

    def _rule_for(self, reply: Reply, text: str, rcpt_to: str) -> Rule:
        enhanced = reply.enhanced
        speaker = reply.speaker
        if reply.phase in _QUOTABLE and _QUOTES.search(text):
            speaker = Speaker.READER
            if enhanced is None and (quoted := _QUOTED.search(text)):
                enhanced = EnhancedStatus.leading(text[quoted.end() :])
        candidates = self._candidates(
            reply.phase,
            speaker,
            reply.code,
            str(enhanced) if enhanced else "",
            names_a_route(rcpt_to),
        )
        return next(
            rule for rule in candidates if rule.pattern is None or rule.pattern.search(text)
        )

    def classify(self, reply: Reply, rcpt_to: str = "") -> Outcome:
        """What a refusal before acceptance means, of a letter to ``rcpt_to``. Never Accepted or
        Unconfirmed: a provider decides those by what it wrote and read, not by a text."""
        text = one_line(reply.text)
        rule = self._rule_for(reply, text, rcpt_to)
        wait = wish(text) if reply.code is not None else None
        if wait is None:
            wait = rule.wait
        match rule.verdict:
            case Verdict.DEFER:
                return Deferred(reply, wait, rule.name)
            case Verdict.SLOW:
                return Deferred(reply, wait, rule.name, Throttle.SLOW)
            case Verdict.PAUSE:
                return Deferred(reply, wait, rule.name, Throttle.PAUSE)
            case Verdict.BLOCKED:
                return Deferred(reply, wait, rule.name, Throttle.PAUSE, needs_a_person=True)
            case Verdict.REJECT:
                return Rejected(reply, rule=rule.name)
            case Verdict.BAD_ADDRESS:
                return Rejected(reply, address_is_bad=True, rule=rule.name)
            case Verdict.BUSY:
                return Unavailable(reply, wait, rule=rule.name, throttle=Throttle.SLOW)
            case Verdict.UNAVAILABLE:
                return Unavailable(reply, wait, rule=rule.name)
            case Verdict.STOP:
                return Unavailable(reply, needs_a_person=True, rule=rule.name)


def one_line(text: str) -> str:
    """A reply as rules see it: one line in lower case, without addresses and without the statuses
    that begin its further lines."""
    if "@" in text:
        text = _ADDRESS.sub("@", text)
    return _LINE_END.sub(" ", text).strip().lower()


_OUR_OWN = Classifier(RULES)
_in_force = _OUR_OWN


def put_before(rules: Iterable[Rule]) -> None:
    """Puts an operator's rules before ours, in place of those put there earlier.

    Called by delivery/conf.py when it reads the settings: providers are values and see none.
    """
    global _in_force
    rules = tuple(rules)
    _in_force = Classifier((*rules, *RULES)) if rules else _OUR_OWN


def classify(reply: Reply, rcpt_to: str = "") -> Outcome:
    """What a refusal means, by the operator's rules and then by ours; ``rcpt_to`` where it is about
    one letter."""
    return _in_force.classify(reply, rcpt_to)


def rule_for(reply: Reply, rcpt_to: str = "") -> Rule:
    """The rule that decides about a refusal."""
    return _in_force.rule_for(reply, rcpt_to)
