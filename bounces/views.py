"""Where mailboxes call when a mail has arrived (Microsoft Graph change notifications)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from bounces import watches

LONGEST_CHALLENGE = 1024
LARGEST_BODY = 1024 * 1024
MOST_AT_ONCE = 1000


@csrf_exempt
@require_POST
def notifications(request: HttpRequest) -> HttpResponse:
    """Answers the handshake of a new watch with its challenge, and everything else with 202.

    A notification is a trigger and nothing more: what it says besides its subscription and its
    secret is not used, and whoever has no secret learns nothing from the answer.
    """
    challenge = request.GET.get("validationToken")
    if challenge is not None:
        # Plain text that no browser takes for a page: the caller chooses it.
        return HttpResponse(
            challenge[:LONGEST_CHALLENGE],
            content_type="text/plain; charset=utf-8",
            headers={"X-Content-Type-Options": "nosniff"},
        )
    now = timezone.now()
    calls = [
        watches.Call(
            _text(one, "subscriptionId"), _text(one, "clientState"), _text(one, "lifecycleEvent")
        )
        for one in _read(request)[:MOST_AT_ONCE]
    ]
    watches.hear(calls, now)
    return HttpResponse(status=202)


def _read(request: HttpRequest) -> list[Mapping[str, Any]]:
    """The notifications of a body; [] for nonsense."""
    try:
        length = int(request.headers.get("Content-Length") or 0)
        told = json.loads(request.read(LARGEST_BODY)) if length <= LARGEST_BODY else {}
    except (ValueError, RecursionError):
        return []
    listed = told.get("value") if isinstance(told, Mapping) else None
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def _text(one: Mapping[str, Any], name: str) -> str:
    """ "" for what no far side of ours sends: a database takes neither NUL nor half a character."""
    value = one.get(name)
    return value if isinstance(value, str) and value.isprintable() else ""
