"""A mail is cut into its own parts and no further, whatever it is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bounces.detectors.mime import (
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_PARTS,
    Part,
    own_parts,
    read_fields,
    read_mail,
)
from bounces.reading import read_bounce
from tests.bounces.hostile import HOSTILE
from tests.bounces.samples import SAMPLES


def leaves(raw: bytes) -> list[Part]:
    return [part for part, _containers in own_parts(read_mail(raw))]


def test_a_mail_without_mime_is_one_text_part() -> None:
    (part,) = leaves(b"Subject: hi\n\nbody\n")
    assert (part.content_type, part.body) == ("text/plain", b"body\n")


def test_fields_are_unfolded_and_found_in_any_case() -> None:
    mail = read_mail(b"Received: a\nX-One: first\r\n\tsecond\nRECEIVED: b\n\n")
    assert mail.value("x-ONE") == "first second"
    assert mail.values("Received") == ["a", "b"]
    assert mail.value("missing") == ""


def test_old_charsets_in_headers_are_read_as_latin_1() -> None:
    assert read_mail(b"Subject: Empf\xe4nger\n\n").value("subject") == "Empfänger"
    assert read_mail("Subject: Empfänger\n\n".encode()).value("subject") == "Empfänger"


def test_a_forwarded_mail_is_one_opaque_part() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\ntext\n--b\n"
        b"Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=c\n\n--c\n\nx\n"
    )
    assert [part.content_type for part in leaves(raw)] == ["text/plain", "message/rfc822"]


def test_a_boundary_is_not_a_regular_expression() -> None:
    raw = b'Content-Type: multipart/mixed; boundary="a.c"\n\n--abc\n\nno\n--a.c\n\nyes\n--a.c--\n'
    assert [part.body for part in leaves(raw)] == [b"yes\n"]


def test_a_nested_part_that_reuses_the_boundary_does_not_hide_the_rest() -> None:
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"
        b"Content-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b--\n--b\n\ntwo\n--b--\n"
    )
    assert [part.body for part in leaves(raw)][-2:] == [b"one\n", b"two\n"]


def test_depth_parts_and_fields_are_capped() -> None:
    def depth(part: Part) -> int:
        return 1 + max(map(depth, part.parts), default=0)

    assert depth(read_mail(HOSTILE["multipart-2000-deep"])) <= MAX_DEPTH + 1
    assert len(leaves(HOSTILE["tiny-parts"])) <= MAX_PARTS + 1
    assert len(read_fields(HOSTILE["headers"])) == MAX_FIELDS


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_mail_is_read_without_an_error(raw: bytes) -> None:
    for part in leaves(raw):
        part.decoded()


@given(st.binary(max_size=2000))
def test_no_octets_can_break_the_reading(raw: bytes) -> None:
    for part in leaves(raw):
        part.decoded()
    read_bounce(raw)


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_no_mutation_of_a_sample_can_break_the_reading(seed: int) -> None:
    dice = random.Random(seed)
    raw = bytearray(dice.choice(SAMPLES).read_bytes())
    for _ in range(dice.randint(1, 30)):
        place = dice.randrange(len(raw))
        match dice.randrange(4):
            case 0:
                raw[place] = dice.randrange(256)
            case 1:
                del raw[place : place + dice.randint(1, 40)]
            case 2:
                raw[place:place] = dice.choice([b"\n", b"\r", b"--b", b"\0", b"(", b'"', b"\xff"])
            case 3:
                end = place + dice.randint(1, 200)
                raw[place:place] = raw[place:end]
        if not raw:
            return
    for report in read_bounce(bytes(raw)):
        assert "@" in report.recipient
        assert report.diagnostic.isprintable()
