"""The readers' pages. No session, no cookie, no redirect, and no word about who is a reader.

RFC 8058 in short: the mailbox provider POSTs ``List-Unsubscribe=One-Click`` to the address in the
letter, without any context, and must not be redirected. A person who opens the same address gets
a page with a button. GET changes nothing: scanners open every link of a letter, with JavaScript.
"""

from __future__ import annotations

import logging
from typing import Any

from csp.constants import NONE, SELF
from csp.decorators import csp
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from campaigns.models import MailingList, Subscriber
from campaigns.unsubscribe import (
    BY_ONE_CLICK,
    BY_PAGE,
    Link,
    ended_by,
    masked,
    read_link,
    subscribe_again,
    subscribed,
    unsubscribe,
)

logger = logging.getLogger(__name__)

# A one-click body takes some 200 octets. Nothing of ours is larger, and nobody uploads here.
LARGEST_BODY = 10_000

# The pages bring their own style and nothing else; no page of ours or of others frames them.
PAGE_POLICY = {
    "default-src": [NONE],
    "style-src": ["'unsafe-inline'"],
    "form-action": [SELF],
    "base-uri": [NONE],
    "frame-ancestors": [NONE],
}


@csp(PAGE_POLICY)
@require_http_methods(["GET", "HEAD"])
def home(request: HttpRequest) -> HttpResponse:
    """What this host is, for whoever wonders about an address in a letter."""
    return _page("home.html")


# csrf_exempt: the token in the address is the secret, and a mailbox provider has no cookie.
@csrf_exempt
@csp(PAGE_POLICY)  # type: ignore[arg-type]  # its annotations know no view with arguments
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe_page(request: HttpRequest, token: str) -> HttpResponse:
    """The address of List-Unsubscribe: GET asks, POST acts. Unknown tokens all look the same."""
    if not _body_is_small(request):
        return HttpResponse(status=413)
    link = read_link(token)
    if link is None:
        logger.info("campaigns.unsubscribe_unknown_token")
        return _unknown()
    if link.is_of_a_test_letter:
        return _page("unsubscribe_test.html")
    if request.method == "POST":
        if request.POST.get("List-Unsubscribe") == "One-Click":
            return _end(link, token, source=BY_ONE_CLICK)
        if request.POST.get("action") == "unsubscribe":
            return _end(link, token, source=BY_PAGE)
        if request.POST.get("action") == "subscribe-again":
            return _take_back(link, token)
    return _ask(link)


def _ask(link: Link, template: str = "unsubscribe_ask.html") -> HttpResponse:
    """The reader's subscriptions to the campaign's lists, as they are now."""
    reader = Subscriber.objects.filter(pk=link.subscriber_id).first()
    if reader is None:
        return _unknown()
    lists = [subscription.mailing_list for subscription in subscribed(link)]
    return _page(template if lists else "unsubscribe_ask.html", reader, lists=lists)


def _end(link: Link, token: str, *, source: str) -> HttpResponse:
    done = unsubscribe(token, source=source)
    if done is None:
        return _unknown()
    # Not done.lists: a second click finds nothing to end and must read the same.
    lists = [subscription.mailing_list for subscription in ended_by(link, timezone.now())]
    return _page("unsubscribe_done.html", done.reader, lists=lists)


def _take_back(link: Link, token: str) -> HttpResponse:
    subscribe_again(token, source=BY_PAGE, now=timezone.now())
    return _ask(link, "unsubscribe_taken_back.html")


def _unknown() -> HttpResponse:
    """One answer for every token that is not ours and for every reader who is gone (no oracle).

    200, not 404: RFC 8058 allows both, and a mailbox provider that sees errors may drop its button.
    """
    return _page("unsubscribe_unknown.html")


def _page(
    template: str, reader: Subscriber | None = None, lists: list[MailingList] | None = None
) -> HttpResponse:
    # Rendered without the request: its context processors know sessions, users and messages.
    context: dict[str, Any] = {"address": masked(reader.email) if reader else "", "lists": lists}
    return HttpResponse(
        render_to_string(f"public/{template}", context),
        headers={
            "Cache-Control": "no-store",
            # The address holds the token: it must not travel on to where a link leads.
            "Referrer-Policy": "no-referrer",
            "X-Robots-Tag": "noindex, nofollow",
        },
    )


def _body_is_small(request: HttpRequest) -> bool:
    length = request.META.get("CONTENT_LENGTH") or "0"
    return length.isdecimal() and int(length) <= LARGEST_BODY
