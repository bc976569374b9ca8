"""What IMAP and POP3 ask of a login, and where an OAuth 2 access token comes from (XOAUTH2, as
Microsoft 365 and Gmail ask for it)."""

from __future__ import annotations

from collections.abc import Callable

from django.utils.module_loading import import_string

SECURITIES = ("tls", "starttls", "none")


def check_login(security: str, password: str, token_source: Callable[[], str] | str | None) -> None:
    """ValueError for a security that is none, and where not exactly one credential is given."""
    if security not in SECURITIES:
        raise ValueError(f"security is {security!r}; it is one of {', '.join(SECURITIES)}")
    if bool(password) == bool(token_source):
        raise ValueError("either password or token_source is needed")


def read_source(source: Callable[[], str] | str | None) -> Callable[[], str] | None:
    """A callable that gives a fresh token: given as such, or by its dotted path.

    ValueError for a path that names none. Asked at each login, since tokens live for an hour.
    """
    if source is None or source == "":
        return None
    if isinstance(source, str):
        try:
            source = import_string(source)
        except ImportError as error:
            raise ValueError(f"token_source: {error}") from error
    if not callable(source):
        raise ValueError(f"token_source: {source!r} cannot be called")
    return source


def xoauth2(username: str, token: str) -> str:
    """The initial response, not yet in base64."""
    return f"user={username}\x01auth=Bearer {token}\x01\x01"
