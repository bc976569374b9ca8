"""Campaigns' totals, kept by the moves themselves: each transaction writes what it moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from django.db import connection

from campaigns.models import CampaignTotals

# Moves that no worker makes are counted on this shard; a worker counts on its slot + 1, and its
# claims on a shard of their own: they run beside its commits, and must not wait for the same row.
COMMON_SHARD = 0
SHARDS_OF_CLAIMS = 1000


class Tally:
    """The moves of one transaction, as changes of the campaigns' totals. Written once, at its end:
    that row is the one which a worker's transactions all touch."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._changes: dict[int, Counter[str]] = {}

    def add(self, campaign_id: int, is_test: bool, source: str, target: str, count: int) -> None:
        """So many letters of a campaign moved; test letters are not counted."""
        if not is_test:
            counter = self._changes.setdefault(campaign_id, Counter())
            counter[str(source)] -= count
            counter[str(target)] += count

    def moved(self, rows: Sequence[tuple[Any, ...]], source: str, target: str) -> None:
        """Rows that begin with (id, campaign, is test letter)."""
        for (campaign_id, is_test), count in Counter((row[1], row[2]) for row in rows).items():
            self.add(campaign_id, is_test, source, target, count)

    def write(self) -> None:
        """In the order of ids: two transactions that touch the same campaigns must not deadlock."""
        for campaign_id in sorted(self._changes):
            changes = {name: by for name, by in self._changes[campaign_id].items() if by}
            if changes and not self._update(campaign_id, changes):
                CampaignTotals.add(campaign_id, self._shard, changes)

    def _update(self, campaign_id: int, changes: Mapping[str, int]) -> int:
        """In SQL: compiling F() expressions would take longer than the statement, in every wave."""
        sums = ", ".join(f"{name} = {name} + %s" for name in changes)
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {CampaignTotals._meta.db_table} SET {sums}"
                " WHERE campaign_id = %s AND shard = %s",
                [*changes.values(), campaign_id, self._shard],
            )
            return cursor.rowcount
