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
from delivery.models import Claim, Delivery, ProviderState, QueuePage
from delivery.states import DeliveryStatus


def _literal(value: str | bool | None) -> str:
    if isinstance(value, str):
        return f"'{value}'"
    return "NULL" if value is None else str(value).upper()


_S = DeliveryStatus
_DELIVERIES = Delivery._meta.db_table
_CLAIMS = Claim._meta.db_table
_CAMPAIGNS = Campaign._meta.db_table
_TOTALS = CampaignTotals._meta.db_table
_PAGES = QueuePage._meta.db_table
# What a move to each state writes besides what is its own.
MOVED_TO = {
    status: ", ".join(f"{name} = {_literal(value)}" for name, value in columns.items())
    for status, columns in ((status, Delivery.of_state(status)) for status in DeliveryStatus)
}
_IS_WAITING = f"status IN ('{_S.QUEUED.value}', '{_S.DEFERRED.value}')"
_IS_IN_HAND = f"status IN ('{_S.CLAIMED.value}', '{_S.SENDING.value}')"


def _totals(changes: dict[str, str]) -> str:
    """Adds to the campaigns' totals: {count: expression over a row of ``moves``}, on one shard."""
    counts = CampaignTotals.COUNTS
    sums = ", ".join(f"{name} = t.{name} + EXCLUDED.{name}" for name in changes)
    return (
        f"INSERT INTO {_TOTALS} AS t (campaign_id, shard, {', '.join(counts)})"
        f" SELECT campaign_id, %(shard)s, {', '.join(changes.get(name, '0') for name in counts)}"
        # SQLite would take ON CONFLICT without a WHERE before it for the condition of a join.
        f" FROM moves WHERE true ON CONFLICT (campaign_id, shard) DO UPDATE SET {sums}"
    )


# ---------------------------------------------------------------------------------- claiming

_NAMES = "SELECT jsonb_array_elements_text(CAST(%(names)s AS jsonb))"
# Each claim asks these two: compiling them would take longer than running them.
STATE_OF_PROVIDER = f"SELECT * FROM {ProviderState._meta.db_table} WHERE alias = %s"
_ARE_OPEN = f"c.status = '{CampaignStatus.SENDING.value}' AND c.provider IN ({{names}})"
OPEN_CAMPAIGNS = f"SELECT c.id FROM {_CAMPAIGNS} c WHERE {_ARE_OPEN} ORDER BY c.id"
# All at once, of a provider about which a claim needs to know nothing more. With each campaign how
# many letters stand in the first pages of its queue.
_OPENING = f"""
    SELECT p.groups_held, (
               SELECT {{list_of}}({{list}}(c.id, c.priority, (
                          SELECT COALESCE(SUM(last_id - next_id + 1), 0) FROM (
                              SELECT last_id, next_id FROM {_PAGES} q WHERE q.campaign_id = c.id
                               ORDER BY q.campaign_id, q.id LIMIT %(pages)s) AS pages)))
                 FROM {_CAMPAIGNS} c WHERE {_ARE_OPEN})
      FROM {ProviderState._meta.db_table} p
     WHERE p.alias = %(alias)s AND NOT p.stopped AND p.failures = 0
       AND (p.paused_until IS NULL OR p.paused_until <= %(now)s)
       AND (p.groups_held_until IS NULL OR p.groups_held_until <= %(now)s)
"""
OPENING = _OPENING.format(list_of="json_agg", list="json_build_array", names=_NAMES)

# Of the queue (delivery/queue_pages.py).
FIRST_PAGE = (
    f"SELECT id, campaign_id, next_id, last_id, due_at FROM {_PAGES}"
    " WHERE campaign_id = %s{due} ORDER BY campaign_id, id LIMIT 1{locked}"
)
TURN_PAGE = f"UPDATE {_PAGES} SET next_id = %s WHERE id = %s"
FORGET_PAGE = f"DELETE FROM {_PAGES} WHERE id = %s"

