"""The examples of docs/extending.md keep the contracts, and stand there word for word."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from pathlib import Path

import pytest

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Deferred, Unavailable, Unconfirmed
from tests.contracts.detector import DetectorContract
from tests.contracts.provider import ProviderContract, letter
from tests.documentation.documents import DOCS, blocks
from tests.documentation.examples import big_host_detector, sendmail_provider
from tests.documentation.examples.big_host_detector import BigHostDetector
from tests.documentation.examples.sendmail_provider import SendmailProvider

EXAMPLES = {sendmail_provider: SendmailProvider, big_host_detector: BigHostDetector}

BIG_HOST = b"From: postmaster@bighost.example\r\nSubject: Not delivered\r\n%s\r\n\r\nSorry.\r\n"
FAILED = BIG_HOST % b"X-BigHost-Failure: ada@bighost.example; 5.1.1"
DELAYED = BIG_HOST % b"X-BigHost-Failure: ada@bighost.example; 4.2.2"


@pytest.mark.parametrize(("module", "example"), EXAMPLES.items(), ids=["provider", "detector"])
def test_an_example_is_short_and_stands_in_the_document_as_it_was_tested(module, example):
    assert inspect.getsource(module) in blocks(DOCS / "extending.md", "python")
    assert len(inspect.getsource(example).splitlines()) < 30


class TestSendmailProvider(ProviderContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def command(self, script: str) -> str:
        path = self.folder / "sendmail"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    def make(self) -> SendmailProvider:
        (self.folder / "queue").mkdir(exist_ok=True)
        return SendmailProvider(
            self.command(f'for to; do :; done; cat > "{self.folder}/queue/$to"')
        )

    def broken(self) -> SendmailProvider:
        return SendmailProvider(str(self.folder / "not there"))

    def taken(self) -> Sequence[OutgoingMessage]:
        return [
            OutgoingMessage(0, Envelope("", file.name), (file.read_bytes(),), "")
            for file in (self.folder / "queue").iterdir()
        ]

    @pytest.mark.parametrize(
        ("ending", "expected"),
        [("exit 75", Deferred), ("exit 64", Unavailable), ("kill -9 $$", Unconfirmed)],
    )
    def test_the_end_of_the_program_tells_whose_trouble_it_was(self, ending, expected):
        provider = SendmailProvider(self.command(f"cat > /dev/null; echo Oh >&2; {ending}"))
        outcome = asyncio.run(provider.send(letter(1)))
        assert isinstance(outcome, expected)
        assert "Oh" in outcome.reply.text


class TestBigHostDetector(DetectorContract):
    def make(self) -> BigHostDetector:
        return BigHostDetector()

    def own(self) -> list[bytes]:
        return [FAILED]

    def quiet(self) -> list[bytes]:
        return [DELAYED]
