"""The flight recorder: what survives a killed worker, and what it says then."""

import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest

from delivery.outcomes import (
    Accepted,
    Deferred,
    Phase,
    Rejected,
    Reply,
    Unavailable,
    Unconfirmed,
)
from delivery.recorder import FlightRecorder, is_being_written, read_recording

OUTCOMES = [
    Accepted(Reply(Phase.FINAL_DOT, 250, "2.0.0 Ok: queued as 1A2B")),
    Deferred(Reply(Phase.RCPT, 450, "4.2.0 Greylisted"), timedelta(minutes=5), "temporary"),
    Rejected(Reply(Phase.RCPT, 550, "5.1.1 Kein Empfänger"), True, "no such mailbox"),
    Unavailable(Reply(Phase.CONNECT, None, "refused"), None, True, "configuration"),
    Unconfirmed(Reply(Phase.FINAL_DOT, None, "lost"), "lost after the final dot"),
]


@pytest.fixture
def recorder(tmp_path):
    made = FlightRecorder(tmp_path / "box" / "1.rec", 12345, letters=8)
    yield made
    made.close(remove=True)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_every_outcome_is_read_back_as_it_was(recorder, outcome):
    recorder.answered(7, outcome)  # refused before its dot
    recorder.final_dot(8)
    recorder.answered(8, outcome)
    recording = read_recording(recorder.path)
    assert recording.claim_key == 12345
    assert recording.outcomes == {7: outcome, 8: outcome}
    assert recording.on_wire == set()


def test_letters_whose_dot_had_left_are_on_the_wire(recorder):
    recorder.final_dot(2)
    recorder.final_dot(2)
    recorder.final_dot(3)
    recording = read_recording(recorder.path)
    assert recording.on_wire == {2, 3}
    assert recording.is_complete


def test_a_committed_outcome_is_forgotten_and_its_place_used_again(recorder):
    for delivery_id in range(1, 101):
        recorder.final_dot(delivery_id)
        recorder.answered(delivery_id, OUTCOMES[0])
        recorder.committed([delivery_id])
    assert read_recording(recorder.path).outcomes == {}
    assert read_recording(recorder.path).is_complete


def test_what_does_not_fit_marks_the_recording_as_incomplete(recorder):
    for delivery_id in range(1, 20):
        recorder.final_dot(delivery_id)
    for delivery_id in range(1, 20):
        recorder.answered(delivery_id, OUTCOMES[0])
    assert len(read_recording(recorder.path).outcomes) == 8
    assert not read_recording(recorder.path).is_complete
    recorder.committed(range(1, 20))
    assert read_recording(recorder.path).outcomes == {}


def test_a_long_reply_is_cut_between_characters(recorder):
    recorder.answered(1, Rejected(Reply(Phase.RCPT, 550, "é" * 500)))
    assert set(read_recording(recorder.path).outcomes[1].reply.text) == {"é"}


@pytest.mark.parametrize(
    "content",
    [None, b"", b"PPFR", b"PPFR0002" + b"\xff" * 24, b"PPFR0001" + bytes(24), b"x" * 4000],
)
def test_a_missing_or_foreign_file_is_no_recording(tmp_path, content):
    path = tmp_path / "x.rec"
    if content is not None:
        path.write_bytes(content)
    assert read_recording(path) is None


def test_one_can_see_whether_a_recording_is_still_written(tmp_path):
    path = tmp_path / "1.rec"
    assert is_being_written(path) is None
    recorder = FlightRecorder(path, 1, letters=1)
    assert is_being_written(path) is True
    recorder.close(remove=False)
    assert is_being_written(path) is False


def test_it_survives_sigkill(tmp_path):
    path = tmp_path / "1.rec"
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from delivery.outcomes import Accepted, Phase, Reply
        from delivery.recorder import FlightRecorder
        recorder = FlightRecorder(Path({str(path)!r}), 99, letters=4)
        recorder.final_dot(2)
        recorder.final_dot(3)
        recorder.answered(3, Accepted(Reply(Phase.FINAL_DOT, 250, "Ok")))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    process = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert process.returncode == -signal.SIGKILL
    assert is_being_written(path) is False
    recording = read_recording(path)
    assert recording.on_wire == {2}
    assert recording.outcomes == {3: Accepted(Reply(Phase.FINAL_DOT, 250, "Ok"))}
