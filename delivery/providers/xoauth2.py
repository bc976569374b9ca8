"""AUTH XOAUTH2: the AUTH step of SMTP with a token instead of a password."""

from __future__ import annotations

from aiosmtplib import SMTP
from aiosmtplib.errors import SMTPAuthenticationError, SMTPNotSupported

from delivery.providers.microsoft_identity import TokenSource


async def authenticate(
    client: SMTP, username: str, tokens: TokenSource, scope: str, timeout: float
) -> None:
    """Logs in as ``username``. A refused token (535 5.7.3) is replaced once: it may have expired,
    or been revoked. Every other refusal is a setting that only a person can mend, and a repetition
    would bring the mailbox nearer to being blocked (5.2.251 to 5.2.255).

    Raises what aiosmtplib raises, and IdentityError.
    """
    if "xoauth2" not in client.server_auth_methods:
        raise SMTPNotSupported("The server does not offer AUTH XOAUTH2")
    token = await tokens.token(scope)
    try:
        await client.auth_xoauth2(username, token, timeout=timeout)
    except SMTPAuthenticationError as refusal:
        if not refusal.message.startswith("5.7.3 "):
            raise
        token = await tokens.token(scope, refused=token)
        await client.auth_xoauth2(username, token, timeout=timeout)
