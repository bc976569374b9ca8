"""The emulator's delta queries (learn.microsoft.com/graph/delta-query-messages), one folder each.

As nasty as the real ones were seen to be: a round may begin with an empty page, repeats a mail at
the turn of a page, and only the links of the last rounds are remembered.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_ON_A_PAGE = 50
PAGE = 10
ROUNDS_REMEMBERED = 3


@dataclass(frozen=True, slots=True)
class Change:
    """``shown``: what is told of the mail; of one that left the folder only its id."""

    id: str
    shown: Mapping[str, Any]
    is_new: bool


@dataclass
class DeltaFeed:
    """``look`` gives what lies in the folder now, by immutable id."""

    look: Callable[[], Mapping[str, Mapping[str, Any]]]
    is_nasty: bool = True
    changes: list[Change] = field(default_factory=list)
    _known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    # Rounds under way by their number, and the place in ``changes`` at which a finished one ended.
    _rounds: dict[int, tuple[list[Change], int]] = field(default_factory=dict)
    _finished: dict[int, int] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def forget(self) -> None:
        """All links are forgotten, as those of an old round are."""
        self._rounds.clear()
        self._finished.clear()

    def answer(
        self, query: Mapping[str, str], prefer: str, url: str
    ) -> tuple[int, dict[str, Any]] | None:
        """Status and body of a request; None when its link is forgotten."""
        self._notice()
        if skip := query.get("$skiptoken"):
            number, offset = map(int, skip.split("."))
            if number not in self._rounds:
                return None
        else:
            begun = self._begin(query)
            if begun is None:
                return None
            number, offset = begun, 0
            if self.is_nasty:
                return 200, {"value": [], "@odata.nextLink": f"{url}?$skiptoken={number}.0"}
        return 200, self._page(number, offset, prefer, url)

    def _notice(self) -> None:
        now = self.look()
        for id, shown in now.items():
            if id not in self._known:
                self.changes.append(Change(id, shown, True))
        for id in self._known.keys() - now.keys():
            gone = {"id": id, "@removed": {"reason": "deleted"}}
            self.changes.append(Change(id, gone, False))
        self._known = dict(now)

    def _begin(self, query: Mapping[str, str]) -> int | None:
        if token := query.get("$deltatoken"):
            if int(token) not in self._finished:
                return None
            told = self.changes[self._finished[int(token)] :]
        else:
            told = [Change(id, shown, True) for id, shown in self._known.items()]
        if query.get("changeType") == "created" or "$deltatoken" in query:
            told = [change for change in told if change.is_new]
        number = next(self._numbers)
        self._rounds[number] = told, len(self.changes)
        return number

    def _page(self, number: int, offset: int, prefer: str, url: str) -> dict[str, Any]:
        told, end = self._rounds[number]
        asked = re.search(r"odata\.maxpagesize=(\d+)", prefer)
        size = min(int(asked[1]) if asked else PAGE, MOST_ON_A_PAGE)
        first = max(0, offset - 1) if self.is_nasty else offset
        page: dict[str, Any] = {"value": [dict(c.shown) for c in told[first : offset + size]]}
        if offset + size < len(told):
            return page | {"@odata.nextLink": f"{url}?$skiptoken={number}.{offset + size}"}
        self._finished[number] = end
        for old in sorted(self._finished)[:-ROUNDS_REMEMBERED]:
            self._finished.pop(old)
            self._rounds.pop(old, None)
        return page | {"@odata.deltaLink": f"{url}?$deltatoken={number}"}
