"""Microsoft Graph: each letter as MIME to sendMail, or as a draft that is then sent.

MIME is the only form that keeps List-Unsubscribe-Post, List-Id and our Message-ID (in JSON all
headers must begin with X-). Answers are judged by delivery/replies/graph.py. Nothing is repeated
here but a request whose token was refused: 504 and its like are answered for letters that were
sent, so a repetition gives readers several copies.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.parser import BytesHeaderParser
from email.utils import getaddresses
from functools import partial
from random import Random
from typing import Any
from urllib.parse import quote

import httpx

from delivery.message import OutgoingMessage
from delivery.outcomes import (
    Accepted,
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Unavailable,
    Unconfirmed,
)
from delivery.providers.attachments import Split, TooLargeError, split
from delivery.providers.base import Allowance, Gate, OpenGate, Rest, Turn
from delivery.providers.graph_http import ALLOWANCE, IMMUTABLE, GraphAccount, GraphAnswer
from delivery.providers.http import NOT_SENT, retry_after, same_origin
from delivery.providers.microsoft_identity import IdentityError, TokenSource
from delivery.replies.graph import TOTAL_SILENCE_RULE, GraphRule, Reaction

logger = logging.getLogger(__name__)

# Graph takes requests up to 4 MB, and base64 makes four octets of three.
LARGEST_IN_ONE_REQUEST = 2_900_000
# In seconds. A gateway gives up after about 100 and says so: wait longer than it does.
CONNECT_TIMEOUT = 30.0
ANSWER_TIMEOUT = 180.0
LOOK_TIMEOUT = 30.0
# Of the four that Graph allows at once, one is the bounce reader's.
MOST_AT_ONCE = 3
# One at a time until an hour was clean; after that, one more for each ten clean minutes.
FIRST_RISE = timedelta(hours=1)
NEXT_RISE = timedelta(minutes=10)
# A draft that nobody touched for so long is in nobody's hands.
DRAFT_IS_IDLE = timedelta(minutes=2)


@dataclass(slots=True)
class Mailbox:
    """What this process has learnt of a mailbox; a provider object lives for a slice only."""

    at_once: int = 1
    clean_since: datetime | None = None
    next_rise: timedelta = FIRST_RISE
    # The row of answers by one rule: which, how many, and the letters they were about.
    rule: str = ""
    answers: int = 0
    letters: set[str] = field(default_factory=set)

    def went_well(self, now: datetime, most: int) -> None:
        """A letter was taken: after a clean while, one more request at once."""
        self.rule, self.answers = "", 0
        if self.clean_since is None:
            self.clean_since = now
        elif now - self.clean_since >= self.next_rise and self.at_once < most:
            self.at_once += 1
            self.next_rise = NEXT_RISE
            self.clean_since = now

    def was_crowded(self, now: datetime) -> None:
        """Too many at once: half as many, and the clean while begins anew."""
        self.at_once = max(1, self.at_once // 2)
        self.next_rise = NEXT_RISE
        self.clean_since = now

    def in_a_row(self, rule: str, letter: str) -> tuple[int, int]:
        """How many answers in a row were by this rule, this one included, and how many different
        letters they were about (GraphRule.waits, GraphRule.streak)."""
        if rule != self.rule:
            self.rule, self.answers, self.letters = rule, 0, set()
        self.answers += 1
        self.letters.add(letter)
        return self.answers, len(self.letters)


_mailboxes: OrderedDict[str, Mailbox] = OrderedDict()


def mailbox_of(key: str) -> Mailbox:
    """This process's knowledge of a mailbox, made on first sight."""
    while len(_mailboxes) > 1000:
        _mailboxes.popitem(last=False)
    return _mailboxes.setdefault(key, Mailbox())


@dataclass(frozen=True, slots=True)
class Copy:
    """What Microsoft kept of a letter: its Message-ID and the whole message as it stands."""

    message_id: str
    content: bytes


