"""Writes each letter into a Maildir: a dress rehearsal in which nothing leaves the machine."""

from __future__ import annotations

import os
from pathlib import Path

from delivery.message import OutgoingMessage
from delivery.outcomes import Accepted, Outcome, Phase, Reply, Unavailable


class MaildirProvider:
    """``path`` is the Maildir; tmp, new and cur are made in it. ``sync``: a letter counts as
    accepted only when it is on the disk (fsync), as a mail server promises.

    The file is named after the letter's Message-ID, so a letter that is sent again after a crash
    replaces itself. The envelope stands in Return-Path and X-Original-To, as a local delivery
    agent writes them (RFC 5321 section 4.4).
    """

    def __init__(self, path: str, sync: bool = False, concurrency: int = 10) -> None:
        if not path:
            raise ValueError("path is empty")
        self.path = Path(path)
        self.sync = sync
        self.concurrency = concurrency

    async def open(self) -> None:
        """Makes the folders."""
        for folder in ("tmp", "new", "cur"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)

    async def send(self, message: OutgoingMessage) -> Outcome:
        """Accepted when the file stands in new/; a full or missing disk is Unavailable."""
        name = "".join(
            c if c.isalnum() or c in ".-" else "_" for c in message.message_id.strip("<>")
        )
        envelope = (
            f"Return-Path: <{message.envelope.mail_from}>\r\n"
            f"X-Original-To: {message.envelope.rcpt_to}\r\n"
        ).encode()
        try:
            with (self.path / "tmp" / name).open("wb") as file:
                file.write(envelope)
                file.write(message.content)
                if self.sync:
                    file.flush()
                    os.fsync(file.fileno())
            (self.path / "tmp" / name).replace(self.path / "new" / name)
        except OSError as error:
            return Unavailable(Reply.of(Phase.LOCAL, None, str(error)), rule="disk")
        return Accepted(Reply(Phase.LOCAL, 250, f"written as {name}"))

    async def close(self) -> None:
        """Nothing is held open."""
