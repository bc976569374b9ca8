"""To whom was a mail sent? The return paths of ours that stand in its envelope fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from bounces.detectors.base import IncomingMail
from delivery.conf import delivery_settings

# The envelope recipient as local servers write it down; To is what a sender may choose freely,
# and comes last.
ENVELOPE_FIELDS = ("delivered-to", "x-original-to", "envelope-to", "to")
MOST_ADDRESSES = 50


def return_path_tokens(mail: IncomingMail) -> Iterator[str]:
    """What stands in the place of {token}, in every address that has the shape of our return
    path. Not yet verified."""
    pattern = _return_path_pattern(delivery_settings().return_path)
    if pattern is None:
        return
    seen = 0
    for name in ENVELOPE_FIELDS:
        for value in mail.headers(name):
            for match in pattern.finditer(value):
                yield match["token"]
                seen += 1
                if seen == MOST_ADDRESSES:
                    return


def tokens_in(text: str) -> Iterator[str]:
    """What stands in the place of {token} in every return path of ours in a text."""
    pattern = _return_path_pattern(delivery_settings().return_path)
    if pattern is not None:
        yield from (match["token"] for match in pattern.finditer(text))


@lru_cache(maxsize=4)
def _return_path_pattern(return_path: str) -> re.Pattern[str] | None:
    """None where there is no return path of our own: the provider sets the envelope."""
    before, placeholder, after = return_path.partition("{token}")
    if not placeholder:
        return None
    return re.compile(
        rf"(?<![\w.+-]){re.escape(before)}(?P<token>[a-z0-9]{{1,64}}){re.escape(after)}(?![\w-])",
        re.IGNORECASE | re.ASCII,
    )
