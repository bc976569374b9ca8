"""What statements that are written by hand share: values as both databases and their drivers take
and give them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any

from django.db import connection
from django.utils.timezone import make_aware


def among(column: str, ids: Sequence[int]) -> str:
    """Our own numbers, written into the statement: a thousand parameters take longer to bind than
    to find. True for no row where there are none."""
    return f"{column} IN ({', '.join(map(str, map(int, ids))) or 'NULL'})"


def as_moment(value: datetime) -> datetime:
    """A moment as a raw query gives it: SQLite does not say that it is UTC."""
    return value if value.tzinfo is not None else make_aware(value, connection.timezone)


def as_parameter(value: Any) -> Any:
    """As the ORM would write it: SQLite has no type for moments, drivers differ over enums."""
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.value if isinstance(value, Enum) else value
