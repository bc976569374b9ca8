"""What a worker asks of SQLite all the time, in a process beside it: SQLite's counterpart of a
server's session. Started and asked by delivery/sqlite_session.py.

A claim and an exchange take SQLite and the disk as long as the worker takes for the letters, and
nobody else can do either meanwhile. Here they run on another core, as PostgreSQL's do.

Run as a program, by itself: with the standard library alone it is there in 15 ms and takes 17 MB,
which Django would make 400 and 85. It ends with the socket that is its standard input, and so with
its worker, however that ends; what it had begun then is committed or not, as with a server.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import signal
import socket
import sqlite3
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Each message is preceded by its length. marshal: both ends are the same Python, and it takes a
# third of the time of JSON.
LENGTH = struct.Struct("!I")

Parameters = Mapping[str, Any]
Procedure = Callable[[sqlite3.Cursor, Parameters], tuple[Any, ...] | None]
# Of a due letter's columns (delivery/statements.py), from behind.
_STATUS, _IS_WANTED = -2, -1
_CAMPAIGN, _IS_TEST, _ATTRIBUTES = 1, 5, 10


class Opened(NamedTuple):
    """What a process is told first: the arguments of ``sqlite3.connect``, what is executed on each
    new connection, the statements of the procedures by their names, and what waits in QUEUED."""

    connect: dict[str, Any]
    init: list[str]
    statements: dict[str, str]
    queued: str


class Server:
    """One connection, and the procedures on it."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._sql = opened.statements
        self._connection: sqlite3.Connection | None = None
        self._procedures: dict[str, Procedure] = {
            "opening": self._opening,
            "claim": self._claim,
            "exchange": self._exchange,
        }

    def connect(self) -> sqlite3.Connection:
        """Where there is no connection yet."""
        if self._connection is None:
            connection = sqlite3.connect(**self._opened.connect, isolation_level=None)
            for statement in self._opened.init:
                connection.execute(statement)
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """The next procedure connects anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def run(self, procedure: str, parameters: Parameters) -> tuple[Any, ...] | None:
        """What the procedure of this name answers. Whatever it raises has changed nothing, unless
        COMMIT itself raised: then nobody knows."""
        with contextlib.closing(self.connect().cursor()) as cursor:
            return self._procedures[procedure](cursor, parameters)

    def _opening(self, cursor: sqlite3.Cursor, parameters: Parameters) -> tuple[Any, ...] | None:
        """As ``claiming.opening`` wants it."""
        row = cursor.execute(self._sql["opening"], parameters).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def _claim(self, cursor: sqlite3.Cursor, parameters: Parameters) -> tuple[Any, ...]:
        """As ``claiming.usual_claim`` wants it: letters, of one page at most, and whether more are
        wanted than it held."""
        with _transaction(cursor):
            due, has_more = self._due(cursor, parameters)
            wanted = [row for row in due if row[_IS_WANTED]]
            unwanted = [row[0] for row in due if not row[_IS_WANTED]]
            if unwanted:
                ids = json.dumps(unwanted)
                cursor.execute(self._sql["unwanted"], {**parameters, "ids": ids})
            if wanted:
                ids = json.dumps([row[0] for row in wanted])
                cursor.execute(self._sql["claimed"], {**parameters, "ids": ids})
                cursor.execute(self._sql["forget_claims"], parameters)
                # The last one first: it is the last to leave, and forget_claims finds it at once.
                ids = json.dumps([row[0] for row in reversed(wanted)])
                cursor.execute(self._sql["note_claim"], {**parameters, "ids": ids})
            for counts in _counts(due, self._opened.queued):
                cursor.execute(self._sql["count_claimed"], {**parameters, **counts})
        return [_letter(row) for row in wanted], has_more

    def _due(
        self, cursor: sqlite3.Cursor, parameters: Parameters
    ) -> tuple[list[Sequence[Any]], bool]:
        """Test letters first, then what waits alone and is due before the first page, then of the
        page, whose mark is moved: it is the queue's promise (delivery/queue_pages.py)."""
        page = cursor.execute(self._sql["first_page"], parameters).fetchone()
        page_id, next_id, last_id, due_by = page or (0, 0, 0, parameters["now"])
        which = {**parameters, "due_by": due_by, "next_id": next_id, "last_id": last_id}
        due: list[Sequence[Any]] = []
        for some in ("tests", "singles"):
            which["room"] = parameters["wanted"] - len(due)
            due += cursor.execute(self._sql[some], which).fetchall()
        room = which["room"] = parameters["wanted"] - len(due)
        if page is None or room <= 0:
            return due, False
        of_page = cursor.execute(self._sql["of_page"], which).fetchall()
        up_to = of_page[-1][0] if len(of_page) == room else last_id
        turned = {"page": page_id, "next_id": up_to + 1}
        cursor.execute(self._sql["forget_page" if up_to == last_id else "turn_page"], turned)
        return due + of_page, len(of_page) < room

    def _exchange(self, cursor: sqlite3.Cursor, parameters: Parameters) -> tuple[Any, ...] | None:
        """As ``queue.exchanging`` wants it, whole or not at all: None where nothing was written."""
        sent, wave, now, key = (parameters[name] for name in ("sent", "wave", "now", "key"))
        outcomes = json.loads(parameters["outcomes"])
        try:
            with _transaction(cursor):
                if outcomes:
                    rows = [(*outcome, now, int(pk), key) for pk, outcome in outcomes.items()]
                    cursor.executemany(self._sql["sent"], rows)
                    _found_all(cursor, sent)
                noted, written = json.dumps(wave), json.dumps(sent)
                if wave:
                    cursor.execute(self._sql["noted"], {**parameters, "ids": noted})
                    _found_all(cursor, wave)
                counted = {**parameters, "sent": written, "wave": noted}
                cursor.execute(self._sql["count_exchanged"], counted)
        except _NotWholeError:
            return None
        return sent, wave


