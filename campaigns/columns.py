"""What the columns of a file mean, and one record read as a reader.

A mapping is a dict from column (its title in the header) to field: ``email``, ``name``,
``language``, ``attribute:<key>``, or empty for a column that is not imported.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from campaigns.addresses import address_key, normalise_address
from campaigns.csv_source import COLUMNS, CsvSource, Record, UnreadableFileError
from campaigns.formula_guard import unguard

EMAIL, NAME, LANGUAGE = "email", "name", "language"
ATTRIBUTE = "attribute:"

LONGEST_CELL = 1024  # characters
LONGEST_NAME = 200
LONGEST_ATTRIBUTE_KEY = 60

# Names that a letter gives a meaning of its own, and words of the template language: an attribute
# of that name could not be written into a letter.
_TEMPLATE_WORDS = """
    true false none and or not in is if elif else endif for endfor loop set endset block endblock
    macro endmacro call endcall caller filter endfilter with endwith autoescape endautoescape
    raw endraw do break continue include import from extends self super
"""
RESERVED_KEYS = frozenset(
    {EMAIL, NAME, LANGUAGE, "unsubscribe_url", "preheader", "subject", *_TEMPLATE_WORDS.split()}
)
_ATTRIBUTE_KEY = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{0,{LONGEST_ATTRIBUTE_KEY - 1}}}")
# BCP 47 (RFC 5646 section 2.1), as far as a newsletter needs it: en, pt-BR, zh-Hant-TW.
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")
LONGEST_LANGUAGE_TAG = 16

# Titles as people write them, reduced by ``_plain``: lower case, letters and digits only.
_TITLES: dict[str, str] = {
    EMAIL: """
        email emails emailaddress mail mailaddress address eaddress emailadresse mailadresse
        adresseemail adressemail courriel adressecourriel mel correo correoelectronico
        direcciondecorreo emailadres indirizzoemail indirizzomail postaelettronica enderecodeemail
        correioeletronico epost epostadress epostadresse sahkoposti sahkopostiosoite adresemail
        adresmail eposta epostaadresi email1value primaryemail subscriberemail useremail
        почта емейл электроннаяпочта адресэлектроннойпочты имейл メール メールアドレス 邮箱
        电子邮件 电子邮箱 電子郵件 이메일 البريدالإلكتروني
    """,
    NAME: """
        name names fullname displayname contactname subscribername nom nomcomplet nombrecompleto
        nomecompleto nome nominativo naam volledigenaam vollstandigername navn fulltnavn namn
        fullstandigtnamn nimi imieinazwisko adsoyad имя полноеимя фио 姓名 名前 氏名 이름 الاسم
    """,
    LANGUAGE: """
        language lang locale languagecode preferredlanguage sprache langue idioma lingua taal sprak
        sprog kieli jezyk dil язык 言語 语言 語言 언어 اللغة
    """,
    ATTRIBUTE + "first_name": """
        firstname givenname forename first vorname prenom nombre nombredepila primeironome voornaam
        fornavn fornamn etunimi imie ad 名 given
    """,
    ATTRIBUTE + "last_name": """
        lastname surname familyname last nachname familienname nomdefamille apellido apellidos
        cognome sobrenome apelido achternaam efternavn etternavn efternamn sukunimi nazwisko soyad
        фамилия 姓
    """,
}


class ReaderRow(NamedTuple):
    """One reader as a line of the file tells it. Empty strings: the file says nothing of it."""

    line: int
    email: str
    key: str
    name: str
    language: str
    attributes: dict[str, str]


class RefusedLine(NamedTuple):
    """A line that is not imported: its number, the value that is wrong, and why."""

    line: int
    value: str
    reason: str


def _decomposed(title: str) -> str:
    """A title in lower case, each accent a character of its own."""
    # "ł" has no decomposition, and Polish files are as common as French ones.
    return unicodedata.normalize("NFKD", title.casefold().replace("ł", "l"))


def _plain(title: str) -> str:
    """A title without accents, case, spaces and punctuation: "E-Mail-Adresse" is emailadresse."""
    return "".join(letter for letter in _decomposed(title) if letter.isalnum())


_FIELD_BY_TITLE = {
    _plain(title): field for field, titles in _TITLES.items() for title in titles.split()
}


def attribute_key(title: str) -> str:
    """A column's title as the key of an attribute: "Ort (privat)" is ort_privat; or empty."""
    ascii_title = _decomposed(title).encode("ascii", "ignore").decode()
    key = re.sub(r"[^a-z0-9]+", "_", ascii_title).strip("_")[:LONGEST_ATTRIBUTE_KEY]
    return key if is_attribute_key(key) else ""


def is_attribute_key(key: str) -> bool:
    """Whether a letter can say ``{{ key }}`` and mean this attribute."""
    return bool(_ATTRIBUTE_KEY.fullmatch(key)) and key.lower() not in RESERVED_KEYS


def guess_mapping(columns: Sequence[str]) -> dict[str, str]:
    """A field for each column, by its title in a dozen languages; no field twice.

    What is not known becomes an attribute of that name where it can.
    """
    mapping: dict[str, str] = {}
    taken: set[str] = set()
    for column in columns:
        field = _FIELD_BY_TITLE.get(_plain(column), "")
        if not field and (key := attribute_key(column)):
            field = ATTRIBUTE + key
        if field in taken:
            field = ""
        mapping[column] = field
        taken.add(field)
    return mapping


