"""Signed tokens for links and return paths: one scheme, bound to a purpose, short, lower-case safe.

A token is base32 (RFC 4648, lower case, no padding) of: key number (1 octet), payload (whole
numbers of fixed width), MAC (8 octets of HMAC-SHA-256 over purpose, key number and payload,
with a key derived for the purpose). A return path's is 24 characters, an unsubscribe link's 29:
short enough for a local part of 64 octets (RFC 5321 section 4.5.3.1.1) and for a List-Unsubscribe
URI of 75 characters. Base32, because mail servers may fold the case of a local part.

Not JWT and not django.core.signing: both are several times as long and case-sensitive.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAC_OCTETS = 8


class Purpose(StrEnum):
    """What a token is good for; a token of one purpose is refused for every other."""

    RETURN_PATH = "return-path"  # payload: delivery id
    UNSUBSCRIBE = "unsubscribe"  # payload: campaign id, subscriber id (0: a test letter)
    MESSAGE_ID = "message-id"  # payload: delivery id


# Octets of each number in the payload.
WIDTHS: dict[Purpose, tuple[int, ...]] = {
    Purpose.RETURN_PATH: (6,),
    Purpose.UNSUBSCRIBE: (4, 5),
    Purpose.MESSAGE_ID: (6,),
}
_OF_CAMPAIGN, _OF_SUBSCRIBER = WIDTHS[Purpose.UNSUBSCRIBE]
(_OF_DELIVERY,) = WIDTHS[Purpose.MESSAGE_ID]  # and of the return path
_OF_A_LETTER = (Purpose.RETURN_PATH, Purpose.MESSAGE_ID, Purpose.UNSUBSCRIBE)


class LetterTokens(NamedTuple):
    """What a letter to one reader carries."""

    return_path: str
    message_id: str
    unsubscribe: str


class _Ready(NamedTuple):
    """What the tokens of one purpose begin with and are made by."""

    key_number: bytes
    inner: Hash
    outer: Hash


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Makes and reads tokens. ``keys``: key number (0..255) to secret; the highest one signs."""

    keys: Mapping[int, bytes]
    _kept: dict[tuple[Purpose, ...], list[_Ready]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sign(self, purpose: Purpose, *numbers: int) -> str:
        """The token for these numbers. OverflowError when one does not fit its width."""
        widths = WIDTHS[purpose]
        payload = b"".join(
            number.to_bytes(width, "big") for number, width in zip(numbers, widths, strict=True)
        )
        (ready,) = self._ready(purpose)
        return _base32(_octets(ready, payload))

    def sign_letter(self, delivery_id: int, campaign_id: int, subscriber_id: int) -> LetterTokens:
        """The tokens of one letter, each as ``sign`` makes it, in two thirds of the time."""
        delivery = delivery_id.to_bytes(_OF_DELIVERY, "big")
        reader = campaign_id.to_bytes(_OF_CAMPAIGN, "big")
        reader += subscriber_id.to_bytes(_OF_SUBSCRIBER, "big")
        # The first two end where a character of base32 does: 15 octets are 24 characters.
        of_return_path, of_message_id, of_unsubscribe = self._ready(*_OF_A_LETTER)
        text = _base32(
            _octets(of_return_path, delivery)
            + _octets(of_message_id, delivery)
            + _octets(of_unsubscribe, reader)
        )
        return LetterTokens(text[:24], text[24:48], text[48:])

    def read(self, purpose: Purpose, token: str) -> tuple[int, ...] | None:
        """The numbers of a genuine token for this purpose; None for anything else.

        Upper and lower case are one. Compared in constant time.
        """
        widths = WIDTHS[purpose]
        octets = 1 + sum(widths) + MAC_OCTETS
        if len(token) != -(-octets * 8 // 5) or not token.isascii():
            return None
        try:
            raw = base64.b32decode(token.upper() + "=" * (-len(token) % 8))
        except (binascii.Error, ValueError):
            return None
        # Base32 leaves spare bits at the end: only the canonical spelling is ours.
        if base64.b32encode(raw).decode("ascii").rstrip("=") != token.upper():
            return None
        if raw[0] not in self.keys:
            return None
        ready = _Ready(raw[:1], *_begun(self.keys[raw[0]], purpose))
        if not hmac.compare_digest(raw, _octets(ready, raw[1:-MAC_OCTETS])):
            return None
        numbers, at = [], 1
        for width in widths:
            numbers.append(int.from_bytes(raw[at : at + width], "big"))
            at += width
        return tuple(numbers)

    def _ready(self, *purposes: Purpose) -> list[_Ready]:
        """What the tokens of each purpose have in common; kept for the next ones."""
        if purposes not in self._kept:
            number = max(self.keys)
            of_key = number.to_bytes(1, "big")
            self._kept[purposes] = [_Ready(of_key, *_begun(self.keys[number], p)) for p in purposes]
        return self._kept[purposes]


@lru_cache(maxsize=64)
def _begun(key: bytes, purpose: Purpose) -> tuple[Hash, Hash]:
    """HMAC-SHA-256 (RFC 2104) with the key of one purpose, begun: both hashes have taken the padded
    key and wait for the message. Three tokens stand in every letter; hmac.digest takes twice as
    long and hands the interpreter's lock to another thread each time."""
    derived = hmac.digest(key, f"pennypost/{purpose}".encode(), "sha256").ljust(64, b"\0")
    return (
        hashlib.sha256(bytes(octet ^ 0x36 for octet in derived)),
        hashlib.sha256(bytes(octet ^ 0x5C for octet in derived)),
    )


def _octets(ready: _Ready, payload: bytes) -> bytes:
    """A token before its base32: the number of the key, the payload, and their MAC."""
    number, inner, outer = ready
    body = number + payload
    inner, outer = inner.copy(), outer.copy()
    inner.update(body)
    outer.update(inner.digest())
    return body + outer.digest()[:MAC_OCTETS]


# The character of each five bits; translate() takes a table of 256.
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567".ljust(256)


def _base32(raw: bytes) -> str:
    """As base64.b32encode, lower case and without padding, in a quarter of the time.

    Each step halves all groups of bits at once, until each five have an octet of their own.
    """
    number = int.from_bytes(raw, "big") << -8 * len(raw) % 5
    for shift, lower, upper in _HALVINGS:
        number = number & lower | number << shift & upper
    return number.to_bytes(-(-8 * len(raw) // 5), "big").translate(_ALPHABET).decode("ascii")


def _halving(characters: int) -> tuple[int, int, int]:
    """What makes two groups of so many characters, in as many octets, of each one of twice as many:
    how far the upper halves move, and where the lower and the upper ones are then."""
    bits, room = 5 * characters, 8 * characters
    lower = sum((1 << bits) - 1 << at for at in range(0, 8 * 128, 2 * room))
    return room - bits, lower, lower << room


# For up to 128 characters: the tokens of a letter together.
_HALVINGS = [_halving(characters) for characters in (64, 32, 16, 8, 4, 2, 1)]