class _NotWholeError(Exception):
    """An exchange did not find all its letters: nothing of it may stay."""


def _found_all(cursor: sqlite3.Cursor, letters: Sequence[int]) -> None:
    if cursor.rowcount < len(letters):
        raise _NotWholeError


@contextlib.contextmanager
def _transaction(cursor: sqlite3.Cursor) -> Iterator[None]:
    # At once: a transaction that has read before it writes may fail.
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield
        cursor.execute("COMMIT")
    except BaseException:
        cursor.connection.rollback()  # nothing where SQLite has done so itself
        raise


def _letter(row: Sequence[Any]) -> list[Any]:
    """The fields of ``claiming.Claimed``."""
    letter = [*row[:_STATUS]]
    if letter[_ATTRIBUTES] is not None:
        letter[_ATTRIBUTES] = json.loads(letter[_ATTRIBUTES])
    return letter


def _counts(due: Sequence[Sequence[Any]], queued: str) -> Iterator[dict[str, int]]:
    """For each campaign how many were due, were wanted, and had not been tried before; test letters
    are not counted."""
    kinds = Counter(
        (row[_CAMPAIGN], row[_STATUS] == queued, bool(row[_IS_WANTED]))
        for row in due
        if not row[_IS_TEST]
    )
    for campaign_id in sorted({kind[0] for kind in kinds}):
        of_it = [(kind, n) for kind, n in kinds.items() if kind[0] == campaign_id]
        yield {
            "campaign": campaign_id,
            "due": sum(n for _kind, n in of_it),
            "wanted": sum(n for (_id, _was_queued, is_wanted), n in of_it if is_wanted),
            "were_queued": sum(n for (_id, was_queued, _wanted), n in of_it if was_queued),
        }


def serve(connection: socket.socket) -> None:
    """Answers requests, one after the other, until the other end is closed: (True, the answer), or
    (False, the name of the error, what it says). The first request is the fields of ``Opened``, and
    connects; the others are (procedure, parameters)."""
    server: Server | None = None
    with connection, connection.makefile("rb") as requests:
        while (request := _read(requests)) is not None:
            answer: tuple[Any, ...] = (True, None)
            try:
                if server is None:
                    server = Server(Opened(*request))
                    server.connect()
                else:
                    answer = (True, server.run(*request))
            except Exception as error:
                answer = (False, type(error).__name__, str(error))
                if not isinstance(error, sqlite3.Error):
                    sys.excepthook(*sys.exc_info())  # ours to mend: with the traceback
                if server is not None:
                    server.close()
            content = marshal.dumps(answer)
            connection.sendall(LENGTH.pack(len(content)) + content)
    if server is not None:
        server.close()


def _read(requests: Any) -> tuple[Any, ...] | None:
    """None at the end, also in the midst of a request."""
    head = requests.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = requests.read(length)
    return marshal.loads(content) if len(content) == length else None  # noqa: S302


if __name__ == "__main__":
    # A terminal and a service manager tell all processes of a group to end. The worker decides
    # when, after the letters that are on the wire.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=0))
    os._exit(0)  # at once: the worker waits for it
