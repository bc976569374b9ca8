"""A real SMTP server on 127.0.0.1 that misbehaves on request.

    with SMTPServer(rules=[
        Rule(At.RCPT, "450 4.2.0 Greylisted", address="grey-*", times=1),
        Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, skip=2, times=1),
    ]) as server:
        ...                                     # send to server.host, server.port
    assert [letter.rcpt_to for letter in server.accepted] == [["ada@example.org"]]

Without rules it accepts everything. A rule speaks at one point of the dialogue; the first rule
that matches does, and only that one. What was seen is kept: ``accepted`` (letters that the
server took, whether or not it could say so), ``commands``, ``connections``, ``faults`` (where
the client broke the protocol), ``most_connections`` (open at one time).

The server is our own, not aiosmtpd: a test must be able to send half a reply, and to know
whether the client had already written the next command. It runs in a thread of its own, so the
client may block or have an event loop.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import fnmatch
import ipaddress
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LONGEST_COMMAND = 512  # octets with CRLF, RFC 5321 section 4.5.3.1.4
LONGEST_LINE = 1000  # octets with CRLF, RFC 5321 section 4.5.3.1.6


class At(StrEnum):
    """Where a rule speaks."""

    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the reply to the DATA command
    BODY = "body"  # while the letter is read: only ``drop`` and ``delay`` mean something
    FINAL_DOT = "final dot"  # the whole letter was read
    RSET = "rset"
    NOOP = "noop"
    QUIT = "quit"


class Drop(StrEnum):
    """How the connection ends."""

    BEFORE_REPLY = "before reply"
    HALF_REPLY = "half a reply"  # the first half of the reply's octets, no line end
    AFTER_REPLY = "after reply"


@dataclass(frozen=True)
class Rule:
    """What happens at one point of the dialogue.

    ``reply``: the line or lines (with ``\\n``) instead of the usual ones; bytes go out as they
    are. ``delay``: seconds before the reply, and before a drop. ``address``: a shell pattern for
    the reverse path (MAIL) or a forward path (RCPT and later). ``skip`` matches pass first, then
    ``times`` of them are meant (None: all), counted per address with ``each_address`` and per
    connection with ``each_connection``. ``connection``: only this one, from 1. ``when`` may look
    at everything else. ``reset``: a drop is a TCP reset instead of an orderly end.
    ``keeps_letter``: with FINAL_DOT, whether the letter counts as accepted although the
    client is not told so; None: when the reply says so (a drop before the usual reply keeps it).
    """

    at: At
    reply: str | bytes | None = None
    delay: float = 0
    drop: Drop | None = None
    address: str = "*"
    skip: int = 0
    times: int | None = None
    each_address: bool = False
    each_connection: bool = False
    connection: int | None = None
    when: Callable[[Session], bool] | None = None
    reset: bool = False
    keeps_letter: bool | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A line from the client. ``at``: seconds of time.monotonic."""

    connection: int
    at: float
    line: str

    @property
    def verb(self) -> str:
        return self.line.split(" ", 1)[0].split(":", 1)[0].upper()


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter that the server took. ``content`` is without the dots of the transport."""

    connection: int
    at: float
    mail_from: str
    mail_parameters: str
    rcpt_to: list[str]
    content: bytes


@dataclass(slots=True)
class Connection:
    """One connection; ``number`` counts from 1. ``port``: the client's end of it."""

    number: int
    opened_at: float
    port: int = 0
    closed_at: float | None = None
    tls: bool = False
    username: str = ""


