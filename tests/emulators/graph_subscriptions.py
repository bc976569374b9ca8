"""The emulator's change notifications (learn.microsoft.com/graph/change-notifications-overview).

They are told at once, and none is told twice of itself: a test that wants them lost, late or
doubled sets ``tell`` or calls it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx

LONGEST_LIFE = timedelta(minutes=10_080)
SHORTEST_LIFE = timedelta(minutes=45)
CHALLENGE = "Validation: Testing client application reachability <for subscription> & more"


@dataclass(frozen=True, slots=True)
class Heard:
    """How the far side answered a notification."""

    status: int
    content_type: str
    body: bytes


Tell = Callable[[str, bytes], Heard]


def tell_over_http(url: str, body: bytes) -> Heard:
    answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=10)
    return Heard(answer.status_code, answer.headers.get("content-type", ""), answer.content)


@dataclass
class Subscriptions:
    """``tell`` is called with an address and a body; in a thread of its own during a handshake,
    since that is part of a request."""

    clock: Callable[[], datetime]
    tell: Tell = tell_over_http
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def request(self, method: str, id: str, verb: str, body: bytes) -> tuple[int, Any]:
        """Status and body; an error is (status, code)."""
        asked = json.loads(body) if body else {}
        if method == "POST" and not id:
            return self._create(asked)
        if id not in self.by_id:
            return 404, "ResourceNotFound"
        if method == "DELETE":
            del self.by_id[id]
            return 204, {}
        if method == "PATCH" and not verb:
            return self._prolong(id, asked)
        if method == "POST" and verb == "reauthorize":
            return 200, {}
        return 400, "BadRequest"

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if wrong := self._wrong_with(asked):
            return 400, wrong
        for name in ("notificationUrl", "lifecycleNotificationUrl"):
            url = f"{asked[name]}?validationToken={quote(CHALLENGE)}"
            with ThreadPoolExecutor(1) as pool:
                heard = pool.submit(self.tell, url, b"").result()
            is_plain = heard.content_type.startswith("text/plain")
            if heard.status != 200 or not is_plain or heard.body.decode() != CHALLENGE:
                return 400, "InvalidRequest"
        id = f"subscription-{next(self._numbers)}"
        self.by_id[id] = asked | {"id": id}
        return 201, {k: v for k, v in self.by_id[id].items() if k != "clientState"}

    def _wrong_with(self, asked: dict[str, Any]) -> str:
        needed = {"changeType", "notificationUrl", "resource", "expirationDateTime", "clientState"}
        if needed - asked.keys() or len(asked["clientState"]) > 128:
            return "InvalidRequest"
        return "" if self._bearable(asked) else "InvalidExpiration"

    def _bearable(self, asked: dict[str, Any]) -> bool:
        until = datetime.fromisoformat(asked["expirationDateTime"].replace("Z", "+00:00"))
        return SHORTEST_LIFE <= until - self.clock() <= LONGEST_LIFE

    def _prolong(self, id: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if not self._bearable(asked):
            return 400, "InvalidExpiration"
        self.by_id[id]["expirationDateTime"] = asked["expirationDateTime"]
        return 200, self.by_id[id]

    def arrived(self, address: str, folder: str, item_id: str) -> None:
        """Tells those who watch the folder."""
        for one in list(self.by_id.values()):
            until = datetime.fromisoformat(one["expirationDateTime"].replace("Z", "+00:00"))
            resource = f"users/{address}/mailFolders('{folder}')/messages".lower()
            if one["resource"].lower() == resource and self.clock() < until:
                self.tell(one["notificationUrl"], self.notification(one, item_id))

    @staticmethod
    def notification(one: dict[str, Any], item_id: str = "AAIn1=", **changes: Any) -> bytes:
        told = {
            "subscriptionId": one["id"],
            "clientState": one["clientState"],
            "changeType": "created",
            "resource": f"{one['resource']}/{item_id}",
            "subscriptionExpirationDateTime": one["expirationDateTime"],
            "tenantId": "contoso.example",
            "resourceData": {"@odata.type": "#Microsoft.Graph.Message", "id": item_id},
        }
        return json.dumps({"value": [told | changes]}).encode()

    def lifecycle(self, event: str) -> None:
        """Tells everybody about a lifecycle event; a subscription that is removed is gone."""
        for id, one in list(self.by_id.items()):
            if event == "subscriptionRemoved":
                del self.by_id[id]
            body = self.notification(one, lifecycleEvent=event)
            self.tell(one["lifecycleNotificationUrl"], body)
