"""Replies that no rule knows by more than the class of their code, counted for a person to see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from django.db import connection

from delivery.models import UnclassifiedReply
from delivery.outcomes import Reply
from delivery.replies import DEFAULT_RULES
from delivery.replies.normalising import normalised

# A server whose texts never repeat must not fill our disk: what is new then counts together.
MOST_ROWS = 1000
OTHERS = "(others)"

_Key = tuple[str, int, str, str]


def note(decided: Iterable[tuple[Reply, str]], now: datetime) -> int:
    """Counts the replies among (reply, name of its rule) that only a default decided; how many.

    One statement for a whole wave, none when every reply was known; in the caller's transaction.
    """
    counts: Counter[_Key] = Counter(
        (reply.phase.value, reply.code or 0, normalised(reply.text), rule)
        for reply, rule in decided
        if rule in DEFAULT_RULES
    )
    if counts:
        _add(_within_bounds(counts), now)
    return counts.total()


def _within_bounds(counts: Counter[_Key]) -> Counter[_Key]:
    if UnclassifiedReply.objects.count() + len(counts) <= MOST_ROWS:
        return counts
    known = set(
        UnclassifiedReply.objects.filter(
            text__in={text for _p, _c, text, _r in counts}
        ).values_list("phase", "code", "text")
    )
    bounded: Counter[_Key] = Counter()
    for (phase, code, text, rule), count in counts.items():
        text = text if (phase, code, text) in known else OTHERS
        bounded[phase, code, text, rule] += count
    return bounded


def _add(counts: Counter[_Key], now: datetime) -> None:
    """One statement; the ORM's bulk_create cannot add. In the order of the keys: two workers that
    meet the same texts must not deadlock."""
    by_text: dict[tuple[str, int, str], tuple[str, int]] = {}
    for (phase, code, text, rule), count in sorted(counts.items()):
        before = by_text.get((phase, code, text), ("", 0))[1]
        by_text[phase, code, text] = (rule, before + count)
    moment = connection.ops.adapt_datetimefield_value(now)
    table = UnclassifiedReply._meta.db_table
    values = [
        value
        for (phase, code, text), (rule, count) in by_text.items()
        for value in (phase, code, text, rule, count, moment, moment)
    ]
    row = "(%s, %s, %s, %s, %s, %s, %s)"
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (phase, code, text, rule, count, first_seen, last_seen)"  # noqa: S608
            f" VALUES {', '.join([row] * len(by_text))}"
            " ON CONFLICT (phase, code, text) DO UPDATE SET"
            f" count = {table}.count + excluded.count, last_seen = excluded.last_seen,"
            " rule = excluded.rule",
            values,
        )
