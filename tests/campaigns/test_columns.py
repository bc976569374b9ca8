"""What the columns of a file mean, and what is refused of a line."""

from __future__ import annotations

from pathlib import Path

import minijinja
import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from campaigns.columns import (
    LONGEST_CELL,
    LONGEST_NAME,
    RESERVED_KEYS,
    ReaderRow,
    RefusedLine,
    RowReader,
    Table,
    check_mapping,
    guess_mapping,
    is_attribute_key,
)
from campaigns.csv_source import CsvSource, Record, UnreadableFileError, inspect
from campaigns.formula_guard import csv_lines, guard, unguard

MAPPING = {"Address": "email", "Name": "name", "Tag": "language", "City": "attribute:city"}


def read(*cells: str) -> ReaderRow | RefusedLine:
    """One line under the columns of MAPPING."""
    return RowReader(list(MAPPING), MAPPING)(Record(2, list(cells)))


def reason(*cells: str) -> str:
    refused = read(*cells)
    assert isinstance(refused, RefusedLine)
    return refused.reason


@pytest.mark.parametrize(
    ("title", "field"),
    [
        ("E-Mail", "email"),
        ("email_address", "email"),
        ("E-Mail-Adresse", "email"),
        ("Adresse électronique", "attribute:adresse_electronique"),
        ("Courriel", "email"),
        ("Correo electrónico", "email"),
        ("Sähköposti", "email"),
        ("メールアドレス", "email"),
        ("Электронная почта", "email"),
        ("Full Name", "name"),
        ("Nom complet", "name"),
        ("姓名", "name"),
        ("Vorname", "attribute:first_name"),
        ("Prénom", "attribute:first_name"),
        ("Imię", "attribute:first_name"),
        ("Nachname", "attribute:last_name"),
        ("Apellidos", "attribute:last_name"),
        ("Sprache", "language"),
        ("Locale", "language"),
        ("Ort (privat)", "attribute:ort_privat"),
        ("2nd choice", ""),
        ("Subject", ""),
        ("♥", ""),
    ],
)
def test_a_column_is_guessed_by_its_title_in_many_languages(title: str, field: str) -> None:
    assert guess_mapping([title]) == {title: field}


def test_no_field_is_guessed_for_two_columns() -> None:
    assert guess_mapping(["email", "E-Mail", "Ort", "ort"]) == {
        "email": "email",
        "E-Mail": "",
        "Ort": "attribute:ort",
        "ort": "",
    }


@given(st.one_of(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), st.text()))
def test_every_key_that_is_permitted_can_be_written_in_a_letter(key: str) -> None:
    if is_attribute_key(key):
        template = "{{ %s }}" % key  # noqa: UP031
        assert minijinja.Environment().render_str(template, **{key: "there"}) == "there"


@pytest.mark.parametrize("key", sorted(RESERVED_KEYS | {"", "1st", "a-b", "a b", "ä", "a" * 61}))
def test_a_key_that_letters_cannot_use_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="cannot be the name of an attribute"):
        check_mapping({"e": "email", "c": f"attribute:{key}"}, ["e", "c"])


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"b": "name"}, "which column holds the addresses"),
        ({}, "which column holds the addresses"),
        ({"a": "email", "b": "email"}, "would both be imported as email"),
        ({"a": "email", "c": "name"}, "no column “c”"),
        ({"a": "email", "b": "shoe size"}, "no field “shoe size”"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(mapping: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        check_mapping(mapping, ["a", "b"])


def test_a_line_becomes_a_reader() -> None:
    assert read(" Ada@EXAMPLE.org ", "Ada\n Lovelace", "en_GB", " London ") == ReaderRow(
        2, "Ada@example.org", "ada@example.org", "Ada Lovelace", "en-GB", {"city": "London"}
    )


def test_cells_that_are_missing_at_the_end_are_empty() -> None:
    assert read("ada@example.org") == ReaderRow(2, "ada@example.org", "ada@example.org", "", "", {})


def test_empty_cells_beyond_the_header_do_no_harm() -> None:
    assert isinstance(read("ada@example.org", "", "", "", "", " "), ReaderRow)


def test_a_line_with_more_cells_than_the_header_is_refused() -> None:
    # An unquoted comma in a name: what stands where cannot be known.
    assert reason("a@example.org", "Lovelace", "Ada", "en", "London") == (
        "The line has 5 cells, the header 4."
    )


def test_a_line_without_an_address_is_refused_and_shows_what_it_holds() -> None:
    assert read("", "Ada", "", "London") == RefusedLine(
        2, "Ada |  | London", "There is no address."
    )


def test_limits_hold_to_the_character() -> None:
    assert isinstance(read("a@example.org", "n" * LONGEST_NAME), ReaderRow)
    assert "longer than 200" in reason("a@example.org", "n" * (LONGEST_NAME + 1))
    assert isinstance(read("a@example.org", "", "", "c" * LONGEST_CELL), ReaderRow)
    assert "longer than 1024" in reason("a@example.org", "", "", "c" * (LONGEST_CELL + 1))


@pytest.mark.parametrize("language", ["english", "e", "en-", "en GB", "abcdefghijklmnopq"])
def test_what_is_no_language_tag_is_refused(language: str) -> None:
    assert "no tag such as en or pt-BR" in reason("a@example.org", "", language)


def test_a_first_line_with_an_address_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "addresses.csv"
    path.write_text("ada@example.org,Ada\nbob@example.org,Bob\n")
    with CsvSource(path, inspect(path)) as source:
        table = Table(source)
        assert table.columns == ["Column 1", "Column 2"]
        assert [record.cells[1] for record in source] == ["Ada", "Bob"]


def test_titles_that_come_twice_or_are_empty_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "readers.csv"
    path.write_text("email,email,,email (2)\n")
    with CsvSource(path, inspect(path)) as source:
        assert Table(source).columns == ["email", "email (2)", "Column 3", "email (2) (2)"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (",".join(f"c{number}" for number in range(101)), "101 columns"),
        ('email,"name\na@example.org,A\n', "header .line 1. cannot be read"),
    ],
)
def test_a_header_that_cannot_be_used_refuses_the_file(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "readers.csv"
    path.write_text(content)
    with CsvSource(path, inspect(path)) as source, pytest.raises(UnreadableFileError, match=words):
        Table(source)


@pytest.mark.parametrize(
    "formula",
    ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", "'=1", "''+1"],
)
def test_a_formula_is_exported_as_text(formula: str) -> None:
    assert guard(formula) == "'" + formula


@pytest.mark.parametrize("text", ["", "Ada", "'s-Gravenhage", "a=b", "12", "O'Neil", "'"])
def test_other_text_is_exported_as_it_is(text: str) -> None:
    assert guard(text) == text


@given(st.text(alphabet="'=+-@\t\r\n ＝ab", max_size=8))
def test_what_was_exported_is_read_back_as_it_was(cell: str) -> None:
    assert unguard(guard(cell)) == cell
    assert guard(cell).lstrip()[:1] not in {"=", "+", "-", "@", "＝"}


def test_every_exported_cell_is_in_quotes() -> None:
    assert list(csv_lines([["line", 'a "b"', "=1"]])) == ['"line","a ""b""","\'=1"\r\n']
