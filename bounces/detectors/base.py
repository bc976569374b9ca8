"""The seam for detectors: a mail comes in, reports go out. No base class is needed.

A detector is any class that is made without arguments and has ``detect``. It sees bytes and
values, never a model: who is marked is decided behind it, by signed tokens.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Sequence
from email.message import Message
from functools import cached_property
from typing import Protocol, runtime_checkable

from bounces.detectors.mime import Part, read_mail
from bounces.report import Report


class IncomingMail:
    """One mail as detectors get it: ``raw``, or the parts, or Python's own Message.

    All three are hostile. ``parts`` never reaches below message/*; ``message`` does, is parsed on
    first use only, and may raise on bombs (a raising detector is passed over).
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @cached_property
    def parts(self) -> Part:
        """The mail itself; its ``parts`` are its parts."""
        return read_mail(self.raw)

    @cached_property
    def message(self) -> Message:
        """compat32: the modern policy decodes headers and takes seconds over hostile ones."""
        return email.message_from_bytes(self.raw, policy=email.policy.compat32)

    def header(self, name: str) -> str:
        """The first value of a header field, unfolded, not decoded; "" where there is none."""
        return self.parts.value(name)

    def headers(self, name: str) -> list[str]:
        """Every value of a header field, in order."""
        return self.parts.values(name)


class Detector(Protocol):
    """Knows one kind of mail."""

    def detect(self, mail: IncomingMail) -> Sequence[Report] | None:
        """None: not mine, ask the next one. []: mine, and nobody bounced. Otherwise a report for
        each recipient that failed for good."""


@runtime_checkable
class Explaining(Protocol):
    """What a detector may offer besides: its reasons, for ``manage.py explain_bounce``."""

    def because(self, mail: IncomingMail) -> str:
        """One or more lines for a person: what was found, and what was made of it."""
