"""The dress rehearsal: each letter becomes a file."""

import asyncio

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Accepted, Unavailable
from delivery.providers.maildir import MaildirProvider

LETTER = OutgoingMessage(
    1,
    Envelope("bounce+abc@bounces.example.org", "ada@example.org"),
    (b"Subject: Hello\r\n\r\n", b"Good day.\r\n"),
    "<abc.1@news.example.org>",
)


def send(provider, *letters):
    async def run():
        await provider.open()
        outcomes = [await provider.send(letter) for letter in letters]
        await provider.close()
        return outcomes

    return asyncio.run(run())


def test_a_letter_stands_in_new_with_its_envelope_before_it(tmp_path):
    (outcome,) = send(MaildirProvider(str(tmp_path / "box"), sync=True), LETTER)
    assert isinstance(outcome, Accepted)
    (file,) = (tmp_path / "box" / "new").iterdir()
    written = file.read_bytes()
    assert written.startswith(
        b"Return-Path: <bounce+abc@bounces.example.org>\r\nX-Original-To: ada@example.org\r\n"
    )
    assert written.endswith(LETTER.content)
    assert not list((tmp_path / "box" / "tmp").iterdir())


def test_a_letter_that_is_sent_again_replaces_itself(tmp_path):
    send(MaildirProvider(str(tmp_path)), LETTER, LETTER)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_message_id_cannot_lead_out_of_the_maildir(tmp_path):
    hostile = OutgoingMessage(1, LETTER.envelope, LETTER.segments, "<../../../evil@x>")
    send(MaildirProvider(str(tmp_path / "box")), hostile)
    assert len(list((tmp_path / "box" / "new").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_a_disk_that_is_gone_is_the_providers_trouble(tmp_path):
    async def run():
        provider = MaildirProvider(str(tmp_path / "box"))
        await provider.open()
        for folder in ("tmp", "new", "cur"):
            (tmp_path / "box" / folder).rmdir()
        return await provider.send(LETTER)

    outcome = asyncio.run(run())
    assert isinstance(outcome, Unavailable)
    assert not outcome.needs_a_person
