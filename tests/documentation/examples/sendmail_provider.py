import os
from asyncio.subprocess import PIPE, create_subprocess_exec

from delivery.message import OutgoingMessage
from delivery.outcomes import Accepted, Deferred, Outcome, Phase, Reply, Unavailable, Unconfirmed


class SendmailProvider:
    def __init__(self, path: str = "/usr/sbin/sendmail", concurrency: int = 4) -> None:
        self.path, self.concurrency = path, concurrency

    async def open(self) -> None: ...

    async def send(self, message: OutgoingMessage) -> Outcome:
        sender, reader = message.envelope.mail_from, message.envelope.rcpt_to
        command = [self.path, "-i", "-f", sender, "--", reader]
        try:
            program = await create_subprocess_exec(*command, stdin=PIPE, stderr=PIPE)
        except OSError as error:  # it never began: the letter certainly has not left
            return Unavailable(Reply.of(Phase.LOCAL, None, str(error)))
        _, words = await program.communicate(message.content.replace(b"\r\n", b"\n"))
        reply = Reply.of(Phase.LOCAL, None, f"exit {program.returncode} {words.decode('latin-1')}")
        if program.returncode == 0:
            return Accepted(reply)
        if program.returncode == os.EX_TEMPFAIL:
            return Deferred(reply)
        # Killed by a signal it may have queued the letter before; any other status says it did not.
        return Unconfirmed(reply) if program.returncode < 0 else Unavailable(reply)

    async def close(self) -> None: ...
