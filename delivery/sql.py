"""What statements that are written by hand share: values as both databases and their drivers take
and give them, and how PostgreSQL plans what runs all the time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from django.db import connection, transaction
from psycopg import RawCursor

T = TypeVar("T")


class Statement(NamedTuple):
    """A statement and its parameters by name, to be prepared; it answers with one row.

    ``procedure``: what does the same in SQLite (delivery/sqlite_server.py).
    """

    sql: str
    parameters: Mapping[str, Any]
    procedure: str = ""

    @property
    def numbered(self) -> tuple[str, list[Any]]:
        """As PostgreSQL itself takes it, for psycopg's raw cursors: what looks for names in each
        statement anew takes an eighth of the time that a wave of no letter takes the worker."""
        text, names = _numbered(self.sql)
        values = [self.parameters[name] for name in names]
        return text, [_as_array(value) if type(value) is list else value for value in values]

    @property
    def portable(self) -> dict[str, Any]:
        """The parameters without moments, as SQLite takes them and processes can exchange them."""
        return {
            name: as_parameter(value) if isinstance(value, datetime) else value
            for name, value in self.parameters.items()
        }


def _as_array(ids: Sequence[int]) -> str:
    return "{" + ",".join(map(str, ids)) + "}"


_NAME_OR_PERCENT = re.compile(r"%(?:\((\w+)\)s|%)")


@lru_cache(maxsize=64)
def _numbered(text: str) -> tuple[str, list[str]]:
    """The statement with $1, $2 ... for its parameters, and their names in this order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return _NAME_OR_PERCENT.sub(number, text), names


# A move made of prepared statements: it asks for one after the other, is sent the row of each, and
# returns what came of it. Who drives it decides how they are run: ``run_prepared`` here, or the
# event loop (``run_by`` for the sessions).
Row = tuple[Any, ...]
Steps = Generator[Statement, Row | None, T]


async def run_by(ask: Callable[[Statement], Awaitable[Row | None]], steps: Steps[T]) -> T:
    """Runs statements by one who answers each, until the last one's answer was made use of."""
    answer: Row | None = None
    while True:
        try:
            statement = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = await ask(statement)


def among(column: str, ids: Sequence[int]) -> str:
    """Our own numbers, written into the statement: a thousand parameters take longer to bind than
    to find. True for no row where there are none."""
    return f"{column} IN ({', '.join(map(str, map(int, ids))) or 'NULL'})"


@contextlib.contextmanager
def in_order_of_an_index() -> Iterator[None]:
    """The first rows in the order of an index are read from it, also where PostgreSQL takes them
    for few. It does at the start of every campaign: its statistics do not know the campaign, and
    take what goes together (waiting, open, of this campaign) for chance. So it would read and sort
    all that wait, for each claim: 286 ms for 60,000 letters instead of 4.

    For nothing else: rows that another index finds would be looked for by walking the ordered one.
    In a transaction, which this begins where there is none.
    """
    if connection.vendor != "postgresql":
        yield
        return
    goes_on = connection.in_atomic_block
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_sort = off")
        yield
        if goes_on:
            cursor.execute("SET LOCAL enable_sort TO DEFAULT")


def keeps_statements() -> bool:
    """Whether ``run_prepared`` may be used: PostgreSQL, and no pooler before it that gives each
    transaction another session (who has one sets DISABLE_SERVER_SIDE_CURSORS, as Django says)."""
    pooled = connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS", False)
    return connection.vendor == "postgresql" and not pooled


# A plan that is made once and kept must suit tables of every size, and they are small when a
# campaign begins: rows are looked up by an index, one by one, whatever they hold now.
KEPT_PLANS = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;"
    " SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;"
    " SET enable_memoize = off; SET jit = off"
)
# Django has psycopg prepare nothing, not even where it is told to. Also the mark of a connection
# that has been told how to plan.
_NEVER_UNASKED = 2**31


def run_prepared(steps: Steps[T]) -> T:
    """Runs statements that PostgreSQL parses and plans once for each connection, on this thread's.

    For statements that run all the time and find their rows by an index: planning one that moves
    two letters takes three times as long as running it. From then on the connection plans all
    statements for lookups: it should be one that does little else. Django's errors; in autocommit
    each statement commits.
    """
    connection.ensure_connection()
    raw: Any = connection.connection
    answer: Row | None = None
    with connection.wrap_database_errors:
        if raw.prepare_threshold != _NEVER_UNASKED:
            raw.execute(KEPT_PLANS)
            raw.prepare_threshold = _NEVER_UNASKED
        with RawCursor(raw) as cursor:
            while True:
                try:
                    statement = steps.send(answer)
                except StopIteration as end:
                    result: T = end.value
                    return result
                answer = cursor.execute(*statement.numbered, prepare=True).fetchone()


def as_moment(value: datetime) -> datetime:
    """A moment as a raw query gives it: SQLite does not say that it is UTC."""
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def as_parameter(value: Any) -> Any:
    """As the ORM would write it: SQLite has no type for moments, drivers differ over enums."""
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.value if isinstance(value, Enum) else value
