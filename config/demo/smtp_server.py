"""A real SMTP server that behaves like the world (world.py) and keeps a log of what it did.

    python -m config.demo.smtp_server --port 2525 --maildir PATH --log PATH

It delivers nothing. Reports about letters that it took and could not deliver go to the Maildir,
as a local delivery agent would put them there. Each line of the log is one JSON object, written
before the client gets the answer: {"time", "event", "mail_from", "rcpt_to", "reply"} and, for an
accepted letter, {"message_id", "size"}. Events: accepted, refused, deferred, reported.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
from datetime import UTC, datetime
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any, TextIO

from aiosmtpd.smtp import SMTP, Envelope, Session

from config.demo.report import deliver, make_maildir, non_delivery_report
from config.demo.world import Fate, fate_of

HOST = "mx.example.net"
LARGEST_LETTER = 10 * 1024 * 1024
LONGEST_LINE = 998  # octets without CRLF, RFC 5321 section 4.5.3.1.6
# A mail server works its queue: the report comes after the answer, never with it.
REPORT_AFTER_SECONDS = 1.0

# What aiosmtpd answers of itself carries no enhanced status; we announce that every answer does.
ENHANCED = {"250": "2.0.0", "221": "2.0.0", "500": "5.5.2", "501": "5.5.4", "502": "5.5.1",
            "503": "5.5.1", "552": "5.3.4", "553": "5.1.3", "555": "5.5.4"}  # fmt: skip
ANSWER = re.compile(r"(?P<code>[245]\d\d) (?![245]\.\d)(?P<text>.*)", re.DOTALL)


class Log:
    """The server's own log: JSON lines, each flushed as it is written."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, event: str, envelope: Envelope, rcpt_to: str, **more: object) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "mail_from": envelope.mail_from,
            "rcpt_to": rcpt_to,
            **more,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class World:
    """aiosmtpd's handler: what the server answers, and what it does afterwards."""

    def __init__(self, log: Log, maildir: Path, report_after: float = REPORT_AFTER_SECONDS) -> None:
        self.log = log
        self.maildir = maildir
        self.report_after = report_after
        self._numbers = itertools.count(1)
        # Greylisting remembers pairs of sender and reader; the second try of a pair is taken.
        self._seen: set[tuple[str | None, str]] = set()

    async def handle_EHLO(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        hostname: str,
        responses: list[str],
    ) -> list[str]:
        session.host_name = hostname
        # aiosmtpd reads commands from a buffer and answers each in its turn, which is all that
        # PIPELINING (RFC 2920) asks of a server; tests/end_to_end/test_demo_server.py shows it.
        return [*responses[:-1], "250-PIPELINING", "250 ENHANCEDSTATUSCODES"]

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        pair = (envelope.mail_from, address.lower())
        fate = fate_of(address)
        if fate is Fate.REFUSED:
            reply = f"550 5.1.1 <{address}>: Recipient address rejected: User unknown"
            self.log.write("refused", envelope, address, reply=reply)
            return reply
        if fate is Fate.DEFERRED_ONCE and pair not in self._seen:
            self._seen.add(pair)
            reply = f"450 4.2.0 <{address}>: Greylisted, try again later"
            self.log.write("deferred", envelope, address, reply=reply)
            return reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        letter = bytes(envelope.original_content or b"")
        if any(len(line) > LONGEST_LINE for line in letter.split(b"\r\n")):
            reply = "554 5.6.0 A line is longer than 998 octets"
            for rcpt_to in envelope.rcpt_tos:
                self.log.write("refused", envelope, rcpt_to, reply=reply)
            return reply
        queue_id = f"{next(self._numbers):08X}"
        reply = f"250 2.0.0 Ok: queued as {queue_id}"
        message_id = BytesHeaderParser().parsebytes(letter).get("Message-ID", "")
        for rcpt_to in envelope.rcpt_tos:
            self.log.write(
                "accepted",
                envelope,
                rcpt_to,
                reply=reply,
                message_id=str(message_id),
                size=len(letter),
            )
            if fate_of(rcpt_to) is Fate.REPORTED:
                asyncio.get_running_loop().call_later(
                    self.report_after, self.report, envelope, rcpt_to, letter, queue_id
                )
        return reply

    def report(self, envelope: Envelope, rcpt_to: str, letter: bytes, queue_id: str) -> None:
        """Tells the letter's return path that its reader does not exist."""
        mail = non_delivery_report(
            host=HOST,
            return_path=envelope.mail_from or "",
            recipient=rcpt_to,
            letter=letter,
            queue_id=queue_id,
            at=datetime.now(UTC),
        )
        file = deliver(mail, self.maildir)
        self.log.write("reported", envelope, rcpt_to, reply=file.name)


class DemoSMTP(SMTP):
    """aiosmtpd's protocol, with an enhanced status (RFC 2034) in every answer after EHLO."""

    # It is also the size of aiosmtpd's read buffer: at 1001 octets it reads in tiny pieces, and
    # half as fast. World looks at the length of lines itself.
    line_length_limit = 64 * 1024

    def __init__(self, handler: World) -> None:
        super().__init__(
            handler,
            data_size_limit=LARGEST_LETTER,
            hostname=HOST,
            ident="ESMTP Postoffice",
            loop=asyncio.get_running_loop(),
        )
        self._is_greeting = False

    async def smtp_EHLO(self, hostname: str) -> None:  # noqa: N802
        # RFC 2034 section 4: the answer to EHLO itself has no enhanced status.
        self._is_greeting = True
        await super().smtp_EHLO(hostname)
        self._is_greeting = False

    async def push(self, status: str | bytes) -> None:
        text = status if isinstance(status, str) else status.decode("ascii", "replace")
        if not self._is_greeting and (answer := ANSWER.fullmatch(text)):
            enhanced = ENHANCED.get(answer["code"])
            text = f"{answer['code']} {enhanced} {answer['text']}" if enhanced else text
        await super().push(text)


async def serve(port: int, maildir: Path, log_file: Path, **world: Any) -> None:
    """Serves on 127.0.0.1 until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    make_maildir(maildir)
    with log_file.open("a", encoding="utf-8") as file:
        handler = World(Log(file), maildir, **world)
        server = await loop.create_server(lambda: DemoSMTP(handler), "127.0.0.1", port)
        print(f"{HOST} listens on 127.0.0.1:{port}", flush=True)
        await stop.wait()
        server.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m config.demo.smtp_server")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--maildir", type=Path, required=True, help="where reports are delivered")
    parser.add_argument("--log", type=Path, required=True, help="the server's own log, JSON lines")
    parser.add_argument("--report-after", type=float, default=REPORT_AFTER_SECONDS, metavar="S")
    options = parser.parse_args(arguments)
    asyncio.run(
        serve(options.port, options.maildir, options.log, report_after=options.report_after)
    )


if __name__ == "__main__":
    main()
