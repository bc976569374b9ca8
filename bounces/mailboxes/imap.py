"""A mailbox behind IMAP (RFC 3501, 9051), read with IMAPClient.

Done is a keyword on the mail (``$PennypostDone``) or a move to another folder; nothing is deleted.
Not \\Seen by default: a person who looks into the mailbox would hide mail from us. Exchange Online
keeps no keywords: there ``flag`` must be \\Seen or ``done`` "move", and ``open`` says so.

Of a mail at most ``largest`` octets come over the wire (a partial fetch), and BODY.PEEK leaves it
unread for whoever else looks.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from imapclient import IMAPClient

from bounces.mailboxes.base import MailGoneError
from bounces.mailboxes.login import check_login, read_source

DONE_KEYWORD = "$PennypostDone"


class IMAPMailbox:
    """``security``: tls (port 993), starttls or none (143). ``password``, or ``token_source``: a
    callable, or its dotted path, that gives a fresh OAuth 2 access token (XOAUTH2).

    ``done``: "flag" sets ``flag``, "move" moves to ``done_folder``, which is made where missing.
    ``ca_file``: a certificate authority of one's own, beside which no other is trusted.
    """

    def __init__(
        self,
        host: str,
        username: str,
        password: str = "",
        *,
        token_source: Callable[[], str] | str | None = None,
        port: int | None = None,
        security: str = "tls",
        folder: str = "INBOX",
        done: str = "flag",
        flag: str = DONE_KEYWORD,
        done_folder: str = "Bounces done",
        ca_file: str = "",
        timeout_seconds: float = 30,
    ) -> None:
        check_login(security, password, token_source)
        if done not in {"flag", "move"}:
            raise ValueError(f'done is {done!r}; it is "flag" or "move"')
        if done == "move" and done_folder == folder:
            raise ValueError("done_folder is the folder that is read")
        self._host = host
        self._port = port or (993 if security == "tls" else 143)
        self._security = security
        self._username = username
        self._password = password
        self._token_source = read_source(token_source)
        self._folder = folder
        self._moves = done == "move"
        self._flag = flag
        self._done_folder = done_folder
        self._ca_file = ca_file
        self._timeout = timeout_seconds
        self._client: IMAPClient | None = None
        self._validity = ""

    def open(self) -> None:
        """Logs in and selects the folder."""
        context = ssl.create_default_context(cafile=self._ca_file or None)
        client = IMAPClient(
            self._host,
            self._port,
            ssl=self._security == "tls",
            ssl_context=context if self._security == "tls" else None,
            timeout=self._timeout,
        )
        self._client = client
        if self._security == "starttls":
            client.starttls(context)
        if self._token_source:
            client.oauth2_login(self._username, self._token_source())
        else:
            client.login(self._username, self._password)
        selected = client.select_folder(self._folder)
        self._validity = str(selected[b"UIDVALIDITY"])
        if self._moves and not client.folder_exists(self._done_folder):
            client.create_folder(self._done_folder)
        self._check_flags(selected.get(b"PERMANENTFLAGS", ()))

    def uid_validity(self) -> str:
        return self._validity

    def uids(self) -> Iterator[str]:
        """By ascending uid: the oldest first (RFC 3501 section 2.3.1.1)."""
        criteria = ["UNDELETED"]
        if not self._moves:
            criteria += ["UNSEEN"] if self._flag == "\\Seen" else ["UNKEYWORD", self._flag]
        for uid in sorted(self._connected.search(criteria)):
            yield str(uid)

    def fetch(self, uid: str, largest: int) -> bytes:
        part = f"BODY.PEEK[]<0.{largest}>"
        answer = self._connected.fetch([int(uid)], [part]) if uid.isdecimal() else {}
        for mail in answer.values():
            if isinstance(raw := mail.get(b"BODY[]<0>"), bytes):
                return raw[:largest]
        raise MailGoneError(uid)

    def done(self, uids: Sequence[str]) -> None:
        client = self._connected
        numbers = [int(uid) for uid in uids]
        if not numbers:
            return
        if not self._moves:
            client.add_flags(numbers, [self._flag], silent=True)
        elif client.has_capability("MOVE"):  # RFC 6851
            client.move(numbers, self._done_folder)
        else:
            # Copied first: broken off in between, there is a mail too many and none too few.
            client.copy(numbers, self._done_folder)
            client.delete_messages(numbers, silent=True)
            # RFC 4315. EXPUNGE alone would take along what other programs have marked; without
            # either, a mail that is marked is not given again.
            if client.has_capability("UIDPLUS"):
                client.uid_expunge(numbers)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.logout()
        except (client.Error, OSError):
            with suppress(client.Error, OSError):  # closed already, by them or by us
                client.shutdown()

    @property
    def _connected(self) -> IMAPClient:
        if self._client is None:
            raise RuntimeError("the mailbox is not open")
        return self._client

    def _check_flags(self, permanent: Sequence[bytes]) -> None:
        """Without this, every mail would be examined again at every poll."""
        if self._moves or b"\\*" in permanent or self._flag.encode() in permanent:
            return
        raise ValueError(
            f'{self._host} keeps no flag {self._flag}: set flag to "\\\\Seen", or done to "move"'
        )
