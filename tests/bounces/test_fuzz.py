"""Whatever the bytes are, reading neither raises nor hangs, and what it says can be stored.

A mutation fuzzer over the samples (its rounds grow with PENNYPOST_SOAK=1) and hypothesis. Each
mail runs under the wall clock of the reading process: one that hangs fails as unreadable.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounces.classification import judge
from bounces.reading import explain, read_bounce, read_whole
from bounces.reading_process import ReadingProcess
from bounces.report import BounceReport, spellings
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import SAMPLES

SOAK = bool(os.environ.get("PENNYPOST_SOAK"))
ROUNDS = 20_000 if SOAK else 600
RAWS = [sample.read_bytes() for sample in SAMPLES]
# What parsers trip over.
PIECES = [
    *(b"\n", b"\r\n", b"\r", b"\0", b"\xff\xfe", b"(", b")", b'"', b"\\", b"<", b">", b";"),
    *(b"--", b"--b\n", b"--=_b--\n", b"=?utf-8?q?=", b"?=", b"\xed\xa0\x80", b"a@b.example"),
    *(b"Final-Recipient: rfc822;", b"Action: failed\n", b"Status: 5.1.1\n"),
    b"Content-Type: multipart/report; boundary=b\n",
    b"Content-Type: message/rfc822\n\n",
    b"Content-Type: message/delivery-status\n\n",
    b"Content-Transfer-Encoding: base64\n",
    *(b" " * 500, b"(" * 500, b"@" * 200, b"5.1." * 200, b"=" * 300),
    "\u202e\ud7ff".encode(),
]


def mutated(raw: bytes, dice: Random) -> bytes:
    mail = bytearray(raw)
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(mail) + 1)
        match dice.randrange(6):
            case 0:
                mail[at:at] = dice.choice(PIECES)
            case 1:
                del mail[at : at + dice.randint(1, 60)]
            case 2 if at < len(mail):
                mail[at] = dice.randrange(256)
            case 3:
                end = at + dice.randint(1, 400)
                mail[at:at] = mail[at:end] * dice.randint(1, 5)
            case 4:
                other = dice.choice(RAWS)
                start = dice.randrange(len(other))
                mail[at:at] = other[start : start + 300]
            case _:
                del mail[at:]
    return bytes(mail)


def check(reports: list[BounceReport]) -> None:
    for report in reports:
        told = (report.recipient, report.action, report.status, report.diagnostic,
                report.message_id, report.envelope_id, report.remote_mta)  # fmt: skip
        assert all(text.isprintable() for text in told)
        "\n".join(told).encode()
        assert "@" in report.recipient
        assert len(report.diagnostic) <= 2000
        assert not report.hard or judge(report.status, report.diagnostic).bounce_class == "hard"
        list(spellings(report.recipient))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_samples_are_read_without_trouble(seed: int) -> None:
    dice = Random(seed)
    with ReadingProcess(read_whole) as reader:
        for _ in range(ROUNDS // 4):
            raw = mutated(dice.choice(RAWS), dice)
            answer = reader.read(raw).answer
            reports = answer.reports if answer and answer.reports else ()
            assert not reader.read(raw).failed
            check([report for report in reports if isinstance(report, BounceReport)])


@settings(max_examples=2000 if SOAK else 150, deadline=None,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=60)), max_size=40))
def test_bytes_of_every_kind_are_read_without_trouble(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    check(read_bounce(raw))
    assert not any(answer.error for answer in explain(raw).answers)


@settings(max_examples=2000 if SOAK else 100, deadline=None)
@given(
    st.text(max_size=80), st.text(max_size=40), st.text(max_size=200), st.sampled_from([b"", b"\r"])
)
def test_fields_of_every_kind_are_read_without_trouble(
    recipient: str, action: str, diagnostic: str, carriage_return: bytes
) -> None:
    fields = f"Final-Recipient: rfc822; {recipient}\nAction: {action}\nStatus: 5.1.1\n"
    fields += f"Diagnostic-Code: smtp; {diagnostic}\n"
    raw = (
        b'Content-Type: multipart/report; boundary="b"\n\n--b\n'
        b"Content-Type: message/delivery-status\n\n"
        + fields.encode("utf-8", "replace")
        + b"--b--\n"
    ).replace(b"\n", carriage_return + b"\n")
    check(read_bounce(raw))


@pytest.mark.parametrize("name", HOSTILE)
def test_t13_hostile_mail_is_read_within_the_limits_of_time_and_memory(name: str) -> None:
    """4 seconds and 200 MB are enforced: reader.read raises beyond them."""
    with ReadingProcess(read_whole) as reader:
        assert not reader.read(HOSTILE[name]).failed
        assert reader.read(RAWS[0]).answer
