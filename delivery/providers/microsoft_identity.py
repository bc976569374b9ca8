"""Tokens of Microsoft Entra for Graph and for SMTP AUTH XOAUTH2, by msal.

The only memory of tokens is ours, in this process: the last good token of each scope is used
until it nears its end, and kept through trouble at the token endpoint. Every acquisition has a
msal application of its own: msal remembers a refusal for a minute (an HTTP cache within), and a
corrected secret would "still fail" meanwhile.

Tokens and secrets never stand in a log, a repr, an error or the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from delivery.outcomes import Phase, Reply, Unavailable
from delivery.providers.http import is_loopback

logger = logging.getLogger(__name__)

# A token this near its end is renewed; while the endpoint is in trouble it is used to the last.
RENEW_BEFORE = 300.0
LAST_SECONDS = 15.0
# After a failed renewal the old token goes on; the endpoint is not asked again for so long.
RENEW_AGAIN = 30.0
TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """The addresses of a national cloud (learn.microsoft.com/graph/deployments)."""

    authority: str
    graph: str
    outlook: str
    smtp: str

    @property
    def graph_scope(self) -> str:
        return f"{self.graph}/.default"

    @property
    def smtp_scope(self) -> str:
        """Of SMTP, IMAP and POP with client credentials."""
        return f"{self.outlook}/.default"


CLOUDS: Mapping[str, Cloud] = {
    "global": Cloud(
        "https://login.microsoftonline.com", "https://graph.microsoft.com",
        "https://outlook.office365.com", "smtp.office365.com",
    ),
    "us-gov": Cloud(
        "https://login.microsoftonline.us", "https://graph.microsoft.us",
        "https://outlook.office365.us", "smtp.office365.us",
    ),
    "us-dod": Cloud(
        "https://login.microsoftonline.us", "https://dod-graph.microsoft.us",
        "https://outlook-dod.office365.us", "outlook-dod.office365.us",
    ),
    "china": Cloud(
        "https://login.partner.microsoftonline.cn", "https://microsoftgraph.chinacloudapi.cn",
        "https://partner.outlook.cn", "smtp.partner.outlook.cn",
    ),
}  # fmt: skip


class IdentityError(Exception):
    """No token. ``needs_a_person``: the settings are wrong and asking again would change nothing;
    otherwise the endpoint is in trouble, for ``retry_after`` if it said so. The text is safe."""

    def __init__(
        self, text: str, *, needs_a_person: bool, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(text)
        self.needs_a_person = needs_a_person
        self.retry_after = retry_after

    @property
    def outcome(self) -> Unavailable:
        """What it means for a letter: nothing has left."""
        rule = "identity" if self.needs_a_person else "token endpoint"
        reply = Reply.of(Phase.AUTH, None, str(self))
        return Unavailable(reply, self.retry_after, self.needs_a_person, rule)


class TokenSource(Protocol):
    """What a provider wants of an identity."""

    async def token(self, scope: str, *, refused: str = "", claims: str = "") -> str:
        """A bearer token. ``refused``: the one that the far side has just refused."""


# AADSTS numbers (section 3.1 of our notes): what is wrong, and what to do.
HELP: Mapping[int, str] = {
    7000215: "The client secret is wrong. Use the secret's value, not its ID.",
    7000222: "The client secret has expired. Make a new one in the app registration.",
    700016: "The tenant does not know this application (client_id, tenant_id).",
    90002: "There is no such tenant (tenant_id).",
    900023: "There is no such tenant (tenant_id).",
    700027: "The certificate is not registered with the application.",
    700213: "No federated credential of the application fits this workload.",
    70021: "No federated credential of the application fits this workload.",
    53003: "A conditional access policy blocks the application.",
    50034: "There is no such account in the tenant.",
    500011: "The tenant does not know the resource: is it the right national cloud?",
}
_TEMPORARY = {"temporarily_unavailable", "server_error", "slow_down"}
_AADSTS = re.compile(r"AADSTS(\d+)")


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    expires_at: float

    def __repr__(self) -> str:
        return f"<token until {self.expires_at:.0f}>"


class MicrosoftIdentity:
    """One application in one tenant, by exactly one credential:

    - ``client_secret``,
    - ``certificate_file`` (PEM with the private key, or PFX with ``certificate_password``),
    - ``federated_token_file`` (workload identity federation: read anew each time),
    - ``managed_identity``: "system", or the client id of a user-assigned one (Azure hosts only).

    ``cloud`` is one of CLOUDS; ``authority`` overrides its login host. ``emulator``: the address
    of tests/emulators/graph.py on this machine, which then answers instead of Microsoft.
    ``http_client`` and ``clock`` (seconds, as time.time) are for tests.

    Asynchronous outside, blocking inside: msal runs in a thread, one call at a time, and all who
    wait for a token get the one that it brought.
    """

    def __init__(
        self,
        tenant_id: str = "",
        client_id: str = "",
        client_secret: str = "",
        certificate_file: str = "",
        certificate_password: str = "",
        federated_token_file: str = "",
        managed_identity: str = "",
        cloud: str = "global",
        authority: str = "",
        emulator: str = "",
        http_client: Any = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        credentials = [client_secret, certificate_file, federated_token_file, managed_identity]
        if sum(map(bool, credentials)) != 1:
            raise ValueError(
                "give exactly one of client_secret, certificate_file, federated_token_file and"
                " managed_identity"
            )
        if cloud not in CLOUDS:
            raise ValueError(f"cloud {cloud!r} is none of {', '.join(CLOUDS)}")
        if not managed_identity:
            if not client_id:
                raise ValueError("client_id is empty")
            if tenant_id.lower() in {"", "common", "organizations", "consumers"}:
                raise ValueError("tenant_id must name one tenant: its id or its domain")
            if not re.fullmatch(r"[A-Za-z0-9.-]+", tenant_id):
                raise ValueError("tenant_id is neither an id nor a domain")
        if authority and not authority.startswith("https://"):
            raise ValueError("authority must begin with https://")
        if emulator and not is_loopback(emulator):
            raise ValueError("emulator must be an address on this machine")
        self.tenant_id, self.client_id = tenant_id, client_id
        self.certificate_file = certificate_file
        self.federated_token_file = federated_token_file
        self.managed_identity = managed_identity
        self.cloud = CLOUDS[cloud]
        self.authority = authority.rstrip("/") or self.cloud.authority
        self._secret, self._password = client_secret, certificate_password
        self._http_client = http_client or (EmulatorClient(emulator) if emulator else HTTPClient())
        self._clock = clock
        self._tokens: dict[str, _Token] = {}
        self._ask_again_at: dict[str, float] = {}
        self._one_at_a_time = threading.Lock()

    def __repr__(self) -> str:
        return f"<MicrosoftIdentity of {self.client_id or 'a managed identity'}>"

    async def token(self, scope: str, *, refused: str = "", claims: str = "") -> str:
        """A token for ``scope`` ("https://graph.microsoft.com/.default").

        ``refused``: the token that was just answered with 401; another one is brought, unless
        somebody else has brought it already. ``claims``: the challenge that came with the 401.
        IdentityError when there is none.
        """
        known = self._tokens.get(scope)
        if known and known.value != refused and known.expires_at > self._clock() + RENEW_BEFORE:
            return known.value
        return await asyncio.to_thread(self._bring, scope, refused, claims)

    def _bring(self, scope: str, refused: str, claims: str) -> str:
        with self._one_at_a_time:
            now = self._clock()
            known = self._tokens.get(scope)
            if known is not None and known.value != refused:
                fresh = known.expires_at > now + RENEW_BEFORE
                resting = self._ask_again_at.get(scope, 0.0) > now
                if fresh or (resting and known.expires_at > now + LAST_SECONDS):
                    return known.value
            try:
                token = self._acquire(scope, claims, now)
            except IdentityError as trouble:
                usable = known is not None and known.value != refused and not trouble.needs_a_person
                if usable and known is not None and known.expires_at > now + LAST_SECONDS:
                    logger.warning("identity.renewal_failed", extra={"because": str(trouble)})
                    self._ask_again_at[scope] = now + RENEW_AGAIN
                    return known.value
                raise
            self._tokens[scope] = token
            return token.value

    def _acquire(self, scope: str, claims: str, now: float) -> _Token:
        """One call of msal, by an application object of its own."""
        from msal.exceptions import MsalServiceError  # late: only those who need it wait for msal

        watched = _Watched(self._http_client)
        try:
            credential = None if self.managed_identity else self._credential()
        except (OSError, ValueError) as error:
            text = f"The file of the credential cannot be read ({type(error).__name__})"
            raise IdentityError(text, needs_a_person=True) from None
        try:
            result = self._ask(scope, claims or None, credential, watched)
        except MsalServiceError as error:  # 5xx, msal raises only for these
            raise self._temporary(f"The token endpoint answered {error}", watched) from None
        except (httpx.HTTPError, OSError) as error:
            text = f"The token endpoint cannot be reached ({type(error).__name__})"
            raise self._temporary(text, watched) from None
        except ValueError as error:
            # msal for an unusable certificate or an authority that does not answer as one.
            if watched.status >= 500 or watched.status == 429:
                raise self._temporary("The login host is in trouble", watched) from None
            raise IdentityError(
                self._safe(f"No token can be asked for: {error}"), needs_a_person=True
            ) from None
        if "access_token" in result:
            return _Token(str(result["access_token"]), now + float(result["expires_in"]))
        raise self._refusal(result, watched)

    def _ask(
        self,
        scope: str,
        claims: str | None,
        credential: str | dict[str, Any] | None,
        client: _Watched,
    ) -> dict[str, Any]:
        import msal

        if self.managed_identity:
            who = (
                msal.SystemAssignedManagedIdentity()
                if self.managed_identity == "system"
                else msal.UserAssignedManagedIdentity(client_id=self.managed_identity)
            )
            resource = scope.removesuffix("/.default")
            answer = msal.ManagedIdentityClient(who, http_client=client).acquire_token_for_client(
                resource=resource, claims_challenge=claims
            )
        else:
            answer = msal.ConfidentialClientApplication(
                self.client_id,
                client_credential=credential,
                authority=f"{self.authority}/{self.tenant_id}",
                http_client=client,
                # The discovery of "instances" is for hosts unknown to msal; ours are in a setting.
                instance_discovery=False,
            ).acquire_token_for_client([scope], claims_challenge=claims)
        return dict(answer)

    def _credential(self) -> str | dict[str, Any]:
        if self._secret:
            return self._secret
        if self.federated_token_file:
            # Read at each use: the platform renews the file.
            assertion = Path(self.federated_token_file).read_text().strip()
            return {"client_assertion": lambda: assertion}
        file = Path(self.certificate_file)
        if file.suffix.lower() in {".pfx", ".p12"}:
            return {"private_key_pfx_path": str(file), "passphrase": self._password or None}
        pem = file.read_text()
        credential: dict[str, Any] = {"private_key": pem, "public_certificate": pem}
        if self._password:
            credential["passphrase"] = self._password
        return credential

    def _refusal(self, result: Mapping[str, Any], watched: _Watched) -> IdentityError:
        error = str(result.get("error", "unknown error"))
        description = str(result.get("error_description") or "").split("\r\n")[0].split("\n")[0]
        if error in _TEMPORARY or watched.status == 429 or watched.status >= 500:
            return self._temporary(f"The token endpoint answered {error}", watched)
        numbers = [int(n) for n in result.get("error_codes") or _AADSTS.findall(description)]
        remedy = next((HELP[n] for n in numbers if n in HELP), "")
        text = f"{remedy} {error}: {description}".strip()
        return IdentityError(self._safe(text), needs_a_person=True)

    def _temporary(self, text: str, watched: _Watched) -> IdentityError:
        return IdentityError(
            self._safe(text), needs_a_person=False, retry_after=watched.retry_after()
        )

    def _safe(self, text: str) -> str:
        """Without any secret that a far side might have quoted back."""
        for secret in filter(None, (self._secret, self._password)):
            text = text.replace(secret, "***")
        return text[:600]


class _Watched:
    """An http_client for msal that remembers the last status and the wish to stay away."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.status = 0
        self._retry_after = ""

    def post(self, url: str, **arguments: Any) -> Any:
        return self._seen(self._client.post(url, **arguments))

    def get(self, url: str, **arguments: Any) -> Any:
        return self._seen(self._client.get(url, **arguments))

    def close(self) -> None:
        """The client is not ours to close."""

    def _seen(self, response: Any) -> Any:
        self.status = response.status_code
        headers = {name.lower(): value for name, value in response.headers.items()}
        self._retry_after = headers.get("retry-after", "")
        return response

    def retry_after(self) -> timedelta | None:
        try:
            return timedelta(seconds=min(max(float(self._retry_after), 1.0), 3600.0))
        except ValueError:
            return None


