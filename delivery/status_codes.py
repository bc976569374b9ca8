"""Enhanced mail system status codes (RFC 3463), as replies carry them (RFC 2034)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEADING = re.compile(r"\s*([245])\.(\d{1,3})\.(\d{1,3})(?!\d|\.\d)")


@dataclass(frozen=True, slots=True)
class EnhancedStatus:
    """class.subject.detail, such as 5.1.1 (no such mailbox)."""

    klass: int
    subject: int
    detail: int

    def __str__(self) -> str:
        return f"{self.klass}.{self.subject}.{self.detail}"

    @classmethod
    def leading(cls, text: str) -> EnhancedStatus | None:
        """The status that ``text`` begins with; None when it begins with something else.

        "5.1.1 No such user" has one, "see RFC 5.1.1" has none; an IP address is none either.
        """
        match = _LEADING.match(text)
        return cls(int(match[1]), int(match[2]), int(match[3])) if match else None

    @property
    def is_permanent(self) -> bool:
        return self.klass == 5
