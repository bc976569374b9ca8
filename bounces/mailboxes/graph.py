"""A mailbox of Microsoft 365 through Graph: what came since the last time, by delta queries.

Reports about letters that Graph sent come back to the sending mailbox itself, and some of them
into Junk Email: so both folders are read. Mails are told apart by immutable ids, fetched as MIME
(``$value``, the only form that keeps the parts of a report), and never moved, flagged or deleted;
which are done stands in the database.

The link that leads to the next changes is an opaque text of Microsoft's. It moves page by page,
in the transaction of the results, and never past a mail that is not done: one that is announced
before it can be read (404 for a while, as seen) is noted beside it and asked for again. Microsoft
forgets old links (410, SyncStateNotFound); the folder is then listed anew, from two days before
what was seen last, and what was done already is passed over by its id.

There is no ``$filter``: with one, a round ends at 5,000 mails, and a flood of bounces is longer.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from random import Random
from typing import Any
from urllib.parse import quote

import httpx

from bounces.mailboxes.base import (
    AccountRequest,
    Gate,
    MailboxRestsError,
    MailGoneError,
    UidStore,
)
from delivery.outcomes import Unavailable
from delivery.providers.graph_http import IMMUTABLE, GraphAccount, GraphAnswer
from delivery.providers.http import retry_after, same_origin
from delivery.providers.microsoft_identity import TokenSource
from delivery.replies.graph import TOTAL_SILENCE_RULE, Reaction, read_error

logger = logging.getLogger(__name__)

PAGE = 50
HEADERS = {"Prefer": f"odata.maxpagesize={PAGE}, {IMMUTABLE['Prefer']}"}
# Microsoft says these in the body, with 400, 404 or 410.
LINK_IS_FORGOTTEN = {"syncstatenotfound", "syncstateinvalid", "resyncrequired"}
OVERLAP = timedelta(hours=48)
# A mail that was announced and cannot be read is asked for so long.
ASK_AGAIN_FOR = timedelta(days=3)
MOST_MISSING = 1000
LARGEST_ANSWER = 16 * 1024 * 1024
# Links that are forgotten as soon as they are given: the next poll may be luckier.
MOST_NEW_BEGINNINGS = 3
REMEDY_OF_READING = (
    "Reading needs the application permission Mail.Read for this mailbox, with the consent of an"
    " administrator. A change may need up to two hours."
)


class GraphMailboxError(Exception):
    """Graph refuses to be read. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a folder is read. ``link`` leads to the next page, "" to the first one of a new
    listing, of which mails before ``since`` are left out. ``seen``: nothing that came before it is
    unlisted; ``latest``: what a listing under way will make of it. Moments are in ISO format.
    ``missing``: mails that could not be read, since when."""

    link: str = ""
    since: str = ""
    seen: str = ""
    latest: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Page:
    """What was listed together: after all of ``waiting`` are done, the folder is read up to
    ``place``."""

    folder: str
    waiting: set[str]
    place: Place


class GraphMailbox:
    """``mailbox``, ``identity``, ``base_url``, ``emulator``: as those of GraphProvider; the
    permission is Mail.Read. ``folders``: well-known names or ids. ``first_days``: how old a mail
    may be that is taken in by the very first poll. ``transport``, ``token_source``, ``clock`` and
    ``dice`` are for tests.
    """

    def __init__(
        self,
        mailbox: str,
        identity: Mapping[str, Any] | None = None,
        *,
        folders: Sequence[str] = ("inbox", "junkemail"),
        first_days: int = 7,
        base_url: str = "",
        emulator: str = "",
        timeout_seconds: float = 60,
        transport: httpx.BaseTransport | None = None,
        token_source: TokenSource | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        dice: Random | None = None,
    ) -> None:
        if isinstance(folders, str) or not folders or not all(isinstance(f, str) for f in folders):
            raise ValueError('folders is a list of names, such as ["inbox", "junkemail"]')
        if type(first_days) is not int or not 0 <= first_days <= 365:
            raise ValueError(f"first_days {first_days!r} is not from 0 to 365")
        self._account = GraphAccount.of(mailbox, identity, base_url, emulator, token_source)
        self._folders = tuple(folders)
        self._first = timedelta(days=first_days)
        self._timeout = timeout_seconds
        self._transport = transport
        self._clock = clock
        self._dice = dice or Random()
        self._client: httpx.Client | None = None
        self._token = ""
        self._store: UidStore | None = None
        self._gate: Gate = lambda: nullcontext(AccountRequest())
        self._places: dict[str, Place] = {}
        self._pages: list[_Page] = []
        self._done: set[str] = set()
        self._given: set[str] = set()

    @property
    def account(self) -> str:
        return self._account.address

    def guard(self, gate: Gate) -> None:
        self._gate = gate

    def open(self) -> None:
        """Asks for a token; the first request to Graph comes with ``uids``."""
        self._token = asyncio.run(self._account.tokens.token(self._account.scope))
        self._client = httpx.Client(
            transport=self._transport,
            timeout=self._timeout,
            follow_redirects=False,  # a bearer token follows no redirect
            headers={"User-Agent": "Pennypost"},
        )

    def uid_validity(self) -> str:
        """A constant for each account: immutable ids are never used again."""
        return f"graph {sha256(self._account.user.lower().encode()).hexdigest()[:32]}"

    def remember_in(self, store: UidStore) -> None:
        self._store = store

    def resume_at(self, position: str) -> None:
        """A position of another account counts as none."""
        read = json.loads(position) if position else {}
        if read.get("of") == self.uid_validity():
            self._places = {name: Place(**place) for name, place in read["folders"].items()}

    def position_after(self, uids: Collection[str]) -> str:
        places = dict(self._places)
        self._advance(places, self._done | set(uids))
        folders = {name: asdict(place) for name, place in places.items()}
        return json.dumps({"of": self.uid_validity(), "folders": folders}, sort_keys=True)

    def uids(self) -> Iterator[str]:
        """Of one folder after the other, never two at once: Exchange answers that with errors."""
        for folder in self._folders:
            yield from self._that_were_missing(folder)
            yield from self._listed(folder)

    def fetch(self, uid: str, largest: int) -> bytes:
        """The connection is closed where the mail goes on."""
        url = f"{self._account.user}/messages/{quote(uid, safe='')}/$value"
        try:
            answer = self._get(url, largest)
            # A gateway in trouble may answer 200 with nothing; no mail is empty.
            if answer.status == 200 and answer.body:
                return answer.body[:largest]
            if "erroritemnotfound" in _codes(answer):
                raise MailGoneError(uid)
            raise self._trouble(answer)
        except MailboxRestsError:
            raise
        except Exception:
            self._note_missing(uid)
            raise

    def done(self, uids: Sequence[str]) -> None:
        self._memory.add(uids)
        self._done |= set(uids)
        finished = self._advance(self._places, self._done)
        del self._pages[:finished]

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # ------------------------------------------------------------------ notifications

    @property
    def places(self) -> Sequence[str]:
        return self._folders

    def watch(self, place: str, url: str, secret: str, until: datetime) -> str:
        """A subscription to mails that arrive in a folder, and to its own lifecycle."""
        wanted = {
            "changeType": "created",
            "notificationUrl": url,
            "lifecycleNotificationUrl": url,
            "resource": f"users/{self._account.address}/mailFolders('{place}')/messages",
            "expirationDateTime": _told(until),
            "clientState": secret,
        }
        answer = self._ask("POST", f"{self._account.base}/subscriptions", json=wanted)
        if answer.status != 201:
            raise self._trouble(answer)
        return str(answer.json()["id"])

    def renew(self, key: str, until: datetime) -> bool:
        """Another end; that also renews the authorisation that Microsoft may have asked for."""
        url = f"{self._account.base}/subscriptions/{quote(key, safe='')}"
        answer = self._ask("PATCH", url, json={"expirationDateTime": _told(until)})
        if answer.status == 404:
            return False
        if answer.status != 200:
            raise self._trouble(answer)
        return True

    # ------------------------------------------------------------------ the position

    @property
    def _memory(self) -> UidStore:
        if self._store is None:
            raise RuntimeError("Graph is told of no mail that is done: remember_in comes first")
        return self._store

    def _advance(self, places: dict[str, Place], done: set[str]) -> int:
        """Moves the places over the pages that are finished when ``done`` is; how many are."""
        finished = 0
        for page in self._pages:
            if not page.waiting <= done:
                break
            missing = places.get(page.folder, Place()).missing
            places[page.folder] = replace(page.place, missing=missing)
            finished += 1
        for name, place in places.items():
            left = {uid: since for uid, since in place.missing.items() if uid not in done}
            places[name] = replace(place, missing=left)
        return finished

    def _note_missing(self, uid: str) -> None:
        """The position may move past this mail, which is asked for again by the next polls."""
        page = next((page for page in self._pages if uid in page.waiting), None)
        if page is None:
            return
        place = self._places.get(page.folder, Place())
        if len(place.missing) >= MOST_MISSING:
            return  # the position stays before its page
        page.waiting.discard(uid)
        missing = {**place.missing, uid: self._clock().isoformat()}
        self._places[page.folder] = replace(place, missing=missing)

    def _that_were_missing(self, folder: str) -> Iterator[str]:
        place = self._places.get(folder, Place())
        give_up = self._clock() - ASK_AGAIN_FOR
        kept = {u: since for u, since in place.missing.items() if _moment(since) > give_up}
        if len(kept) < len(place.missing):
            logger.warning("bounces.never_found", extra={"mails": len(place.missing) - len(kept)})
            self._places[folder] = replace(place, missing=kept)
        done = self._memory.done(list(kept))
        self._done |= done
        yield from (uid for uid in kept if uid not in done)

    # ------------------------------------------------------------------ the listing

    def _listed(self, folder: str) -> Iterator[str]:
        """What came into the folder, page by page, up to the link for the next time."""
        place = self._places.get(folder) or self._from_the_start()
        beginnings = 0
        while True:
            answer = self._get(place.link or self._first_link(folder), LARGEST_ANSWER, HEADERS)
            if answer.status == 410 or LINK_IS_FORGOTTEN & _codes(answer):
                beginnings += 1
                if beginnings == MOST_NEW_BEGINNINGS:
                    raise self._trouble(answer)
                logger.warning("bounces.resync", extra={"folder": folder})
                place = self._anew(place)
                continue
            if answer.status != 200:
                raise self._trouble(answer)
            listing = answer.json()
            ended = "@odata.deltaLink" in listing
            listed = self._new_in(listing.get("value", []), place)
            place = self._after(listing, place, ended)
            done = self._memory.done(listed)
            # Pages may repeat a mail.
            waiting = [u for u in dict.fromkeys(listed) if u not in done and u not in self._given]
            self._given |= set(waiting)
            self._pages.append(_Page(folder, set(waiting), place))
            yield from waiting
            if ended:
                return

    def _first_link(self, folder: str) -> str:
        return (
            f"{self._account.user}/mailFolders/{quote(folder, safe='')}/messages/delta"
            "?changeType=created&$select=id,receivedDateTime"
        )

    def _from_the_start(self) -> Place:
        return Place(since=(self._clock() - self._first).isoformat())

    @staticmethod
    def _anew(place: Place) -> Place:
        """The folder listed from its beginning; what came well before the last complete listing
        was seen by that."""
        since = (_moment(place.seen) - OVERLAP).isoformat() if place.seen else place.since
        return Place(since=since, seen=place.seen)

    @staticmethod
    def _new_in(items: Sequence[Mapping[str, Any]], place: Place) -> list[str]:
        """The ids of a page that are mails, and not too old."""
        since = _moment(place.since) if place.since else None
        return [
            str(item["id"])
            for item in items
            if "@removed" not in item
            and (
                since is None
                or "receivedDateTime" not in item
                or _moment(item["receivedDateTime"]) >= since
            )
        ]

    @staticmethod
    def _after(listing: Mapping[str, Any], place: Place, ended: bool) -> Place:
        """Where the folder stands after a page."""
        moments = [
            _moment(i["receivedDateTime"]) for i in listing["value"] if "receivedDateTime" in i
        ]
        latest = max(
            [*moments, *(_moment(m) for m in (place.latest, place.seen) if m)], default=None
        )
        told = latest.isoformat() if latest else ""
        if ended:
            return Place(link=str(listing["@odata.deltaLink"]), seen=told)
        if "@odata.nextLink" not in listing:
            raise GraphMailboxError("a page of Graph leads neither to a next page nor to an end")
        return replace(place, link=str(listing["@odata.nextLink"]), latest=told, missing={})

    # ------------------------------------------------------------------ requests

    def _get(self, url: str, largest: int, headers: Mapping[str, str] | None = None) -> GraphAnswer:
        return self._ask("GET", url, largest, headers)

    def _ask(
        self,
        method: str,
        url: str,
        largest: int = LARGEST_ANSWER,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> GraphAnswer:
        """One request, of whose answer no more than ``largest`` octets are read; a refused token
        is replaced once."""
        answer = self._once(method, url, largest, headers, json)
        if answer.status == 401:
            tokens, scope = self._account.tokens, self._account.scope
            refused, claims = self._token, answer.claims
            self._token = asyncio.run(tokens.token(scope, refused=refused, claims=claims))
            answer = self._once(method, url, largest, headers, json)
        return answer

    def _once(
        self, method: str, url: str, largest: int, headers: Mapping[str, str] | None, json: Any
    ) -> GraphAnswer:
        if self._client is None:
            raise RuntimeError("the mailbox is not open")
        sent = {"Authorization": f"Bearer {self._token}", **(headers or IMMUTABLE)}
        # Links come out of answers: the token goes to no other host.
        same_origin(url, self._account.base)
        request = self._client.build_request(method, url, headers=sent, json=json)
        with self._gate() as under_way:
            response = self._client.send(request, stream=True)
            try:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) >= largest:
                        break
            finally:
                response.close()
            answer = GraphAnswer(response.status_code, response.headers, bytes(body[:largest]))
            if answer.status >= 400 and answer.rule.name == TOTAL_SILENCE_RULE:
                under_way.silence = str(answer.reply)
            return answer

    def _trouble(self, answer: GraphAnswer) -> Exception:
        """What an answer other than 200 means for the whole mailbox."""
        rule = answer.rule
        if answer.status in {429, 503} or rule.name == TOTAL_SILENCE_RULE:
            wish = retry_after(answer.headers, self._clock(), self._dice)
            wait = max(wish or rule.wait or timedelta(minutes=1), rule.at_least)
            return MailboxRestsError(Unavailable(answer.reply, wait, rule=rule.name))
        remedy = REMEDY_OF_READING if answer.status == 403 else rule.remedy
        if rule.reaction not in {Reaction.STOP, Reaction.RENEW}:
            remedy = ""
        return GraphMailboxError(f"{remedy} {answer.reply}".strip())


def _codes(answer: GraphAnswer) -> set[str]:
    return {code.lower() for code in read_error(answer.body)[0]}


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: object) -> datetime:
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
