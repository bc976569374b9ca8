"""Whole letters over aiosmtplib's connection, commands in groups (RFC 2920, RFC 3030).

aiosmtplib waits for the answer to each command: four round trips, four futures and four timers a
letter. This subclass of its protocol adds ``submit``, which writes MAIL, RCPT and DATA at once
where the server announced PIPELINING, and the commands of the *next* letter behind the final dot
of this one: one round trip, one future and no timer of its own for each letter. Connecting, EHLO,
STARTTLS, AUTH, RSET and QUIT stay aiosmtplib's.

What is never given up for speed: the replies come in order, so the phase of every letter is known
at every moment; a letter's octets are written only after its recipient was accepted, and never
again; ``note`` is called before they are; and no second letter's octets leave before the first
one's answer was read, so a lost connection leaves one letter in doubt.

Letters that may leave wait for two turns of the event loop, and then leave together, one for each
connection: a server that is asleep has to be woken by the first only, and waking it costs the
sender four times as much as writing to one that is awake (22 and 5 µs for 10 KB, measured).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, cast

from aiosmtplib import SMTP
from aiosmtplib.protocol import MAX_RESPONSE_LENGTH, SMTPProtocol

# One pass over the letter. bytes.replace makes two, each slower: 26 µs for 10 KB instead of 7.
_DOT_AT_LINE_START = re.compile(rb"\n\.")
_FINAL_DOT = b".\r\n"
# Each costs the system call 0.1 µs; to put ten kilobytes together costs 4.
MOST_SEGMENTS = 32
# What a busy connection hears all the time, in one read: this letter was taken (in its words), and
# the commands of the next one are as they should be. Of the last of these RCPT and DATA.
_USUAL_AFTER_CHUNKS = re.compile(rb"250 ([^\n]*)\n250 [^\n]*\n250 [^\n]*\n").fullmatch
_USUAL_AFTER_A_DOT = re.compile(rb"250 ([^\n]*)\n250 [^\n]*\n250 [^\n]*\n354 [^\n]*\n").fullmatch


class Step(Enum):
    """What a reply that is still to come will answer, in the order of the dialogue.

    ``usual``: the code after which the dialogue goes on, whatever the words; empty where the words
    are wanted too.
    """

    RSET = 1, b"250"
    MAIL = 2, b"250"
    RCPT = 3, b"250"
    DATA = 4, b"354"
    LETTER = 5, b""  # the final dot, or the last chunk
    EMPTY = 6, b""  # a lone dot for a server that said 354 although it had refused the recipient

    def __init__(self, number: int, usual: bytes) -> None:
        self.usual = usual

    __hash__ = object.__hash__  # each is one object; Enum would ask for its name's


class Answer(NamedTuple):
    """The reply that decided a letter's fate, and what it answered.

    ``in_step`` is False when it cannot be the answer to that step (354 to a final dot): then it
    says nothing about the letter.
    """

    step: Step
    code: int
    text: str
    in_step: bool = True


class LostError(Exception):
    """The connection ended, or fell silent, before the answer to ``step``."""

    def __init__(self, step: Step, reason: str) -> None:
        super().__init__(reason)
        self.step = step


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait for each reply (RFC 5321 section 4.5.3.2)."""

    command: float = 300.0
    data: float = 120.0
    letter: float = 600.0

    @property
    def shortest(self) -> float:
        """The shortest of these."""
        return min(self.command, self.data, self.letter)

    def of(self, step: Step) -> float:
        if step is Step.LETTER:
            return self.letter
        return self.data if step is Step.DATA else self.command


@dataclass(slots=True, eq=False)
class Letter:
    """A letter on its way. ``segments``: what it consists of, ``octets`` in all. ``note``: called
    just before its last octets are written. ``has_no_dots``: certainly no line of it begins with
    one."""

    mail: bytes  # the commands with CRLF
    rcpt: bytes
    segments: Sequence[bytes]
    octets: int
    note: Callable[[], None]
    has_no_dots: bool = False
    answer: asyncio.Future[Answer] = field(init=False)
    refusal: Answer | None = None


