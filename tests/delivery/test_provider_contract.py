"""Our own providers keep the contract that third parties run."""

import pytest

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Phase, Reply, Unavailable
from delivery.providers.maildir import MaildirProvider
from delivery.providers.memory import MemoryProvider
from delivery.providers.smtp import SMTPProvider
from tests.contracts.provider import ProviderContract
from tests.smtp_server import SMTPServer


class TestSMTPProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self):
        with SMTPServer() as self.server:
            yield

    def make(self):
        return SMTPProvider(self.server.host, self.server.port, security="none", connections=2)

    def broken(self):
        with SMTPServer() as gone:
            pass
        return SMTPProvider(gone.host, gone.port, security="none")

    def taken(self):
        return [
            OutgoingMessage(0, Envelope(t.mail_from, t.rcpt_to[0]), (t.content,), "")
            for t in self.server.accepted
        ]


class TestMaildirProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder = tmp_path

    def make(self):
        return MaildirProvider(str(self.folder / "box"))

    def broken(self):
        class Unwritable(MaildirProvider):
            async def open(self):
                """The folders are never made: as on a disk that went away."""

        return Unwritable(str(self.folder / "gone"))


class TestMemoryProvider(ProviderContract):
    def make(self):
        return MemoryProvider()

    def broken(self):
        MemoryProvider.answer = lambda message: Unavailable(Reply(Phase.LOCAL, None, "away"))
        return MemoryProvider()

    def taken(self):
        return MemoryProvider.outbox
