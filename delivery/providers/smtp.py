"""SMTP submission over aiosmtplib, on kept connections, with the phase of each letter known.

aiosmtplib's ``data()`` covers 354, body and final reply in one call, and its lost-connection
error is the same for every phase. So the dialogue is ours, command by command (RFC 5321), and
what was lost *after* the final dot is told apart from what was lost before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Callable

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
    Unavailable,
    Unconfirmed,
)
from delivery.replies import classify

# RFC 5321 section 4.5.3.2, in seconds. Too short a wait after the final dot makes doubts.
CONNECT_TIMEOUT = 60.0
COMMAND_TIMEOUT = 300.0
DATA_TIMEOUT = 120.0
FINAL_DOT_TIMEOUT = 600.0
QUIT_TIMEOUT = 2.0

_LOST = (SMTPServerDisconnected, SMTPTimeoutError, SMTPConnectError, OSError, TimeoutError)
_LEADING_DOT = re.compile(rb"(?m)^\.")
_UNSAFE_IN_PATH = re.compile(r"[\x00-\x20\x7f<>]|[^\x00-\x7f]")


class SMTPProvider:
    """Hands letters to one SMTP server.

    ``security``: "starttls" (required, never "if offered"), "tls" (implicit, port 465) or "none".
    Certificates are verified against the system's authorities, or those of ``ca_file``.
    ``connections`` are kept open in each worker process, each for ``letters_per_connection``
    letters or ``seconds_per_connection`` seconds. ``local_hostname`` is what EHLO says.
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
        letters_per_connection: int = 100,
        seconds_per_connection: float = 300.0,
        final_dot_timeout: float = FINAL_DOT_TIMEOUT,
    ) -> None:
        if not host:
            raise ValueError("host is empty")
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise ValueError(f"port {port!r} is not a number from 1 to 65535")
        if security not in {"starttls", "tls", "none"}:
            raise ValueError(f'security {security!r} is not "starttls", "tls" or "none"')
        if bool(username) != bool(password):
            raise ValueError("username and password go together")
        if not isinstance(connections, int) or not 1 <= connections <= 1000:
            raise ValueError(f"connections {connections!r} is not a number from 1 to 1000")
        self.host, self.port, self.security = host, port, security
        self.username, self.password = username, password
        self.local_hostname = local_hostname
        self.letters_per_connection = letters_per_connection
        self.seconds_per_connection = seconds_per_connection
        self.final_dot_timeout = final_dot_timeout
        self.concurrency = connections
        self._tls = ssl.create_default_context(cafile=ca_file) if security != "none" else None
        self.note_final_dot: Callable[[int], None] = lambda reference: None
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()

    def watch(self, note: Callable[[int], None]) -> None:
        """``note`` is called with a letter's reference just before its final dot is written."""
        self.note_final_dot = note

    async def open(self) -> None:
        """Makes the places for connections; each connects with its first letter."""
        self._free = asyncio.LifoQueue()
        for _ in range(self.concurrency):
            self._free.put_nowait(Connection(self))

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Hands one letter over on a free connection."""
        connection = await self._free.get()
        try:
            return await connection.hand_over(message)
        finally:
            self._free.put_nowait(connection)

    async def close(self) -> None:
        """QUIT on every open connection."""
        connections = [self._free.get_nowait() for _ in range(self._free.qsize())]
        await asyncio.gather(*(connection.quit() for connection in connections))

    def new_client(self) -> SMTP:
        """An aiosmtplib client that connects and does nothing else by itself."""
        return SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self.security == "tls",
            start_tls=False,
            tls_context=self._tls,
            local_hostname=self.local_hostname,
            timeout=CONNECT_TIMEOUT,
        )


class Connection:
    """One place for a connection, and the dialogue on it."""

    def __init__(self, provider: SMTPProvider) -> None:
        self.provider = provider
        self.client: SMTP | None = None
        self.letters = 0
        self.connected_at = 0.0

    async def hand_over(self, message: OutgoingMessage) -> Outcome:
        """One letter, on the kept connection when it still answers, else on a new one."""
        try:
            mail_from = _path(message.envelope.mail_from)
            rcpt_to = _path(message.envelope.rcpt_to)
        except ValueError as error:
            return Rejected(Reply.of(Phase.MAIL, None, str(error)), rule="unsafe address")
        if self.client is not None and not self._is_fresh():
            await self.quit()
        if self.client is not None:
            outcome = await self._transaction(message, mail_from, rcpt_to)
            if outcome is not None:
                return outcome
            # The server had closed the idle connection, as servers do without a word (Yahoo after
            # a number of letters). Nothing of this letter was taken: once more on a new one.
        failure = await self._connect()
        if failure is not None:
            return failure
        outcome = await self._transaction(message, mail_from, rcpt_to)
        return outcome or Unavailable(
            Reply.of(Phase.MAIL, None, "The connection was lost before the letter began."),
            rule="connection lost",
        )

    def _is_fresh(self) -> bool:
        age = time.monotonic() - self.connected_at
        return (
            self.client is not None
            and self.client.is_connected
            and self.letters < self.provider.letters_per_connection
            and age < self.provider.seconds_per_connection
        )

    # ------------------------------------------------------------------ the session

    async def _connect(self) -> Outcome | None:
        """Greeting, EHLO, STARTTLS, AUTH; None when the connection is ready for letters."""
        self.client = client = self.provider.new_client()
        phase = Phase.CONNECT
        try:
            await client.connect()
            phase = Phase.EHLO
            await client.ehlo(timeout=COMMAND_TIMEOUT)
            if self.provider.security == "starttls":
                phase = Phase.STARTTLS
                await client.starttls(tls_context=self.provider._tls, timeout=COMMAND_TIMEOUT)
                await client.ehlo(timeout=COMMAND_TIMEOUT)
            if self.provider.username:
                phase = Phase.AUTH
                await client.login(
                    self.provider.username, self.provider.password, timeout=COMMAND_TIMEOUT
                )
        except SMTPResponseException as refusal:
            await self.quit()
            # aiosmtplib reads the greeting inside connect().
            at = Phase.GREETING if phase is Phase.CONNECT else phase
            return classify(Reply.of(at, refusal.code, refusal.message))
        except ssl.SSLCertVerificationError as error:
            self._drop()
            return self._needs_a_person(
                Phase.STARTTLS, f"Certificate refused: {error.verify_message}"
            )
        except SMTPException as error:
            self._drop()
            cause = error.__cause__
            if isinstance(cause, ssl.SSLCertVerificationError):
                text = f"Certificate refused: {cause.verify_message}"
                return self._needs_a_person(Phase.STARTTLS, text)
            if not isinstance(error, _LOST):
                # What the settings demand, the server does not offer (STARTTLS, AUTH).
                return self._needs_a_person(phase, error.message)
            return Unavailable(Reply.of(phase, None, error.message), rule="no connection")
        except OSError as error:
            self._drop()
            return Unavailable(Reply.of(phase, None, str(error)), rule="no connection")
        self.letters = 0
        self.connected_at = time.monotonic()
        return None

    @staticmethod
    def _needs_a_person(phase: Phase, text: str) -> Unavailable:
        return Unavailable(Reply.of(phase, None, text), needs_a_person=True, rule="configuration")

    # ------------------------------------------------------------------ the letter

    async def _transaction(
        self, message: OutgoingMessage, mail_from: str, rcpt_to: str
    ) -> Outcome | None:
        """MAIL, RCPT, DATA, the letter, the final dot. None: the kept connection was dead before
        the server saw anything of this letter."""
        client = self.client
        assert client is not None
        first = self.letters == 0
        self.letters += 1
        phase = Phase.MAIL
        try:
            size = f" SIZE={len(message.content)}" if client.supports_extension("size") else ""
            reply = await self._command(phase, f"MAIL FROM:{mail_from}{size}")
            if reply.code != 250:
                return await self._refused(reply)
            phase = Phase.RCPT
            reply = await self._command(phase, f"RCPT TO:{rcpt_to}")
            if reply.code not in {250, 251, 252}:
                return await self._refused(reply)
            phase = Phase.DATA
            reply = await self._command(phase, "DATA", DATA_TIMEOUT)
            if reply.code != 354:
                return await self._refused(reply)
            protocol = client.protocol
            if protocol is None:
                raise SMTPServerDisconnected("Connection lost")
            self.provider.note_final_dot(message.reference)
            protocol.write(_LEADING_DOT.sub(b"..", message.content) + b".\r\n")
            # From here on the server may have it all. write() hands to the socket or raises.
            phase = Phase.FINAL_DOT
            answer = await protocol.read_response(timeout=self.provider.final_dot_timeout)
        except _LOST as error:
            self._drop()
            if phase is Phase.MAIL and not first:
                return None
            return _lost(phase, str(error) or type(error).__name__)
        except SMTPResponseException as nonsense:
            # A line that is no reply at all: never reuse the connection.
            self._drop()
            return _lost(phase, nonsense.message)
        reply = Reply.of(phase, answer.code, answer.message)
        if 200 <= answer.code < 300:
            return Accepted(reply)
        if answer.code < 400:
            # Out of step: this is not the answer to this letter, whose own answer is unknown.
            self._drop()
            return Unconfirmed(reply, rule="out of step")
        return await self._refused(reply, transaction_is_over=True)

    async def _command(self, phase: Phase, line: str, timeout: float = COMMAND_TIMEOUT) -> Reply:
        assert self.client is not None
        answer = await self.client.execute_command(line.encode("ascii"), timeout=timeout)
        return Reply.of(phase, answer.code, answer.message)

    async def _refused(self, reply: Reply, *, transaction_is_over: bool = False) -> Outcome:
        """What the refusal means; the connection is made ready for the next letter or given up."""
        assert self.client is not None
        if reply.code in {421, 503} or reply.code is None or reply.code < 400:
            await self.quit()
        elif not transaction_is_over:
            try:
                if (
                    await self.client.execute_command(b"RSET", timeout=COMMAND_TIMEOUT)
                ).code != 250:
                    await self.quit()
            except (SMTPException, OSError):
                self._drop()
        return classify(reply)

    # ------------------------------------------------------------------ the end

    def _drop(self) -> None:
        """Ends the connection at once; after a time-out nothing may be read from it any more."""
        if self.client is not None:
            self.client.close()
        self.client = None

    async def quit(self) -> None:
        """QUIT, and no sorrow when the server is gone (its answers to letters are all read)."""
        if self.client is not None and self.client.is_connected:
            with contextlib.suppress(SMTPException, OSError):
                await self.client.quit(timeout=QUIT_TIMEOUT)
        self._drop()


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
    if _UNSAFE_IN_PATH.search(address):
        raise ValueError(f"{address!r} cannot stand in an SMTP command")
    return f"<{address}>"