# Sub-queries for one row each, not EXISTS: PostgreSQL would
# read the whole table of subscriptions into a hash table for each claim.
_DUE = f"""
    SELECT d.id, d.campaign_id, d.edition_id, COALESCE(d.subscriber_id, 0) AS subscriber_id,
           d.rcpt_to, d.is_test, d.attempts, d.queued_at, COALESCE(s.name, '') AS name,
           COALESCE(s.language, '') AS language, s.attributes, COALESCE(l.name, '') AS list_name,
           COALESCE(l.label, '') AS list_label, d.status, d.is_test OR (
               (SELECT 1 FROM {Subscription._meta.db_table} c
                 WHERE c.subscriber_id = d.subscriber_id AND c.mailing_list_id {{of_lists}}
                   AND c.status = '{SubscriptionStatus.SUBSCRIBED.value}' LIMIT 1) IS NOT NULL
               AND (SELECT 1 FROM {Suppression._meta.db_table} p
                     WHERE p.address_key = d.address_key AND p.lifted_at IS NULL
                     LIMIT 1) IS NULL) AS is_wanted
      FROM {_DELIVERIES} d
      LEFT JOIN {Subscriber._meta.db_table} s ON s.id = d.subscriber_id
      LEFT JOIN {MailingList._meta.db_table} l ON l.id = d.mailing_list_id
     WHERE {{which}} AND d.{_IS_WAITING}
"""
_DUE_BY = " AND d.due_at <= {now} ORDER BY d.campaign_id, d.due_at, d.id LIMIT {limit}"
# Without waits_alone: so PostgreSQL has no choice but the index of test letters. It takes them for
# half of a new campaign's, of which it has no statistics, and would look for them among all.
_OF_TESTS = (
    f"d.is_test AND d.campaign_id IN (SELECT c.id FROM {_CAMPAIGNS} c"
    " WHERE c.provider IN ({names}))"
)
_ALONE = "d.campaign_id = {campaign} AND NOT d.is_test AND d.waits_alone"
# The campaign with a sign, and IS NOT TRUE, from which no partial index follows as it would from
# NOT: so no database has a choice but the primary key, however small the table is when this is
# planned. Of when they are due only their page says: one that was passed over for it would be lost.
_OF_A_PAGE = (
    "d.id >= {first} AND d.id <= {last} AND +d.campaign_id = {campaign}"
    " AND d.is_test IS NOT TRUE AND NOT d.waits_alone"
)
_BY_ID = " ORDER BY d.id LIMIT {limit}"

_LISTS = (
    f"SELECT i.mailinglist_id FROM {Campaign.include_lists.through._meta.db_table} i"
    " WHERE i.campaign_id = {campaign}"
)
_OF_LISTS = f"IN ({_LISTS.format(campaign='%s')})"
_OF_NO_LIST = "IN (NULL)"  # a test letter is always wanted

# Each of these takes the campaign first, for its lists; the moment and how many last.
_BY_POSITION = _DUE + _DUE_BY.format(now="%s", limit="%s")
# The campaign again, and the moment after which they are due.
DUE_ALONE = _BY_POSITION.format(
    of_lists=_OF_LISTS, which=_ALONE.format(campaign="%s") + " AND d.due_at > %s"
)
DUE_OF_THESE = _BY_POSITION.format(
    of_lists=_OF_LISTS, which=_ALONE.format(campaign="%s") + " AND {ids}"
)
# No campaign: of all of them.
DUE_TESTS = _BY_POSITION.format(of_lists=_OF_NO_LIST, which=_OF_TESTS)
# Takes the campaign, the first id, the last, the campaign again and how many.
OF_A_PAGE = (_DUE + _BY_ID.format(limit="%s")).format(
    of_lists=_OF_LISTS, which=_OF_A_PAGE.format(first="%s", last="%s", campaign="%s")
)