class LetterProtocol(SMTPProtocol):
    """aiosmtplib's protocol, with whole letters. Any number may be submitted; they leave in order,
    one and the commands of the next at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection_lost_callback: Callable[[SMTPProtocol], None] | None,
        *,
        pipelining: bool,
        chunking: bool,
        timeouts: Timeouts,
    ) -> None:
        super().__init__(loop=loop, connection_lost_callback=connection_lost_callback)
        self.pipelining = pipelining
        # Without PIPELINING there would be nothing to win.
        self.chunking = chunking and pipelining
        # When this command was answered, the letter itself may leave.
        self.last_command = Step.RCPT if self.chunking else Step.DATA
        # The replies to a letter and to the commands behind it; so many.
        self._usual = _USUAL_AFTER_CHUNKS if self.chunking else _USUAL_AFTER_A_DOT
        self._usual_replies = 3 if self.chunking else 4
        self.timeouts = timeouts
        # False: no further letter may be given to this connection.
        self.is_usable = True
        self._expected: deque[tuple[Step, Letter]] = deque()
        self._ahead: deque[Letter] = deque()  # submitted, and not a command of them written
        self._leaving: Letter | None = None  # the server waits for it; nothing is expected then
        self._unread = b""
        self._lines: list[bytes] = []  # of a reply that is not complete
        self._must_reset = False
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ letters

    def submit(self, letter: Letter) -> asyncio.Future[Answer]:
        """Sends a letter as soon as the one before it allows. The future brings its Answer, or
        LostError with the step that had no answer."""
        letter.answer = self._loop.create_future()
        if self.transport is None or self.transport.is_closing():
            self._fail(letter, Step.MAIL, "Connection lost")
        elif self.is_idle:
            self._begin(letter)
            self._watch_the_time()
        elif self.pipelining and self._expected and self._expected[-1][0] is Step.LETTER:
            self._begin(letter)
        else:
            self._ahead.append(letter)
        return letter.answer

    @property
    def is_idle(self) -> bool:
        """Whether no letter is under way."""
        return not self._expected and not self._ahead and self._leaving is None

    def abort(self, reason: str) -> None:
        """Ends the connection at once; what is under way is lost."""
        self.is_usable = False
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()
        self._lose(reason)

    def _begin(self, letter: Letter, *before: bytes) -> None:
        """Writes a letter's first group of commands, behind ``before`` (the letter ahead)."""
        if self._must_reset:
            self._must_reset = False
            self._expected.append((Step.RSET, letter))
            before += (b"RSET\r\n",)
        self._expected.append((Step.MAIL, letter))
        if not self.pipelining:
            self._write(*before, letter.mail)
            return
        self._expected.append((Step.RCPT, letter))
        if self.chunking:
            self._write(*before, letter.mail, letter.rcpt)
        else:
            self._expected.append((Step.DATA, letter))
            self._write(*before, letter.mail, letter.rcpt, b"DATA\r\n")

    def _write(self, *octets: bytes) -> None:
        """All of these, in one system call. They are not put together before: ten kilobytes for
        each letter, to an address that no cache holds."""
        transport = self.transport
        is_lost = transport is None or transport.is_closing()  # aiosmtplib says so
        # TLS would make a record of each.
        if is_lost or self._over_ssl or len(octets) > MOST_SEGMENTS:
            self.write(b"".join(octets))
        else:
            cast(asyncio.WriteTransport, transport).writelines(octets)

    def _may_leave(self, letter: Letter) -> None:
        """The server waits for this letter's octets. Two turns of the loop: in the first one the
        sender of the letter before hears of its answer, or a process killed between the two would
        leave two letters of one connection in doubt; in the second one others may leave, too."""
        self._leaving = letter
        self._loop.call_soon(self._loop.call_soon, self._hand_over)

    def _hand_over(self) -> None:
        """Writes the letter itself, and with it the commands of the one behind."""
        letter, self._leaving = self._leaving, None
        if letter is None:
            return  # the connection was lost
        letter.note()
        if self.chunking:
            octets = b"BDAT %d LAST\r\n" % letter.octets, *letter.segments
        elif letter.has_no_dots:
            octets = *letter.segments, _FINAL_DOT
        else:
            octets = dotted(b"".join(letter.segments)), _FINAL_DOT
        self._expected.append((Step.LETTER, letter))
        if self._ahead and self.pipelining:
            self._begin(self._ahead.popleft(), *octets)
        else:
            self._write(*octets)
        self._watch_the_time()

    # ------------------------------------------------------------------ replies

    def data_received(self, data: bytes) -> None:
        if not self._expected:
            if self._response_pending:  # a command of aiosmtplib's own
                super().data_received(data)
            else:
                self._spoke_unasked()
            return
        if self._unread:
            data = self._unread + data
        elif self._took_the_usual(data):
            return
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            line, begin = data[begin:end], end + 1
            if line[3:4] == b"-":
                self._lines.append(line)
                continue
            if not self._expected:
                self._spoke_unasked()
                break
            step, letter = self._expected[0]
            is_usual = line[:3] == step.usual and letter.refusal is None and not self._lines
            if is_usual:
                self._expected.popleft()
                self._go_on(step, letter)
            elif not self._reply(line):
                return
        self._unread = data[begin:]
        if (self._unread or self._lines) and self._length_so_far() > MAX_RESPONSE_LENGTH:
            self.abort("Response too long")
        elif self._expected:
            self._watch_the_time()

    def _took_the_usual(self, data: bytes) -> bool:
        """Whether these are the replies that a busy connection hears all the time: its letter was
        taken, and the next one may leave. A step for each of them takes three times as long."""
        if len(self._expected) != self._usual_replies or self._lines:
            return False
        (step, letter), (_step, follower) = self._expected[0], self._expected[-1]
        # So many are expected, and the first is a letter: the others are the next one's commands.
        if step is not Step.LETTER or (usual := self._usual(data)) is None:
            return False
        self._expected.clear()
        if not letter.answer.done():
            text = usual[1].strip().decode("utf-8", "surrogateescape")
            letter.answer.set_result(Answer(Step.LETTER, 250, text))
        self._may_leave(follower)
        return True

    def _length_so_far(self) -> int:
        return len(self._unread) + sum(map(len, self._lines))

    def _spoke_unasked(self) -> None:
        """Most often a 421 before the server closes an idle connection."""
        self.is_usable = False
        if self._leaving is not None:
            self.abort("The server spoke unasked")

    def _reply(self, line: bytes) -> bool:
        """A complete reply, of which ``line`` is the last line; False when all is over."""
        text = line[4:].strip().decode("utf-8", "surrogateescape")
        if self._lines:
            lines = [one[4:].strip().decode("utf-8", "surrogateescape") for one in self._lines]
            text = "\n".join([*lines, text])
            self._lines.clear()
        code = line[:3]
        if len(code) < 3 or not code.isdigit():
            self.abort(f"Malformed SMTP response line: {line.decode('utf-8', 'replace')}")
            return False
        step, letter = self._expected.popleft()
        self._answered(letter, Answer(step, int(code), text))
        return self.transport is not None and not self.transport.is_closing()

    def _answered(self, letter: Letter, answer: Answer) -> None:
        step, code = answer.step, answer.code
        if step is Step.LETTER:
            if code < 200 or 300 <= code < 400:
                answer = Answer(step, code, answer.text, in_step=False)
            self._finish(letter, answer)
        elif step is Step.MAIL or step is Step.RCPT:
            # Only RCPT knows 251 and 252 (RFC 5321 section 4.3.2).
            if code != 250 and not (step is Step.RCPT and code in {251, 252}):
                self._refused(letter, answer)
            elif letter.refusal is None:
                self._go_on(step, letter)
            elif step is self.last_command:
                self._finish_refused(letter)
        elif step is Step.DATA:
            self._data_answered(letter, answer)
        elif step is Step.EMPTY:
            # Whatever became of an empty letter to nobody: this one was refused before.
            self.is_usable &= code >= 400
            assert letter.refusal is not None
            self._finish(letter, letter.refusal)
        elif code != 250:  # RSET
            self.is_usable = False

    def _go_on(self, step: Step, letter: Letter) -> None:
        """The server took this step as it should, and has refused nothing of this letter."""
        if step is self.last_command:
            self._may_leave(letter)
        elif not self.pipelining and step is Step.MAIL:
            self._expected.append((Step.RCPT, letter))
            self.write(letter.rcpt)
        elif not self.pipelining and step is Step.RCPT:
            self._expected.append((Step.DATA, letter))
            self.write(b"DATA\r\n")

    def _refused(self, letter: Letter, answer: Answer) -> None:
        """MAIL or RCPT was refused; with pipelining more answers to this letter follow."""
        letter.refusal = letter.refusal or answer
        follows = bool(self._expected) and self._expected[0][1] is letter
        if answer.code < 400:
            # Neither yes nor no: the replies are out of step, and no octet of it has left.
            self._finish_refused(letter)
        elif not follows:
            self._finish_refused(letter)

    def _data_answered(self, letter: Letter, answer: Answer) -> None:
        if answer.code != 354:
            letter.refusal = letter.refusal or answer
            self._finish_refused(letter)
        elif letter.refusal is None:
            self._go_on(answer.step, letter)
        elif letter.refusal.step is Step.RCPT:
            # RFC 2920 section 3.1: the recipient was refused and DATA was not. A lone dot ends it.
            self._expected.append((Step.EMPTY, letter))
            self.write(_FINAL_DOT)
        else:
            # It refused the sender and may have accepted the recipient: a dot could be a letter.
            self._finish(letter, letter.refusal)
            self.abort("354 to a letter whose sender was refused")

    def _finish_refused(self, letter: Letter) -> None:
        assert letter.refusal is not None
        self._must_reset = True
        self._finish(letter, letter.refusal)

    def _finish(self, letter: Letter, answer: Answer) -> None:
        if not letter.answer.done():
            letter.answer.set_result(answer)
        # 421: it closes. 503 or a reply that is no answer: the dialogue is out of step.
        if answer.code in {421, 503}:
            self.is_usable = False
        elif answer.code < 400 and not (answer.step is Step.LETTER and answer.in_step):
            self.abort("The replies are out of step")
            return
        if self._expected or not self._ahead:
            return
        if self.is_usable:
            self._begin(self._ahead.popleft())
            return
        ahead, self._ahead = self._ahead, deque()
        for letter in ahead:
            self._fail(letter, Step.MAIL, "The connection ended before the letter began")

    # ------------------------------------------------------------------ the end, and the time

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(str(exc) if exc else "Connection lost")
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        self._lose("Unexpected EOF received")
        return super().eof_received()

    def _lose(self, reason: str) -> None:
        """Tells every letter under way how far it had come."""
        self.is_usable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        expected, self._expected = self._expected, deque()
        ahead, self._ahead = self._ahead, deque()
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            # Not an octet of it was written. An attempt is used: it may be why the server left.
            self._fail(leaving, self.last_command, reason)
        for step, letter in expected:
            if letter.answer.done():
                continue
            if letter.refusal is not None:
                letter.answer.set_result(letter.refusal)
            else:
                self._fail(letter, Step.MAIL if step is Step.RSET else step, reason)
        for letter in ahead:
            self._fail(letter, Step.MAIL, reason)

    def _fail(self, letter: Letter, step: Step, reason: str) -> None:
        if not letter.answer.done():
            letter.answer.set_exception(LostError(step, reason))
            letter.answer.exception()  # retrieved, also if its sender was cancelled

    def _watch_the_time(self) -> None:
        """The next reply has its time from now on. The timer looks at that by itself, and never
        later than the shortest time from now: so most letters touch no timer at all."""
        self._waits_since = self._loop.time()
        if self._timer is None:
            look_at = self._waits_since + self.timeouts.shortest
            self._timer = self._loop.call_at(look_at, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        self._timer = None
        if not self._expected:
            return
        now = self._loop.time()
        deadline = self._waits_since + self.timeouts.of(self._expected[0][0])
        if now < deadline:
            look_at = min(deadline, now + self.timeouts.shortest)
            self._timer = self._loop.call_at(look_at, self._look_at_the_time)
        else:
            self.abort("Timed out waiting for server response")


class LetterClient(SMTP):
    """An aiosmtplib client whose connection, once ready, takes whole letters."""

    def begin_letters(
        self, timeouts: Timeouts, *, pipelining: bool = True, chunking: bool = True
    ) -> LetterProtocol:
        """Hands the connection to a LetterProtocol. After EHLO and AUTH; once a connection."""
        old, transport = self.protocol, self.transport
        assert old is not None and transport is not None and self.loop is not None
        protocol = LetterProtocol(
            self.loop,
            self._on_connection_lost,
            pipelining=pipelining and self.supports_extension("pipelining"),
            chunking=chunking and self.supports_extension("chunking"),
            timeouts=timeouts,
        )
        protocol.connection_made(transport)
        protocol._response_pending = False  # the greeting was read long ago
        transport.set_protocol(protocol)
        self.protocol = protocol
        return protocol


def dotted(content: bytes) -> bytes:
    """A letter as it stands on the wire before the final dot: dots doubled where a line begins with
    one (RFC 5321 section 4.5.2). Its line ends are CRLF."""
    content = _DOT_AT_LINE_START.sub(b"\n..", content)
    return b"." + content if content.startswith(b".") else content
