"""Addresses: validated by email-validator, normalised one way everywhere."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from email_validator import EmailNotValidError, validate_email


def normalise_address(raw: str) -> str:
    """The address as we write to it: domain in lower-case ASCII (IDNA), local part as given.

    No DNS is asked: an address is not refused because a resolver was slow. ValidationError with
    email-validator's reason for what is not an address, and for local parts beyond ASCII, which
    need SMTPUTF8 (RFC 6531) on every hop and which we do not send to yet.
    """
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
