"""Header fields as bytes-to-be: cleaned, encoded (RFC 2047) and folded (RFC 5322) by ourselves.

Python's email package decides by itself when to fold and what to encode, and its decisions break
one-click unsubscribe (README.md, Decisions). Here each field says what it does. A field is a
str of ASCII that ends with CRLF; ValueError for a value that must not stand in a header.

Two kinds of values: ours (addresses, Message-ID, links) are checked and refused when they are odd;
people's (names, subjects) are cleaned, and always come out.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime, tzinfo
from functools import lru_cache

LONGEST_NAME = 100  # characters of a display name
LONGEST_SUBJECT = 500  # characters, once its merge fields are filled
LONGEST_LINE = 78  # RFC 5322 section 2.1.1, SHOULD; without CRLF
LONGEST_ENCODED_LINE = 76  # RFC 2047 section 2: a line with an encoded word
LONGEST_ENCODED_WORD = 75

_PREFIX, _SUFFIX = "=?utf-8?b?", "?="
# What breaks lines becomes a space: "a\nb" is two words.
_LINE_BREAKS = re.compile(r"[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]+")
# What nobody should meet in a name: other C0 and C1, marks that turn the order of the characters
# round (a name that reads as an address), and halves of characters.
_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SPACES = re.compile(r" {2,}")
_CLEAN = re.compile(r"[!-~](?:[ -~]*[!-~])?").fullmatch

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"  # RFC 5322 section 3.2.3
_DOMAIN = r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
_PHRASE = rf"{_ATOM}(?: {_ATOM})*"
_ATOMS = re.compile(_PHRASE).fullmatch
_ADDR_SPEC = rf"{_ATOM}(?:\.{_ATOM})*@{_DOMAIN}"
# At most 254 characters (RFC 3696, erratum 1690), and nothing that looks like an encoded word.
_ADDRESS = re.compile(rf"(?=.{{3,254}}\Z)(?!.*=\?){_ADDR_SPEC}").fullmatch
_MESSAGE_ID = re.compile(rf"(?=.{{3,250}}\Z)<{_ADDR_SPEC}>").fullmatch
# Nearly every reader's: words that are atoms, and an address.
_PLAIN_MAILBOX = re.compile(rf"{_PHRASE} <{_ADDR_SPEC}>").fullmatch

_DAYS = "MonTueWedThuFriSatSun"
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


def clean(text: str) -> str:
    """A person's words, fit for a header: one line, no controls, nothing that looks like an
    encoded word. Idempotent; what is clean comes back as it is."""
    if _CLEAN(text) and "=?" not in text and "  " not in text:
        return text
    text = _UNWANTED.sub("", _LINE_BREAKS.sub(" ", text))
    # "=?" begins an encoded word, which some readers would decode into what was just removed.
    while "=?" in text:
        text = text.replace("=?", "")
    return _SPACES.sub(" ", text).strip(" ")


def clean_name(text: str) -> str:
    """The same for a display name, cut to LONGEST_NAME characters."""
    text = clean(text)
    return text if len(text) <= LONGEST_NAME else clean(text[:LONGEST_NAME])


def clean_subject(text: str) -> str:
    """The same for a subject, cut to LONGEST_SUBJECT characters."""
    text = clean(text)
    return text if len(text) <= LONGEST_SUBJECT else clean(text[:LONGEST_SUBJECT])


def subject_field(text: str) -> str:
    """``Subject``; what is read back equals ``clean_subject(text)``."""
    text = clean_subject(text)
    if text.isascii() and (lines := _folded("Subject: ", text)):
        return lines
    return "Subject: " + encoded_words(text, first_room=LONGEST_ENCODED_LINE - 9) + "\r\n"


def mailbox_field(name: str, display_name: str, address: str) -> str:
    """``From``, ``To``, ``Reply-To``: one mailbox, with a display name or without."""
    mailbox = f"{display_name} <{address}>"
    fits = len(name) + 2 + len(mailbox) <= LONGEST_LINE
    if fits and "=?" not in mailbox and _PLAIN_MAILBOX(mailbox):
        return f"{name}: {mailbox}\r\n"  # the rest comes to the same, in twice the time
    if not _ADDRESS(address):
        raise ValueError(f"{name}: {address!r} is no address that can stand in a header")
    display_name = clean_name(display_name)
    if not display_name:
        return f"{name}: <{address}>\r\n"
    written = phrase(display_name, first_room=LONGEST_ENCODED_LINE - len(name) - 2)
    last_line = written[written.rfind("\n") + 1 :]
    used = len(last_line) + (len(name) + 2 if last_line == written else 0)
    limit = LONGEST_ENCODED_LINE if _PREFIX in last_line else LONGEST_LINE
    space = " " if used + len(address) + 3 <= limit else "\r\n "
    return f"{name}: {written}{space}<{address}>\r\n"


def phrase(text: str, *, first_room: int) -> str:
    """RFC 5322's phrase for clean words: atoms, a quoted string, or encoded words."""
    if _ATOMS(text) and len(text) <= first_room:
        return text
    if text.isascii():
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if len(quoted) <= first_room:
            return quoted
    return encoded_words(text, first_room=first_room)


