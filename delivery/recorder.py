"""The flight recorder: what a worker knows and has not yet written to the database.

A small memory-mapped file for each lease, on local disk. It survives SIGKILL of the process, for
the pages belong to the kernel then; it does not survive a power cut, and then the database's note
(the letter is SENDING) stands alone. Reclaim on the same host reads it and settles all letters of
the dead worker but those whose final dot was on the wire: at most one for each connection.

A fixed record for each letter from the moment before its final dot is handed to the socket until
its outcome is committed: the delivery id, and when its answer was read the outcome: kind, phase,
code, two flags, seconds of the far side's wish, rule and text. A letter without a record has not
left. The dot is noted **before** it is written, the answer after it was read: what the record says
is never more innocent than the truth.

The file is locked (flock) for as long as its worker's slice lasts; the kernel lifts the lock of a
killed process. So whoever can lock it knows that nobody writes it any more.

An outcome is written with its kind last, or where the letter had no record yet with its id last;
a record is cleared at once. So what is half written does not count. A letter that finds no place
marks the recording as incomplete. No system call.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from delivery.outcomes import (
    Accepted,
    Deferred,
    Outcome,
    Phase,
    Rejected,
    Reply,
    Unavailable,
    Unconfirmed,
)

_MAGIC = b"PPFR0002"
# Magic, claim key, records, 1: something did not fit.
_HEADER = struct.Struct("<8sqIB3x")
_INCOMPLETE_AT = struct.calcsize("<8sqI")
_TEXT = 400
_RULE = 60
# Delivery id (0: none), kind of the outcome (0: none is known); then what the outcome says.
_LETTER = struct.Struct("<qB")
_OUTCOME = struct.Struct(f"<BhBBi{_RULE}s{_TEXT}s")
_KIND_AT = struct.calcsize("<q")
_RECORD_SIZE = _LETTER.size + _OUTCOME.size
_ID = struct.Struct("<q")

_KINDS: tuple[type, ...] = (Accepted, Deferred, Rejected, Unavailable, Unconfirmed)
_NUMBER_OF_KIND = {kind: number for number, kind in enumerate(_KINDS, start=1)}
_PHASES = tuple(Phase)
_NUMBER_OF_PHASE = {phase: number for number, phase in enumerate(Phase)}
_NO_CODE = -1
_NO_WISH = -1


@dataclass(frozen=True, slots=True)
class Recording:
    """What a dead worker left: letters whose final dot had been handed over, and outcomes that it
    knew. ``is_complete``: a letter that stands in neither had not left."""

    claim_key: int
    is_complete: bool = True
    on_wire: set[int] = field(default_factory=set)
    outcomes: dict[int, Outcome] = field(default_factory=dict)


class FlightRecorder:
    """Writes one worker's file. ``letters``: so many may be on their way, or answered and not yet
    committed, at once."""

    def __init__(self, path: Path, claim_key: int, *, letters: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        size = _HEADER.size + letters * _RECORD_SIZE
        # It gets its name when it is locked: who found it before would take its worker for dead.
        unnamed = path.with_suffix(".new")
        # Readable by us alone: replies may quote addresses.
        unnamed.touch(mode=0o600)
        self._file = unnamed.open("r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._map[:size] = bytes(size)
        _HEADER.pack_into(self._map, 0, _MAGIC, claim_key, letters, 0)
        unnamed.replace(path)
        self._free = [_HEADER.size + n * _RECORD_SIZE for n in reversed(range(letters))]
        self._at: dict[int, int] = {}

    def final_dot(self, delivery_id: int) -> None:
        """The next thing that happens is the final dot. Called before the write."""
        if delivery_id in self._at:
            return
        at = self._place(delivery_id)
        if at is not None:
            _ID.pack_into(self._map, at, delivery_id)  # the rest is clear

    def answered(self, delivery_id: int, outcome: Outcome) -> None:
        """The outcome is known."""
        at = self._at.get(delivery_id)
        if at is None and (at := self._place(delivery_id)) is None:
            return
        _pack_outcome(self._map, at + _LETTER.size, outcome)
        self._map[at + _KIND_AT] = _NUMBER_OF_KIND[type(outcome)]
        _ID.pack_into(self._map, at, delivery_id)

    def _place(self, delivery_id: int) -> int | None:
        """A clear record for a letter, which gets its id last."""
        if not self._free:
            self._map[_INCOMPLETE_AT] = 1
            return None
        at = self._at[delivery_id] = self._free.pop()
        return at

    def committed(self, delivery_ids: Iterable[int]) -> None:
        """The database has these outcomes now."""
        for delivery_id in delivery_ids:
            at = self._at.pop(delivery_id, None)
            if at is not None:
                _LETTER.pack_into(self._map, at, 0, 0)
                self._free.append(at)

    def close(self, *, remove: bool) -> None:
        """Ends the recording; ``remove`` when nothing in it is needed any more."""
        self._map.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()


def recording_path(folder: Path, claim_key: int) -> Path:
    """Where the recording of a lease is kept."""
    return folder / f"{claim_key}.rec"


def _pack_outcome(target: mmap.mmap, at: int, outcome: Outcome) -> None:
    reply = outcome.reply
    wish, bad, person, rule = _NO_WISH, False, False, b""
    if not isinstance(outcome, Accepted):  # nearly all are, and have none of these
        asked_for = getattr(outcome, "retry_after", None)
        if asked_for is not None:
            wish = min(int(asked_for.total_seconds()), 2**31 - 1)
        bad = getattr(outcome, "address_is_bad", False)
        person = getattr(outcome, "needs_a_person", False)
        rule = outcome.rule.encode()
    phase, code = _NUMBER_OF_PHASE[reply.phase], _NO_CODE if reply.code is None else reply.code
    # What is too long for its field is cut there.
    _OUTCOME.pack_into(target, at, phase, code, bad, person, wish, rule, reply.text.encode())


def is_being_written(path: Path) -> bool | None:
    """Whether the worker of this recording still lives; None where there is no recording."""
    try:
        with path.open("rb") as file:
            # Shared: two who look at the same moment must not take each other for its worker.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return True
    return False


def read_recording(path: Path) -> Recording | None:
    """The recording in a file; None when there is none, or it is not one of ours."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        return None
    _magic, claim_key, letters, incomplete = _HEADER.unpack_from(data)
    if len(data) < _HEADER.size + letters * _RECORD_SIZE:
        return None
    recording = Recording(claim_key, is_complete=not incomplete)
    for n in range(letters):
        at = _HEADER.size + n * _RECORD_SIZE
        delivery_id, kind = _LETTER.unpack_from(data, at)
        if delivery_id and kind:
            try:
                recording.outcomes[delivery_id] = _unpack_outcome(kind, data, at + _LETTER.size)
            except IndexError:
                return None  # a disk's fault: none of it can be believed
        elif delivery_id:
            recording.on_wire.add(delivery_id)
    return recording


def _unpack_outcome(kind: int, data: bytes, at: int) -> Outcome:
    phase, code, bad, person, wish, rule_bytes, text = _OUTCOME.unpack_from(data, at)
    reply = Reply(_PHASES[phase], None if code == _NO_CODE else code, _decode(text))
    rule = _decode(rule_bytes)
    retry_after = None if wish == _NO_WISH else timedelta(seconds=wish)
    match _KINDS[kind - 1].__name__:
        case "Accepted":
            return Accepted(reply)
        case "Deferred":
            return Deferred(reply, retry_after, rule)
        case "Rejected":
            return Rejected(reply, bool(bad), rule)
        case "Unavailable":
            return Unavailable(reply, retry_after, bool(person), rule)
        case _:
            return Unconfirmed(reply, rule)


def _decode(raw: bytes) -> str:
    # Cut in the middle of a character, perhaps: what is left of it is dropped.
    return raw.rstrip(b"\0").decode("utf-8", "ignore")
