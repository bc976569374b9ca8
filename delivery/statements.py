"""The queue's statements that are written by hand, as text: claiming.py and queue.py run them.

By hand, not by the ORM, because compiling some of these takes as long as running them. Where a
worker makes the same move all the time, PostgreSQL gets it as one statement, prepared once a
connection: a round trip costs as much as the server's work.
"""

from __future__ import annotations

from campaigns.models import (
    Campaign,
    CampaignTotals,
    MailingList,
    Subscriber,
    Subscription,
    Suppression,
)
from campaigns.states import CampaignStatus, SubscriptionStatus
from delivery.models import Claim, Delivery, ProviderState
from delivery.states import DeliveryStatus

_S = DeliveryStatus
_DELIVERIES = Delivery._meta.db_table
_CLAIMS = Claim._meta.db_table
_CAMPAIGNS = Campaign._meta.db_table
_TOTALS = CampaignTotals._meta.db_table
_IS_WAITING = f"status IN ('{_S.QUEUED.value}', '{_S.DEFERRED.value}')"


def _totals(changes: dict[str, str]) -> str:
    """Adds to the campaigns' totals: {count: expression over a row of ``moves``}, on one shard."""
    counts = CampaignTotals.COUNTS
    sums = ", ".join(f"{name} = t.{name} + EXCLUDED.{name}" for name in changes)
    return (
        f"INSERT INTO {_TOTALS} AS t (campaign_id, shard, {', '.join(counts)})"
        f" SELECT campaign_id, %(shard)s, {', '.join(changes.get(name, '0') for name in counts)}"
        f" FROM moves ON CONFLICT (campaign_id, shard) DO UPDATE SET {sums}"
    )


# ---------------------------------------------------------------------------------- claiming

_NAMES = "SELECT jsonb_array_elements_text(CAST(%(names)s AS jsonb))"
# Each claim asks these two: compiling them would take longer than running them.
STATE_OF_PROVIDER = f"SELECT * FROM {ProviderState._meta.db_table} WHERE alias = %s"
_ARE_OPEN = f"c.status = '{CampaignStatus.SENDING.value}' AND c.provider IN ({{names}})"
OPEN_CAMPAIGNS = f"SELECT c.id FROM {_CAMPAIGNS} c WHERE {_ARE_OPEN} ORDER BY c.id"
# Both at once, of a provider about which a claim needs to know nothing more.
OPENING = f"""
    SELECT p.groups_held, (
               SELECT json_agg(json_build_array(c.id, c.priority)) FROM {_CAMPAIGNS} c
                WHERE {_ARE_OPEN.format(names=_NAMES)})
      FROM {ProviderState._meta.db_table} p
     WHERE p.alias = %(alias)s AND NOT p.stopped AND p.failures = 0
       AND (p.paused_until IS NULL OR p.paused_until <= %(now)s)
       AND (p.groups_held_until IS NULL OR p.groups_held_until <= %(now)s)
"""

# The index delivery_open is in the order in which letters are taken: ordering by id would walk the
# primary key over every finished letter. Sub-queries for one row each, not EXISTS: PostgreSQL would
# read the whole table of subscriptions into a hash table for each claim.
_DUE = f"""
    SELECT d.id, d.campaign_id, d.edition_id, COALESCE(d.subscriber_id, 0) AS subscriber_id,
           d.rcpt_to, d.is_test, d.attempts, d.queued_at, COALESCE(s.name, '') AS name,
           COALESCE(s.language, '') AS language, s.attributes, COALESCE(l.name, '') AS list_name,
           COALESCE(l.label, '') AS list_label, d.status, d.is_test OR (
               (SELECT 1 FROM {Subscription._meta.db_table} c
                  JOIN {Campaign.include_lists.through._meta.db_table} i
                    ON i.mailinglist_id = c.mailing_list_id
                 WHERE c.subscriber_id = d.subscriber_id AND i.campaign_id = d.campaign_id
                   AND c.status = '{SubscriptionStatus.SUBSCRIBED.value}' LIMIT 1) IS NOT NULL
               AND (SELECT 1 FROM {Suppression._meta.db_table} p
                     WHERE p.address_key = d.address_key AND p.lifted_at IS NULL
                     LIMIT 1) IS NULL) AS is_wanted
      FROM {_DELIVERIES} d
      LEFT JOIN {Subscriber._meta.db_table} s ON s.id = d.subscriber_id
      LEFT JOIN {MailingList._meta.db_table} l ON l.id = d.mailing_list_id
     WHERE {{which}} AND d.{_IS_WAITING} AND d.due_at <= {{now}}
"""
_IN_ORDER = "ORDER BY d.campaign_id, d.due_at, d.id LIMIT {limit}"
# Without is_open: so PostgreSQL has no choice but the index of test letters. It takes them for half
# of a new campaign's, of which it has no statistics, and would look for them among all that wait.
_OF_TESTS = (
    f"d.is_test AND d.campaign_id IN (SELECT c.id FROM {_CAMPAIGNS} c"
    " WHERE c.provider IN ({names}))"
)
_OF_A_CAMPAIGN = "d.campaign_id = {campaign} AND NOT d.is_test AND d.is_open"


