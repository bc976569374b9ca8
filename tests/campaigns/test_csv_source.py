"""A CSV file as records: whatever the file holds, in bounded memory and with the right numbers."""

from __future__ import annotations

import codecs
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns import csv_source
from campaigns.csv_source import (
    CsvSource,
    Record,
    UnreadableFileError,
    first_undecodable_line,
    guess_delimiter,
    inspect,
)

TWO_READERS = "email,name\nada@example.org,Ada Lövelace\nbob@example.org,Bob\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "readers.csv"


def records(path: Path, content: bytes | str, encoding: str = "auto") -> list[Record]:
    """The records of a file with this content, blank lines left out."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with CsvSource(path, inspect(path, encoding)) as source:
        return [record for record in source if record.cells]


@pytest.mark.parametrize(
    ("content", "chosen"),
    [
        (TWO_READERS.encode(), "auto"),
        (codecs.BOM_UTF8 + TWO_READERS.encode(), "auto"),
        (codecs.BOM_UTF16_LE + TWO_READERS.encode("utf-16-le"), "auto"),
        (codecs.BOM_UTF16_BE + TWO_READERS.encode("utf-16-be"), "auto"),
        (codecs.BOM_UTF16_LE + TWO_READERS.encode("utf-16-le"), "utf-16"),
        (TWO_READERS.encode("latin-1"), "iso-8859-1"),
        (TWO_READERS.encode("windows-1252"), "windows-1252"),
        # The mark knows better than a wrong choice.
        (codecs.BOM_UTF8 + TWO_READERS.encode(), "iso-8859-1"),
        (TWO_READERS.replace("\n", "\r\n").encode(), "auto"),
        (TWO_READERS.replace("\n", "\r").encode(), "auto"),
        (TWO_READERS.rstrip().encode(), "auto"),
        (TWO_READERS.replace(",", ";").encode(), "auto"),
        (TWO_READERS.replace(",", "\t").encode(), "auto"),
    ],
)
def test_the_same_readers_come_out_of_every_way_to_write_them(
    path: Path, content: bytes, chosen: str
) -> None:
    assert records(path, content, chosen) == [
        Record(1, ["email", "name"]),
        Record(2, ["ada@example.org", "Ada Lövelace"]),
        Record(3, ["bob@example.org", "Bob"]),
    ]


def test_a_newline_of_utf_16_is_not_seen_in_the_halves_of_other_letters(path: Path) -> None:
    # U+0A0A and U+010A hold the byte of a line feed; "ਊ\u0a00" holds 0A 00 across two letters.
    text = "email,name\na@b.org,ਊ\u0a00\u000d\u010a\u0a0a\n"
    for mark, codec in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        found = records(path, mark + text.replace("\r", "x").encode(codec))
        assert found[1] == Record(2, ["a@b.org", "ਊ\u0a00x\u010a\u0a0a"])


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("email", ","),
        ("email,name", ","),
        ("email;name", ";"),
        ("email\tname", "\t"),
        ('"name, first";email;x', ";"),
        ('"a;b;c;d",email', ","),
    ],
)
def test_the_delimiter_is_guessed_from_outside_of_quotes(header: str, delimiter: str) -> None:
    assert guess_delimiter(header) == delimiter


def test_line_numbers_are_those_of_a_text_editor(path: Path) -> None:
    found = records(path, 'h\n\n"three\nlines\nof it"\n\r\nlast\n')
    assert found == [Record(1, ["h"]), Record(3, ["three\nlines\nof it"]), Record(7, ["last"])]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(path: Path) -> None:
    lines = ["email", '"ada@example.org', *(f"r{number}@example.org" for number in range(500))]
    found = records(path, "\n".join(lines))
    assert [record.line for record in found] == list(range(1, 503))
    assert [record.line for record in found if record.fault] == [2]
    assert found[1].fault == "A quote opens in this line and is not closed."


def test_a_quote_that_is_never_closed_near_the_end_of_the_file_loses_no_line(path: Path) -> None:
    found = records(path, 'email\n"ada@example.org\nbob@example.org')
    assert [(record.line, bool(record.fault)) for record in found] == [
        (1, False),
        (2, True),
        (3, False),
    ]


def test_a_stray_quote_does_not_glue_two_readers_into_one(path: Path) -> None:
    found = records(path, 'email,name\na@example.org,"Ada\nb@example.org,"Bob"\nc@example.org,C\n')
    assert [(record.line, bool(record.fault)) for record in found] == [
        (1, False),
        (2, True),
        (3, False),
        (4, False),
    ]
    assert found[2].cells == ["b@example.org", "Bob"]


def test_a_line_with_a_nul_byte_is_refused_and_the_next_is_read(path: Path) -> None:
    found = records(path, b"email\na\0@example.org\nb@example.org\n")
    assert found[1] == Record(2, ["a�@example.org"], "The line holds a NUL byte.")
    assert found[2] == Record(3, ["b@example.org"])


def test_a_carriage_return_within_a_line_is_a_fault_of_that_line(path: Path) -> None:
    found = records(path, b"email,name\na@example.org,A\rB\nb@example.org,B\n")
    assert [bool(record.fault) for record in found] == [False, True, False]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_line_that_is_too_long_is_refused_and_the_next_is_read(path: Path, codec: str) -> None:
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    long_line = "x" * (csv_source.LARGEST_RECORD_BYTES + 1)
    text = f"email\n{long_line}\nb@example.org\n{long_line}"
    found = records(path, marks.get(codec, b"") + text.encode(codec))
    assert [(record.line, bool(record.fault)) for record in found] == [
        (1, False),
        (2, True),
        (3, False),
        (4, True),
    ]


def test_a_single_line_of_half_a_gigabyte_is_skipped_in_a_few_megabytes(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"email\na@example.org\n")
        file.seek(512 * 1024**2)  # a hole: the disk holds next to nothing
        file.write(b"\nb@example.org\n")
    layout = inspect(path)
    tracemalloc.start()
    with CsvSource(path, layout) as source:
        found = list(source)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(record.line, bool(record.fault)) for record in found] == [
        (1, False),
        (2, False),
        (3, True),
        (4, False),
    ]
    assert peak_bytes < 4 * 1024 * 1024


def test_quotes_that_stay_open_hold_a_bounded_number_of_lines(path: Path) -> None:
    # Each line closes one quote and opens the next, for ever.
    tracemalloc.start()
    found = records(path, 'x","\n' * 2_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(record.fault for record in found)
    assert [record.line for record in found] == list(range(1, 2_001))
    assert peak_bytes < 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"  \n\n", "empty"),
        (b"PK\x03\x04...", "workbook"),
        ("email,name\n".encode("utf-16-le"), "NUL"),
        (b"\x00\x01\x02\x03", "NUL"),
    ],
)
def test_what_is_no_csv_file_is_refused_with_advice(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=words):
        inspect(path)


def test_utf_16_without_its_mark_is_refused(path: Path) -> None:
    path.write_bytes("email\n".encode("utf-16-le"))
    with pytest.raises(UnreadableFileError, match="byte-order mark"):
        inspect(path, "utf-16")


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot be opened"):
        inspect(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64 * 1024])
def test_the_first_line_in_another_encoding_is_found_wherever_it_is(
    path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes("email\nä@example.org\nb\n".encode() + "Zoë\nZoë\n".encode("latin-1"))
    monkeypatch.setattr(csv_source, "CHUNK_BYTES", chunk)
    layout = csv_source.Layout("utf-8", 0, b"\n", ",")
    assert first_undecodable_line(path, layout) == 4


def test_a_file_in_its_encoding_has_no_undecodable_line(path: Path) -> None:
    path.write_bytes("email\nZoë\n".encode())
    assert first_undecodable_line(path, inspect(path)) is None


def test_reading_a_line_in_the_wrong_encoding_names_it_and_says_what_to_do(path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"Line 3 is not UTF-8.*Windows-1252"):
        records(path, b"email\na@example.org\nZo\xeb@example.org\n")


CONTENT = st.text(alphabet='ab,"\n\r;ä€\U0001f600 ', max_size=200)


@given(
    content=CONTENT,
    codec=st.sampled_from(["utf-8", "utf-16-le", "utf-16-be"]),
    chunk=st.sampled_from([1, 2, 4, 16, 65536]),
)
def test_reading_on_from_the_end_of_any_record_gives_the_rest(
    tmp_path_factory: pytest.TempPathFactory, content: str, codec: str, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "readers.csv"
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE, "utf-8": b""}
    path.write_bytes(marks[codec] + ("email\n" + content).encode(codec))
    with pytest.MonkeyPatch.context() as patch:
        layout = inspect(path)
        # UTF-16 is read two bytes at a time at least.
        patch.setattr(csv_source, "CHUNK_BYTES", max(chunk, len(layout.newline)))
        with CsvSource(path, layout) as source:
            ends, all_records = [], []
            for record in source:
                all_records.append(record)
                ends.append((source.offset, source.line))
        for index, (offset, line) in enumerate(ends):
            with CsvSource(path, layout) as source:
                source.resume(offset=offset, line=line)
                assert list(source) == all_records[index + 1 :]
        assert ends[-1][0] == path.stat().st_size
