"""Addresses as status parts write them: ``address-type ; address``, and what people make of it."""

from __future__ import annotations

import re

LONGEST_ADDRESS = 320  # RFC 5321 section 4.5.3.1: 64 + 1 + 255
# What mail programs put before an address, and gateways copied into the field.
_PREFIX = re.compile(r"(?:smtp|mailto):(?=[^:@\s]+@)", re.IGNORECASE)
_CODE_POINT = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")


def read_recipient(value: str) -> str:
    """The mail address in a Final-Recipient or Original-Recipient field (RFC 3464 section 2.3);
    "" where there is none: X.400 names, pipes, files, local users.

    The type stands in any case of letters (94 of 321 real reports write RFC822) or not at all;
    comments, angle brackets and source routes are taken off.
    """
    kind, semicolon, rest = value[: 4 * LONGEST_ADDRESS].partition(";")
    if not semicolon or "@" in kind or "<" in kind:
        kind, rest = "", value[: 4 * LONGEST_ADDRESS]
    kind = without_comments(kind).strip().lower()
    if kind == "x400":
        return ""
    address = _in_brackets(without_comments(rest).strip().rstrip(",;").strip())
    if address.startswith("@") and ":" in address:  # a source route, RFC 5321 appendix C
        address = address.partition(":")[2].strip()
    address = _PREFIX.sub("", address)
    if len(address) > 2 and address[0] == address[-1] == "'":
        address = address[1:-1]
    if kind == "utf-8":
        address = _CODE_POINT.sub(_character, address)
    return address if is_address(address) else ""


def is_address(text: str) -> bool:
    """Whether it has the shape of one. No more: the token says whether it is one of ours."""
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain or len(text) > LONGEST_ADDRESS:
        return False
    if not text.isprintable():
        return False
    literal = domain.startswith("[") and domain.endswith("]")  # RFC 5321 section 4.1.3
    if not literal and any(character in domain for character in ' "<>()|/\\,;:'):
        return False
    if len(local) > 2 and local.startswith('"') and local.endswith('"'):
        return not local.startswith(('"|', '"/'))
    if local.startswith("/") and "=" in local:  # X.400 mapped to an address, RFC 2156: /S=Doe/
        return " " not in local
    return not local.startswith(("|", "/")) and " " not in local and "," not in local


def without_comments(text: str) -> str:
    """The text without RFC 5322 comments; brackets within quotes are no comment, and one that is
    never closed is text. One pass, nested or not."""
    kept: list[str] = []
    depth, quoted, opened_at = 0, False, 0
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and not text.startswith("\\x{", position):
            if not depth:
                kept.append(text[position : position + 2])
            position += 2
            continue
        if character == '"' and not depth:
            quoted = not quoted
        if character == "(" and not quoted:
            if not depth:
                opened_at = position
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            position += 1
            continue
        if not depth:
            kept.append(character)
        position += 1
    if depth:
        kept.append(text[opened_at:])
    return "".join(kept)


def _in_brackets(text: str) -> str:
    """What stands between the last angle brackets, if there are any outside of quotes."""
    if text.endswith(">"):
        opening = text.rfind("<")
        return text[opening + 1 : -1].strip() if opening >= 0 else text[:-1].strip()
    return text.removeprefix("<").strip()


def _character(match: re.Match[str]) -> str:
    """RFC 6533 section 3: a code point in embedded form."""
    code_point = int(match[1], 16)
    if code_point > 0x10FFFF or 0xD800 <= code_point <= 0xDFFF:
        return match[0]
    return chr(code_point)
