"""A reply without what differs from letter to letter, so that equal replies can be counted."""

from __future__ import annotations

import re

LONGEST_NORMALISED = 200

_STATUS = re.compile(r"\s*[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")
# In this order: an address contains a host, a host may contain a number.
_WHAT_DIFFERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bhttps?://\S+|\bwww\.\S+", re.IGNORECASE), "(link)"),
    (re.compile(r"<?[^\s<>()\[\]\"',;:]{1,64}@[^\s<>()\[\]\"',;]+>?"), "(address)"),
    (re.compile(r"\[?(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])\]?"), "(ip)"),
    (re.compile(r"\[?(?<!\w)(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?!\w)\]?", re.IGNORECASE), "(ip)"),
    # john.doe as well as mx1.example.org: neither says why.
    (re.compile(r"\b[\w-]+(?:\.[\w-]+)*\.[a-z][\w-]+\b", re.IGNORECASE), "(name)"),
    (re.compile(r"\b(?=\w*\d)(?=\w*[a-z])\w{6,}\b", re.IGNORECASE), "(id)"),
    (re.compile(r"\b[0-9a-f]{8,}\b|\b[\w-]{24,}\b", re.IGNORECASE), "(id)"),
    (re.compile(r"\d+"), "(n)"),
)
_SPACE = re.compile(r"\s+")


def normalised(text: str) -> str:
    """``text`` on one line, its leading status kept, addresses, links, hosts, ids and numbers
    replaced by words in brackets; at most LONGEST_NORMALISED characters."""
    lines = [line.strip() for line in text.split("\n")]
    status = _STATUS.match(lines[0])
    rest = " ".join(
        _STATUS.sub("", line, count=1) if _STATUS.match(line) else line for line in lines
    )
    for pattern, word in _WHAT_DIFFERS:
        rest = pattern.sub(word, rest)
    whole = f"{status[0].strip()} {rest}" if status else rest
    return _SPACE.sub(" ", whole).strip()[:LONGEST_NORMALISED]