def _due_by_position(which: str) -> str:
    return (_DUE + _IN_ORDER).format(which=which, now="%s", limit="%s")


# Each of these takes the moment and how many, after what it is about.
DUE_OF_A_CAMPAIGN = _due_by_position(_OF_A_CAMPAIGN.format(campaign="%s"))
DUE_OF_THESE = _due_by_position(_OF_A_CAMPAIGN.format(campaign="%s") + " AND {ids}")
DUE_TESTS = _due_by_position(_OF_TESTS)

# Due rows as one JSON list of lists, which takes a fraction of the time of rows: no driver has to
# make a Python value of each column.
_LETTER = (
    "id, campaign_id, edition_id, subscriber_id, rcpt_to, is_test, attempts, queued_at, name,"
    " language, {attributes}, list_name, list_label"
)
_AS_JSON = {
    "postgresql": "SELECT CAST(COALESCE(json_agg(json_build_array({columns})), '[]') AS text)",
    "sqlite": "SELECT json_group_array(json_array({columns}))",
}
_ATTRIBUTES = {"postgresql": "attributes", "sqlite": "json(attributes)"}
# With the state and whether the letter is still wanted; {due} is one of the above.
DUE_AS_JSON = {
    vendor: as_json.format(
        columns=_LETTER.format(attributes=_ATTRIBUTES[vendor]) + ", status, is_wanted"
    )
    + " FROM ({due}) AS due"
    for vendor, as_json in _AS_JSON.items()
}

# Those claims of which nothing is in hand any more. A sub-query for each letter, as in _DUE:
# PostgreSQL would read the whole table for an EXISTS.
_FORGET = (
    f"DELETE FROM {_CLAIMS} AS c WHERE c.claim_key = {{key}}"
    " AND NOT EXISTS (SELECT 1 FROM {elements} AS one"
    f" WHERE (SELECT d.is_open AND d.claim_key = c.claim_key FROM {_DELIVERIES} d"
    " WHERE d.id = CAST(one.value AS bigint)))"
)
_LETTERS_OF_CLAIM = {
    "postgresql": "jsonb_array_elements_text(CAST(c.delivery_ids AS jsonb))",
    "sqlite": "json_each(c.delivery_ids)",
}
FORGET = {
    vendor: _FORGET.format(key="%s", elements=elements)
    for vendor, elements in _LETTERS_OF_CLAIM.items()
}

_TESTS = _DUE.format(
    which=_OF_TESTS.format(names=_NAMES),
    now="%(now)s",
) + _IN_ORDER.format(limit="%(wanted)s")
_FIRSTS = _DUE.format(
    which=_OF_A_CAMPAIGN.format(campaign="%(campaign)s"), now="%(now)s"
) + _IN_ORDER.format(limit="%(wanted)s - (SELECT COUNT(*) FROM tests)")
_CLAIMED = _totals(
    {
        "queued": "-were_queued",
        "deferred": "were_queued - due",
        "claimed": "wanted",
        "suppressed": "due - wanted",
    }
)

# The usual claim of one campaign's letters, and of test letters before them.
CLAIM = f"""
    WITH tests AS ({_TESTS} FOR UPDATE OF d SKIP LOCKED),
    firsts AS ({_FIRSTS} FOR UPDATE OF d SKIP LOCKED),
    due AS (SELECT * FROM tests UNION ALL SELECT * FROM firsts),
    moved AS (
        UPDATE {_DELIVERIES} d
           SET status = CASE WHEN due.is_wanted THEN '{_S.CLAIMED.value}'
                             ELSE '{_S.SUPPRESSED.value}' END,
               claim_key = CASE WHEN due.is_wanted THEN %(key)s ELSE d.claim_key END,
               settled_at = CASE WHEN due.is_wanted THEN d.settled_at ELSE %(now)s END,
               reply = CASE WHEN due.is_wanted THEN d.reply ELSE '' END
          FROM due
         WHERE d.id = due.id AND d.{_IS_WAITING}
    ), forgotten AS (
        {_FORGET.format(key="%(key)s", elements=_LETTERS_OF_CLAIM["postgresql"])}
    ), noted AS (
        INSERT INTO {_CLAIMS} (claim_key, provider, delivery_ids)
        SELECT %(key)s, %(provider)s, CAST(json_agg(id ORDER BY n DESC) AS text)
          FROM (SELECT id, row_number() OVER () AS n FROM due WHERE is_wanted) AS claimed
        HAVING COUNT(*) > 0
    ), moves AS (
        SELECT campaign_id, COUNT(*) AS due, COUNT(*) FILTER (WHERE is_wanted) AS wanted,
               COUNT(*) FILTER (WHERE status = '{_S.QUEUED.value}') AS were_queued
          FROM due WHERE NOT is_test GROUP BY campaign_id
    ), counted AS ({_CLAIMED})
    {_AS_JSON["postgresql"].format(columns=_LETTER.format(attributes="attributes"))}
      FROM due WHERE is_wanted
"""

