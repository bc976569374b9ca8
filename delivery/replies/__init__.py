"""What a refusal means: one ordered table, data and not code; the first rule that fits decides."""

from delivery.replies.classify import classify
from delivery.replies.table import RULES, Rule, Verdict

__all__ = ["RULES", "Rule", "Verdict", "classify"]
