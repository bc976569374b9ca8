"""Readers in bulk: looked up, added, completed and put on a list, a statement for a whole batch.

Plain SQL: on SQLite an import by the ORM's bulk_create takes five times the CPU per reader. A
batch travels as one JSON parameter that the database takes apart as a table; how it does so is
all in which the two databases differ. Everything here runs in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from campaigns.states import SubscriptionStatus


@dataclass(slots=True)
class Reader:
    """A reader as the database has them, or as it shall have them.

    ``status``: of the subscription to the list in question; empty when there is none.
    """

    address_key: str
    email: str
    name: str = ""
    language: str = ""
    attributes: dict[str, Any] | None = None
    status: str = ""


# A table v of the readers in one JSON parameter.
_READERS = {
    "postgresql": """
        jsonb_to_recordset(%s::jsonb)
        AS v(address_key text, email text, name text, language text, attributes jsonb)
    """,
    "sqlite": """
        (SELECT json_extract(value, '$.address_key') AS address_key,
                json_extract(value, '$.email') AS email,
                json_extract(value, '$.name') AS name,
                json_extract(value, '$.language') AS language,
                json_extract(value, '$.attributes') AS attributes
         FROM json_each(%s)) AS v
    """,
}
# Whether an address key is among those in one JSON parameter.
_AMONG_KEYS = {
    "postgresql": "address_key = ANY(ARRAY(SELECT jsonb_array_elements_text(%s::jsonb)))",
    "sqlite": "address_key IN (SELECT value FROM json_each(%s))",
}
# SQLite has no row locks and needs none: its transactions exclude each other from the beginning.
_HOLD = {"postgresql": "FOR UPDATE OF s", "sqlite": ""}


def hold_readers(mailing_list_id: int, keys: Sequence[str]) -> dict[str, Reader]:
    """The readers of these keys, by key, locked until the end of the transaction."""
    rows = _rows(
        f"""
        SELECT s.address_key, s.email, s.name, s.language, s.attributes, COALESCE(o.status, '')
        FROM campaigns_subscriber s
        LEFT JOIN campaigns_subscription o
               ON o.subscriber_id = s.id AND o.mailing_list_id = %s
        WHERE s.{_AMONG_KEYS[connection.vendor]}
        ORDER BY s.address_key {_HOLD[connection.vendor]}
        """,  # noqa: S608  (nothing but our own words is put together here)
        [mailing_list_id, json.dumps(keys)],
    )
    return {
        key: Reader(key, email, name, language, json.loads(attributes), status)
        for key, email, name, language, attributes, status in rows
    }


def suppressed_keys(keys: Sequence[str]) -> set[str]:
    """Those of the keys whose address gets nothing."""
    rows = _rows(
        f"""
        SELECT address_key FROM campaigns_suppression
        WHERE lifted_at IS NULL AND {_AMONG_KEYS[connection.vendor]}
        """,  # noqa: S608
        [json.dumps(keys)],
    )
    return {key for (key,) in rows}


def add_readers(readers: Sequence[Reader], now: datetime) -> None:
    """Adds new readers. IntegrityError when somebody else has added one of them."""
    moment = connection.ops.adapt_datetimefield_value(now)
    _write(
        f"""
        INSERT INTO campaigns_subscriber
            (email, address_key, name, language, attributes, created_at, updated_at)
        SELECT v.email, v.address_key, v.name, v.language, v.attributes, %s, %s
        FROM {_READERS[connection.vendor]}
        WHERE true ORDER BY v.address_key
        """,  # noqa: S608
        [moment, moment, _as_json(readers)],
        readers,
    )


def complete_readers(readers: Sequence[Reader], now: datetime) -> None:
    """Writes name, language and attributes of readers that exist."""
    _write(
        f"""
        UPDATE campaigns_subscriber AS s
        SET name = v.name, language = v.language, attributes = v.attributes, updated_at = %s
        FROM {_READERS[connection.vendor]}
        WHERE s.address_key = v.address_key
        """,  # noqa: S608
        [connection.ops.adapt_datetimefield_value(now), _as_json(readers)],
        readers,
    )


def subscribe_readers(
    mailing_list_id: int, keys: Sequence[str], *, source: str, by_id: int | None, now: datetime
) -> None:
    """Puts readers who are not on the list on it, and begins the history of each.

    IntegrityError when one of them is on the list already.
    """
    moment = connection.ops.adapt_datetimefield_value(now)
    subscribed = SubscriptionStatus.SUBSCRIBED.value
    among = _AMONG_KEYS[connection.vendor]
    _write(
        f"""
        INSERT INTO campaigns_subscription
            (subscriber_id, mailing_list_id, status, source, created_at, changed_at)
        SELECT s.id, %s, %s, %s, %s, %s FROM campaigns_subscriber s
        WHERE s.{among} ORDER BY s.id
        """,  # noqa: S608
        [mailing_list_id, subscribed, source, moment, moment, json.dumps(keys)],
        keys,
    )
    _write(
        f"""
        INSERT INTO campaigns_subscriptionevent
            (subscription_id, from_status, to_status, source, note, at, by_id)
        SELECT o.id, '', %s, %s, '', %s, %s
        FROM campaigns_subscriber s
        JOIN campaigns_subscription o ON o.subscriber_id = s.id AND o.mailing_list_id = %s
        WHERE s.{among} ORDER BY o.id
        """,  # noqa: S608
        [subscribed, source, moment, by_id, mailing_list_id, json.dumps(keys)],
        keys,
    )


def _as_json(readers: Iterable[Reader]) -> str:
    return json.dumps(
        [
            {
                "address_key": reader.address_key,
                "email": reader.email,
                "name": reader.name,
                "language": reader.language,
                "attributes": reader.attributes or {},
            }
            for reader in readers
        ]
    )


def _rows(sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def _write(sql: str, parameters: list[Any], what: Sequence[Any]) -> None:
    if what:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
