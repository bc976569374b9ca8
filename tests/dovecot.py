"""A real Dovecot (IMAP and POP3) on free ports, with its configuration in a folder of the test.

The distribution's binary, without its service: it listens on 127.0.0.1 only, and ends with the
block. Accounts need no password file: every name may log in with PASSWORD, or by XOAUTH2 with
``token_of`` it, which a small introspection server of ours confirms (RFC 7662).
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

from config.demo.dovecot import BINARY, configuration, folder_for_dovecot
from config.demo.dovecot import PASSWORD as PASSWORD
from tests.free_ports import free_ports

TOKEN = "fresh-access-token-of-"


@dataclass(frozen=True, slots=True)
class Dovecot:
    """``ca_file`` signed its certificate, which is for localhost."""

    imap: int
    imaps: int
    pop3: int
    pop3s: int
    mail: Path
    ca_file: Path

    def maildir(self, user: str) -> Path:
        """The user's INBOX, as a mail server delivers into it."""
        return self.mail / user


def token_of(user: str) -> str:
    """An access token that is good."""
    return TOKEN + user


@contextmanager
def dovecot() -> Iterator[Dovecot]:
    """In a folder of its own, since pytest closes its folders to other users again and again."""
    assert BINARY, "check BINARY first"
    with folder_for_dovecot() as folder:
        yield from _run(folder)


def _run(folder: Path) -> Iterator[Dovecot]:
    imap, imaps, pop3, pop3s = ports = free_ports(4)
    certificate(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Introspection)
    Thread(target=server.serve_forever, daemon=True).start()
    (folder / "oauth2.conf").write_text(
        f"introspection_mode = post\nintrospection_url = http://127.0.0.1:{server.server_port}/\n"
        "username_attribute = username\nactive_attribute = active\nactive_value = true\n"
    )
    config = folder / "dovecot.conf"
    more = with_tls_and_tokens(folder, imaps, pop3s)
    config.write_text(configuration(folder, imap, pop3, more))
    process = subprocess.Popen([BINARY, "-F", "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        for port in ports:
            wait_for(port, process, folder)
        yield Dovecot(*ports, mail=folder / "mail", ca_file=folder / "cert.pem")
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        server.server_close()


def with_tls_and_tokens(folder: Path, imaps: int, pop3s: int) -> str:
    """What the tests need beside the demo's configuration."""
    return f"""
ssl = yes
ssl_cert = <{folder}/cert.pem
ssl_key = <{folder}/key.pem
ssl_min_protocol = TLSv1.2
auth_mechanisms = plain login xoauth2
passdb {{
  driver = oauth2
  mechanisms = xoauth2
  args = {folder}/oauth2.conf
}}
service imap-login {{
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
"""


def certificate(folder: Path) -> None:
    """Self-signed, for localhost: the tests check it like any other."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True,
        capture_output=True,
    )  # fmt: skip


def wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    log = folder / "dovecot.log"
    raise RuntimeError(f"Dovecot did not start: {log.read_text() if log.exists() else 'no log'}")


class Introspection(BaseHTTPRequestHandler):
    """RFC 7662: ``token_of(user)`` is good, and that user's."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        token = parse_qs(body).get("token", [""])[0]
        answer = {"active": token.startswith(TOKEN), "username": token.removeprefix(TOKEN)}
        octets = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: object) -> None: ...
