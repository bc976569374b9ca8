"""The emulator, the identity and the provider, on one clock that stands still until told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Outcome
from delivery.providers import graph
from delivery.providers.graph import GraphProvider
from delivery.providers.microsoft_identity import MicrosoftIdentity
from tests.delivery.conftest import Clock
from tests.emulators.graph import EmulatedLogin, EmulatorTransport, GraphEmulator

MAILBOX = "news@contoso.example"


def letter(number: int = 1, rcpt_to: str = "", **changes: Any) -> OutgoingMessage:
    rcpt_to = rcpt_to or f"reader{number}@example.org"
    content = (
        changes.get("content")
        or (
            f"From: The News <{changes.get('sender', MAILBOX)}>\r\nTo: <{rcpt_to}>\r\n"
            f"Message-ID: <{number}@news.example.org>\r\nSubject: Hello {number}\r\n"
            "List-Unsubscribe: <https://news.example.org/u/1>\r\n"
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\nGood day.\r\n"
        ).encode()
    )
    return OutgoingMessage(
        number, Envelope(MAILBOX, rcpt_to), (content,), f"<{number}@news.example.org>"
    )


class World:
    """One mailbox of the emulator and those who talk to it."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.emulator = GraphEmulator(clock, **options)
        self.login = EmulatedLogin(self.emulator)
        # Set by a test in which the emulator itself is asked to do it.
        self.doubled = 0
        self.silence_may_be_broken = False

    def identity(self, **options: Any) -> MicrosoftIdentity:
        options = {
            "tenant_id": "contoso.example",
            "client_id": "app",
            "client_secret": "right",
            "http_client": self.login,
            "clock": lambda: self.clock().timestamp(),
        } | options
        return MicrosoftIdentity(**options)

    def provider(self, **options: Any) -> GraphProvider:
        options = {
            "mailbox": MAILBOX,
            "token_source": options.pop("identity", None) or self.identity(),
            "transport": EmulatorTransport(self.emulator),
            "clock": self.clock,
            "dice": Random(1),
        } | options
        return GraphProvider(**options)

    def send(
        self, *letters: OutgoingMessage, provider: GraphProvider | None = None
    ) -> list[Outcome]:
        """The outcomes of these letters, one after the other, by one provider."""
        provider = provider or self.provider()

        async def run() -> list[Outcome]:
            await provider.open()
            try:
                return [await provider.send(one) for one in letters]
            finally:
                await provider.close()

        return asyncio.run(run())

    def send_at_once(
        self, *letters: OutgoingMessage, provider: GraphProvider | None = None
    ) -> list[Outcome]:
        provider = provider or self.provider()

        async def run() -> list[Outcome]:
            await provider.open()
            try:
                return await asyncio.gather(*(provider.send(one) for one in letters))
            finally:
                await provider.close()

        return asyncio.run(run())

    def confirm(
        self, message: OutgoingMessage, provider: GraphProvider | None = None
    ) -> Outcome | None:
        provider = provider or self.provider()

        async def run() -> Outcome | None:
            await provider.open()
            try:
                return await provider.confirm(message)
            finally:
                await provider.close()

        return asyncio.run(run())


@pytest.fixture
def world(now) -> Iterator[World]:
    """A world whose promises are looked at when the test is over."""
    graph._mailboxes.clear()
    world = World(Clock(now))
    yield world
    if world.silence_may_be_broken:
        world.emulator.silence_broken = 0
    world.emulator.assert_promises(doubled=world.doubled)
    graph._mailboxes.clear()
