"""Outcomes that are known and not yet written. The worker's memory between two commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from delivery.outcomes import Accepted, Outcome, Unavailable, Unconfirmed

# What a rest of unknown length counts as, beside others: the first default pause.
DEFAULT_REST = timedelta(seconds=30)


class Result(NamedTuple):
    """The outcome of one letter; ``reference`` is its delivery's id."""

    reference: int
    outcome: Outcome


def _trouble_of(outcome: Outcome) -> Unavailable | None:
    match outcome:
        case Unavailable():
            return outcome
        case Unconfirmed(reply=reply, rule=rule, rests=True, retry_after=wait):
            return Unavailable(reply, wait, rule=rule)
        case _:
            return None


def _gravity(trouble: Unavailable) -> tuple[bool, timedelta]:
    wish = trouble.retry_after
    return trouble.needs_a_person, DEFAULT_REST if wish is None else wish


class Ledger(list[Result]):
    """Results in the order in which they came. Nothing leaves it before it was committed."""

    def pending(self) -> list[Result]:
        """What must be written with the next commit."""
        return list(self)

    def written(self, results: Sequence[Result]) -> None:
        """Forgets what a commit has made durable: what was pending() when it began."""
        del self[: len(results)]

    @staticmethod
    def trouble(results: Sequence[Result]) -> Unavailable | None:
        """The provider's gravest trouble among these results: what only a person can mend, then
        the longest rest that was asked for; None when there was no trouble."""
        # Nearly all are accepted, and looked at no further.
        others = [r.outcome for r in results if not isinstance(r.outcome, Accepted)]
        found = [trouble for one in others if (trouble := _trouble_of(one)) is not None]
        return max(found, key=_gravity, default=None)

    @staticmethod
    def any_accepted(results: Sequence[Result]) -> bool:
        """Whether the provider took at least one of these letters."""
        return any(isinstance(result.outcome, Accepted) for result in results)
