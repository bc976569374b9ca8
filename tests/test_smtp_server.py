"""The tests' own SMTP server does what its rules say, seen through a client of the library."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.smtp_server import At, Drop, Rule, SMTPServer

LETTER = "Subject: Hello\r\n\r\n.a line that begins with a dot\r\nand another\r\n"


def client(server: SMTPServer) -> smtplib.SMTP:
    return smtplib.SMTP(server.host, server.port, local_hostname="tests", timeout=10)


def send(smtp: smtplib.SMTP, rcpt_to: str = "ada@example.org") -> None:
    smtp.sendmail("news@example.org", rcpt_to, LETTER)


class Wire:
    """A client that writes what it is told, and reads line by line."""

    def __init__(self, server: SMTPServer) -> None:
        self.socket = socket.create_connection((server.host, server.port), timeout=10)
        self.lines = self.socket.makefile("rb")

    def read(self) -> bytes:
        """One whole reply, or what came before the end."""
        reply = b""
        while line := self.lines.readline():
            reply += line
            if line[3:4] == b" ":
                break
        return reply

    def write(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    with SMTPServer() as running:
        yield running


def test_a_letter_is_accepted_and_kept_byte_for_byte(server: SMTPServer) -> None:
    with client(server) as smtp:
        send(smtp)
    (letter,) = server.accepted
    assert letter.mail_from == "news@example.org"
    assert letter.rcpt_to == ["ada@example.org"]
    assert letter.content == LETTER.encode()
    assert server.verbs() == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert server.faults == []


def test_an_address_can_be_deferred_once_and_another_refused_for_ever() -> None:
    rules = [
        Rule(At.RCPT, "450 4.2.0 Greylisted", address="grey-*", times=1, each_address=True),
        Rule(At.RCPT, "550 5.1.1 Gone", address="gone-*"),
    ]
    with SMTPServer(rules) as server, client(server) as smtp:
        smtp.ehlo()
        for address, codes in {"grey-1@x.org": [450, 250], "gone-1@x.org": [550, 550]}.items():
            for code in codes:
                smtp.mail("news@example.org")
                assert smtp.rcpt(address)[0] == code
                smtp.rset()
        smtp.mail("news@example.org")
        assert smtp.rcpt("grey-2@x.org")[0] == 450
    assert server.accepted == []


def test_a_rule_can_speak_on_the_second_letter_of_each_connection() -> None:
    rule = Rule(At.MAIL, "421 4.7.0 Enough", drop=Drop.AFTER_REPLY, skip=1, each_connection=True)
    with SMTPServer([rule]) as server:
        for _ in range(2):
            smtp = client(server)
            send(smtp)
            with pytest.raises(smtplib.SMTPSenderRefused, match="Enough"):
                send(smtp)
            smtp.close()
    assert [letter.connection for letter in server.accepted] == [1, 2]


def test_a_connection_lost_after_the_final_dot_may_keep_or_lose_the_letter() -> None:
    rules = [
        Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, connection=1),
        Rule(At.FINAL_DOT, drop=Drop.BEFORE_REPLY, connection=2, keeps_letter=False),
    ]
    with SMTPServer(rules) as server:
        for _ in range(2):
            with pytest.raises(smtplib.SMTPServerDisconnected):
                send(client(server))
    assert [letter.connection for letter in server.accepted] == [1]


def test_a_refused_final_dot_keeps_no_letter() -> None:
    with (
        SMTPServer([Rule(At.FINAL_DOT, "554 5.6.0 Spam")]) as server,
        client(server) as smtp,
        pytest.raises(smtplib.SMTPDataError, match="Spam"),
    ):
        send(smtp)
    assert server.accepted == []


def test_half_a_reply_and_a_reset_look_like_that_on_the_wire() -> None:
    rules = [
        Rule(At.GREETING, "220 localhost ready", drop=Drop.HALF_REPLY, connection=1),
        Rule(At.GREETING, drop=Drop.BEFORE_REPLY, reset=True, connection=2),
        Rule(At.GREETING, b"hello there\r\n", connection=3),
    ]
    with SMTPServer(rules) as server:
        half = Wire(server)
        assert half.read() == b"220 localh"
        half.close()
        # The reset may arrive while it is still connecting.
        with pytest.raises(ConnectionResetError), closing(Wire(server)) as reset:
            reset.read()
        odd = Wire(server)
        assert odd.lines.readline() == b"hello there\r\n"
        odd.close()


def test_a_drop_in_the_body_comes_before_the_dot_was_read() -> None:
    with SMTPServer([Rule(At.BODY, drop=Drop.BEFORE_REPLY, reset=True)]) as server:
        wire = Wire(server)
        wire.read()
        for command in [b"EHLO x", b"MAIL FROM:<a@b.org>", b"RCPT TO:<c@d.org>", b"DATA"]:
            wire.write(command + b"\r\n")
            wire.read()
        wire.write(b"Subject: half of it\r\n")
        with pytest.raises(ConnectionResetError):
            wire.read()
        wire.close()
    assert server.accepted == []


def test_pipelined_commands_are_answered_in_order_and_noted_where_they_were_not_offered() -> None:
    group = b"MAIL FROM:<a@b.org> SIZE=5\r\nRCPT TO:<c@d.org>\r\nDATA\r\n"
    for offers, faults in [(["PIPELINING"], 0), ([], 2)]:
        with SMTPServer(offers=offers) as server:
            wire = Wire(server)
            wire.read()
            wire.write(b"EHLO x\r\n")
            wire.read()
            wire.write(group)
            assert [wire.read()[:3] for _ in range(3)] == [b"250", b"250", b"354"]
            wire.write(b"Hi\r\n.\r\n")
            assert wire.read()[:3] == b"250"
            wire.close()
        assert server.accepted[0].content == b"Hi\r\n"
        assert server.accepted[0].mail_parameters == "SIZE=5"
        assert len(server.faults) == faults


def test_what_breaks_the_protocol_is_noted(server: SMTPServer) -> None:
    wire = Wire(server)
    wire.read()
    wire.write(b"EHLO x\r\nMAIL FROM:<a@b.org>\r\n")
    wire.read(), wire.read()
    wire.write(b"RCPT TO:<c@d.org>\r\n")
    wire.read()
    wire.write(b"DATA\r\n")
    wire.read()
    wire.write(b"bare\nline\r\n" + b"x" * 999 + b"\r\n.\r\n")
    wire.read()
    wire.close()
    assert server.faults == [
        "1: octets written ahead after EHLO",
        "1: a bare CR or LF in the letter",
        "1: a line of more than 998 octets",
    ]


@pytest.mark.parametrize("security", ["starttls", "tls"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_tls_and_authentication_work_together(security: str, mechanism: str) -> None:
    with SMTPServer(security=security, users={"pat": "secret"}, mechanisms=[mechanism]) as server:
        context = ssl.create_default_context(cafile=str(server.certificate))
        if security == "tls":
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(
                "localhost", server.port, context=context, timeout=10
            )
        else:
            smtp = smtplib.SMTP("localhost", server.port, timeout=10)
            smtp.ehlo()
            assert not smtp.has_extn("auth")
            assert smtp.mail("news@example.org")[0] == 530
            smtp.starttls(context=context)
        smtp.ehlo()
        assert smtp.mail("news@example.org")[0] == 530
        with pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("pat", "wrong")
        smtp.login("pat", "secret")
        send(smtp)
        # Larger than every buffer: the reader must not stall behind TLS.
        smtp.sendmail("news@example.org", "ada@example.org", "x" * 70 + "\r\n" + LETTER * 20_000)
        smtp.quit()
    assert [connection.tls for connection in server.connections] == [True]
    assert server.connections[0].username == "pat"
    assert [len(letter.content) > 100_000 for letter in server.accepted] == [False, True]


def test_a_certificate_for_another_name_is_refused_by_a_client_that_checks() -> None:
    with SMTPServer(security="tls", certificate_names=["mail.example.net"]) as server:
        context = ssl.create_default_context(cafile=str(server.certificate))
        with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
            smtplib.SMTP_SSL("localhost", server.port, context=context, timeout=10)


def test_connections_beyond_a_number_can_be_turned_away() -> None:
    rule = Rule(
        At.GREETING,
        "421 4.7.0 Too many connections",
        drop=Drop.AFTER_REPLY,
        when=lambda session: session.server.open_connections > 2,
    )
    with SMTPServer([rule]) as server:
        kept = [Wire(server), Wire(server)]
        assert [wire.read()[:3] for wire in kept] == [b"220", b"220"]
        third = Wire(server)
        assert third.read() == b"421 4.7.0 Too many connections\r\n"
        third.close()
        assert server.wait_until(lambda seen: seen.open_connections == 2)
        for wire in kept:
            wire.close()
    assert server.most_connections == 3


def test_a_hanging_server_ends_with_its_block() -> None:
    with SMTPServer([Rule(At.GREETING, delay=3600)]) as server:
        wire = Wire(server)
        assert server.wait_until(lambda seen: seen.open_connections == 1)
    wire.close()
    assert server.open_connections == 0
