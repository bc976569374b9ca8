"""A maildrop behind POP3 (RFC 1939 with UIDL; RFC 2595 for STLS, RFC 5034 for XOAUTH2).

POP3 keeps no flags, so what is done is remembered by unique id in a store: the database, in
production. Mails stay in the maildrop unless ``delete`` is set: then those that are done are
deleted when the session ends, after their results were committed, and a session that breaks off
deletes nothing (RFC 1939 section 6).

The size of a mail is asked before it is fetched; of one that is longer than is kept only the first
lines are (TOP). Answers are read here and not with poplib's ``retr``, which refuses lines over
2,048 octets and holds whatever a server sends.
"""

from __future__ import annotations

import base64
import poplib
import ssl
from collections.abc import Callable, Iterator, Sequence

from bounces.mailboxes.base import MailGoneError, UidStore
from bounces.mailboxes.login import check_login, read_source, xoauth2

# The store is asked about so many at once.
PAGE = 500
# TOP counts lines (some 70 octets each), not octets: so a little more is asked for than is kept.
OCTETS_PER_LINE = 40
LINES_AT_LEAST = 10
# The rest of an answer is read and dropped, so that the session stays in step; up to here. Beyond
# that, somebody wrote lines of megabytes, and a new session is cheaper.
MOST_DROPPED = 4 * 1024 * 1024


class POP3Mailbox:
    """``security``: tls (port 995), starttls or none (110). ``password``, or ``token_source``: a
    callable, or its dotted path, that gives a fresh OAuth 2 access token (XOAUTH2).
    ``ca_file``: a certificate authority of one's own, beside which no other is trusted."""

    def __init__(
        self,
        host: str,
        username: str,
        password: str = "",
        *,
        token_source: Callable[[], str] | str | None = None,
        port: int | None = None,
        security: str = "tls",
        delete: bool = False,
        ca_file: str = "",
        timeout_seconds: float = 30,
    ) -> None:
        check_login(security, password, token_source)
        self._host = host
        self._port = port or (995 if security == "tls" else 110)
        self._security = security
        self._username = username
        self._password = password
        self._token_source = read_source(token_source)
        self._delete = delete
        self._ca_file = ca_file
        self._timeout = timeout_seconds
        self._session: poplib.POP3 | None = None
        self._store: UidStore | None = None
        # Message numbers by unique id, and sizes by number; they hold for this session only.
        self._numbers: dict[str, int] = {}
        self._sizes: dict[int, int] = {}

    def remember_in(self, store: UidStore) -> None:
        self._store = store

    def open(self) -> None:
        context = ssl.create_default_context(cafile=self._ca_file or None)
        if self._security == "tls":
            self._session = poplib.POP3_SSL(
                self._host, self._port, timeout=self._timeout, context=context
            )
        else:
            self._session = poplib.POP3(self._host, self._port, timeout=self._timeout)
        if self._security == "starttls":
            self._session.stls(context)
        self._log_in(self._session)
        ids = [line.decode("ascii", "replace").split() for line in self._session.uidl()[1]]
        self._numbers = {uid: int(number) for number, uid in ids}
        sizes = [line.split()[:2] for line in self._session.list()[1]]
        self._sizes = {int(number): int(octets) for number, octets in sizes}

    def uid_validity(self) -> str:
        """A constant: a unique id is never used again (RFC 1939 section 7)."""
        return "pop3"

    def uids(self) -> Iterator[str]:
        waiting = sorted(self._numbers, key=self._numbers.__getitem__)
        for start in range(0, len(waiting), PAGE):
            page = waiting[start : start + PAGE]
            done = self._memory.done(page)
            yield from (uid for uid in page if uid not in done)

    def fetch(self, uid: str, largest: int) -> bytes:
        number = self._numbers.get(uid)
        if number is None:
            raise MailGoneError(uid)
        session = self._opened
        try:
            command = f"RETR {number}"
            if self._sizes.get(number, 0) > largest:
                command = f"TOP {number} {largest // OCTETS_PER_LINE + LINES_AT_LEAST}"
            return self._read(session, command, largest)
        except poplib.error_proto as error:
            if error.args and bytes(error.args[0]).startswith(b"-ERR"):
                raise MailGoneError(uid) from error
            raise

    def done(self, uids: Sequence[str]) -> None:
        self._memory.add(uids)
        if self._delete:
            for uid in uids:
                if uid in self._numbers:
                    self._opened.dele(self._numbers.pop(uid))

    def close(self) -> None:
        """QUIT, at which the server deletes what ``done`` said."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.quit()
        except (poplib.error_proto, OSError):
            session.close()

    @property
    def _opened(self) -> poplib.POP3:
        if self._session is None:
            raise RuntimeError("the mailbox is not open")
        return self._session

    @property
    def _memory(self) -> UidStore:
        if self._store is None:
            raise RuntimeError("POP3 keeps no flags: remember_in comes before uids and done")
        return self._store

    def _log_in(self, session: poplib.POP3) -> None:
        if self._token_source:
            answer = xoauth2(self._username, self._token_source())
            # poplib has no method for AUTH.
            session._shortcmd(  # type: ignore[attr-defined]
                f"AUTH XOAUTH2 {base64.b64encode(answer.encode()).decode()}"
            )
        else:
            session.user(self._username)
            session.pass_(self._password)

    def _read(self, session: poplib.POP3, command: str, largest: int) -> bytes:
        """A multi-line answer up to ``largest`` octets, dots unstuffed."""
        session._shortcmd(command)  # type: ignore[attr-defined]
        kept, dropped, begins = bytearray(), 0, True
        while (line := session.file.readline(largest + 1)) != b".\r\n" or not begins:
            if not line:
                raise ConnectionError(f"{self._host} ended the session in the middle of a mail")
            if len(kept) < largest:
                kept += line[1:] if begins and line.startswith(b"..") else line
            else:
                dropped += len(line)
            # readline gives a long line in pieces.
            begins = line.endswith(b"\n")
            if dropped > MOST_DROPPED:
                self._hang_up(session)
                self.open()
                break
        return bytes(kept[:largest])

    def _hang_up(self, session: poplib.POP3) -> None:
        """Without QUIT: nothing is deleted in this session."""
        session.close()
        self._session = None
