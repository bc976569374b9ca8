"""What a refusal means: one ordered table, data and not code; the first rule that fits decides."""

from delivery.replies.classify import Classifier, classify, put_before, rule_for
from delivery.replies.rules import Rule, Verdict
from delivery.replies.table import RULES

DEFAULT_RULES = frozenset(rule.name for rule in RULES if rule.is_default)

__all__ = [
    "DEFAULT_RULES",
    "RULES",
    "Classifier",
    "Rule",
    "Verdict",
    "classify",
    "put_before",
    "rule_for",
]
