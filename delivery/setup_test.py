"""The set-up test of a provider: one letter to an address of one's own, and what was kept of it.

What Microsoft does to a letter depends on the mailbox (some replace the Message-ID), so it is
found out and not assumed.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes
from email.message import Message
from email.utils import format_datetime
from time import monotonic
from typing import Any

from django.utils.formats import date_format
from django.utils.timezone import localtime
from django.utils.translation import gettext as _

from delivery import limits, mailboxes
from delivery.bridge import Bridge
from delivery.conf import ProviderSettings
from delivery.message import Envelope, OutgoingMessage
from delivery.outcomes import Accepted, Outcome, Unavailable, Unconfirmed

# Seconds between the tries to read the letter back: it may need minutes until it is seen.
WAITS = (3.0, 5.0, 10.0, 20.0, 30.0)
# While somebody looks at a page that is loading.
WAITS_ON_A_PAGE = (1.0, 2.0, 4.0, 8.0)
UNSUBSCRIBE = "<https://news.example.org/unsubscribe/set-up-test>"
ONE_CLICK = "List-Unsubscribe=One-Click"
LIST_FIELDS = ("list-unsubscribe", "list-unsubscribe-post")


@dataclass(slots=True)
class Report:
    """What the test found, in sentences. ``ok``: the letter was accepted."""

    ok: bool = False
    findings: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def test_letter(sender: str, to: str, now: datetime) -> tuple[OutgoingMessage, str]:
    """The letter and its subject, which finds it where its Message-ID was replaced."""
    token = secrets.token_hex(8)
    domain = sender.rpartition("@")[2]
    message_id = f"<setup.{token}@{domain}>"
    subject = f"Set-up test {token}"
    content = (
        f"From: <{sender}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nMessage-ID: {message_id}\r\n"
        f"Date: {format_datetime(now)}\r\nMIME-Version: 1.0\r\n"
        f"List-Unsubscribe: {UNSUBSCRIBE}\r\nList-Unsubscribe-Post: {ONE_CLICK}\r\n"
        f"X-Pennypost-Test: {token}\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        "This letter tests how the provider is set up. Nothing has to be done.\r\n"
    ).encode("ascii")
    return OutgoingMessage(0, Envelope(sender, to), (content,), message_id), subject


test_letter.__test__ = False  # type: ignore[attr-defined]


def sender_of(settings: ProviderSettings) -> str:
    """The address as which a provider sends, where its options name one; empty otherwise."""
    named = str(settings.options.get("mailbox") or settings.options.get("username") or "")
    return named if "@" in named else ""


def run(
    settings: ProviderSettings,
    sender: str,
    to: str,
    clock: Callable[[], datetime],
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    provider: Any = None,
    waits: Sequence[float] = WAITS,
) -> Report:
    """Sends one letter through the provider, under its limits, and reads it back if it can.

    A provider that rests or is stopped is not touched: a test into its silence would begin the
    silence anew.
    """
    report = Report()
    state = limits.state_of(settings.alias)
    now = clock()
    # The mailbox may rest although this provider has not tried it yet.
    closed_until = limits.closed_until(state, now) or mailboxes.resting_until(settings.mailbox, now)
    if state.stopped:
        report.warnings.append(
            _("Stopped: %(because)s Open it in the admin when that is mended, and test again.")
            % {"because": state.because}
        )
        return report
    if closed_until is not None:
        report.warnings.append(
            _("Resting until %(until)s: %(because)s")
            % {
                "until": date_format(localtime(closed_until), "H:i"),
                "because": state.because,
            }
        )
        return report
    grant = limits.take(settings.limits, 1, secrets.randbits(62) + 1, clock)
    if not grant.not_before:
        until = date_format(localtime(grant.retry_at or clock()), "H:i:s")
        report.warnings.append(_("A limit leaves no room until %(until)s.") % {"until": until})
        return report
    letter, subject = test_letter(sender, to, clock())
    provider = provider or settings.make()
    try:
        outcome, sent, received = asyncio.run(
            _send_and_read(provider, letter, subject, sleep, clock, waits)
        )
    finally:
        limits.settle(grant, [monotonic()])
    _judge(report, outcome)
    if isinstance(outcome, Unavailable):
        limits.pause(settings.alias, outcome, clock())
    if report.ok:
        _compare(report, letter, sent, received, can_read=hasattr(provider, "copy_of"))
    return report


async def _send_and_read(
    provider: Any,
    letter: OutgoingMessage,
    subject: str,
    sleep: Callable[[float], Awaitable[Any]],
    clock: Callable[[], datetime],
    waits: Sequence[float],
) -> tuple[Outcome, Any, Any]:
    async with Bridge() as bridge:
        mailboxes.guard(provider, bridge, clock)
        return await _guarded(provider, letter, subject, sleep, waits)


async def _guarded(
    provider: Any,
    letter: OutgoingMessage,
    subject: str,
    sleep: Callable[[float], Awaitable[Any]],
    waits: Sequence[float],
) -> tuple[Outcome, Any, Any]:
    sent = received = None
    await provider.open()
    try:
        outcome = await provider.send(letter)
        if isinstance(outcome, Accepted) and hasattr(provider, "copy_of"):
            to_itself = letter.envelope.rcpt_to.lower() == letter.envelope.mail_from.lower()
            for wait in waits:
                await sleep(wait)
                sent = sent or await provider.copy_of(letter, "sentitems", subject)
                if to_itself:
                    received = received or await provider.copy_of(letter, "inbox", subject)
                if sent and (received or not to_itself):
                    break
    finally:
        await provider.close()
    return outcome, sent, received


def _judge(report: Report, outcome: Outcome) -> None:
    match outcome:
        case Accepted(reply=reply):
            report.ok = True
            report.findings.append(_("Accepted: %(reply)s") % {"reply": reply})
        case Unconfirmed(reply=reply):
            report.warnings.append(
                _("It may or may not have been taken: %(reply)s Look into the mailbox.")
                % {"reply": reply}
            )
        case _:
            report.warnings.append(_("Not accepted: %(reply)s") % {"reply": outcome.reply})


def _compare(
    report: Report, letter: OutgoingMessage, sent: Any, received: Any, *, can_read: bool
) -> None:
    if not can_read:
        report.findings.append(_("This provider cannot read the letter back: look at it yourself."))
        return
    if sent is None:
        report.warnings.append(
            _(
                "The letter was not found in Sent Items, or they may not be read (Mail.Read):"
                " letters in doubt cannot be resolved by themselves."
            )
        )
    copy = received or sent
    if copy is None:
        return
    if copy.message_id == letter.message_id:
        report.findings.append(_("Message-ID: kept."))
    else:
        report.warnings.append(
            _(
                "Message-ID: replaced by %(id)s. In mode sendmail bounces can then be matched only"
                " by what they quote of the letter, and doubts cannot be resolved; mode draft"
                " knows the new one."
            )
            % {"id": copy.message_id}
        )
    header: Message = message_from_bytes(copy.content)
    ours = message_from_bytes(letter.content)
    for name in ("List-Unsubscribe", "List-Unsubscribe-Post", "X-Pennypost-Test"):
        if _unfolded(header.get(name)) == _unfolded(ours.get(name)):
            report.findings.append(_("%(name)s: kept.") % {"name": name})
        else:
            report.warnings.append(_("%(name)s: lost or changed.") % {"name": name})
    _look_at_signatures(report, header, is_received=received is not None)


def _look_at_signatures(report: Report, header: Message, *, is_received: bool) -> None:
    """RFC 8058 section 4: one-click needs a signature that covers both List fields."""
    if not is_received:
        report.findings.append(
            _("DKIM: only a received copy shows it; test with the mailbox's own address.")
        )
        return
    signed = [_signed_fields(str(value)) for value in header.get_all("DKIM-Signature", [])]
    if not signed:
        report.warnings.append(_("DKIM: the received letter has no signature."))
    elif any(set(LIST_FIELDS) <= fields for fields in signed):
        report.findings.append(_("DKIM: covers the List fields."))
    else:
        report.warnings.append(
            _(
                "DKIM: the signature does not cover List-Unsubscribe and List-Unsubscribe-Post"
                " (Exchange's own never does), so some readers' mail programs show no one-click"
                " button (RFC 8058 section 4)."
            )
        )


def _signed_fields(signature: str) -> set[str]:
    match = re.search(r"(?:^|;)\s*h\s*=([^;]*)", signature)
    return {name.strip().lower() for name in match[1].split(":")} if match else set()


def _unfolded(value: Any) -> str:
    return re.sub(r"\s+", " ", str(value or "")).strip()
