"""Ways in which people and machines pass a bounce on: whatever was in it, nobody bounced to us."""

from __future__ import annotations

import base64
from collections.abc import Callable

READER = "Ada <ada@example.net>"


def _mail(sender: str, subject: str, path: str, rest: bytes, more: str = "") -> bytes:
    head = f"Return-Path: <{path}>\nFrom: {sender}\nSubject: {subject}\n{more}MIME-Version: 1.0\n"
    return head.encode() + rest


def _enclosed(raw: bytes, words: str = "Look at this.", more: bytes = b"") -> bytes:
    return (
        b'Content-Type: multipart/mixed; boundary="OUT"\n\n--OUT\nContent-Type: text/plain\n\n'
        + words.encode()
        + b"\n--OUT\nContent-Type: message/rfc822\n"
        + more
        + b"\n"
        + raw
        + b"\n--OUT--\n"
    )


def _report(kind: str, part: str, raw: bytes) -> bytes:
    head = f'Content-Type: multipart/report; report-type={kind}; boundary="OUT"\n\n'
    return (
        f"{head}--OUT\nContent-Type: text/plain\n\nSee below.\n--OUT\n{part}\n"
        "--OUT\nContent-Type: message/rfc822\n\n"
    ).encode() + raw + b"\n--OUT--\n"  # fmt: skip


def attached_by_a_reader(raw: bytes) -> bytes:
    return _mail(READER, "Fwd: bounce", "ada@example.net", _enclosed(raw))


def attached_by_a_program(raw: bytes) -> bytes:
    return _mail(READER, "bounce", "", _enclosed(raw))


def attached_in_base64(raw: bytes) -> bytes:
    more = b"Content-Transfer-Encoding: base64\n"
    return _mail(READER, "bounce", "ada@example.net", _enclosed(base64.encodebytes(raw), more=more))


def attached_by_a_postmaster(raw: bytes) -> bytes:
    """A person of that name, who tells of a failed delivery."""
    words = "The mail below could not be delivered."
    sender = "Postmaster <postmaster@example.net>"
    return _mail(sender, "FW: bounce", "postmaster@example.net", _enclosed(raw, words))


def attached_to_an_automatic_reply(raw: bytes) -> bytes:
    more = "Auto-Submitted: auto-replied\n"
    return _mail(READER, "Out of office", "", _enclosed(raw), more)


def quoted(raw: bytes) -> bytes:
    lines = b"\n".join(b"> " + line for line in raw.split(b"\n"))
    return _mail(READER, "Re: bounce", "ada@example.net", b"\nIs this yours?\n\n" + lines)


def inline(raw: bytes) -> bytes:
    return _mail(READER, "Fwd: bounce", "ada@example.net", b"\n---- Forwarded ----\n" + raw)


def in_a_digest(raw: bytes) -> bytes:
    head = b'Content-Type: multipart/digest; boundary="OUT"\n\n--OUT\n\n'
    return _mail("list@example.net", "Digest 7", "list@example.net", head + raw + b"\n--OUT--\n")


def as_the_whole_body(raw: bytes) -> bytes:
    return _mail(READER, "bounce", "ada@example.net", b"Content-Type: message/rfc822\n\n" + raw)


def as_a_text_file_of_a_machine(raw: bytes) -> bytes:
    head = (
        b'Content-Type: multipart/mixed; boundary="OUT"\n\n--OUT\nContent-Type: text/plain\n\n'
        b"A ticket was opened.\n--OUT\nContent-Type: text/plain; name=bounce.txt\n"
        b"Content-Disposition: attachment\n\n"
    )
    return _mail("Ticket System <system@example.net>", "Ticket", "", head + raw + b"\n--OUT--\n")


def returned_with_a_delay(raw: bytes) -> bytes:
    part = (
        "Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example.net\n\n"
        "Final-Recipient: rfc822; zoe@example.net\nAction: delayed\nStatus: 4.4.1\n"
    )
    sender = "MAILER-DAEMON@mx.example.net"
    return _mail(sender, "Delayed", "", _report("delivery-status", part, raw))


def returned_with_a_receipt(raw: bytes) -> bytes:
    part = (
        "Content-Type: message/disposition-notification\n\n"
        "Final-Recipient: rfc822; ada@example.net\nDisposition: manual-action; displayed\n"
    )
    return _mail(READER, "Read: bounce", "", _report("disposition-notification", part, raw))


WAYS: list[Callable[[bytes], bytes]] = [
    attached_by_a_reader,
    attached_by_a_program,
    attached_in_base64,
    attached_by_a_postmaster,
    attached_to_an_automatic_reply,
    quoted,
    inline,
    in_a_digest,
    as_the_whole_body,
    as_a_text_file_of_a_machine,
    returned_with_a_delay,
    returned_with_a_receipt,
]
