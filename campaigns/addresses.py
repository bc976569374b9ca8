"""Addresses: validated by email-validator, normalised one way everywhere."""

from __future__ import annotations

import re

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from email_validator import EmailNotValidError, validate_email
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES

# The addresses of nearly every reader. What matches is an address for email-validator too, and
# comes out of it as it went in but for its case (tests/campaigns/test_addresses.py proves both);
# what does not match is asked of email-validator, which costs over twenty times as much.
# Hence stricter than it: no quotes, no name ending in its reserved names, no label with hyphens
# in the third and fourth place (RFC 5890 section 2.3.1: those need IDNA).
_PLAIN_ADDRESS = re.compile(
    r"([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@"
    r"((?:(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+"
    r"(?!(?:arpa|invalid|local|localhost|onion|test)\Z)[a-z](?:[a-z0-9]{0,61}[a-z])?)",
    re.IGNORECASE | re.ASCII,
)
_LONGEST_PLAIN_ADDRESS = 254  # RFC 3696, erratum 1690
_ROLE_NAMES = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)


def normalise_address(raw: str) -> str:
    """The address as we write to it: domain in lower-case ASCII (IDNA), local part as given.

    No DNS is asked: an address is not refused because a resolver was slow. ValidationError with
    email-validator's reason for what is not an address, and for local parts beyond ASCII, which
    need SMTPUTF8 (RFC 6531) on every hop and which we do not send to yet.
    """
    plain = _PLAIN_ADDRESS.fullmatch(raw) if len(raw) <= _LONGEST_PLAIN_ADDRESS else None
    if plain:
        local_part, domain = plain.groups()
        if local_part.lower() in _ROLE_NAMES:  # RFC 2142: these are read in any case
            local_part = local_part.lower()
        return f"{local_part}@{domain.lower()}"
    if len(raw) > 320:  # 64 + 1 + 255: nothing longer can be one, and the parser is not linear
        raise ValidationError(_("The address is too long."))
    try:
        valid = validate_email(raw.strip(), check_deliverability=False, allow_smtputf8=False)
    except EmailNotValidError as error:
        raise ValidationError(str(error)) from error
    return f"{valid.local_part}@{valid.ascii_domain}"


def address_key(address: str) -> str:
    """What makes two spellings of one address equal: lower case throughout.

    RFC 5321 section 2.4 lets a local part be case-sensitive; no mailbox provider that matters
    does so, and a reader who gets every letter twice does not ask for the RFC.
    """
    return address.strip().lower()