class _NoAnswerError(Exception):
    """A request that got no answer. ``left``: it may have been read, and done."""

    def __init__(self, outcome: Outcome, *, left: bool) -> None:
        super().__init__(str(outcome.reply))
        self.outcome = outcome
        self.left = left


class GraphProvider:
    """Sends as one mailbox of Microsoft 365, which is also the From address of its campaigns.

    ``mailbox``: its address. ``identity``: the keywords of MicrosoftIdentity. ``mode``:
    "sendmail" (one request a letter, permission Mail.Send; Mail.ReadBasic resolves doubts) or
    "draft" (two requests, Mail.ReadWrite and Mail.Send; a doubt is resolved exactly).
    ``requests_at_once`` is the most; it begins with one. ``largest`` is what the mailbox may send,
    in octets. ``emulator``: the address of tests/emulators/graph.py on this machine.
    ``transport``, ``token_source``, ``clock`` and ``dice`` are for tests.
    """

    def __init__(
        self,
        mailbox: str,
        identity: Mapping[str, Any] | None = None,
        mode: str = "sendmail",
        requests_at_once: int = MOST_AT_ONCE,
        largest: int = 25_000_000,
        base_url: str = "",
        emulator: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        token_source: TokenSource | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        dice: Random | None = None,
    ) -> None:
        if mode not in {"sendmail", "draft"}:
            raise ValueError(f'mode {mode!r} is neither "sendmail" nor "draft"')
        if not isinstance(requests_at_once, int) or not 1 <= requests_at_once <= 4:
            raise ValueError(f"requests_at_once {requests_at_once!r} is not from 1 to 4")
        account = GraphAccount.of(mailbox, identity, base_url, emulator, token_source)
        self._tokens, self._scope = account.tokens, account.scope
        self._base, self._user = account.base, account.user
        self.address = mailbox
        self.mode = mode
        self.most_at_once = requests_at_once
        self.largest = largest
        self._transport = transport
        self._clock = clock
        self._dice = dice or Random()
        self._mailbox = mailbox_of(f"{self._base} {mailbox.lower()}")
        self._client: httpx.AsyncClient | None = None
        self._in_flight = 0
        self._room = asyncio.Condition()
        self._trouble: Unavailable | None = None
        self._trouble_until: datetime | None = None
        self.note_final_dot: Callable[[int], None] = lambda reference: None
        self._gate: Gate = OpenGate()

    @property
    def mailbox(self) -> str:
        """The mailbox as its other users name it."""
        return self.address.lower()

    @property
    def allowance(self) -> Allowance:
        """What senders and readers of the mailbox share."""
        return ALLOWANCE

    def guard(self, gate: Gate) -> None:
        """``gate`` is asked before each request, those for tokens included."""
        self._gate = gate

    @property
    def concurrency(self) -> int:
        """How many requests may be under way at once now."""
        return min(self._mailbox.at_once, self.most_at_once)

    def watch(self, note: Callable[[int], None]) -> None:
        """``note`` is called with a letter's reference just before the request that sends it."""
        self.note_final_dot = note

    async def open(self) -> None:
        """Makes the HTTP client; connects with the first letter."""
        self._trouble, self._trouble_until = None, None
        self._in_flight, self._room = 0, asyncio.Condition()
        self._client = httpx.AsyncClient(
            transport=self._transport,
            timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None),
            # A bearer token follows no redirect.
            follow_redirects=False,
            headers={"User-Agent": "Pennypost"},
        )

    async def close(self) -> None:
        """Ends the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # ------------------------------------------------------------------ the letter

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Hands one letter over; after trouble, without a request until the trouble is over."""
        if wrong := self._wrong_with(message):
            return wrong
        async with self._place():
            if resting := self._resting():
                return resting
            outcome = await self._hand_over(message)
            self._remember(outcome)
            return outcome

    def _wrong_with(self, message: OutgoingMessage) -> Outcome | None:
        """Graph knows no envelope: it sends to whom the header names. So that must be one reader,
        the envelope's."""
        if message.octets > self.largest:
            text = f"{message.octets} octets are more than the mailbox may send"
            return _stop(text, "letter too large")
        header = BytesHeaderParser().parsebytes(message.content)
        named = [
            address
            for _name, address in getaddresses(
                [str(v) for name in ("To", "Cc", "Bcc") for v in header.get_all(name, [])]
            )
        ]
        if [address.lower() for address in named] != [message.envelope.rcpt_to.lower()]:
            return _stop("To, Cc and Bcc do not name exactly the reader", "recipients differ")
        return None

    async def _hand_over(self, message: OutgoingMessage) -> Outcome:
        try:
            if self.mode == "draft" or message.octets > LARGEST_IN_ONE_REQUEST:
                return await self._by_draft(message)
            self.note_final_dot(message.reference)
            answer = await self._request("POST", f"{self._user}/sendMail", mime=message.content)
        except _NoAnswerError as none:
            return none.outcome
        return self._judge(answer, message)

    async def _by_draft(self, message: OutgoingMessage) -> Outcome:
        """A draft, large attachments into it, and then *send*. Before *send* nothing can leave."""
        try:
            parts = (
                split(message.content, LARGEST_IN_ONE_REQUEST)
                if message.octets > LARGEST_IN_ONE_REQUEST
                else Split(message.content)
            )
        except TooLargeError as error:
            return _stop(str(error), "letter too large")
        try:
            made = await self._request(
                "POST", f"{self._user}/messages", mime=parts.content, headers=IMMUTABLE
            )
            if made.status != 201:
                return _nothing_left(self._judge(made, message))
            draft = f"{self._user}/messages/{quote(str(made.json().get('id', '')), safe='')}"
            for attachment in parts.attachments:
                answer = await self._attach(draft, attachment)
                if answer.status not in {200, 201}:
                    return _nothing_left(self._judge(answer, message))
        except _NoAnswerError as none:
            return _nothing_left(none.outcome)
        given = str(made.json().get("internetMessageId") or "")
        self.note_final_dot(message.reference)
        try:
            answer = await self._request("POST", f"{draft}/send", headers=IMMUTABLE)
            outcome = self._judge(answer, message)
        except _NoAnswerError as none:
            outcome = none.outcome
        if given != message.message_id and isinstance(outcome, Accepted | Unconfirmed):
            return replace(outcome, provider_message_id=given)
        return outcome

    async def _attach(self, draft: str, attachment: Any) -> GraphAnswer:
        described = {
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": attachment.name,
            "contentType": attachment.content_type,
            "isInline": bool(attachment.content_id),
        } | ({"contentId": attachment.content_id} if attachment.content_id else {})
        if len(attachment.content) <= LARGEST_IN_ONE_REQUEST:
            body = described | {"contentBytes": base64.b64encode(attachment.content).decode()}
            return await self._request("POST", f"{draft}/attachments", json=body)
        item = {
            "AttachmentItem": {
                "attachmentType": "file",
                "name": attachment.name,
                "contentType": attachment.content_type,
                "size": len(attachment.content),
                "isInline": bool(attachment.content_id),
            }
            | ({"contentId": attachment.content_id} if attachment.content_id else {})
        }
        session = await self._request("POST", f"{draft}/attachments/createUploadSession", json=item)
        if session.status != 201:
            return session
        return await self._upload(str(session.json().get("uploadUrl", "")), attachment.content)

    async def _upload(self, url: str, content: bytes) -> GraphAnswer:
        """The ranges in order. The address is its own permission: no token goes with it."""
        step, answer = LARGEST_IN_ONE_REQUEST, GraphAnswer(400, {}, b"")
        for start in range(0, len(content), step):
            piece = content[start : start + step]
            span = f"bytes {start}-{start + len(piece) - 1}/{len(content)}"
            put = partial(
                self._once, "PUT", url, content=piece, headers={"Content-Range": span}, token=""
            )
            answer = await self._in_turn(len(piece), put)
            if answer.status not in {200, 201, 202}:
                return answer
        return answer

    # ------------------------------------------------------------------ evidence

    async def confirm(self, message: OutgoingMessage) -> Outcome | None:
        """Looks for the letter by its Message-ID, in Sent Items and in Drafts (a letter on its way
        stands in Drafts first). In mode "draft", a draft that was left lying is sent now."""
        async with self._place():
            if resting := self._resting():
                return resting
            try:
                outcome = await self._look(message)
            except _NoAnswerError as none:
                outcome = _nothing_left(none.outcome)
            if isinstance(outcome, Unavailable | Unconfirmed):
                self._remember(outcome)
            return outcome

    async def _look(self, message: OutgoingMessage) -> Outcome | None:
        for folder in ("sentitems", "drafts"):
            answer = await self._find(folder, message.message_id)
            if answer.status != 200:
                return self._could_not_look(answer)
            found = answer.json().get("value") or []
            if not found:
                continue
            if folder == "sentitems":
                text = f"Found in Sent Items as {found[0].get('internetMessageId', '')}"
                return Accepted(Reply.of(Phase.HTTP, 202, text))
            return await self._in_drafts(found[0], answer, message)
        return None

    async def _in_drafts(
        self, found: Mapping[str, Any], answer: GraphAnswer, message: OutgoingMessage
    ) -> Outcome:
        waiting = Unconfirmed(Reply.of(Phase.HTTP, None, "It is still in Drafts"), rule="in drafts")
        touched = _moment(found.get("lastModifiedDateTime")) or self._clock()
        idle = self._clock() - touched >= DRAFT_IS_IDLE
        if self.mode != "draft" or not found.get("isDraft") or not idle:
            return waiting
        draft = f"{self._user}/messages/{quote(str(found.get('id', '')), safe='')}"
        try:
            answer = await self._request("POST", f"{draft}/send", headers=IMMUTABLE)
        except _NoAnswerError as none:
            return none.outcome
        outcome = self._judge(answer, message)
        return outcome if isinstance(outcome, Accepted | Unconfirmed | Unavailable) else waiting

    async def _find(self, folder: str, message_id: str) -> GraphAnswer:
        wanted = message_id.replace("'", "''")
        return await self._request(
            "GET",
            f"{self._user}/mailFolders/{folder}/messages",
            params={
                "$filter": f"internetMessageId eq '{wanted}'",
                "$select": "id,internetMessageId,isDraft,lastModifiedDateTime",
                "$top": "2",
            },
            headers=IMMUTABLE,
            timeout=LOOK_TIMEOUT,
        )

    def _could_not_look(self, answer: GraphAnswer) -> Outcome:
        rule = answer.rule
        if rule.reaction in {Reaction.STOP, Reaction.RENEW} and rule.name != "our mailbox is full":
            text = f"Sent Items cannot be read (Mail.ReadBasic is missing): {answer.reply}"
            return Unavailable(
                Reply.of(Phase.HTTP, answer.status, text), needs_a_person=True, rule="cannot look"
            )
        return _nothing_left(self._judge(answer, None))

    async def copy_of(self, message: OutgoingMessage, folder: str, subject: str) -> Copy | None:
        """The letter as it stands in a folder, found by Message-ID, or by its whole subject where
        Microsoft has given it another one; None when it is not there, or may not be read."""
        async with self._place():
            if self._resting():
                return None
            try:
                answer = await self._find(folder, message.message_id)
                found = answer.json().get("value") or []
                if answer.status == 200 and not found:
                    wanted = subject.replace("'", "''")
                    params = {"$filter": f"subject eq '{wanted}'", "$top": "2"}
                    url = f"{self._user}/mailFolders/{folder}/messages"
                    answer = await self._request("GET", url, params=params, headers=IMMUTABLE)
                    found = answer.json().get("value") or []
                if answer.status != 200 or not found:
                    return None
                item = quote(str(found[0].get("id", "")), safe="")
                raw = await self._request("GET", f"{self._user}/messages/{item}/$value")
            except _NoAnswerError:
                return None
            if raw.status != 200:
                return None
            return Copy(str(found[0].get("internetMessageId", "")), raw.body)

    # ------------------------------------------------------------------ judging

    def _judge(self, answer: GraphAnswer, message: OutgoingMessage | None) -> Outcome:
        """The outcome of an answer. 202 is acceptance, whatever headers come with it."""
        now = self._clock()
        reply = answer.reply
        if answer.status == 202:
            self._mailbox.went_well(now, self.most_at_once)
            return Accepted(reply)
        rule = answer.rule
        if rule.narrows:
            self._mailbox.was_crowded(now)
        wish = retry_after(answer.headers, now, self._dice)
        wait = max(wish or rule.wait or timedelta(0), rule.at_least) or None
        answers, letters = self._mailbox.in_a_row(rule.name, message.message_id if message else "")
        logger.warning(
            "graph.refused",
            extra={
                "rule": rule.name,
                "status": answer.status,
                "request_id": answer.headers.get("request-id", ""),
                "client_request_id": answer.headers.get("client-request-id", ""),
                "date": answer.headers.get("date", ""),
                "diagnostic": answer.headers.get("x-ms-ags-diagnostic", "")[:300],
            },
        )
        if rule.streak and max(letters, answers if rule.waits else 0) >= rule.streak:
            return self._needs_a_person(reply, rule)
        match rule.reaction:
            case Reaction.DOUBT:
                rests = rule.name not in {"unusual success", "draft is gone"}
                return Unconfirmed(reply, rule.name, rests, wait)
            case Reaction.RETRY:
                if rule.waits:
                    wait = max(wish or timedelta(0), rule.waits[min(answers, len(rule.waits)) - 1])
                return Unavailable(reply, wait, rule=rule.name)
            case Reaction.REJECT:
                return Rejected(reply, rule=rule.name)
            case Reaction.HOLD:
                return Deferred(reply, wait, rule.name)
            case Reaction.STOP | Reaction.RENEW:
                return self._needs_a_person(reply, rule)

    @staticmethod
    def _needs_a_person(reply: Reply, rule: GraphRule) -> Unavailable:
        text = f"{rule.remedy} {reply.text}".strip()
        return Unavailable(
            Reply.of(reply.phase, reply.code, text), needs_a_person=True, rule=rule.name
        )

    def _remember(self, outcome: Outcome) -> None:
        """From trouble on, the rest of the wave touches nothing (the database closes the provider
        for everybody else with the next commit)."""
        match outcome:
            case Unavailable(retry_after=wait, needs_a_person=person):
                trouble = outcome
            case Unconfirmed(reply=reply, rests=True, retry_after=wait, rule=rule):
                trouble, person = Unavailable(reply, wait, rule=rule), False
            case _:
                return
        if person and trouble.rule == "cannot look":
            return
        until = None if person or wait is None else self._clock() + wait
        if (
            self._trouble is None
            or until is None
            or (self._trouble_until is not None and until > self._trouble_until)
        ):
            self._trouble, self._trouble_until = trouble, until

    def _resting(self) -> Unavailable | None:
        """The trouble that still holds, as an answer to the next letter; None when all is well."""
        trouble, until = self._trouble, self._trouble_until
        if trouble is None:
            return None
        left = until - self._clock() if until is not None else None
        if left is not None and left <= timedelta(0):
            self._trouble = None
            return None
        reply = Reply.of(Phase.LOCAL, None, f"Not sent, for just before: {trouble.reply}")
        return Unavailable(reply, left, trouble.needs_a_person, trouble.rule)

    # ------------------------------------------------------------------ requests

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places for requests under way; there may be fewer than a moment ago."""
        async with self._room:
            await self._room.wait_for(lambda: self._in_flight < self.concurrency)
            self._in_flight += 1
        try:
            yield
        finally:
            async with self._room:
                self._in_flight -= 1
                self._room.notify_all()

    async def _request(
        self,
        method: str,
        url: str,
        *,
        mime: bytes | None = None,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = ANSWER_TIMEOUT,
    ) -> GraphAnswer:
        """A request with a token; a refused token is replaced once, and the request repeated: with
        401 nothing was done."""
        sent: dict[str, str] = dict(headers or {})
        content = None
        if mime is not None:
            sent["Content-Type"] = "text/plain"
            content = base64.b64encode(mime)
        request = {"content": content, "json": json, "params": params, "timeout": timeout}
        ask = partial(self._with_token, method, url, headers=sent, **request)
        return await self._in_turn(len(content or b""), ask)

    async def _in_turn(self, octets: int, ask: Callable[[], Awaitable[GraphAnswer]]) -> GraphAnswer:
        """A request, when the mailbox may be touched. The first after a silence is a cheap look,
        made before this one."""
        turn = await self._turn(octets)
        if turn.is_first:
            url = f"{self._user}/mailFolders/sentitems/messages"
            look = {"params": {"$select": "id", "$top": "1"}, "timeout": LOOK_TIMEOUT}
            try:
                await self._use(turn, partial(self._with_token, "GET", url, headers={}, **look))
            except _NoAnswerError as none:
                raise _NoAnswerError(_nothing_left(none.outcome), left=False) from None
            turn = await self._turn(octets)
        return await self._use(turn, ask)

    async def _turn(self, octets: int) -> Turn:
        turn = await self._gate.ask(octets)
        if isinstance(turn, Rest):
            reply = Reply.of(Phase.LOCAL, None, f"Nothing was asked of the mailbox: {turn.because}")
            raise _NoAnswerError(Unavailable(reply, turn.wait, rule="mailbox rests"), left=False)
        return turn

    async def _use(self, turn: Turn, ask: Callable[[], Awaitable[GraphAnswer]]) -> GraphAnswer:
        """The request itself; its answer may begin the mailbox's silence."""
        silence = ""
        try:
            answer = await ask()
            if answer.rule.name == TOTAL_SILENCE_RULE:
                silence = str(answer.reply)
            return answer
        finally:
            await self._gate.done(turn, silence)

    async def _with_token(
        self, method: str, url: str, *, headers: Mapping[str, str], **request: Any
    ) -> GraphAnswer:
        token = await self._token()
        answer = await self._once(method, url, headers=headers, token=token, **request)
        if answer.status != 401:
            return answer
        token = await self._token(refused=token, claims=answer.claims)
        return await self._once(method, url, headers=headers, token=token, **request)

    async def _token(self, refused: str = "", claims: str = "") -> str:
        try:
            return await self._tokens.token(self._scope, refused=refused, claims=claims)
        except IdentityError as error:
            raise _NoAnswerError(error.outcome, left=False) from None

    async def _once(
        self, method: str, url: str, *, headers: Mapping[str, str], token: str, **request: Any
    ) -> GraphAnswer:
        """One request. ``client-request-id`` names the attempt: support asks for it."""
        assert self._client is not None, "open() comes first"
        sent = {"client-request-id": str(uuid.uuid4()), "return-client-request-id": "true"}
        sent |= headers
        if token:
            sent["Authorization"] = f"Bearer {token}"
            same_origin(url, self._base)
        try:
            response = await self._client.request(method, url, headers=sent, **request)
        except NOT_SENT as error:
            reply = Reply.of(Phase.CONNECT, None, f"{type(error).__name__}: {error}")
            raise _NoAnswerError(Unavailable(reply, rule="no connection"), left=False) from None
        except (httpx.HTTPError, OSError) as error:
            reply = Reply.of(Phase.HTTP, None, f"{type(error).__name__}: {error}")
            doubt = Unconfirmed(reply, "no answer", rests=True)
            raise _NoAnswerError(doubt, left=True) from None
        return GraphAnswer(response.status_code, response.headers, response.content)


def _stop(text: str, rule: str) -> Unavailable:
    return Unavailable(Reply.of(Phase.LOCAL, None, text), needs_a_person=True, rule=rule)


def _nothing_left(outcome: Outcome) -> Outcome:
    """The outcome of a step that sends nothing: a doubt about it is no doubt about the letter."""
    if isinstance(outcome, Unconfirmed):
        return Unavailable(outcome.reply, outcome.retry_after, rule=outcome.rule)
    return outcome


def _moment(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