def check_mapping(mapping: Mapping[str, str], columns: Sequence[str]) -> None:
    """ValidationError with every reason why no import can be made with this mapping."""
    errors: list[str] = []
    used: dict[str, str] = {}
    for column, field in mapping.items():
        if not field:
            continue
        if column not in columns:
            errors.append(_("The file has no column “%s”.") % column)
        if field in used:
            errors.append(
                _("The columns “%(first)s” and “%(second)s” would both be imported as %(field)s.")
                % {"first": used[field], "second": column, "field": field}
            )
        used[field] = column
        if field.startswith(ATTRIBUTE):
            key = field.removeprefix(ATTRIBUTE)
            if not is_attribute_key(key):
                errors.append(
                    _(
                        "“%s” cannot be the name of an attribute: use letters, digits and "
                        "underscores, a letter first, and no word that letters already use."
                    )
                    % key
                )
        elif field not in (EMAIL, NAME, LANGUAGE):
            errors.append(_("There is no field “%s”.") % field)
    if EMAIL not in used:
        errors.append(_("Say which column holds the addresses."))
    if errors:
        raise ValidationError(errors)


class Table:
    """The file below its header: columns with distinct titles, and records as readers.

    A first line that holds an address is no header but the first reader; the columns are then
    called by their numbers.
    """

    def __init__(self, source: CsvSource) -> None:
        self.source = source
        header = next(filter(is_filled, source), None)
        if header is None:
            raise UnreadableFileError(_("The file holds no line."))
        if header.fault:
            raise UnreadableFileError(
                _("The header (line %(line)d) cannot be read: %(reason)s")
                % {"line": header.line, "reason": header.fault}
            )
        if len(header.cells) > COLUMNS:
            raise UnreadableFileError(
                _("The file has %(count)d columns; up to %(most)d can be imported.")
                % {"count": len(header.cells), "most": COLUMNS}
            )
        self.has_header = not any(_is_address(cell) for cell in header.cells)
        self.columns = _distinct(header.cells if self.has_header else [""] * len(header.cells))
        if not self.has_header:
            source.resume(offset=source.layout.start, line=0)


def is_filled(record: Record) -> bool:
    """Whether there is anything on the line; spreadsheets save empty ones at the end."""
    return bool(record.fault) or any(map(str.strip, record.cells))


def _is_address(cell: str) -> bool:
    try:
        return bool(normalise_address(unguard(cell.strip())))
    except ValidationError:
        return False


def _distinct(titles: Sequence[str]) -> list[str]:
    """The titles with a number where one is empty or comes again: a mapping goes by title."""
    distinct: list[str] = []
    for number, title in enumerate(titles, start=1):
        title = unguard(title.strip())[:100] or _("Column %d") % number
        again, copy = title, 2
        while again in distinct:
            again, copy = f"{title} ({copy})", copy + 1
        distinct.append(again)
    return distinct


class RowReader:
    """Reads records by a mapping; ``RowReader(columns, mapping)(record)``."""

    def __init__(self, columns: Sequence[str], mapping: Mapping[str, str]) -> None:
        self._width = len(columns)
        self._attributes: list[tuple[int, str]] = []
        at: dict[str, int] = {}
        for index, column in enumerate(columns):
            field = mapping.get(column, "")
            if field.startswith(ATTRIBUTE):
                self._attributes.append((index, field.removeprefix(ATTRIBUTE)))
            elif field:
                at[field] = index
        self._email = at[EMAIL]
        self._name = at.get(NAME)
        self._language = at.get(LANGUAGE)

    def __call__(self, record: Record) -> ReaderRow | RefusedLine:
        line, cells = record.line, record.cells
        if record.fault:
            return RefusedLine(line, cells[0].strip(), record.fault)
        if len(cells) != self._width:
            if len(cells) > self._width and any(map(str.strip, cells[self._width :])):
                return RefusedLine(
                    line,
                    _shown(cells),
                    _("The line has %(cells)d cells, the header %(columns)d.")
                    % {"cells": len(cells), "columns": self._width},
                )
            cells = cells + [""] * (self._width - len(cells))
        address = _clean(cells[self._email])
        if not address:
            return RefusedLine(line, _shown(cells), _("There is no address."))
        try:
            email = normalise_address(address)
        except ValidationError as error:
            return RefusedLine(line, address, error.messages[0])

        # Spaces only within a name: a line break in it would be one in the To header.
        name = "" if self._name is None else " ".join(_clean(cells[self._name]).split())
        if len(name) > LONGEST_NAME:
            return RefusedLine(
                line, name, _("The name is longer than %d characters.") % LONGEST_NAME
            )
        language = ""
        if self._language is not None:
            language = _clean(cells[self._language]).replace("_", "-")
            if language and not is_language(language):
                return RefusedLine(line, language, _("The language is no tag such as en or pt-BR."))
        attributes: dict[str, str] = {}
        for index, key in self._attributes:
            if value := _clean(cells[index]):
                if len(value) > LONGEST_CELL:
                    return RefusedLine(
                        line,
                        value,
                        _("The cell for %(key)s is longer than %(most)d characters.")
                        % {"key": key, "most": LONGEST_CELL},
                    )
                attributes[key] = value
        return ReaderRow(line, email, address_key(email), name, language, attributes)


def is_language(tag: str) -> bool:
    return len(tag) <= LONGEST_LANGUAGE_TAG and bool(_LANGUAGE_TAG.fullmatch(tag))


def _clean(cell: str) -> str:
    return unguard(cell.strip())


def _shown(cells: Sequence[str]) -> str:
    """A line's cells for a person who looks for it in the file."""
    return " | ".join(cell.strip() for cell in cells).strip(" |")
