"""Eight ways in which the same report reaches a mailbox in other bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

_STATUS_PART = re.compile(
    rb"(?P<header>^Content-Type: message/(?:global-)?delivery-status[^\n]*\n(?:[\w-]+:[^\n]*\n)*)"
    rb"\n(?P<body>.*?)(?=\n--|\Z)",
    re.MULTILINE | re.DOTALL,
)


def unix(raw: bytes) -> bytes:
    return re.sub(rb"\r+\n", b"\n", raw)


def with_crlf(raw: bytes) -> bytes:
    return unix(raw).replace(b"\n", b"\r\n")


def with_carriage_returns_alone(raw: bytes) -> bytes:
    """As a Macintosh kept it: no eighth way of travelling, and found in archives."""
    return with_mbox_line(unix(raw).replace(b"\n", b"\r"))


def with_byte_order_mark(raw: bytes) -> bytes:
    return b"\xef\xbb\xbf" + raw


def with_mbox_line(raw: bytes) -> bytes:
    return b"From MAILER-DAEMON Sat Nov 21 10:00:00 2026\n" + raw


def with_eight_bit_junk(raw: bytes) -> bytes:
    """In a header field of its own, in a line that is no field, and in what stands for people."""
    head, _, body = unix(raw).partition(b"\n\n")
    return head + b"\nX-Junk: \xff\xfe\xe4\xf6\n\xe4\xf6\xfc\n\n" + b"\x80\x81 rubbish\n" + body


def cut_after_the_status_part(raw: bytes) -> bytes:
    raw = unix(raw)
    part = _STATUS_PART.search(raw)
    return raw[: part.end("body")] if part else raw


def with_status_in_base64(raw: bytes) -> bytes:
    raw = unix(raw)
    part = _STATUS_PART.search(raw)
    if part is None or b"transfer-encoding" in part["header"].lower():
        return raw
    encoded = base64.encodebytes(part["body"] + b"\n")
    header = part["header"] + b"Content-Transfer-Encoding: base64\n\n"
    return raw[: part.start()] + header + encoded + raw[part.end() :]


def as_global_report(raw: bytes) -> bytes:
    """RFC 6533: other types of the parts and of the addresses."""
    raw = unix(raw)
    part = _STATUS_PART.search(raw)
    if part is None:
        return raw
    body = re.sub(rb"(?i)(-Recipient ?:\s*)rfc/?822\s*;", rb"\1utf-8; ", part["body"])
    header = part["header"].replace(b"message/delivery", b"message/global-delivery")
    tail = raw[part.end() :].replace(b"text/rfc822-headers", b"message/global-headers", 1)
    return raw[: part.start()] + header + b"\n" + body + tail


def one_level_deeper(raw: bytes) -> bytes:
    """In the multipart/mixed of a gateway, which keeps the other header fields where they were."""
    head, _, body = unix(raw).partition(b"\n\n")
    fields = re.split(rb"\n(?![ \t])", head)
    inner = [field for field in fields if field.lower().startswith(b"content-")]
    outer = [field for field in fields if not field.lower().startswith(b"content-")]
    return b"\n".join(
        [
            *outer,
            b'Content-Type: multipart/mixed; boundary="of a gateway"',
            b"",
            b"--of a gateway",
            *inner,
            b"",
            body,
            b"--of a gateway",
            b"Content-Type: text/plain",
            b"",
            b"Checked for viruses.",
            b"--of a gateway--",
            b"",
        ]
    )


# Those that leave every mail what it was; negatives are tried with them too.
HARMLESS: list[Callable[[bytes], bytes]] = [
    with_crlf,
    with_byte_order_mark,
    with_mbox_line,
    with_eight_bit_junk,
    one_level_deeper,
]
ALL: list[Callable[[bytes], bytes]] = [
    *HARMLESS,
    cut_after_the_status_part,
    with_status_in_base64,
    as_global_report,
]