class HTTPClient:
    """What msal wants of an HTTP client, by httpx: no redirects, and a time-out always."""

    def post(
        self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any
    ) -> httpx.Response:
        return httpx.post(url, params=params, data=data, headers=headers, timeout=TIMEOUT)

    def get(self, url: str, params: Any = None, headers: Any = None, **_: Any) -> httpx.Response:
        return httpx.get(url, params=params, headers=headers, timeout=TIMEOUT)

    def close(self) -> None:
        """Nothing is kept open."""


class EmulatorClient(HTTPClient):
    """Sends what is meant for the login host to the emulator on this machine (msal itself insists
    on https)."""

    def __init__(self, emulator: str) -> None:
        self.emulator = emulator.rstrip("/")

    def post(self, url: str, *arguments: Any, **named: Any) -> httpx.Response:
        return super().post(self._there(url), *arguments, **named)

    def get(self, url: str, *arguments: Any, **named: Any) -> httpx.Response:
        return super().get(self._there(url), *arguments, **named)

    def _there(self, url: str) -> str:
        return self.emulator + urlsplit(url).path


# ---------------------------------------------------------------------------------- shared

_shared: dict[str, MicrosoftIdentity] = {}
_shared_lock = threading.Lock()
_MOST_SHARED = 64


def shared_identity(options: Mapping[str, Any]) -> MicrosoftIdentity:
    """The identity with these options, one in this process: a worker's slice is short, a token's
    life is long. Other options, such as a new secret, are another identity at once."""
    described = json.dumps(
        {name: value if isinstance(value, str) else id(value) for name, value in options.items()},
        sort_keys=True,
    )
    key = hashlib.sha256(described.encode()).hexdigest()
    with _shared_lock:
        if key not in _shared:
            if len(_shared) >= _MOST_SHARED:
                _shared.pop(next(iter(_shared)))
            _shared[key] = MicrosoftIdentity(**options)
        return _shared[key]
