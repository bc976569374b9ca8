"""The demo's SMTP server, started as the demo starts it and spoken to over the wire."""

from __future__ import annotations

import email
import email.policy
import json
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from bounces.reading import read_bounce
from config.demo.readers import READERS, readers
from config.demo.world import Fate, fate_of
from tests.free_ports import free_ports

LETTER = b"Message-ID: <17@news.example.org>\r\nSubject: Spring\r\n\r\nHello\r\n"
RETURN_PATH = "bounce+abc@bounces.example.org"


@dataclass
class Running:
    port: int
    maildir: Path
    log_file: Path
    process: subprocess.Popen[str]

    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def client(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, local_hostname="tests", timeout=10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    maildir, log_file = tmp_path / "bounces", tmp_path / "smtp.jsonl"
    options = ["--port", str(port), "--maildir", str(maildir), "--log", str(log_file)]
    process = subprocess.Popen(
        [sys.executable, "-m", "config.demo.smtp_server", *options, "--report-after", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "listens" in process.stdout.readline()
    try:
        yield Running(port, maildir, log_file, process)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.stdout.close()


def test_it_announces_what_it_can_do(server: Running) -> None:
    with server.client() as smtp:
        smtp.ehlo()
        assert {"size", "8bitmime", "pipelining", "enhancedstatuscodes"} <= set(smtp.esmtp_features)


def test_an_ordinary_letter_is_accepted_and_logged(server: Running) -> None:
    with server.client() as smtp:
        smtp.ehlo()
        assert smtp.mail(RETURN_PATH) == (250, b"2.0.0 OK")
        assert smtp.rcpt("ada@mail.example.org") == (250, b"2.1.5 Ok")
        assert smtp.data(LETTER) == (250, b"2.0.0 Ok: queued as 00000001")
    (line,) = server.log()
    assert line.pop("time")
    assert line == {
        "event": "accepted",
        "mail_from": RETURN_PATH,
        "rcpt_to": "ada@mail.example.org",
        "reply": "250 2.0.0 Ok: queued as 00000001",
        "message_id": "<17@news.example.org>",
        "size": len(LETTER),
    }


def test_a_reader_who_is_gone_is_refused_and_the_refusal_is_logged(server: Running) -> None:
    with server.client() as smtp:
        smtp.ehlo()
        smtp.mail(RETURN_PATH)
        code, text = smtp.rcpt("gone-0001@mail.example.org")
        assert (code, text[:5]) == (550, b"5.1.1")
        assert smtp.docmd("DATA") == (503, b"5.5.1 Error: need RCPT command")
    assert [line["event"] for line in server.log()] == ["refused"]


def test_greylisting_defers_each_pair_of_sender_and_reader_once(server: Running) -> None:
    with server.client() as smtp:
        smtp.ehlo()
        codes = []
        for sender in (
            "bounce+1@x.example.org",
            "bounce+1@x.example.org",
            "bounce+2@x.example.org",
        ):
            smtp.mail(sender)
            codes.append(smtp.rcpt("greylisted-0001@mail.example.org")[0])
            smtp.rset()
    assert codes == [450, 250, 450]
    assert [line["event"] for line in server.log()] == ["deferred", "deferred"]


def test_a_letter_that_bounces_is_accepted_and_reported_to_its_return_path(server: Running) -> None:
    with server.client() as smtp:
        smtp.sendmail(RETURN_PATH, ["bounces-0001@mail.example.org"], LETTER)
    report = the_report(server)
    assert report["Return-Path"] == "<>"
    assert report["To"] == report["Delivered-To"] == RETURN_PATH
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    assert report.defects == []
    notification, status, returned = report.get_payload()
    assert "bounces-0001@mail.example.org" in notification.get_payload()
    about_letter, about_reader = status.get_payload()
    assert about_letter["Reporting-MTA"] == "dns; mx.example.net"
    assert about_reader["Action"] == "failed"
    assert about_reader["Status"] == "5.1.1"
    assert about_reader["Final-Recipient"] == "rfc822; bounces-0001@mail.example.org"
    assert about_reader["Diagnostic-Code"].startswith("smtp; 550 5.1.1")
    assert returned.get_content_type() == "text/rfc822-headers"
    assert "Message-ID: <17@news.example.org>" in returned.get_payload()
    assert [line["event"] for line in server.log()] == ["accepted", "reported"]


def the_report(server: Running) -> Message:
    """The one mail in the Maildir's new/, once it has come."""
    deadline = time.monotonic() + 10
    while not (found := list((server.maildir / "new").glob("*"))):
        assert time.monotonic() < deadline, "no report came"
        time.sleep(0.02)
    (file,) = found
    assert list((server.maildir / "tmp").glob("*")) == []
    return email.message_from_bytes(file.read_bytes(), policy=email.policy.compat32)


def test_the_report_is_read_by_our_own_reader(server: Running) -> None:
    with server.client() as smtp:
        smtp.sendmail(RETURN_PATH, ["bounces-0001@mail.example.org"], LETTER)
    (report,) = read_bounce(the_report(server).as_bytes())
    assert report.recipient == "bounces-0001@mail.example.org"
    assert (report.action, report.status, report.hard) == ("failed", "5.1.1", True)


def test_pipelined_letters_are_answered_one_by_one_and_in_order(server: Running) -> None:
    """Two transactions whose commands arrive in one segment, the first of them refused."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        lines = wire.makefile("rb")

        def answers(count: int) -> list[bytes]:
            found = []
            while len(found) < count:
                line = lines.readline()
                if line[3:4] == b" ":
                    found.append(line[:9])
            return found

        assert answers(1)[0][:3] == b"220"
        wire.sendall(b"EHLO tests\r\n")
        assert answers(1)[0][:3] == b"250"
        wire.sendall(
            b"MAIL FROM:<a@x.example.org>\r\nRCPT TO:<gone-0001@mail.example.org>\r\nDATA\r\n"
            b"RSET\r\nMAIL FROM:<b@x.example.org>\r\nRCPT TO:<ada@mail.example.org>\r\nDATA\r\n"
        )
        assert answers(7) == [
            b"250 2.0.0",
            b"550 5.1.1",
            b"503 5.5.1",
            b"250 2.0.0",
            b"250 2.0.0",
            b"250 2.1.5",
            b"354 End d",
        ]
        wire.sendall(LETTER + b".\r\nMAIL FROM:<c@x.example.org>\r\nQUIT\r\n")
        assert answers(3) == [b"250 2.0.0", b"250 2.0.0", b"221 2.0.0"]
        lines.close()
    assert [line["event"] for line in server.log()] == ["refused", "accepted"]


def test_a_letter_with_a_line_that_is_too_long_is_refused(server: Running) -> None:
    with server.client() as smtp, pytest.raises(smtplib.SMTPDataError, match=r"554.*5\.6\.0"):
        smtp.sendmail(RETURN_PATH, ["ada@mail.example.org"], LETTER + b"x" * 999 + b"\r\n")
    assert [line["event"] for line in server.log()] == ["refused"]


def test_the_readers_are_2000_different_people_and_one_two_and_three_percent_meet_trouble() -> None:
    everybody = list(readers())
    assert len({reader.email.lower() for reader in everybody}) == READERS
    assert Counter(fate_of(reader.email) for reader in everybody) == {
        Fate.TAKEN: 1880,
        Fate.REFUSED: 20,
        Fate.DEFERRED_ONCE: 40,
        Fate.REPORTED: 60,
    }
    assert all(
        reader.email.endswith((".example.org", ".example.net", ".example.com"))
        for reader in everybody
    )