# Due rows as one JSON list of lists, which takes a fraction of the time of rows: no driver has to
# make a Python value of each column.
_LETTER = (
    "id, campaign_id, edition_id, subscriber_id, rcpt_to, is_test, attempts, queued_at, name,"
    " language, {attributes}, list_name, list_label"
)
_AS_LIST = "COALESCE(json_agg(json_build_array({columns})), '[]')"
_AS_JSON = {
    "postgresql": f"SELECT CAST({_AS_LIST} AS text)",
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
    f" WHERE (SELECT d.{_IS_IN_HAND} AND d.claim_key = c.claim_key FROM {_DELIVERIES} d"
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

# An array, so that PostgreSQL looks them up once and not for each letter.
_OF_ITS_LISTS = f"= ANY (ARRAY({_LISTS.format(campaign='%(campaign)s')}))"
_TESTS = (_DUE + _DUE_BY).format(
    of_lists=_OF_NO_LIST, which=_OF_TESTS.format(names=_NAMES), now="%(now)s", limit="%(wanted)s"
)
# What waits alone goes before a page that was queued later.
_SINGLES = (_DUE + _DUE_BY).format(
    of_lists=_OF_ITS_LISTS,
    which=_ALONE.format(campaign="%(campaign)s"),
    now="COALESCE((SELECT due_at FROM page), %(now)s)",
    limit="%(wanted)s - (SELECT COUNT(*) FROM tests)",
)
_ROOM = "%(wanted)s - (SELECT COUNT(*) FROM tests) - (SELECT COUNT(*) FROM singles)"
_OF_PAGE = (_DUE + _BY_ID).format(
    of_lists=_OF_ITS_LISTS,
    which=_OF_A_PAGE.format(
        first="(SELECT next_id FROM page)",
        last="(SELECT last_id FROM page)",
        campaign="%(campaign)s",
    ),
    limit=_ROOM,
)
_FIRST_PAGE = (
    f"SELECT id, next_id, last_id, due_at FROM {_PAGES}"
    " WHERE campaign_id = %(campaign)s AND due_at <= %(now)s{and_if}"
    " ORDER BY campaign_id, id LIMIT 1 FOR UPDATE"
)
_STANDING = (
    _OF_A_PAGE.format(first="taken.next_id", last="taken.up_to", campaign="%(campaign)s")
    + f" AND d.{_IS_WAITING}"
)
_CLAIMED = _totals(
    {
        "queued": "-were_queued",
        "deferred": "were_queued - due",
        "claimed": "wanted",
        "suppressed": "due - wanted",
    }
)

# The usual claim of one campaign's letters, and of test letters before them. Of the first page that
# nobody holds, or where all are held of the first; letters that somebody else has locked get a page
# of their own, behind all others (queue_pages.turn). The second value says whether more are wanted
# than the page held. What is written is named by its ids, not joined: while the tables are small a
# join would read all of them, and the plan is kept.
CLAIM = f"""
    WITH free AS ({_FIRST_PAGE.format(and_if="")} SKIP LOCKED),
    held AS ({_FIRST_PAGE.format(and_if=" AND NOT EXISTS (SELECT 1 FROM free)")}),
    page AS (SELECT * FROM free UNION ALL SELECT * FROM held),
    tests AS ({_TESTS} FOR UPDATE OF d SKIP LOCKED),
    singles AS ({_SINGLES} FOR UPDATE OF d SKIP LOCKED),
    of_page AS ({_OF_PAGE} FOR UPDATE OF d SKIP LOCKED),
    taken AS (
        SELECT page.*, letters < room AS has_room, letters,
               CASE WHEN letters < room THEN last_id ELSE last_taken END AS up_to
          FROM page, (SELECT {_ROOM} AS room, COUNT(*) AS letters, MAX(id) AS last_taken
                        FROM of_page) AS of_it
         WHERE room > 0
    ), turned AS (
        UPDATE {_PAGES} SET next_id = (SELECT up_to + 1 FROM taken)
         WHERE campaign_id = %(campaign)s
           AND id = (SELECT id FROM taken WHERE up_to < last_id)
    ), read AS (
        DELETE FROM {_PAGES}
         WHERE campaign_id = %(campaign)s
           AND id = (SELECT id FROM taken WHERE up_to = last_id)
    ), passed_over AS (
        SELECT * FROM taken WHERE letters < (SELECT COUNT(*) FROM {_DELIVERIES} d WHERE {_STANDING})
    ), left_over AS (
        INSERT INTO {_PAGES} (campaign_id, next_id, last_id, due_at)
        SELECT %(campaign)s, next_id, up_to, due_at FROM passed_over
    ),
    due AS (
        SELECT * FROM tests UNION ALL SELECT * FROM singles UNION ALL SELECT * FROM of_page
    ),
    moved AS (
        UPDATE {_DELIVERIES} d SET {MOVED_TO[_S.CLAIMED]}, claim_key = %(key)s
         WHERE d.id = ANY (ARRAY(SELECT id FROM due WHERE is_wanted)) AND d.{_IS_WAITING}
    ), unwanted AS (
        UPDATE {_DELIVERIES} d SET {MOVED_TO[_S.SUPPRESSED]}, settled_at = %(now)s, reply = ''
         WHERE d.id = ANY (ARRAY(SELECT id FROM due WHERE NOT is_wanted)) AND d.{_IS_WAITING}
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
    SELECT {_AS_LIST.format(columns=_LETTER.format(attributes="attributes"))},
           COALESCE((SELECT has_room FROM taken), FALSE)
               AND NOT EXISTS (SELECT 1 FROM passed_over)
      FROM due WHERE is_wanted
"""

# ------------------------------------------------------------------------------ a worker's moves

# One parameter for the outcomes of a wave: unlike arrays both databases read it, and neither driver
# has to walk through it. PostgreSQL takes it for a hundred rows, whatever is in it, and may read
# the whole table for them: so the ids are named once more.
_SENT = (
    f"{MOVED_TO[_S.SENT]}, claim_key = NULL, attempts = {{attempts}}, code = {{code}},"
    " reply = {reply}, settled_at = {now}"
)
SENT = _SENT.format(attempts="v.attempts", code="v.code", reply="v.reply", now="{now}")
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
# No join: while the table is small one would read all of it for each wave, and the plan is kept.
_OUTCOME = "CAST(%(outcomes)s AS jsonb) -> CAST(d.id AS text) ->> {place}"
_SENT_BY_ID = _SENT.format(
    attempts=f"CAST({_OUTCOME.format(place=0)} AS smallint)",
    code=f"CAST({_OUTCOME.format(place=1)} AS smallint)",
    reply=_OUTCOME.format(place=2),
    now="%(now)s",
)
_EXCHANGED = _totals({"sent": "sent", "claimed": "-noted", "sending": "noted - sent"})

# The usual wave: all were accepted, and as many leave. {sent} and {wave} name the rows.
EXCHANGE = f"""
    WITH sent AS (
        UPDATE {_DELIVERIES} d SET {_SENT_BY_ID}
         WHERE {{sent}} AND d.claim_key = %(key)s AND d.status = '{_S.SENDING.value}'
        RETURNING d.id, d.campaign_id, d.is_test
    ), noted AS (
        UPDATE {_DELIVERIES}
           SET {MOVED_TO[_S.SENDING]}, handed_over_at = %(now)s, provider = %(provider)s
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

# Planned once, for waves of all sizes.
EXCHANGE_PREPARED = EXCHANGE.format(
    sent="d.id = ANY(CAST(%(sent)s AS bigint[]))",
    wave="id = ANY(CAST(%(wave)s AS bigint[]))",
)

# ------------------------------------------------------------------------------ in SQLite


class _ByColon(dict[str, str]):
    """Makes SQLite's parameters, :now, of PostgreSQL's, %(now)s."""

    def __missing__(self, name: str) -> str:
        return f":{name}"


_NAMES_IN_SQLITE = "SELECT value FROM json_each(:names)"
_OF_ITS_LISTS_IN_SQLITE = f"IN ({_LISTS.format(campaign=':campaign')})"
_AMONG = "id IN (SELECT value FROM json_each({ids}))"
_THESE = _AMONG.format(ids=":ids")
# The same moves in SQLite, which has no statement that writes several tables: each is a procedure
# of delivery/sqlite_server.py, made of these. Their text is always the same, so that the driver has
# them compiled already: that took longer than moving the rows.
SQLITE = {
    name: statement % _ByColon()
    for name, statement in {
        "opening": _OPENING.format(
            list_of="json_group_array", list="json_array", names=_NAMES_IN_SQLITE
        ),
        # Of a claim.
        "first_page": _FIRST_PAGE.format(and_if="").removesuffix(" FOR UPDATE"),
        "tests": (_DUE + _DUE_BY).format(
            of_lists=_OF_NO_LIST,
            which=_OF_TESTS.format(names=_NAMES_IN_SQLITE),
            now=":now",
            limit=":room",
        ),
        "singles": (_DUE + _DUE_BY).format(
            of_lists=_OF_ITS_LISTS_IN_SQLITE,
            which=_ALONE.format(campaign=":campaign"),
            now=":due_by",
            limit=":room",
        ),
        "of_page": (_DUE + _BY_ID).format(
            of_lists=_OF_ITS_LISTS_IN_SQLITE,
            which=_OF_A_PAGE.format(first=":next_id", last=":last_id", campaign=":campaign"),
            limit=":room",
        ),
        "turn_page": TURN_PAGE % (":next_id", ":page"),
        "forget_page": FORGET_PAGE % ":page",
        "claimed": (
            f"UPDATE {_DELIVERIES} SET {MOVED_TO[_S.CLAIMED]}, claim_key = :key"
            f" WHERE {_THESE} AND {_IS_WAITING}"
        ),
        "unwanted": (
            f"UPDATE {_DELIVERIES} SET {MOVED_TO[_S.SUPPRESSED]}, settled_at = :now, reply = ''"
            f" WHERE {_THESE} AND {_IS_WAITING}"
        ),
        "forget_claims": FORGET["sqlite"] % ":key",
        "note_claim": (
            f"INSERT INTO {_CLAIMS} (claim_key, provider, delivery_ids)"
            " VALUES (:key, :provider, :ids)"
        ),
        "count_claimed": (
            "WITH moves (campaign_id, due, wanted, were_queued)"
            f" AS (VALUES (:campaign, :due, :wanted, :were_queued)) {_CLAIMED}"
        ),
        # Of an exchange. The first runs for each letter: there is no way to a server between them.
        "sent": (
            f"UPDATE {_DELIVERIES}"
            f" SET {_SENT.format(attempts='?', code='?', reply='?', now='?')}"
            f" WHERE id = ? AND claim_key = ? AND status = '{_S.SENDING.value}'"
        ),
        "noted": (
            f"UPDATE {_DELIVERIES}"
            f" SET {MOVED_TO[_S.SENDING]}, handed_over_at = :now, provider = :provider"
            f" WHERE {_THESE} AND status = '{_S.CLAIMED.value}' AND claim_key = :key"
            f" AND {MAY_LEAVE.format(provider=':provider', now=':now', groups_held=':groups_held')}"
        ),
        "count_exchanged": f"""
            WITH moves AS (
                SELECT campaign_id, SUM(was_sent) AS sent, SUM(was_noted) AS noted FROM (
                    SELECT campaign_id, 1 AS was_sent, 0 AS was_noted FROM {_DELIVERIES}
                     WHERE {_AMONG.format(ids=":sent")} AND NOT is_test
                    UNION ALL SELECT campaign_id, 0, 1 FROM {_DELIVERIES}
                     WHERE {_AMONG.format(ids=":wave")} AND NOT is_test) AS each
                 GROUP BY campaign_id ORDER BY campaign_id
            ) {_EXCHANGED}
        """,
    }.items()
}
