"""An emulator of Microsoft Graph and Entra: small, stateful, and strict about the limits.

It stands under tests/ because nothing of the product may lean on it: the product knows only an
address (the option ``emulator``). ``manage.py graph_emulator`` loads it by name from a checkout,
for people who want to try without a tenant.

A plain ASGI application. Fast tests reach it through EmulatorTransport, which also turns a
``Drop`` into the error that httpx would raise; tests/emulators/server.py puts it on a socket.

What is strict: 4 requests at once for a mailbox, 10,000 in 10 minutes, 150 MB in 5 minutes,
10,000 recipients in 24 hours, 30 letters a minute (more are accepted and delivered later), 500
moves and then silence, tokens with audience and end, immutable ids, headers of MIME letters, delta
links that are forgotten.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email import policy
from email.parser import BytesHeaderParser, BytesParser
from email.utils import getaddresses
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx

from tests.emulators.graph_delta import DeltaFeed
from tests.emulators.graph_subscriptions import Subscriptions

SILENCE = timedelta(minutes=30)
SILENCING = (b"ErrorTooManyObjectsOpened", b"ErrorMoveCopyFailed")
TOKEN_LIFE = timedelta(seconds=3599)
MOST_AT_ONCE = 4
REQUESTS = 10_000, timedelta(minutes=10)
UPLOAD = 150_000_000, timedelta(minutes=5)
RECIPIENTS = 10_000, timedelta(hours=24)
LARGEST_REQUEST = 4_000_000
LETTERS_APART = timedelta(seconds=2)  # 30 a minute
MOVES = 500

RECIPIENT_NOT_FOUND = (
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"
)
TENANT_IS_OVER = (
    "550 5.7.233 Your message can't be sent because your tenant exceeded its daily limit for"
    " sending email to external recipients (tenant external recipient rate limit)"
)

Clock = Callable[[], datetime]
Scope = dict[str, Any]


class Drop(Exception):  # noqa: N818
    """The connection breaks here; ``error`` is what httpx would raise."""

    def __init__(self, error: type[httpx.TransportError] = httpx.ReadError) -> None:
        super().__init__("dropped by the script")
        self.error = error


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, status: int, data: object, **headers: str) -> Answer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(data).encode(), {"content-type": "application/json"} | fields)

    @classmethod
    def error(cls, status: int, code: str, message: str = "", **headers: str) -> Answer:
        inner = {"date": "2026-11-21T10:00:00", "request-id": "r", "client-request-id": "c"}
        return cls.of(
            status, {"error": {"code": code, "message": message, "innerError": inner}}, **headers
        )


@dataclass
class Fault:
    """What goes wrong at requests whose "METHOD path" contains ``at``: after ``skip`` of them,
    ``times`` times. ``done``: the request has its effect all the same (the answer is lost)."""

    at: str
    answer: Answer | None = None
    drop: type[httpx.TransportError] | None = None
    done: bool = False
    skip: int = 0
    times: int = 1


@dataclass
class Item:
    """A message in a mailbox."""

    id: str
    content: bytes
    message_id: str
    subject: str
    recipients: list[str]
    folder: str
    modified_at: datetime
    is_draft: bool = True
    # When it is seen in Sent Items; Drafts until then.
    sent_at: datetime | None = None
    attachments: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Mailbox:
    """The state of one mailbox."""

    address: str
    items: dict[str, Item] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    requests: deque[datetime] = field(default_factory=deque)
    uploads: deque[tuple[datetime, int]] = field(default_factory=deque)
    recipients: deque[datetime] = field(default_factory=deque)
    next_free: datetime | None = None
    moves: int = 0
    silent_until: datetime | None = None
    uploading: dict[str, tuple[Item, dict[str, Any], bytearray, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal."""

    at: datetime
    host: str
    method: str
    path: str
    status: int | None  # None: the connection broke
    has_token: bool
    size: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A letter that has left the mailbox."""

    message_id: str
    own_message_id: str
    recipients: tuple[str, ...]
    content: bytes
    at: datetime


class GraphEmulator:
    """``mailboxes``: the addresses that exist. ``visible_after``: how long a sent letter stands in
    Drafts. ``keeps_message_id``: False replaces it, as consumer mailboxes do. ``latency``: real
    seconds that each request takes, so that several are under way at once. ``unreachable``:
    addresses whose letters come back as reports in the Inbox. ``readers_a_day``: the mailbox's
    recipients in 24 hours; ``tenant_readers_a_day``: those of all mailboxes together, whose excess
    is accepted and comes back. ``reported_after``: how long a report takes."""

    def __init__(
        self,
        clock: Clock,
        mailboxes: Iterable[str] = ("news@contoso.example",),
        *,
        secret: str = "right",
        visible_after: timedelta = timedelta(seconds=3),
        keeps_message_id: bool = True,
        latency: float = 0.0,
        token_life: timedelta = TOKEN_LIFE,
        unreachable: Mapping[str, str] | None = None,
        readers_a_day: int = RECIPIENTS[0],
        tenant_readers_a_day: int | None = None,
        reported_after: timedelta = timedelta(0),
    ) -> None:
        self.clock = clock
        self.secret = secret
        self.visible_after = visible_after
        self.keeps_message_id = keeps_message_id
        self.latency = latency
        self.token_life = token_life
        self.unreachable = dict(unreachable or {})
        self.mailboxes = {address.lower(): Mailbox(address) for address in mailboxes}
        self.readers_a_day = readers_a_day
        self.tenant_readers_a_day = tenant_readers_a_day
        self.reported_after = reported_after
        # Addresses that begin with one of these are unreachable too.
        self.gone: tuple[str, ...] = ()
        self.faults: list[Fault] = []
        # Asked for each request that no fault fits: a soak test throws dice here.
        self.chance: Callable[[str], Fault | None] = lambda line: None
        self.journal: list[Entry] = []
        self.delivered: list[Delivered] = []
        # Accepted, and come back.
        self.returned: list[Delivered] = []
        # Refusals that nobody scripted: some limit was passed.
        self.over_limits: list[str] = []
        # How long a letter waited behind others because of the 30 a minute.
        self.longest_wait = timedelta(0)
        self._tenant: deque[datetime] = deque()
        self._under_way: list[tuple[datetime, Mailbox, Item]] = []
        self.tokens: dict[str, tuple[str, datetime]] = {}
        self.revoked: set[str] = set()
        self.may_read = True
        self.silence_broken = 0
        self.subscriptions = Subscriptions(clock)
        self.feeds: dict[tuple[str, str], DeltaFeed] = {}
        # Called with each journal entry and at each effect: a test may kill a process there.
        self.on_delivered: Callable[[Delivered], None] = lambda delivered: None
        self._numbers = 0
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ ASGI

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        assert scope["type"] == "http"
        body = bytearray()
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        answer = await self._answer(scope, bytes(body))
        headers = [(k.encode(), v.encode()) for k, v in answer.headers.items()]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, body: bytes) -> Answer:
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
        path, method = scope["path"], scope["method"]
        number = len(self.journal)
        entry = Entry(
            self.clock(), headers.get("host", ""), method, path, None,
            "authorization" in headers, len(body),
        )  # fmt: skip
        self.journal.append(entry)
        fault = self._fault(f"{method} {path}")
        if fault is None or fault.done:
            answer = await self._handle(method, path, query, headers, body)
        if fault is not None:
            if fault.drop is not None:
                raise Drop(fault.drop)
            assert fault.answer is not None
            answer = fault.answer
            self._fall_silent_with(path, answer)
        ids = {"request-id": f"request-{number}"}
        if "client-request-id" in headers:
            ids["client-request-id"] = headers["client-request-id"]
        self.journal[number] = Entry(
            entry.at, entry.host, method, path, answer.status, entry.has_token, entry.size
        )
        return Answer(answer.status, answer.body, ids | dict(answer.headers))

    def _fall_silent_with(self, path: str, answer: Answer) -> None:
        """A scripted answer of this kind begins the silence too, as the mailbox's own does."""
        match = re.match(r"/v1\.0/users/([^/]+)/", path)
        mailbox = self.mailboxes.get(unquote(match[1]).lower()) if match else None
        if mailbox is not None and any(code in answer.body for code in SILENCING):
            mailbox.silent_until = self.clock() + SILENCE

    def _fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.at not in line or fault.times <= 0:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times -= 1
            return fault
        return self.chance(line)

    async def _handle(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Answer:
        if "/oauth2/" in path or path.startswith("/metadata/identity"):
            return self._token(path, query, body)
        if path.endswith("/openid-configuration"):
            return self._discovery(path)
        if match := re.fullmatch(r"/upload/(\w+)", path):
            return self._put(match[1], headers, body)
        if match := re.fullmatch(r"/v1\.0/subscriptions(?:/([^/]+))?(?:/(\w+))?", path):
            if refused := self._unauthorised(headers):
                return refused
            status, told = self.subscriptions.request(method, match[1] or "", match[2] or "", body)
            return Answer.error(status, told) if status >= 400 else Answer.of(status, told)
        match = re.fullmatch(r"/v1\.0/users/([^/]+)/(.+)", path)
        if not match:
            return Answer.error(404, "ResourceNotFound", "Resource not found.")
        if refused := self._unauthorised(headers):
            return refused
        mailbox = self.mailboxes.get(unquote(match[1]).lower())
        if mailbox is None:
            return Answer.error(
                404, "ErrorInvalidUser", f"The requested user '{match[1]}' is invalid."
            )
        self._bring_reports()
        if limited := self._limited(mailbox, method, len(body)):
            self.over_limits.append(f"{limited.status} {limited.body.decode()[:80]}")
            return limited
        mailbox.in_flight += 1
        mailbox.most_in_flight = max(mailbox.most_in_flight, mailbox.in_flight)
        try:
            if mailbox.in_flight > MOST_AT_ONCE:
                self.over_limits.append("MailboxConcurrency")
                return Answer.error(
                    429, "ApplicationThrottled",
                    "Application is over its MailboxConcurrency limit.", retry_after="1",
                )  # fmt: skip
            if self.latency:
                await asyncio.sleep(self.latency)
            return self._route(mailbox, method, match[2], query, headers, body)
        finally:
            mailbox.in_flight -= 1

    # ------------------------------------------------------------------ Entra

    @staticmethod
    def _discovery(path: str) -> Answer:
        tenant = path.strip("/").split("/")[0]
        base = f"https://login.microsoftonline.com/{tenant}"
        return Answer.of(
            200,
            {
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "issuer": f"{base}/v2.0",
            },
        )

    def _token(self, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
        if "client_secret" in form and form["client_secret"] != self.secret:
            return self.refused_token(
                401, "invalid_client", 7000215, "Invalid client secret provided."
            )
        audience = query.get("resource") or form.get("scope", "").removesuffix("/.default")
        with self._lock:
            self._numbers += 1
            token = f"emulated-token-{self._numbers}"
        self.tokens[token] = (audience, self.clock() + self.token_life)
        seconds = int(self.token_life.total_seconds())
        granted: dict[str, Any] = {"token_type": "Bearer", "access_token": token}
        if path.startswith("/metadata/identity"):
            granted |= {"expires_in": str(seconds), "resource": audience}
        else:
            granted |= {"expires_in": seconds}
        return Answer.of(200, granted)

    @staticmethod
    def refused_token(status: int, error: str, number: int, text: str) -> Answer:
        return Answer.of(
            status,
            {
                "error": error,
                "error_description": f"AADSTS{number}: {text}\r\nTrace ID: t",
                "error_codes": [number],
                "correlation_id": "c",
            },
        )

    def _unauthorised(self, headers: Mapping[str, str]) -> Answer | None:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        audience, until = self.tokens.get(token, ("", self.clock()))
        if token in self.revoked or until <= self.clock():
            return expired_token()
        if "graph" not in audience:
            return Answer.error(401, "InvalidAuthenticationToken", "Invalid audience.")
        return None

    # ------------------------------------------------------------------ limits

    def _limited(self, mailbox: Mailbox, method: str, size: int) -> Answer | None:
        now = self.clock()
        if mailbox.silent_until is not None:
            if now < mailbox.silent_until:
                # Each request begins the silence anew.
                mailbox.silent_until = now + SILENCE
                self.silence_broken += 1
                return Answer.error(
                    429, "ErrorTooManyObjectsOpened",
                    "Too many concurrent connections opened., The process failed to get the"
                    " correct properties.",
                )  # fmt: skip
            mailbox.silent_until, mailbox.moves = None, 0
        mailbox.requests.append(now)
        _forget(mailbox.requests, now - REQUESTS[1])
        if len(mailbox.requests) > REQUESTS[0]:
            free = mailbox.requests[0] + REQUESTS[1] - now
            return Answer.error(
                429, "TooManyRequests", "Please retry again later.",
                retry_after=str(int(free.total_seconds()) + 1),
            )  # fmt: skip
        if method in {"POST", "PUT", "PATCH"}:
            mailbox.uploads.append((now, size))
            while mailbox.uploads and mailbox.uploads[0][0] <= now - UPLOAD[1]:
                mailbox.uploads.popleft()
            if sum(octets for _at, octets in mailbox.uploads) > UPLOAD[0]:
                return Answer.error(
                    429, "ApplicationThrottled", "Application is over its IncomingBytes limit."
                )
            if size > LARGEST_REQUEST:
                return Answer(413, b"<html>Request Entity Too Large</html>")
        return None

    # ------------------------------------------------------------------ the mailbox

    def _route(
        self,
        mailbox: Mailbox,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
    ) -> Answer:
        if method == "POST" and path == "sendMail":
            return self._send_mail(mailbox, headers, body)
        if method == "POST" and path == "messages":
            return self._create(mailbox, headers, body)
        if match := re.fullmatch(r"messages/([^/]+)/send", path):
            return self._send_draft(mailbox, match[1])
        if match := re.fullmatch(r"messages/([^/]+)/move", path):
            return self._move(mailbox, match[1])
        if match := re.fullmatch(r"messages/([^/]+)/attachments", path):
            return self._attach(mailbox, match[1], json.loads(body))
        if match := re.fullmatch(r"messages/([^/]+)/attachments/createUploadSession", path):
            return self._session(mailbox, match[1], json.loads(body))
        if not self.may_read:
            return Answer.error(
                403, "ErrorAccessDenied", "Access is denied. Check credentials and try again."
            )
        if match := re.fullmatch(r"messages/([^/]+)(/\$value)?", path):
            item = mailbox.items.get(unquote(match[1]))
            if item is None:
                return item_not_found()
            if match[2]:
                return Answer(200, item.content, {"content-type": "text/plain"})
            return Answer.of(200, self._shown(item))
        if match := re.fullmatch(r"mailFolders/(\w+)/messages/delta", path):
            return self._delta(mailbox, match[1], query, headers)
        if match := re.fullmatch(r"mailFolders/(\w+)/messages", path):
            top = int(query.get("$top", "10"))
            return self._list(mailbox, match[1], query.get("$filter", ""), top)
        return Answer.error(400, "BadRequest", f"The emulator does not know {method} {path}.")

    def _send_mail(self, mailbox: Mailbox, headers: Mapping[str, str], body: bytes) -> Answer:
        item = self._item(mailbox, headers, body)
        if isinstance(item, Answer):
            return item
        return self._submit(mailbox, item) or Answer(202)

    def _create(self, mailbox: Mailbox, headers: Mapping[str, str], body: bytes) -> Answer:
        item = self._item(mailbox, headers, body)
        if isinstance(item, Answer):
            return item
        mailbox.items[item.id] = item
        return Answer.of(201, self._shown(item))

    def _send_draft(self, mailbox: Mailbox, item_id: str) -> Answer:
        item = mailbox.items.get(item_id)
        if item is None or not item.is_draft:
            return item_not_found()
        return self._submit(mailbox, item) or Answer(202)

    def _item(self, mailbox: Mailbox, headers: Mapping[str, str], body: bytes) -> Item | Answer:
        if headers.get("content-type") != "text/plain":
            return Answer.error(400, "UnableToDeserializePostBody", "were unable to deserialize")
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError:
            return Answer.error(
                400, "ErrorMimeContentInvalidBase64String",
                "Invalid base64 string for MIME content.",
            )  # fmt: skip
        header = BytesHeaderParser(policy=policy.compat32).parsebytes(content)
        sender = getaddresses([str(header.get("From", ""))])[0][1].lower()
        if sender != mailbox.address.lower():
            return Answer.error(
                403, "ErrorSendAsDenied",
                "The user account which was used to submit this request does not have the right to"
                " send mail on behalf of the specified sending account. Cannot submit message.",
            )  # fmt: skip
        fields = [str(v) for name in ("To", "Cc", "Bcc") for v in header.get_all(name, [])]
        recipients = [address for _name, address in getaddresses(fields)]
        bad = [address for address in recipients if "@" not in address or address.endswith(".")]
        if bad or not recipients:
            return Answer.error(
                400, "ErrorInvalidRecipients",
                f"At least one recipient is not valid., Recipient '{bad}' is not resolved. All"
                " recipients must be resolved before a message can be submitted.",
            )  # fmt: skip
        with self._lock:
            self._numbers += 1
            number = self._numbers
        own = str(header.get("Message-ID", "")).strip()
        message_id = own if self.keeps_message_id and own else f"<{number}@emulated.outlook.com>"
        return Item(
            f"AAMk{number}=", content, message_id, str(header.get("Subject", "")), recipients,
            "drafts", self.clock(),
        )  # fmt: skip

    def _submit(self, mailbox: Mailbox, item: Item) -> Answer | None:
        """The transport takes the letter; None when it did."""
        now = self.clock()
        _forget(mailbox.recipients, now - RECIPIENTS[1])
        if len(mailbox.recipients) + len(item.recipients) > self.readers_a_day:
            self.over_limits.append("ErrorSubmissionQuotaExceeded")
            return Answer.error(
                429, "ErrorSubmissionQuotaExceeded",
                "The message couldn't be sent because the sender's submission quota was exceeded."
                " Please try again later.",
            )  # fmt: skip
        mailbox.recipients.extend([now] * len(item.recipients))
        leaves_at = max(mailbox.next_free or now, now)
        mailbox.next_free = leaves_at + LETTERS_APART
        self.longest_wait = max(self.longest_wait, leaves_at - now)
        item.is_draft, item.modified_at = False, now
        item.sent_at = leaves_at + self.visible_after
        mailbox.items[item.id] = item
        own = str(BytesHeaderParser().parsebytes(item.content).get("Message-ID", "")).strip()
        letter = Delivered(item.message_id, own, tuple(item.recipients), item.content, leaves_at)
        reasons = {address: self._comes_back(address, now) for address in item.recipients}
        (self.returned if any(reasons.values()) else self.delivered).append(letter)
        self.on_delivered(letter)
        for address, reason in reasons.items():
            if reason:
                self._report(mailbox, item, address, reason)
            elif address.lower() in self.mailboxes:
                self._arrive(self.mailboxes[address.lower()], item)
        return None

    def _comes_back(self, address: str, now: datetime) -> str:
        """Why an accepted letter to this address returns; empty when it arrives."""
        if self.tenant_readers_a_day is not None:
            _forget(self._tenant, now - RECIPIENTS[1])
            if len(self._tenant) >= self.tenant_readers_a_day:
                return TENANT_IS_OVER
            self._tenant.append(now)
        if self.gone and address.lower().startswith(self.gone):
            return RECIPIENT_NOT_FOUND
        return self.unreachable.get(address.lower(), "")

    def _bring_reports(self) -> None:
        """The reports that have found their way by now."""
        now = self.clock()
        for _at, mailbox, item in [entry for entry in self._under_way if entry[0] <= now]:
            mailbox.items[item.id] = item
            self.subscriptions.arrived(mailbox.address, "inbox", item.id)
        self._under_way = [entry for entry in self._under_way if entry[0] > now]

    def _arrive(self, mailbox: Mailbox, item: Item) -> None:
        """A letter to a mailbox of ours, signed as Exchange signs: without the List fields."""
        signature = (
            b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=contoso.example; s=selector1;"
            b"\r\n h=From:Date:Subject:Message-ID:Content-Type:MIME-Version; bh=x; b=y\r\n"
        )
        self._numbers += 1
        mailbox.items[f"AAIn{self._numbers}="] = Item(
            f"AAIn{self._numbers}=", signature + item.content, item.message_id, item.subject,
            item.recipients, "inbox", self.clock(), is_draft=False,
        )  # fmt: skip

    def _report(self, mailbox: Mailbox, item: Item, address: str, reason: str) -> None:
        """An accepted letter comes back: a report (RFC 3464) in the sender's Inbox."""
        self._numbers += 1
        status = re.search(r"\d\.\d+\.\d+", reason)
        header = item.content.partition(b"\r\n\r\n")[0]
        content = (
            (
                f"From: Microsoft Outlook <MicrosoftExchange329e@contoso.example>\r\n"
                f"To: <{mailbox.address}>\r\nSubject: Undeliverable: {item.subject}\r\n"
                f"Message-ID: <ndr{self._numbers}@emulated.outlook.com>\r\n"
                f"In-Reply-To: {item.message_id}\r\nAuto-Submitted: auto-replied\r\n"
                "X-MS-Exchange-Message-Is-Ndr:\r\nMIME-Version: 1.0\r\n"
                "Content-Type: multipart/report; report-type=delivery-status; boundary=ndr\r\n\r\n"
                "--ndr\r\nContent-Type: text/plain\r\n\r\n"
                f"Your message to {address} couldn't be delivered.\r\n"
                "--ndr\r\nContent-Type: message/delivery-status\r\n\r\n"
                "Reporting-MTA: dns;emulated.prod.outlook.com\r\n\r\n"
                f"Final-recipient: rfc822;{address}\r\nAction: failed\r\n"
                f"Status: {status[0] if status else '5.0.0'}\r\nDiagnostic-Code: smtp;{reason}\r\n"
                "\r\n--ndr\r\nContent-Type: text/rfc822-headers\r\n\r\n"
            ).encode()
            + header
            + b"\r\n\r\n--ndr--\r\n"
        )
        arrives_at = self.clock() + self.reported_after
        report = Item(
            f"AANd{self._numbers}=", content, f"<ndr{self._numbers}@emulated.outlook.com>",
            f"Undeliverable: {item.subject}", [mailbox.address], "inbox", arrives_at,
            is_draft=False,
        )  # fmt: skip
        self._under_way.append((arrives_at, mailbox, report))

    def _move(self, mailbox: Mailbox, item_id: str) -> Answer:
        mailbox.moves += 1
        if mailbox.moves <= MOVES:
            return Answer.of(201, {"id": item_id})
        mailbox.silent_until = self.clock() + SILENCE
        return Answer.error(500, "ErrorMoveCopyFailed", "The move or copy operation failed.")

    def _attach(self, mailbox: Mailbox, item_id: str, data: dict[str, Any]) -> Answer:
        item = mailbox.items.get(item_id)
        if item is None or not item.is_draft:
            return item_not_found()
        content = base64.b64decode(data["contentBytes"])
        item.attachments.append({"name": data["name"], "content": content})
        return Answer.of(201, {"id": "a"})

    def _session(self, mailbox: Mailbox, item_id: str, data: dict[str, Any]) -> Answer:
        item = mailbox.items.get(item_id)
        if item is None or not item.is_draft:
            return item_not_found()
        described = data["AttachmentItem"]
        self._numbers += 1
        key = f"session{self._numbers}"
        mailbox.uploading[key] = (item, described, bytearray(), described["size"])
        return Answer.of(201, {"uploadUrl": f"https://outlook.office.com/upload/{key}"})

    def _put(self, key: str, headers: Mapping[str, str], body: bytes) -> Answer:
        for mailbox in self.mailboxes.values():
            if key in mailbox.uploading:
                break
        else:
            return item_not_found()
        item, described, received, size = mailbox.uploading[key]
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("content-range", ""))
        if not match or int(match[1]) != len(received) or len(body) > LARGEST_REQUEST:
            return Answer.error(416, "InvalidRange", "Out of order.")
        received += body
        if len(received) < size:
            return Answer.of(200, {"nextExpectedRanges": [f"{len(received)}-"]})
        del mailbox.uploading[key]
        item.attachments.append({"name": described["name"], "content": bytes(received)})
        return Answer(201)

    def _list(self, mailbox: Mailbox, folder: str, wanted: str, top: int) -> Answer:
        match = re.fullmatch(r"(internetMessageId|subject) eq '((?:[^']|'')*)'", wanted)
        if wanted and not match:
            return Answer.error(400, "ErrorInvalidUrlQueryFilter", "The filter is invalid.")
        shown = []
        for item in mailbox.items.values():
            if self._folder(item) != folder:
                continue
            value = item.subject if match and match[1] == "subject" else item.message_id
            if match is None or value == match[2].replace("''", "'"):
                shown.append(self._shown(item))
                if len(shown) == top:
                    break
        return Answer.of(200, {"value": shown})

    def _delta(
        self, mailbox: Mailbox, folder: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> Answer:
        prefer, host = headers.get("prefer", ""), headers.get("host", "")
        scheme = "http" if host.startswith("127.") else "https"
        url = f"{scheme}://{host}/v1.0/users/{mailbox.address}/mailFolders/{folder}/messages/delta"
        answer = self.feed(mailbox.address, folder).answer(query, prefer, url)
        if answer is None:
            return Answer.error(
                410, "SyncStateNotFound",
                "The sync state generation is not found; generation=149;[highest=157][157][156].",
                location=url,
            )  # fmt: skip
        status, page = answer
        if 'IdType="ImmutableId"' not in prefer:
            # Good for as long as the mail stays in this folder.
            page["value"] = [item | {"id": f"{folder}:{item['id']}"} for item in page["value"]]
        return Answer.of(status, page)

    def feed(self, address: str, folder: str) -> DeltaFeed:
        """What delta queries tell of a folder."""
        mailbox = self.mailboxes[address.lower()]

        def look() -> dict[str, dict[str, Any]]:
            return {
                item.id: {"id": item.id, "receivedDateTime": _told(item.modified_at)}
                for item in list(mailbox.items.values())
                if self._folder(item) == folder
            }

        return self.feeds.setdefault((address.lower(), folder), DeltaFeed(look))

    def receive(self, address: str, raw: bytes, folder: str = "inbox") -> Item:
        """A mail from outside arrives."""
        mailbox = self.mailboxes[address.lower()]
        header = BytesHeaderParser(policy=policy.compat32).parsebytes(raw)
        with self._lock:
            self._numbers += 1
            number = self._numbers
        message_id = str(header.get("Message-ID", f"<{number}@outside.example>"))
        item = Item(
            f"AAIn{number}=", raw, message_id, str(header.get("Subject", "")), [address], folder,
            self.clock(), is_draft=False,
        )  # fmt: skip
        mailbox.items[item.id] = item
        self.subscriptions.arrived(address, folder, item.id)
        return item

    def _folder(self, item: Item) -> str:
        if item.sent_at is None:
            return item.folder
        return "sentitems" if self.clock() >= item.sent_at else "drafts"

    def _shown(self, item: Item) -> dict[str, Any]:
        return {
            "id": item.id,
            "internetMessageId": item.message_id,
            "isDraft": item.is_draft,
            "subject": item.subject,
            "lastModifiedDateTime": _told(item.modified_at),
        }

    # ------------------------------------------------------------------ what a test asks

    def assert_promises(self, *, doubled: int = 0) -> None:
        """The invariants that hold after every test."""
        ids = [letter.own_message_id for letter in self.delivered]
        assert len(ids) - len(set(ids)) == doubled, "a letter left twice"
        assert self.silence_broken == 0, "somebody spoke into the silence"
        for mailbox in self.mailboxes.values():
            assert mailbox.most_in_flight <= MOST_AT_ONCE, "too many requests at once"
        hosts = {entry.host for entry in self.journal if entry.has_token}
        foreign = {h for h in hosts if not re.match(r"graph\.|127\.0\.0\.1|.*graph\.", h)}
        assert not foreign, f"a token went to {foreign}"

    def requests(self, part: str = "") -> list[Entry]:
        """The journal's lines whose "METHOD path" contains ``part``."""
        return [entry for entry in self.journal if part in f"{entry.method} {entry.path}"]

    def attached(self, mailbox: str) -> list[dict[str, Any]]:
        items = self.mailboxes[mailbox].items.values()
        return [attachment for item in items for attachment in item.attachments]


def expired_token() -> Answer:
    return Answer.error(
        401, "InvalidAuthenticationToken",
        "Lifetime validation failed, the token is expired.",
        www_authenticate='Bearer realm="", client_id="00000003-0000-0000-c000-000000000000"',
    )  # fmt: skip


def item_not_found() -> Answer:
    return Answer.error(
        404, "ErrorItemNotFound", "The specified object was not found in the store."
    )


def _told(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _forget(moments: deque[datetime], before: datetime) -> None:
    while moments and moments[0] <= before:
        moments.popleft()


# ---------------------------------------------------------------------------------- the ways in


class EmulatorTransport(httpx.AsyncBaseTransport):
    """The fast way in: no socket. A Drop becomes the error that httpx would have raised."""

    def __init__(self, emulator: GraphEmulator) -> None:
        self._inner = httpx.ASGITransport(emulator)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._inner.handle_async_request(request)
        except Drop as drop:
            raise drop.error(str(drop), request=request) from None


class EmulatorWire(httpx.BaseTransport):
    """The same for a client without an event loop."""

    def __init__(self, emulator: GraphEmulator) -> None:
        self._emulator = emulator

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer = await EmulatorTransport(self._emulator).handle_async_request(request)
            return httpx.Response(
                answer.status_code, headers=answer.headers, content=await answer.aread()
            )

        return asyncio.run(ask())


class EmulatedLogin:
    """The http_client of msal that reaches the emulator's Entra, from msal's thread."""

    def __init__(self, emulator: GraphEmulator) -> None:
        self._transport = EmulatorTransport(emulator)

    def post(self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any):
        return self._ask("POST", url, params, data, headers)

    def get(self, url: str, params: Any = None, headers: Any = None, **_: Any):
        return self._ask("GET", url, params, None, headers)

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self, method: str, url: str, params: Any, data: Any, headers: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport) as client:
                return await client.request(method, url, params=params, data=data, headers=headers)

        return asyncio.run(ask())


def parsed(content: bytes) -> Any:
    """A letter as the standard library reads it."""
    return BytesParser(policy=policy.default).parsebytes(content)
