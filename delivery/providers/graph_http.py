"""What sending and reading through Microsoft Graph have in common: the account, and its answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from delivery.outcomes import Phase, Reply
from delivery.providers.base import Allowance
from delivery.providers.http import is_loopback
from delivery.providers.microsoft_identity import CLOUDS, TokenSource, shared_identity
from delivery.replies.graph import GraphRule, read_error, rule_for

# For an application and a mailbox: 4 requests at once, 10,000 in 10 minutes, 150 MB of bodies in 5
# (Graph: throttling limits). Requests of every kind count, and refused ones too.
ALLOWANCE = Allowance("graph", 4, 10_000, timedelta(minutes=10), 150_000_000, timedelta(minutes=5))
# Ids that a move within the mailbox does not change.
IMMUTABLE = {"Prefer": 'IdType="ImmutableId"'}


@dataclass(frozen=True, slots=True)
class GraphAccount:
    """A mailbox of Microsoft 365 and how to reach it. ``base`` is the service's address with its
    version, ``user`` that of the mailbox."""

    address: str
    base: str
    user: str
    scope: str
    tokens: TokenSource = field(repr=False)

    @classmethod
    def of(
        cls,
        mailbox: str,
        identity: Mapping[str, Any] | None = None,
        base_url: str = "",
        emulator: str = "",
        token_source: TokenSource | None = None,
    ) -> GraphAccount:
        """From the options of a provider or of a bounce mailbox; ValueError for wrong ones.

        ``identity``: the keywords of MicrosoftIdentity. ``emulator``: the address of
        tests/emulators/graph.py on this machine, which then answers instead of Microsoft.
        """
        if (
            not isinstance(mailbox, str)
            or mailbox.count("@") != 1
            or any(map(str.isspace, mailbox))
        ):
            raise ValueError(f"mailbox {mailbox!r} is no address")
        if emulator and not is_loopback(emulator):
            raise ValueError("emulator must be an address on this machine")
        options = dict(identity or {})
        cloud = CLOUDS.get(options.get("cloud", "global"), CLOUDS["global"])
        if emulator:
            options.setdefault("emulator", emulator)
        if token_source is None and not options:
            raise ValueError("identity is missing: tenant_id, client_id and a credential")
        base = (base_url or emulator or cloud.graph).rstrip("/") + "/v1.0"
        if urlsplit(base).scheme != "https" and not is_loopback(base):
            raise ValueError("base_url must begin with https://")
        tokens = token_source or shared_identity(options)
        return cls(
            mailbox, base, f"{base}/users/{quote(mailbox, safe='@')}", cloud.graph_scope, tokens
        )


@dataclass(frozen=True, slots=True)
class GraphAnswer:
    """One answer over HTTP, read as far as was wanted."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def reply(self) -> Reply:
        codes, message = read_error(self.body)
        words = [codes[0] if codes else "", message]
        if request_id := self.headers.get("request-id", ""):
            words.append(f"(request-id {request_id})")
        return Reply.of(Phase.HTTP, self.status, " ".join(filter(None, words)))

    @property
    def rule(self) -> GraphRule:
        codes, message = read_error(self.body)
        return rule_for(self.status, codes, message)

    @property
    def claims(self) -> str:
        """The claims that a refused token lacks (RFC 6750 section 3; continuous access
        evaluation), decoded; empty without."""
        challenge = self.headers.get("www-authenticate", "")
        if "insufficient_claims" not in challenge or 'claims="' not in challenge:
            return ""
        raw = challenge.partition('claims="')[2].partition('"')[0]
        try:
            return base64.b64decode(raw + "=" * (-len(raw) % 4)).decode()
        except ValueError:
            return ""

    def json(self) -> Any:
        """The body; {} when it is none."""
        try:
            return httpx.Response(200, content=self.body).json()
        except ValueError:
            return {}
