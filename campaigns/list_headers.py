"""List-Unsubscribe (RFC 2369), one-click (RFC 8058), List-Id (RFC 2919), Feedback-ID (Gmail).

Exact bytes: none of these is ever folded or encoded. A provider that finds an encoded word in
List-Unsubscribe shows no button, or refuses the letter (README.md, Decisions).
"""

from __future__ import annotations

import re

from campaigns.header_fields import clean_name, phrase

# Longer ones are turned into encoded words by mail software on the way.
LONGEST_URI = 75
LONGEST_LIST_ID = 255  # octets between and with the brackets, RFC 2919 section 2

_URI = re.compile(r"https?://[A-Za-z0-9\[\]._~:/?#@!$&'()*+;=%-]+").fullmatch
_LABEL = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*").fullmatch
_DOMAIN = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*").fullmatch
_SENDER_ID = re.compile(r"[A-Za-z0-9._-]{5,15}").fullmatch


def unsubscribe_fields(uri: str) -> str:
    """``List-Unsubscribe`` with one URI and nothing else, and ``List-Unsubscribe-Post``.

    RFC 8058 asks for https; http is written as well, for rehearsals on one's own machine, and
    preflight warns of it.
    """
    if len(uri) > LONGEST_URI or not _URI(uri):
        raise ValueError(f"List-Unsubscribe: {uri!r} is no web address of at most 75 characters")
    return f"List-Unsubscribe: <{uri}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"


def list_id_field(name: str, label: str, domain: str) -> str:
    """``List-Id``: the list's name, where it is plain ASCII, and its identifier for ever."""
    identifier = f"<{label}.{domain}>"
    if not (_LABEL(label) and _DOMAIN(domain)) or len(identifier) > LONGEST_LIST_ID:
        raise ValueError(f"List-Id: {identifier!r} is none")
    name = clean_name(name)
    if not name or not name.isascii():
        return f"List-Id: {identifier}\r\n"  # a name would need encoded words
    return f"List-Id: {phrase(name, first_room=2 * len(name) + 2)} {identifier}\r\n"


def feedback_id_field(campaign_id: int, label: str, sender_id: str) -> str:
    """``Feedback-ID``: campaign, list and sender, under which Gmail counts complaints.

    Read from the right: the sender's stable name comes last, and no value may repeat. An empty
    label stands for a test letter.
    """
    if not _SENDER_ID(sender_id):
        raise ValueError(f"Feedback-ID: {sender_id!r} is no sender's name of 5 to 15 characters")
    campaign, stream = f"c{campaign_id}", label or "test"
    if not _LABEL(stream):
        raise ValueError(f"Feedback-ID: {stream!r} is no label")
    if stream in {campaign, sender_id}:
        stream = f"list-{stream}"
    return f"Feedback-ID: {campaign}:{stream}:{sender_id}\r\n"
