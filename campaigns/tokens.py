"""Signed tokens for links and return paths: one scheme, bound to a purpose, short, lower-case safe.

A token is base32 (RFC 4648, lower case, no padding) of: key number (1 octet), payload (whole
numbers of fixed width), MAC (8 octets of HMAC-SHA-256 over key number and payload, with a key
derived for the purpose). Two purposes that sign the same number, a letter's return path and its
Message-ID, share a key and have octets of their own of its HMAC: who knows the one's knows nothing
of the other's. A return path's is 24 characters, an unsubscribe link's 29: short enough for a local
part of 64 octets (RFC 5321 section 4.5.3.1.1) and for a List-Unsubscribe URI of 75 characters.
Base32, because mail servers may fold the case of a local part.

Not JWT and not django.core.signing: both are several times as long and case-sensitive.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
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
# By the key of which purpose each is signed, and where its octets begin in the HMAC.
_SIGNED_BY = {
    Purpose.RETURN_PATH: (Purpose.RETURN_PATH, 0),
    Purpose.MESSAGE_ID: (Purpose.RETURN_PATH, MAC_OCTETS),
    Purpose.UNSUBSCRIBE: (Purpose.UNSUBSCRIBE, 0),
}
_OF_A_LETTER = (Purpose.RETURN_PATH, Purpose.UNSUBSCRIBE)
# Behind the tokens of a letter, which are 15, 15 and 18 octets, so that the next ones, too, begin
# where a character of base32 does: 50 octets are 80 characters.
_PADDING = bytes(2)


# What a letter to one reader carries: its return path, its Message-ID and its unsubscribe link.
LetterTokens = tuple[str, str, str]


class _Ready(NamedTuple):
    """What the tokens of one key begin with and are signed by (RFC 2104): both hashes have taken
    the padded key and wait for the message."""

    key_number: bytes
    inner: Hash
    outer: Hash

    def hmac(self, body: bytes) -> bytes:
        """Of a token before its MAC: 32 octets, of which a MAC has eight."""
        inner, outer = self.inner.copy(), self.outer.copy()
        inner.update(body)
        outer.update(inner.digest())
        return outer.digest()


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Makes and reads tokens. ``keys``: key number (0..255) to secret; the highest one signs."""

    keys: Mapping[int, bytes]
    # For the tokens of letters, all of which the highest key signs.
    _kept: list[_Ready] = field(default_factory=list, init=False, repr=False, compare=False)

    def sign(self, purpose: Purpose, *numbers: int) -> str:
        """The token for these numbers. OverflowError when one does not fit its width."""
        widths = WIDTHS[purpose]
        payload = b"".join(
            number.to_bytes(width, "big") for number, width in zip(numbers, widths, strict=True)
        )
        return _base32(self._octets(purpose, max(self.keys), payload))

    def sign_letters(self, letters: Iterable[tuple[int, int, int]]) -> list[LetterTokens]:
        """The tokens of letters, of each (delivery id, campaign id, subscriber id); as ``sign``
        makes them; of twenty together in a quarter of the time. OverflowError as there, and then
        for none of them."""
        if not self._kept:
            # All at once: another thread may do the same at this moment.
            self._kept[:] = [self._ready(purpose, max(self.keys)) for purpose in _OF_A_LETTER]
        of_delivery, of_reader = self._kept
        octets: list[bytes] = []
        for delivery_id, campaign_id, subscriber_id in letters:
            delivery = of_delivery.key_number + delivery_id.to_bytes(_OF_DELIVERY, "big")
            reader = of_reader.key_number + campaign_id.to_bytes(_OF_CAMPAIGN, "big")
            reader += subscriber_id.to_bytes(_OF_SUBSCRIBER, "big")
            macs = of_delivery.hmac(delivery)
            second = macs[MAC_OCTETS : 2 * MAC_OCTETS]
            octets += delivery, macs[:MAC_OCTETS], delivery, second
            octets += reader, of_reader.hmac(reader)[:MAC_OCTETS], _PADDING
        text = _base32(b"".join(octets))
        return [
            (text[at : at + 24], text[at + 24 : at + 48], text[at + 48 : at + 77])
            for at in range(0, len(text), 80)
        ]

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
        if not hmac.compare_digest(raw, self._octets(purpose, raw[0], raw[1:-MAC_OCTETS])):
            return None
        numbers, at = [], 1
        for width in widths:
            numbers.append(int.from_bytes(raw[at : at + width], "big"))
            at += width
        return tuple(numbers)

    def _octets(self, purpose: Purpose, key_number: int, payload: bytes) -> bytes:
        """A token before its base32: the number of the key, the payload, and their MAC."""
        key_of, begin = _SIGNED_BY[purpose]
        ready = self._ready(key_of, key_number)
        body = ready.key_number + payload
        return body + ready.hmac(body)[begin : begin + MAC_OCTETS]

    def _ready(self, key_of: Purpose, number: int) -> _Ready:
        return _Ready(number.to_bytes(1, "big"), *_begun(self.keys[number], key_of))


@lru_cache(maxsize=64)
def _begun(key: bytes, purpose: Purpose) -> tuple[Hash, Hash]:
    """HMAC-SHA-256 with the key of one purpose, begun. Three tokens stand in every letter;
    hmac.digest takes twice as long and hands the interpreter's lock to another thread each time."""
    derived = hmac.digest(key, f"pennypost/{purpose}".encode(), "sha256").ljust(64, b"\0")
    return (
        hashlib.sha256(bytes(octet ^ 0x36 for octet in derived)),
        hashlib.sha256(bytes(octet ^ 0x5C for octet in derived)),
    )


# The character of each five bits; translate() takes a table of 256.
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz234567".ljust(256)


def _base32(raw: bytes) -> str:
    """As base64.b32encode, lower case and without padding, in a quarter of the time.

    Each step halves all groups of bits at once, until each five have an octet of their own: so it
    is quickest for many tokens together.
    """
    characters = -(-8 * len(raw) // 5)
    number = int.from_bytes(raw, "big") << -8 * len(raw) % 5
    for shift, lower, upper in _halvings(characters.bit_length()):
        number = number & lower | number << shift & upper
    return number.to_bytes(characters, "big").translate(_ALPHABET).decode("ascii")


@lru_cache(maxsize=16)
def _halvings(steps: int) -> list[tuple[int, int, int]]:
    """What makes groups of one character, in an octet each, of up to two to the power of ``steps``
    characters. Of each step, which makes two groups of each: how far the upper halves move, and
    where the lower and the upper ones are then."""
    halvings = []
    for step in reversed(range(steps)):
        bits, room = 5 << step, 8 << step
        lower = sum((1 << bits) - 1 << at for at in range(0, 8 << steps, 2 * room))
        halvings.append((room - bits, lower, lower << room))
    return halvings
