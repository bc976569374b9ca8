"""Mails that were made to hurt, each below the size that is kept."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile

HEAD = b"From: MAILER-DAEMON@evil.example\nSubject: boom\nMIME-Version: 1.0\n"
REPORT = b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\n\n'
STATUS = b"--b\nContent-Type: message/delivery-status\n\n"
SIZE = 250_000


def _nested(levels: int) -> bytes:
    opening = b"".join(
        b'Content-Type: multipart/mixed; boundary="n%d"\n\n--n%d\n' % (level, level)
        for level in range(levels)
    )
    return HEAD + opening + b"Content-Type: text/plain\n\nhello\n"


def _nested_messages(levels: int) -> bytes:
    return HEAD + b"Content-Type: message/rfc822\n\n" * levels + b"hello\n"


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("report.txt", content)
    return archive.getvalue()


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no-header": b"\n\n\n",
    "only-nul": b"\0" * SIZE,
    "random-octets": bytes(range(256)) * (SIZE // 256),
    "multipart-2000-deep": _nested(2000),
    "messages-8000-deep": _nested_messages(8000),
    "tiny-parts": HEAD + REPORT + b"--b\n\nx\n" * (SIZE // 7),
    "tiny-status-parts": HEAD + REPORT + (STATUS + b"x: y\n\n") * (SIZE // 60),
    "parameters": HEAD + b"Content-Type: multipart/report" + b"; a=b" * (SIZE // 5) + b"\n\n",
    "quoted-parameters": HEAD + b"Content-Type: multipart/report" + b';a="' * (SIZE // 4) + b"\n\n",
    "continued-parameters": HEAD
    + b"Content-Type: multipart/report"
    + b"".join(b"; boundary*%d*=x" % n for n in range(12_000))
    + b"\n\n",
    "encoded-words": HEAD + b"Subject: " + b"=?utf-8?q?=C3=A9?= " * (SIZE // 19) + b"\n\n",
    "headers": b"X: y\n" * (SIZE // 5) + b"\n",
    "folded-header": HEAD + b"X-A: b\n" + b" c\n" * (SIZE // 3) + b"\n",
    "comments-in-recipient": HEAD + REPORT + STATUS + b"Final-Recipient: rfc822; " + b"(" * 100_000
    + b"a@example.org\nAction: failed\nStatus: 5.1.1\n--b--\n",
    "comments-in-to": HEAD + b"To: " + b"(" * SIZE + b"\n\n",
    "fields-of-one-group": HEAD + REPORT + STATUS + b"a: b\n" * (SIZE // 5),
    "groups": HEAD + REPORT + STATUS
    + b"".join(b"Final-Recipient: a;b%d@x.y\nAction: failed\nStatus: 5.1.1\n\n" % n
               for n in range(SIZE // 60)),
    "folded-diagnostic": HEAD + REPORT + STATUS
    + b"Final-Recipient: rfc822;a@example.org\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: x\n"
    + b" .a.a\n" * (SIZE // 6),
    "dotted-diagnostic": HEAD + REPORT + STATUS
    + b"Final-Recipient: rfc822;a@example.org\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: "
    + b"5.1.1." * (SIZE // 6) + b"\n",
    "boundary-of-a-regular-expression": HEAD
    + b'Content-Type: multipart/report; boundary="(a+)+$"\n\n--(a+)+$\n' + b"a" * 10_000,
    "boundary-lines-that-almost-match": HEAD + REPORT + b"--b" + b" \t" * (SIZE // 2),
    "base64-of-a-bomb": HEAD + REPORT
    + b"--b\nContent-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\n"
    + base64.encodebytes(gzip.compress(b"Action: failed\n" * 1_000_000)) + b"--b--\n",
    "attached-archives-of-zeros": HEAD
    + b'Content-Type: multipart/mixed; boundary="b"\n\n'
    + b"".join(
        b"--b\nContent-Type: " + kind + b"\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(bomb)
        for kind, bomb in (
            (b"application/gzip; name=report.gz", gzip.compress(bytes(20_000_000))),
            (b"application/zip; name=report.zip", zipped(bytes(20_000_000))),
            (b"message/delivery-status", gzip.compress(bytes(20_000_000))),
        )
    ) + b"--b--\n",
    "broken-base64": HEAD + REPORT
    + b"--b\nContent-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\n"
    + b"=" * 1000 + b"A\n--b--\n",
    "carriage-returns": HEAD + REPORT + b"\r" * SIZE,
    "unfinished-header": b"Content-Type: multipart/report; boundary=",
    "code-point-beyond-unicode": HEAD + REPORT + STATUS
    + rb"Final-Recipient: utf-8; \x{D800}\x{FFFFFF}\x{110000}@example.org" + b"\nAction: failed\n",
    "style-sheets-that-never-end": HEAD + b"Content-Type: text/html\n\n" + b"<style " * (SIZE // 7),
    "nul-in-the-diagnostic": HEAD + REPORT + STATUS
    + b"Final-Recipient: rfc822;a@example.org\nAction: failed\nStatus: 5.1.1\n"
    + b"Diagnostic-Code: smtp;550 5.1.1 \0\x1b[31m\xed\xa0\x80 gone\n--b--\n",
}  # fmt: skip