# ------------------------------------------------------------------------------ a worker's moves

# One parameter for the outcomes of a wave: unlike arrays both databases read it, and neither driver
# has to walk through it. PostgreSQL takes it for a hundred rows, whatever is in it, and may read
# the whole table for them: so the ids are named once more.
SENT = (
    f"status = '{_S.SENT.value}', claim_key = NULL, attempts = v.attempts, code = v.code,"
    " reply = v.reply, settled_at = {now}"
)
# A list of (id, attempts, code, reply), as rows; {outcomes} is the parameter.
_ROWS = (
    "(SELECT CAST(value ->> 0 AS bigint) AS id, CAST(value ->> 1 AS smallint) AS attempts,"
    " CAST(value ->> 2 AS smallint) AS code, value ->> 3 AS reply FROM {elements})"
)
ROWS_OF = {
    "postgresql": _ROWS.format(elements="jsonb_array_elements(CAST({outcomes} AS jsonb))"),
    "sqlite": _ROWS.format(elements="json_each({outcomes})"),
}

# A letter may leave: its campaign is still sending, and no other worker closed the provider, or
# found that a group of domains wants to be left alone: then all are claimed anew, without it.
MAY_LEAVE = (
    f"(is_test OR EXISTS (SELECT 1 FROM {_CAMPAIGNS} c"
    f" WHERE c.id = campaign_id AND c.status = '{CampaignStatus.SENDING.value}'))"
    f" AND NOT EXISTS (SELECT 1 FROM {ProviderState._meta.db_table} p"
    " WHERE p.alias = {provider} AND (p.stopped OR p.paused_until > {now}"
    " OR p.groups_held <> {groups_held}))"
)

_MAY_LEAVE_BY_NAME = MAY_LEAVE.format(
    provider="%(provider)s", now="%(now)s", groups_held="CAST(%(groups_held)s AS bigint)"
)
_EXCHANGED = _totals({"sent": "sent", "claimed": "-noted", "sending": "noted - sent"})

# The usual wave: all were accepted, and as many leave. {sent} and {wave} name the rows once more.
EXCHANGE = f"""
    WITH sent AS (
        UPDATE {_DELIVERIES} d SET {SENT.format(now="%(now)s")}
          FROM {ROWS_OF["postgresql"].format(outcomes="%(outcomes)s")} AS v
         WHERE d.id = v.id AND {{sent}}
           AND d.claim_key = %(key)s AND d.status = '{_S.SENDING.value}'
        RETURNING d.id, d.campaign_id, d.is_test
    ), noted AS (
        UPDATE {_DELIVERIES}
           SET status = '{_S.SENDING.value}', handed_over_at = %(now)s, provider = %(provider)s
         WHERE {{wave}} AND status = '{_S.CLAIMED.value}' AND claim_key = %(key)s
           AND {_MAY_LEAVE_BY_NAME}
        RETURNING id, campaign_id, is_test
    ), moves AS (
        SELECT campaign_id, SUM(was_sent) AS sent, SUM(was_noted) AS noted
          FROM (SELECT campaign_id, 1 AS was_sent, 0 AS was_noted FROM sent WHERE NOT is_test
                UNION ALL SELECT campaign_id, 0, 1 FROM noted WHERE NOT is_test) AS each
         GROUP BY campaign_id ORDER BY campaign_id
    ), counted AS ({_EXCHANGED})
    SELECT COALESCE((SELECT array_agg(id) FROM sent), ARRAY[]::bigint[]),
           COALESCE((SELECT array_agg(id) FROM noted), ARRAY[]::bigint[])
"""

# Planned once, it finds each letter by its id; so nothing needs to be named twice.
EXCHANGE_PREPARED = EXCHANGE.format(
    sent="TRUE",
    wave="id = ANY(CAST(%(wave)s AS bigint[]))",
)