class _DroppedError(Exception):
    """The dialogue is over."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate; ``certificate`` is also the file that a client must trust."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, names: Iterable[str] = ("localhost", "127.0.0.1")) -> Certificate:
        """A new one, valid from an hour ago for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Pennypost's tests")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        made = cls(folder / "certificate.pem", folder / "key.pem")
        made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class SMTPServer:
    """The server; see the module's docstring.

    ``security``: "none", "starttls" or "tls" (implicit), with a certificate for
    ``certificate_names``; ``certificate`` then is the file to trust. ``users``: name to password;
    a server that knows users demands AUTH before MAIL and, with "starttls", TLS before AUTH.
    ``offers``: the extensions in the answer to EHLO, beside STARTTLS and AUTH.
    ``judge_token``: the reply to a user's token, with the mechanism XOAUTH2.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        *,
        offers: Iterable[str] = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "SIZE 10485760"),
        security: str = "none",
        users: Mapping[str, str] | None = None,
        mechanisms: Iterable[str] = ("PLAIN", "LOGIN"),
        certificate_names: Iterable[str] = ("localhost", "127.0.0.1"),
        port: int = 0,
        judge_token: Callable[[str, str], str] | None = None,
    ) -> None:
        self.rules = list(rules)
        self.judge_token = judge_token
        self.offers = list(offers)
        self.security = security
        self.users = dict(users or {})
        self.mechanisms = list(mechanisms)
        self.certificate_names = list(certificate_names)
        self.port = port
        self.certificate: Path | None = None
        self.accepted: list[Letter] = []
        self.commands: list[Command] = []
        self.connections: list[Connection] = []
        self.faults: list[str] = []
        self.most_connections = 0
        self._matches: Counter[tuple[object, ...]] = Counter()
        self._changed = threading.Condition()

    # ------------------------------------------------------------------ for the tests

    @property
    def open_connections(self) -> int:
        return sum(connection.closed_at is None for connection in self.connections)

    def verbs(self, connection: int | None = None) -> list[str]:
        """The verbs of the commands so far, of one connection or of all."""
        return [
            command.verb
            for command in list(self.commands)
            if connection in (None, command.connection)
        ]

    def wait_until(self, holds: Callable[[SMTPServer], bool], timeout: float = 10) -> bool:
        """Waits until ``holds(server)``, at most ``timeout`` seconds; False when it never did."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self), timeout)

    def __enter__(self) -> SMTPServer:
        self._folder = tempfile.TemporaryDirectory(prefix="pennypost-smtp-")
        self._tls: ssl.SSLContext | None = None
        if self.security != "none":
            made = Certificate.make(Path(self._folder.name), self.certificate_names)
            self.certificate = made.certificate
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(made.certificate, made.key)
        ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="smtp-server", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._failure:
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._folder.cleanup()

    # ------------------------------------------------------------------ in the thread

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._sessions: set[asyncio.Task[None]] = set()
        try:
            server = await asyncio.start_server(
                self._connected,
                self.host,
                self.port,
                ssl=self._tls if self.security == "tls" else None,
            )
        except OSError as error:
            self._failure = error
            ready.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        connection = Connection(
            len(self.connections) + 1,
            time.monotonic(),
            port=writer.get_extra_info("peername")[1],
            tls=self.security == "tls",
        )
        with self.noted():
            self.connections.append(connection)
            self.most_connections = max(self.most_connections, self.open_connections)
        try:
            await Session(self, connection, reader, writer).converse()
        except (_DroppedError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            with self.noted():
                connection.closed_at = time.monotonic()
            self._sessions.discard(task)
            await self._close(writer)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Ends in order; without waiting for a client that does not end its side of TLS."""
        writer.close()
        try:
            async with asyncio.timeout(1):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()

    def noted(self) -> _Notify:
        """Every change of what the tests see happens in this block; it wakes `wait_until`."""
        return _Notify(self._changed)

    def rule_for(self, at: At, session: Session, addresses: Iterable[str]) -> Rule | None:
        """The first rule that speaks here; a rule that lets this match pass has counted it."""
        for number, rule in enumerate(self.rules):
            match = next((one for one in addresses if fnmatch.fnmatch(one, rule.address)), None)
            if (
                rule.at is not at
                or match is None
                or rule.connection not in (None, session.connection.number)
                or (rule.when is not None and not rule.when(session))
            ):
                continue
            key = (
                number,
                match if rule.each_address else None,
                session.connection.number if rule.each_connection else None,
            )
            self._matches[key] += 1
            turn = self._matches[key] - rule.skip
            if turn >= 1 and (rule.times is None or turn <= rule.times):
                return rule
        return None


class _Notify:
    """Holds the condition during a change and wakes everybody afterwards."""

    def __init__(self, condition: threading.Condition) -> None:
        self._condition = condition

    def __enter__(self) -> None:
        self._condition.acquire()

    def __exit__(self, *error: object) -> None:
        self._condition.notify_all()
        self._condition.release()


@dataclass
class Session:
    """The dialogue on one connection, in the order of RFC 5321."""

    server: SMTPServer
    connection: Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    buffer: bytearray = field(default_factory=bytearray)
    greeted: bool = False
    mail_from: str | None = None
    mail_parameters: str = ""
    rcpt_to: list[str] = field(default_factory=list)

    @property
    def place(self) -> int:
        """Of this connection among those that are open: 1 for the one that is open longest."""
        return sum(
            other.closed_at is None and other.number <= self.connection.number
            for other in self.server.connections
        )

    async def converse(self) -> None:
        await self.say(At.GREETING, "220 localhost ESMTP ready")
        while True:
            line = await self.read_line()
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO" | "HELO" as how:
                    await self.ehlo(extended=how == "EHLO")
                case "STARTTLS":
                    await self.starttls()
                case "AUTH":
                    await self.auth(rest)
                case "MAIL":
                    await self.mail(rest)
                case "RCPT":
                    await self.rcpt(rest)
                case "DATA":
                    await self.data()
                case "RSET":
                    self.forget_letter()
                    await self.say(At.RSET, "250 2.0.0 Ok")
                case "NOOP":
                    await self.say(At.NOOP, "250 2.0.0 Ok")
                case "QUIT":
                    await self.say(At.QUIT, "221 2.0.0 Bye")
                    return
                case _:
                    await self.write("500 5.5.2 Command not recognised")

    # ------------------------------------------------------------------ the commands

    async def ehlo(self, *, extended: bool) -> None:
        self.must_be_last("EHLO")
        self.greeted = True
        self.forget_letter()
        lines = ["localhost", *(self.extensions() if extended else [])]
        reply = "\n".join(
            f"250{'-' if number < len(lines) else ' '}{line}"
            for number, line in enumerate(lines, start=1)
        )
        await self.say(At.EHLO, reply)

    def extensions(self) -> list[str]:
        starttls = self.server.security == "starttls" and not self.connection.tls
        auth = self.server.users and not starttls
        return [
            *self.server.offers,
            *(["STARTTLS"] if starttls else []),
            *([f"AUTH {' '.join(self.server.mechanisms)}"] if auth else []),
        ]

    async def starttls(self) -> None:
        if self.server.security != "starttls" or self.connection.tls:
            await self.write("503 5.5.1 STARTTLS is not possible now")
            return
        self.must_be_last("STARTTLS")
        if not await self.say(At.STARTTLS, "220 2.0.0 Go ahead"):
            return
        # Whatever the client wrote ahead is not trusted (RFC 3207 section 6).
        self.buffer.clear()
        assert self.server._tls is not None
        await self.writer.start_tls(self.server._tls)
        self.connection.tls = True
        self.greeted = False

    async def auth(self, rest: str) -> None:
        mechanism, _, first = rest.partition(" ")
        if self.server.security == "starttls" and not self.connection.tls:
            await self.write("538 5.7.11 Encryption is required first")
            return
        if mechanism.upper() not in self.server.mechanisms or not self.server.users:
            await self.write("504 5.5.4 Unrecognised authentication type")
            return
        self.must_be_last("AUTH")
        if mechanism.upper() == "XOAUTH2":
            await self.auth_token(_decoded(first))
            return
        if mechanism.upper() == "PLAIN":
            answer = _decoded(first if first else await self.ask(""))
            _, username, password = (answer.split("\0") + ["", "", ""])[:3]
        else:
            username = _decoded(first if first else await self.ask("Username:"))
            password = _decoded(await self.ask("Password:"))
        if username and self.server.users.get(username) == password:
            if await self.say(At.AUTH, "235 2.7.0 Authentication successful"):
                self.connection.username = username
        else:
            await self.say(At.AUTH, "535 5.7.8 Authentication credentials invalid")

    async def auth_token(self, answer: str) -> None:
        """As Exchange does: a refusal is said first as a challenge, which wants an empty line."""
        user, _, rest = answer.removeprefix("user=").partition("\x01")
        token = rest.removeprefix("auth=Bearer ").rstrip("\x01")
        assert self.server.judge_token is not None
        verdict = self.server.judge_token(user, token)
        if not verdict.startswith("235"):
            await self.ask('{"status":"401"}')
        if await self.say(At.AUTH, verdict) and verdict.startswith("235"):
            self.connection.username = user

    async def ask(self, prompt: str) -> str:
        await self.write(f"334 {base64.b64encode(prompt.encode()).decode()}")
        return await self.read_line()

    async def mail(self, rest: str) -> None:
        if not self.greeted:
            self.fault("MAIL before EHLO")
        if self.server.security == "starttls" and not self.connection.tls:
            await self.write("530 5.7.0 Must issue a STARTTLS command first")
            return
        if self.server.users and not self.connection.username:
            await self.write("530 5.7.0 Authentication required")
            return
        if self.mail_from is not None:
            self.fault("MAIL inside a transaction")
        address, parameters = self.path(rest, "FROM:")
        if await self.say(At.MAIL, "250 2.1.0 Ok", addresses=[address]):
            self.mail_from, self.mail_parameters = address, parameters

    async def rcpt(self, rest: str) -> None:
        if self.mail_from is None:
            await self.write("503 5.5.1 MAIL first")
            return
        address, _ = self.path(rest, "TO:")
        if await self.say(At.RCPT, "250 2.1.5 Ok", addresses=[address]):
            self.rcpt_to.append(address)

    async def data(self) -> None:
        self.must_be_last("DATA")
        if not self.rcpt_to:
            await self.write("503 5.5.1 RCPT first")
            return
        if not await self.say(At.DATA, "354 Go ahead", addresses=self.rcpt_to):
            return
        content = await self.read_letter()
        rule = self.server.rule_for(At.FINAL_DOT, self, self.rcpt_to)
        letter = Letter(
            self.connection.number,
            time.monotonic(),
            self.mail_from or "",
            self.mail_parameters,
            self.rcpt_to,
            content,
        )
        self.forget_letter()
        usual = f"250 2.0.0 Ok: queued as {len(self.server.accepted) + 1:06X}"
        if rule is None or rule.keeps_letter or (rule.keeps_letter is None and _positive(rule)):
            with self.server.noted():
                self.server.accepted.append(letter)
        await self.follow(rule, usual)

    def forget_letter(self) -> None:
        self.mail_from, self.mail_parameters, self.rcpt_to = None, "", []

    # ------------------------------------------------------------------ replies

    async def say(self, at: At, usual: str, addresses: Iterable[str] = ("",)) -> bool:
        """The usual reply, or what a rule says instead; True when it was 2xx or 3xx."""
        return await self.follow(self.server.rule_for(at, self, list(addresses)), usual)

    async def follow(self, rule: Rule | None, usual: str) -> bool:
        rule = rule or Rule(At.NOOP)
        reply = usual if rule.reply is None else rule.reply
        octets = reply if isinstance(reply, bytes) else _wire(reply)
        await asyncio.sleep(rule.delay)
        if rule.drop is Drop.BEFORE_REPLY:
            self.hang_up(rule)
        if rule.drop is Drop.HALF_REPLY:
            octets = octets[: len(octets) // 2]
        self.writer.write(octets)
        await self.writer.drain()
        if rule.drop:
            self.hang_up(rule)
        return octets[:1] in (b"2", b"3")

    async def write(self, reply: str) -> None:
        self.writer.write(_wire(reply))
        await self.writer.drain()

    def hang_up(self, rule: Rule) -> None:
        if rule.reset:
            # Closing with a linger time of zero is a reset (SO_LINGER, struct linger).
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        raise _DroppedError

    # ------------------------------------------------------------------ reading

    async def fill(self) -> None:
        chunk = await self.reader.read(65536)
        if not chunk:
            raise _DroppedError
        self.buffer += chunk

    async def read_line(self) -> str:
        while b"\r\n" not in self.buffer:
            if b"\n" in self.buffer:
                self.fault("a command with a bare LF")
                raise _DroppedError
            await self.fill()
        line, _, rest = bytes(self.buffer).partition(b"\r\n")
        self.buffer[:] = rest
        text = line.decode("utf-8", "replace")
        if len(line) + 2 > LONGEST_COMMAND:
            self.fault(f"a command of {len(line) + 2} octets")
        if rest and not self.pipelining:
            self.fault(f"commands written ahead after {text!r}")
        with self.server.noted():
            self.server.commands.append(Command(self.connection.number, time.monotonic(), text))
        return text

    async def read_letter(self) -> bytes:
        """Reads up to and with the final dot; the letter without the transport's dots."""
        # Asked when the first octets are there: a client that was killed before it had read our 354
        # has sent nothing, and nothing happened to its letter.
        while not self.buffer:
            await self.fill()
        rule = self.server.rule_for(At.BODY, self, self.rcpt_to)
        if rule is not None:
            await asyncio.sleep(rule.delay)
            if rule.drop:
                self.hang_up(rule)
        while not (self.buffer.startswith(b".\r\n") or b"\r\n.\r\n" in self.buffer):
            await self.fill()
        if self.buffer.startswith(b".\r\n"):
            content, rest = b"", bytes(self.buffer[3:])
        else:
            body, _, rest = bytes(self.buffer).partition(b"\r\n.\r\n")
            content = body + b"\r\n"
        self.buffer[:] = rest
        if rest and not self.pipelining:
            self.fault("commands written ahead after the final dot")
        if not content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r"):
            self.fault("a bare CR or LF in the letter")
        lines = content.split(b"\r\n")
        if any(len(line) + 2 > LONGEST_LINE for line in lines):
            self.fault("a line of more than 998 octets")
        return b"\r\n".join(line.removeprefix(b".") for line in lines)

    @property
    def pipelining(self) -> bool:
        return "PIPELINING" in self.server.offers

    def must_be_last(self, verb: str) -> None:
        """EHLO, STARTTLS, AUTH and DATA end a group of commands (RFC 2920 section 3.1)."""
        if self.buffer:
            self.fault(f"octets written ahead after {verb}")

    def path(self, rest: str, word: str) -> tuple[str, str]:
        """The address between the angle brackets, and the parameters after them."""
        if not rest.upper().startswith(f"{word}<") or ">" not in rest:
            self.fault(f"not a path: {rest!r}")
        address, _, parameters = rest[len(word) :].removeprefix("<").partition(">")
        return address, parameters.strip()

    def fault(self, what: str) -> None:
        with self.server.noted():
            self.server.faults.append(f"{self.connection.number}: {what}")


def _wire(reply: str) -> bytes:
    """The octets of a reply. Lines without a code get that of the last line: "550-one\\n550 two"
    may be written "550 one\\ntwo"."""
    lines = reply.split("\n")
    if len(lines) > 1 and not lines[-1][:3].isdigit():
        code = lines[0][:3]
        texts = [lines[0][4:], *lines[1:]]
        lines = [f"{code}-{text}" for text in texts[:-1]] + [f"{code} {texts[-1]}"]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _positive(rule: Rule) -> bool:
    """Whether a rule leaves or gives a reply that takes the letter."""
    reply = "2" if rule.reply is None else rule.reply
    return reply[:1] in ("2", b"2")


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
