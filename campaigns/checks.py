"""System checks of the CAMPAIGNS settings: campaigns.E001 and on.

E020 to E029 keep the unsubscribe address free of redirects (RFC 8058 section 3.1).
"""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

# 75 characters of URI are safe in a header; "/u/" and the token take 32 of them.
LONGEST_BASE_URL = 43


@register()
def no_redirect_before_unsubscribe(**_: Any) -> list[CheckMessage]:
    """The settings of Django that answer an unsubscribe POST with a redirect."""
    found: list[CheckMessage] = []
    if settings.PREPEND_WWW:
        found.append(
            Error(
                "PREPEND_WWW redirects one-click unsubscribe requests, which RFC 8058 forbids.",
                hint="Leave it off and let the web server before Pennypost redirect people.",
                id="campaigns.E020",
            )
        )
    if settings.SECURE_SSL_REDIRECT and not any(
        re.search(pattern, "u/token") for pattern in settings.SECURE_REDIRECT_EXEMPT
    ):
        found.append(
            Error(
                "SECURE_SSL_REDIRECT redirects one-click unsubscribe requests, "
                "which RFC 8058 forbids.",
                hint=r'Add r"^u/" to SECURE_REDIRECT_EXEMPT.',
                id="campaigns.E021",
            )
        )
    if len(settings.BASE_URL) > LONGEST_BASE_URL:
        found.append(
            Warning(
                f"BASE_URL has {len(settings.BASE_URL)} characters: unsubscribe links grow "
                "longer than the 75 that every mail program on the way leaves alone.",
                hint=f"Use a host name that keeps it within {LONGEST_BASE_URL}.",
                id="campaigns.W022",
            )
        )
    return found
