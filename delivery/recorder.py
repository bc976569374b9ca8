"""The flight recorder: what a worker knows and has not yet written to the database.

A small memory-mapped file for each lease, on local disk. It survives SIGKILL of the process, for
the pages belong to the kernel then; it does not survive a power cut, and then the database's note
(the letter is SENDING) stands alone. Reclaim on the same host reads it and settles all letters of
the dead worker but those whose final dot was on the wire: at most one for each connection.

Two tables of fixed records:

- *wire*: one record for each letter on its way: delivery id, and whether the final dot was handed
  to the socket. The dot is noted **before** it is written, the answer after it was read: what the
  record says is never more innocent than the truth.
- *outcomes*: letters whose answer was read and not yet committed: delivery id, kind, phase, code,
  two flags, seconds of the far side's wish, rule and text.

The file is locked (flock) for as long as its worker's slice lasts; the kernel lifts the lock of a
killed process. So whoever can lock it knows that nobody writes it any more.

A record is written with its delivery id last and cleared with its id first: a half-written one
has id 0 and does not exist. A letter that finds no place marks the recording as incomplete.
Two ``pack_into`` a letter; no system call.
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

_MAGIC = b"PPFR0001"
# Magic, claim key, wire records, outcome records, 1: something did not fit.
_HEADER = struct.Struct("<8sqIIB7x")
_INCOMPLETE_AT = struct.calcsize("<8sqII")
_WIRE = struct.Struct("<qB7x")  # delivery id, 1: the final dot was handed to the socket
_TEXT = 400
_RULE = 60
_OUTCOME = struct.Struct(f"<qBBhBBi{_RULE}s{_TEXT}s")
_ID = struct.Struct("<q")

_KINDS: tuple[type, ...] = (Accepted, Deferred, Rejected, Unavailable, Unconfirmed)
_PHASES = tuple(Phase)
_NUMBER_OF_PHASE = {phase: number for number, phase in enumerate(Phase)}
_NO_CODE = -1
_NO_WISH = -1


@dataclass(frozen=True, slots=True)
class Recording:
    """What a dead worker left: letters on the wire (True: the dot had been handed over), and
    outcomes that it knew. ``is_complete``: a letter that stands in neither had not left."""

    claim_key: int
    is_complete: bool = True
    on_wire: dict[int, bool] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)


class FlightRecorder:
    """Writes one worker's file. ``wire`` and ``outcomes`` are how many records each table holds:
    as many letters as may be on their way, and be answered and not yet committed, at once."""

    def __init__(self, path: Path, claim_key: int, *, wire: int, outcomes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        size = _HEADER.size + wire * _WIRE.size + outcomes * _OUTCOME.size
        # It gets its name when it is locked: who found it before would take its worker for dead.
        unnamed = path.with_suffix(".new")
        # Readable by us alone: replies may quote addresses.
        unnamed.touch(mode=0o600)
        self._file = unnamed.open("r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._map[:size] = bytes(size)
        _HEADER.pack_into(self._map, 0, _MAGIC, claim_key, wire, outcomes, 0)
        unnamed.replace(path)
        first_outcome = _HEADER.size + wire * _WIRE.size
        self._free_wire = [_HEADER.size + n * _WIRE.size for n in reversed(range(wire))]
        self._free_outcomes = [first_outcome + n * _OUTCOME.size for n in reversed(range(outcomes))]
        self._wire_at: dict[int, int] = {}
        self._outcome_at: dict[int, int] = {}

    def leaving(self, delivery_id: int) -> None:
        """A letter is given to the provider; its final dot has not been written."""
        if not self._free_wire:
            self._map[_INCOMPLETE_AT] = 1
            return
        at = self._wire_at[delivery_id] = self._free_wire.pop()
        _WIRE.pack_into(self._map, at, delivery_id, 0)

    def final_dot(self, delivery_id: int) -> None:
        """The next thing that happens is the final dot. Called before the write."""
        at = self._wire_at.get(delivery_id)
        if at is not None:
            self._map[at + _ID.size] = 1

    def answered(self, delivery_id: int, outcome: Outcome) -> None:
        """The outcome is known. The letter leaves the wire's table only after it is recorded."""
        if self._free_outcomes:
            at = self._outcome_at[delivery_id] = self._free_outcomes.pop()
            _pack_outcome(self._map, at, delivery_id, outcome)
        else:
            self._map[_INCOMPLETE_AT] = 1
        at_wire = self._wire_at.pop(delivery_id, None)
        if at_wire is not None:
            _WIRE.pack_into(self._map, at_wire, 0, 0)
            self._free_wire.append(at_wire)

    def committed(self, delivery_ids: Iterable[int]) -> None:
        """The database has these outcomes now."""
        for delivery_id in delivery_ids:
            at = self._outcome_at.pop(delivery_id, None)
            if at is not None:
                _ID.pack_into(self._map, at, 0)
                self._free_outcomes.append(at)

    def close(self, *, remove: bool) -> None:
        """Ends the recording; ``remove`` when nothing in it is needed any more."""
        self._map.close()
        if remove:
            self.path.unlink(missing_ok=True)
        self._file.close()


def recording_path(folder: Path, claim_key: int) -> Path:
    """Where the recording of a lease is kept."""
    return folder / f"{claim_key}.rec"


def _pack_outcome(target: mmap.mmap, at: int, delivery_id: int, outcome: Outcome) -> None:
    reply = outcome.reply
    wish, bad, person, rule = None, False, False, ""
    if not isinstance(outcome, Accepted):  # nearly all are, and have none of these
        wish = getattr(outcome, "retry_after", None)
        bad = getattr(outcome, "address_is_bad", False)
        person = getattr(outcome, "needs_a_person", False)
        rule = outcome.rule
    _OUTCOME.pack_into(
        target,
        at,
        0,
        _KINDS.index(type(outcome)),
        _NUMBER_OF_PHASE[reply.phase],
        _NO_CODE if reply.code is None else reply.code,
        bad,
        person,
        _NO_WISH if wish is None else min(int(wish.total_seconds()), 2**31 - 1),
        rule.encode()[:_RULE],
        reply.text.encode()[:_TEXT],
    )
    _ID.pack_into(target, at, delivery_id)


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
    _magic, claim_key, wire, outcomes, incomplete = _HEADER.unpack_from(data)
    first_outcome = _HEADER.size + wire * _WIRE.size
    if len(data) < first_outcome + outcomes * _OUTCOME.size:
        return None
    recording = Recording(claim_key, is_complete=not incomplete)
    for n in range(wire):
        delivery_id, dot = _WIRE.unpack_from(data, _HEADER.size + n * _WIRE.size)
        if delivery_id:
            recording.on_wire[delivery_id] = bool(dot)
    for n in range(outcomes):
        record = _OUTCOME.unpack_from(data, first_outcome + n * _OUTCOME.size)
        if record[0]:
            try:
                recording.outcomes[record[0]] = _unpack_outcome(record)
            except IndexError:
                return None  # a disk's fault: none of it can be believed
    return recording


def _unpack_outcome(record: tuple[int, int, int, int, int, int, int, bytes, bytes]) -> Outcome:
    _id, kind, phase, code, bad, person, wish, rule_bytes, text = record
    reply = Reply(_PHASES[phase], None if code == _NO_CODE else code, _decode(text))
    rule = _decode(rule_bytes)
    retry_after = None if wish == _NO_WISH else timedelta(seconds=wish)
    match _KINDS[kind].__name__:
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