def encoded_words(text: str, *, first_room: int) -> str:
    """RFC 2047 in UTF-8 and base64, folded: no word over 75 characters, no character cut in two.

    ``first_room``: what is left of the first line, in characters.
    """
    room = _octets_in(first_room)
    octets = text.encode("utf-8")
    if 0 < len(octets) <= room:
        return _encoded_word(octets)
    words: list[str] = []
    octets = b""
    for character in text:
        encoded = character.encode("utf-8")
        if len(octets) + len(encoded) > room:
            words.append(_encoded_word(octets))
            octets, room = b"", _octets_in(LONGEST_ENCODED_LINE - 1)
        octets += encoded
    return "\r\n ".join([*words, _encoded_word(octets)] if octets else words)


def message_id_field(message_id: str) -> str:
    """``Message-ID``; its brackets are part of the value. Never folded: some readers do not
    unfold it."""
    if not _MESSAGE_ID(message_id):
        raise ValueError(f"Message-ID: {message_id!r} is none")
    return f"Message-ID: {message_id}\r\n"


def date_field(moment: datetime) -> str:
    """``Date`` in the moment's own zone, to the second. ValueError for a moment without one."""
    return _date_field(int(moment.timestamp()), moment.tzinfo)


@lru_cache(maxsize=8)  # the letters of a second share it
def _date_field(second: int, zone: tzinfo | None) -> str:
    moment = datetime.fromtimestamp(second, zone)
    offset = moment.strftime("%z")
    if not offset:
        raise ValueError("Date: a moment needs a time zone")
    # Not strftime("%a %b"): those follow the process's locale.
    day = _DAYS[3 * moment.weekday() :][:3]
    month = _MONTHS[3 * moment.month - 3 :][:3]
    return f"Date: {day}, {moment:%d} {month} {moment:%Y %H:%M:%S} {offset[:5]}\r\n"


def _folded(start: str, text: str) -> str:
    """The field with its text folded at spaces; nothing when a word is too long for a line."""
    if len(start) + len(text) <= LONGEST_LINE:
        return f"{start}{text}\r\n"
    lines, line = [], start.rstrip(" ")
    for word in text.split(" "):
        if len(word) > LONGEST_LINE - len(start):
            return ""
        if len(line) + 1 + len(word) > LONGEST_LINE:
            lines.append(line)
            line = ""
        line += " " + word
    return "\r\n".join([*lines, line]) + "\r\n"


def _octets_in(room: int) -> int:
    """How many octets fit into an encoded word of at most ``room`` characters."""
    return (min(room, LONGEST_ENCODED_WORD) - len(_PREFIX) - len(_SUFFIX)) // 4 * 3


def _encoded_word(octets: bytes) -> str:
    return _PREFIX + base64.b64encode(octets).decode("ascii") + _SUFFIX
