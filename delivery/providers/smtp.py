"""SMTP submission over aiosmtplib, on kept connections, with the phase of each letter known.

aiosmtplib connects, encrypts and logs in. Its ``data()`` covers 354, body and final reply in one
call, and its lost-connection error is the same for every phase; so the letters themselves are
smtp_pipelining's, and what was lost *after* the final dot is told apart from what was lost before.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aiosmtplib import SMTP
from aiosmtplib.errors import (
    SMTPConnectError,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)

from delivery.message import OutgoingMessage
from delivery.outcomes import (
    Accepted,
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Speaker,
    Unavailable,
    Unconfirmed,
)
from delivery.providers.base import Gate, Rest
from delivery.providers.microsoft_identity import CLOUDS, IdentityError, shared_identity
from delivery.providers.smtp_pipelining import (
    Answer,
    Letter,
    LetterClient,
    LetterProtocol,
    LostError,
    Step,
    Timeouts,
)
from delivery.providers.xoauth2 import authenticate
from delivery.replies import classify

# RFC 5321 section 4.5.3.2, in seconds. Too short a wait after the final dot makes doubts.
CONNECT_TIMEOUT = 60.0
COMMAND_TIMEOUT = 300.0
DATA_TIMEOUT = 120.0
FINAL_DOT_TIMEOUT = 600.0
QUIT_TIMEOUT = 2.0

# On one connection: a letter whose answer is awaited, the commands of the next one behind it, and
# a third, so that its commands can leave with the second: one write and one read for each letter.
LETTERS_AT_ONCE = 3

_LOST = (SMTPServerDisconnected, SMTPTimeoutError, SMTPConnectError, OSError, TimeoutError)
_PHASES = {
    Step.RSET: Phase.MAIL,
    Step.MAIL: Phase.MAIL,
    Step.RCPT: Phase.RCPT,
    Step.DATA: Phase.DATA,
    Step.LETTER: Phase.FINAL_DOT,
}
_HOSTS_OF_MAILBOXES = {cloud.smtp for cloud in CLOUDS.values()}
_GIVEN_BY_EXCHANGE = re.compile(r"2\.0\.0 OK (<[^<>\s]+@[^<>\s]+>) \[Hostname=")
# Printable ASCII but for space, "<" and ">".
_SAFE_IN_PATH = re.compile(r"[!-;=?-~]*")


class SMTPProvider:
    """Hands letters to one SMTP server.

    ``security``: "starttls" (required, never "if offered"), "tls" (implicit, port 465) or "none".
    Certificates are verified against the system's authorities, or those of ``ca_file``.
    ``connections`` are kept open in each worker process, each for ``letters_per_connection``
    letters or ``seconds_per_connection`` seconds; ``concurrency`` is three times their number: the
    commands of the next letter stand behind the one on the wire (RFC 2920), and a third is ready.
    ``chunking``: BDAT instead of DATA where the server announces both (RFC 3030).
    ``local_hostname`` is what EHLO says.
    ``identity``: the keywords of MicrosoftIdentity; then the login is AUTH XOAUTH2 as ``username``
    and there is no password. ``speaker``: "submission" for a server that takes letters for all
    readers; "reader" when it is itself the readers' server, so that its refusals speak of them.
    """

    def __init__(
        self,
        host: str,
        port: int = 587,
        security: str = "starttls",
        username: str = "",
        password: str = "",
        connections: int = 3,
        local_hostname: str | None = None,
        ca_file: str | None = None,
        letters_per_connection: int = 500,
        seconds_per_connection: float = 300.0,
        final_dot_timeout: float = FINAL_DOT_TIMEOUT,
        chunking: bool = True,
        identity: Mapping[str, Any] | None = None,
        speaker: str = Speaker.SUBMISSION,
    ) -> None:
        if not host:
            raise ValueError("host is empty")
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise ValueError(f"port {port!r} is not a number from 1 to 65535")
        if security not in {"starttls", "tls", "none"}:
            raise ValueError(f'security {security!r} is not "starttls", "tls" or "none"')
        if identity and (password or not username or security == "none"):
            raise ValueError("identity needs username and encryption, and no password")
        if not identity and bool(username) != bool(password):
            raise ValueError("username and password go together")
        if not isinstance(connections, int) or not 1 <= connections <= 1000:
            raise ValueError(f"connections {connections!r} is not a number from 1 to 1000")
        self.host, self.port, self.security = host, port, security
        self.username, self.password = username, password
        self.identity = shared_identity(identity) if identity else None
        self.local_hostname = local_hostname
        self.letters_per_connection = letters_per_connection
        self.seconds_per_connection = seconds_per_connection
        self.timeouts = Timeouts(COMMAND_TIMEOUT, DATA_TIMEOUT, final_dot_timeout)
        self.chunking = chunking
        self.speaker = Speaker(speaker)
        self.connections = connections
        self.concurrency = LETTERS_AT_ONCE * connections
        self._tls = ssl.create_default_context(cafile=ca_file) if security != "none" else None
        self.note_final_dot: Callable[[int], None] = lambda reference: None
        self._gate: Gate | None = None  # nobody else uses the mailbox, or it is none
        # A login or certificate that is refused stays so until a person has mended it. Letters
        # that wait for a connection must not each try it again: that locks an account.
        self.refusal: Unavailable | None = None
        self._places: list[Connection] = []
        # The same by how many letters they have now; those used last stand last.
        self._by_load: list[dict[Connection, None]] = [{} for _ in range(LETTERS_AT_ONCE + 1)]
        self._waiting: deque[asyncio.Future[Connection]] = deque()

    def watch(self, note: Callable[[int], None]) -> None:
        """``note`` is called with a letter's reference just before its final dot is written."""
        self.note_final_dot = note

    @property
    def mailbox(self) -> str:
        """At Exchange Online the login is a mailbox, which Graph and readers of bounces use too."""
        is_mailbox = self.identity is not None or self.host.lower() in _HOSTS_OF_MAILBOXES
        return self.username.lower() if is_mailbox else ""

    @property
    def allowance(self) -> None:
        """Its connections are counted as such (KeepsConnections)."""
        return None

    def guard(self, gate: Gate) -> None:
        """``gate`` is asked before each letter."""
        self._gate = gate

    async def open(self) -> None:
        """Makes the places for connections; each connects with its first letter."""
        if self.local_hostname is None:
            # Once, and not for each connection as aiosmtplib would: it may ask a slow resolver.
            self.local_hostname = await asyncio.to_thread(socket.getfqdn)
        self._places = [Connection(self) for _ in range(self.connections)]
        for places in self._by_load:
            places.clear()
        self._by_load[0] |= dict.fromkeys(self._places)
        self.refusal = None

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Hands one letter over: on an idle connection, else behind the letters of the one that
        has fewest, else when there is room."""
        connection = self._free_connection()
        if connection is None:
            turn: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            connection = await turn
        try:
            if self._gate is None:
                return await connection.hand_over(message)
            return await self._in_turn(self._gate, connection, message)
        finally:
            self._change_load(connection, -1)
            while self._waiting:
                if self._waiting[0].done():  # whoever waited was cancelled
                    self._waiting.popleft()
                elif (free := self._free_connection()) is not None:
                    self._waiting.popleft().set_result(free)
                else:
                    break

    async def _in_turn(
        self, gate: Gate, connection: Connection, message: OutgoingMessage
    ) -> Outcome:
        turn = await gate.ask()
        if isinstance(turn, Rest):
            reply = Reply.of(Phase.LOCAL, None, f"Nothing was asked of the mailbox: {turn.because}")
            return Unavailable(reply, turn.wait, rule="mailbox rests")
        try:
            return await connection.hand_over(message)
        finally:
            await gate.done(turn)

    async def keep_connections(self, most: int) -> int:
        """At most so many places for connections; QUIT on idle ones above it."""
        while len(self._places) > most and self._by_load[0]:
            surplus = next(iter(self._by_load[0]))  # it was used longest ago
            del self._by_load[0][surplus]
            self._places.remove(surplus)
            await surplus.quit()
        missing = min(most, self.connections) - len(self._places)
        more = [Connection(self) for _ in range(missing)]
        self._places += more
        self._by_load[0] = dict.fromkeys(more) | self._by_load[0]
        self.concurrency = LETTERS_AT_ONCE * len(self._places)
        return len(self._places)

    async def close(self) -> None:
        """QUIT on every open connection."""
        await asyncio.gather(*(connection.quit() for connection in self._places))

    def _free_connection(self) -> Connection | None:
        for places in self._by_load:
            for connection in reversed(places):
                if connection.has_room:
                    self._change_load(connection, 1)
                    return connection
        return None

    def _change_load(self, connection: Connection, by: int) -> None:
        del self._by_load[connection.load][connection]
        connection.load += by
        self._by_load[connection.load][connection] = None

    def new_client(self) -> LetterClient:
        """An aiosmtplib client that connects and does nothing else by itself."""
        return LetterClient(
            hostname=self.host,
            port=self.port,
            use_tls=self.security == "tls",
            start_tls=False,
            tls_context=self._tls,
            local_hostname=self.local_hostname,
            timeout=CONNECT_TIMEOUT,
        )


class Connection:
    """One place for a connection, and what becomes of letters on it, LETTERS_AT_ONCE at a time."""

    def __init__(self, provider: SMTPProvider) -> None:
        self.provider = provider
        self.client: LetterClient | None = None
        self.protocol: LetterProtocol | None = None
        self.letters = 0
        self.fresh_until = 0.0
        self.says_size = False
        self.load = 0  # letters that have this connection now
        self._connecting = asyncio.Lock()

    async def hand_over(self, message: OutgoingMessage) -> Outcome:
        """One letter, on the kept connection when it still answers, else on a new one."""
        try:
            mail_from = _path(message.envelope.mail_from)
            rcpt_to = _path(message.envelope.rcpt_to)
        except ValueError as error:
            return Rejected(Reply.of(Phase.MAIL, None, str(error)), rule="unsafe address")
        # The server may have closed an idle connection without a word (Yahoo after a number of
        # letters). Nothing of the letter was taken then: once more on a new one. And when that
        # one breaks before the first answer too, one command at a time: a server that dies of
        # this letter's RCPT may have kept its answer to MAIL in a buffer.
        for pipelining in (True, True, False):
            if not self._is_fresh():
                failure = await self._connect_once(pipelining)
                if failure is not None:
                    return failure
            is_kept = self.letters > 0
            try:
                answer = await self._submit(message, mail_from, rcpt_to)
            except LostError as lost:
                if lost.step is not Step.MAIL:
                    return _lost(_PHASES[lost.step], str(lost))
            else:
                # The usual end of a connection that had its share of letters; if the server is
                # really closed, a new connection will be told so.
                if not (is_kept and answer.code == 421 and answer.step is Step.MAIL):
                    return self._outcome(answer, message)
            if not is_kept and not (self.protocol is not None and self.protocol.pipelining):
                break
        return Unavailable(
            Reply.of(Phase.MAIL, None, "The connection was lost before the letter began."),
            rule="connection lost",
        )

    @property
    def has_room(self) -> bool:
        """Whether one more letter may come, or queue up behind those that are here."""
        if not self.load:
            return True
        return self.load < LETTERS_AT_ONCE and (self.protocol is None or self._is_fresh())

    def _is_fresh(self) -> bool:
        return (
            self.protocol is not None
            and self.protocol.is_usable
            and self.letters < self.provider.letters_per_connection
            and time.monotonic() < self.fresh_until
        )

    # ------------------------------------------------------------------ the session

    async def _connect_once(self, pipelining: bool) -> Outcome | None:
        """Connects, unless the other letter that has this place did so meanwhile."""
        async with self._connecting:
            if self._is_fresh():
                return None
            if self.provider.refusal is not None:
                return self.provider.refusal
            await self.quit()
            failure = await self._connect(pipelining)
        if isinstance(failure, Unavailable) and failure.needs_a_person:
            self.provider.refusal = failure
        return failure

    async def _connect(self, pipelining: bool) -> Outcome | None:
        """Greeting, EHLO, STARTTLS, AUTH; None when the connection is ready for letters."""
        client = self.provider.new_client()
        phase = Phase.CONNECT
        try:
            await client.connect()
            phase = Phase.EHLO
            await client.ehlo(timeout=COMMAND_TIMEOUT)
            if self.provider.security == "starttls":
                phase = Phase.STARTTLS
                await client.starttls(tls_context=self.provider._tls, timeout=COMMAND_TIMEOUT)
                await client.ehlo(timeout=COMMAND_TIMEOUT)
            if self.provider.identity is not None:
                phase = Phase.AUTH
                identity = self.provider.identity
                scope = identity.cloud.smtp_scope
                await authenticate(client, self.provider.username, identity, scope, COMMAND_TIMEOUT)
            elif self.provider.username:
                phase = Phase.AUTH
                await client.login(
                    self.provider.username, self.provider.password, timeout=COMMAND_TIMEOUT
                )
            protocol = client.begin_letters(
                self.provider.timeouts, pipelining=pipelining, chunking=self.provider.chunking
            )
        except IdentityError as error:
            await _quit(client)
            return error.outcome
        except SMTPResponseException as refusal:
            await _quit(client)
            # aiosmtplib reads the greeting inside connect().
            at = Phase.GREETING if phase is Phase.CONNECT else phase
            return classify(Reply.of(at, refusal.code, refusal.message))
        except ssl.SSLCertVerificationError as error:
            client.close()
            return self._needs_a_person(
                Phase.STARTTLS, f"Certificate refused: {error.verify_message}"
            )
        except SMTPException as error:
            client.close()
            cause = error.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                text = f"Certificate refused: {cause.verify_message}"
                return self._needs_a_person(Phase.STARTTLS, text)
            if not isinstance(error, _LOST):
                # What the settings demand, the server does not offer (STARTTLS, AUTH).
                return self._needs_a_person(phase, error.message)
            return Unavailable(Reply.of(phase, None, error.message), rule="no connection")
        except OSError as error:
            client.close()
            return Unavailable(Reply.of(phase, None, str(error)), rule="no connection")
        self.client, self.protocol = client, protocol
        self.says_size = client.supports_extension("size")
        self.letters = 0
        self.fresh_until = time.monotonic() + self.provider.seconds_per_connection
        return None

    @staticmethod
    def _needs_a_person(phase: Phase, text: str) -> Unavailable:
        return Unavailable(Reply.of(phase, None, text), needs_a_person=True, rule="configuration")

    # ------------------------------------------------------------------ the letter

    def _submit(
        self, message: OutgoingMessage, mail_from: str, rcpt_to: str
    ) -> asyncio.Future[Answer]:
        """MAIL, RCPT, DATA, the letter, the final dot; as LetterProtocol.submit."""
        assert self.protocol is not None
        self.letters += 1
        octets = message.octets
        size = f" SIZE={octets}" if self.says_size else ""
        letter = Letter(
            f"MAIL FROM:{mail_from}{size}\r\n".encode("ascii"),
            f"RCPT TO:{rcpt_to}\r\n".encode("ascii"),
            message.segments,
            octets,
            partial(self.provider.note_final_dot, message.reference),
            message.has_no_dots,
        )
        return self.protocol.submit(letter)

    def _outcome(self, answer: Answer, message: OutgoingMessage) -> Outcome:
        """What an answer says of its letter."""
        phase = _PHASES[answer.step]
        reply = Reply.of(phase, answer.code, answer.text, self.provider.speaker)
        if phase is Phase.FINAL_DOT:
            if not answer.in_step:
                # This is not the answer to this letter, whose own answer is unknown.
                return Unconfirmed(reply, rule="out of step")
            if 200 <= answer.code < 300:
                return Accepted(reply, _message_id_given(answer.text, message.message_id))
        return classify(reply, message.envelope.rcpt_to)

    # ------------------------------------------------------------------ the end

    async def quit(self) -> None:
        """QUIT, and no sorrow when the server is gone (its answers to letters are all read)."""
        client, protocol = self.client, self.protocol
        self.client = self.protocol = None
        if client is None or protocol is None:
            return
        if protocol.is_idle:
            await _quit(client)
        else:
            protocol.abort("Closed while a letter was under way")


def _message_id_given(text: str, ours: str) -> str:
    """The Message-ID in Exchange's "2.0.0 OK <ID> [Hostname=...]", where it is not ours."""
    given = _GIVEN_BY_EXCHANGE.match(text)
    return given[1] if given and given[1] != ours else ""


async def _quit(client: SMTP) -> None:
    if client.is_connected:
        with contextlib.suppress(SMTPException, OSError):
            await client.quit(timeout=QUIT_TIMEOUT)
    client.close()


def _lost(phase: Phase, text: str) -> Outcome:
    """The connection broke in ``phase`` without an answer (RFC 1047)."""
    reply = Reply.of(phase, None, f"Connection lost ({phase}): {text}")
    if phase is Phase.FINAL_DOT:
        return Unconfirmed(reply, rule="lost after the final dot")
    if phase is Phase.MAIL:
        return Unavailable(reply, rule="connection lost")
    # An attempt is used: a letter that breaks every connection must come to an end.
    return Deferred(reply, rule="connection lost")


def _path(address: str) -> str:
    """A path for MAIL or RCPT. ValueError for what could end the command or begin another."""
    if not _SAFE_IN_PATH.fullmatch(address):
        raise ValueError(f"{address!r} cannot stand in an SMTP command")
    return f"<{address}>"
