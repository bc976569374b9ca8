"""The classification table of Microsoft Graph: (status, error codes, text) -> reaction.

Microsoft asks not to depend on texts; so the code decides, and a text only refines where one code
means several things (ErrorAccessDenied, ApplicationThrottled). Codes are compared without regard
to case, and all codes of the answer's innerError chain count. The order is part of the meaning.

Sources: "Graph" is learn.microsoft.com/graph, "EWS" the response codes of Exchange Web Services,
that Graph passes on; "seen" are answers reported in public issues and threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

# Seen: after 500 moves, or too many open objects, a mailbox answers nothing until 30 minutes have
# passed without *any* request; each try begins them anew. Five minutes more, for clocks.
TOTAL_SILENCE = timedelta(minutes=35)
TOTAL_SILENCE_RULE = "total silence"
# A rolling window of 24 hours is surely empty of our letters then.
ONE_DAY = timedelta(hours=24)


class Reaction(StrEnum):
    """What an answer means for the letter and for the provider."""

    RETRY = "retry"  # certainly not taken; the provider rests
    DOUBT = "doubt"  # may have been taken: look before sending again; the provider rests
    STOP = "stop"  # certainly not taken; only a person can mend it
    REJECT = "reject"  # this reader's letter, for good
    HOLD = "hold"  # this letter waits; several in a row stop the provider
    RENEW = "renew"  # another token, and once more


@dataclass(frozen=True, slots=True)
class GraphRule:
    """Fits when every part that is given fits. ``status`` and ``code`` are regular expressions
    for the whole, ``text`` is searched in the message. ``wait``: the provider's rest when the
    answer names none; ``at_least``: when it names a shorter one. ``narrows``: fewer requests at
    once from now on. ``streak``: at the how-manieth in a row it means STOP. ``waits``: the rests of
    such a row, one after the other.
    ``remedy`` is what a person should do."""

    name: str
    reaction: Reaction
    source: str
    status: str = ""
    code: str = ""
    text: str = ""
    wait: timedelta | None = None
    at_least: timedelta = timedelta(0)
    narrows: bool = False
    streak: int = 0
    waits: tuple[timedelta, ...] = ()
    remedy: str = ""

    def fits(self, status: int, codes: tuple[str, ...], text: str) -> bool:
        """Whether this rule speaks about that answer."""
        return (
            (not self.status or re.fullmatch(self.status, str(status)) is not None)
            and (
                not self.code or any(re.fullmatch(self.code, code, re.IGNORECASE) for code in codes)
            )
            and (not self.text or re.search(self.text, text, re.IGNORECASE) is not None)
        )


def minutes(number: float) -> timedelta:
    return timedelta(minutes=number)


RULES: tuple[GraphRule, ...] = (
    # ------------------------------------------------ total silence: before every other 429 and 500
    GraphRule(
        TOTAL_SILENCE_RULE, Reaction.RETRY, "seen: outlook-dev-docs 144, msgraph-sdk-dotnet 250",
        code="ErrorTooManyObjectsOpened|ErrorMoveCopyFailed", at_least=TOTAL_SILENCE,
    ),
    # ------------------------------------------------ our quotas, whatever the status
    GraphRule(
        "daily quota", Reaction.RETRY, "EWS: ErrorSubmissionQuotaExceeded",
        code="ErrorSubmissionQuotaExceeded", at_least=ONE_DAY,
    ),
    GraphRule(
        "account must be verified", Reaction.STOP, "seen: consumer mailboxes, 400, 403 and 429",
        code="ErrorExceededMessageLimit",
        remedy="Sign in to the mailbox and follow the instructions in its Inbox.",
    ),
    GraphRule(
        "hourly quota", Reaction.RETRY, "seen: consumer mailboxes",
        code="ErrorExceededHourlyMessageLimit", wait=minutes(60),
    ),
    GraphRule(
        "account blocked", Reaction.STOP, "seen: consumer mailboxes; EWS",
        code="ErrorMessageSubmissionBlocked|ErrorAccountSuspend|ErrorMessageBlocked"
        "|ErrorInvalidLicense|ErrorOrganizationAccessBlocked",
        remedy="Microsoft has blocked this account or its licence; see the admin centre.",
    ),
    GraphRule(
        "our mailbox is full", Reaction.STOP, "EWS: ErrorQuotaExceeded; seen with 507",
        code="ErrorQuotaExceeded|QuotaExceededException",
        remedy="Empty Sent Items and give it a retention policy: each letter leaves a copy there.",
    ),
    # ------------------------------------------------ 401, 403: who we are and what we may
    GraphRule("token refused", Reaction.RENEW, "RFC 6750 section 3.1; Graph", status="401"),
    GraphRule(
        "not allowed for this mailbox", Reaction.STOP, "seen: RAOP, 2026",
        status="403", code="ErrorAccessDenied", text=r"RAOP|AppOnly AccessPolicy",
        remedy="The tenant does not let the application use this mailbox: register its service"
        " principal in Exchange and assign the role Application Mail.Send. A change may need up to"
        " two hours.",
    ),
    GraphRule(
        "send as denied", Reaction.STOP, "EWS: ErrorSendAsDenied", code="ErrorSendAsDenied",
        remedy="The From address of the campaign is not this mailbox, which has no right to send"
        " as it.",
    ),
    GraphRule(
        "access denied", Reaction.STOP, "Graph: permissions", status="403",
        code="ErrorAccessDenied|Authorization_RequestDenied|AccessDenied|Forbidden",
        remedy="The application lacks Mail.Send for this mailbox, or the consent of an"
        " administrator. A change may need up to two hours.",
    ),
    # ------------------------------------------------ 429: too much at once, or too much
    GraphRule(
        "mailbox concurrency", Reaction.RETRY, "Graph: throttling limits, 4 per app and mailbox",
        status="429", text=r"MailboxConcurrency", wait=timedelta(seconds=1), narrows=True,
    ),
    GraphRule(
        "upload volume", Reaction.RETRY, "Graph: throttling limits, 150 MB in 5 minutes",
        status="429", text=r"IncomingBytes", wait=minutes(5),
    ),
    GraphRule("throttled", Reaction.RETRY, "RFC 6585 section 4; Graph: throttling", status="429"),
    # ------------------------------------------------ 404: the mailbox or the item
    GraphRule(
        "mailbox not enabled", Reaction.STOP, "seen: unlicensed or still being made", status="404",
        code="MailboxNotEnabledForRESTAPI|MailboxNotSupportedForRESTAPI",
        remedy="The mailbox has no Exchange Online licence, is on-premises, or is still being"
        " made.",
    ),
    GraphRule(
        "no such mailbox of ours", Reaction.STOP, "Graph: ErrorInvalidUser", status="404",
        code="ErrorInvalidUser|ResourceNotFound|Request_ResourceNotFound",
        remedy="The option mailbox names no user of this tenant.",
    ),
    GraphRule(
        "mailbox away", Reaction.RETRY, "seen: docs-contrib 8823, later it works", status="404",
        code="ErrorNonExistentMailbox", waits=(minutes(1), minutes(5), minutes(15)), streak=4,
        remedy="Exchange says again and again that the mailbox does not exist.",
    ),
    GraphRule(
        "draft is gone", Reaction.DOUBT, "EWS: ErrorItemNotFound", status="404",
        code="ErrorItemNotFound",
    ),
    # ------------------------------------------------ 400: this reader, or this letter
    GraphRule(
        "recipient not valid", Reaction.REJECT, "EWS: ErrorInvalidRecipients",
        status="400", code="ErrorInvalidRecipients",
    ),
    GraphRule(
        "too many recipients", Reaction.STOP, "EWS: ErrorExceededMaxRecipientLimit",
        code="ErrorExceededMaxRecipientLimit", remedy="A letter goes to one reader only.",
    ),
    GraphRule(
        "letter not understood", Reaction.HOLD, "EWS: ErrorMimeContent...", status="400",
        code="ErrorMimeContent.*", wait=minutes(15), streak=2,
        remedy="Microsoft cannot read the letters of this campaign.",
    ),
    GraphRule(
        "request not understood", Reaction.STOP, "Graph: errors", status="400",
        code="InvalidInternetMessageHeader|InvalidInternetMessageHeaderCollection"
        "|UnableToDeserializePostBody|ErrorInvalidRequest|RequestBodyRead",
        remedy="Microsoft refuses the form of our letters.",
    ),
    GraphRule(
        "letter too large", Reaction.STOP, "RFC 9110 section 15.5.14; EWS", status="413",
        remedy="The campaign's letter is larger than the mailbox may send.",
    ),
    GraphRule(
        "letter too large", Reaction.STOP, "EWS: ErrorMessageSizeExceeded",
        code="ErrorMessageSizeExceeded",
        remedy="The campaign's letter is larger than the mailbox may send.",
    ),
    # ------------------------------------------------ 5xx: it may have been taken all the same
    GraphRule(
        "command concurrency", Reaction.DOUBT, "seen: sent although answered with this 503",
        status="503", code="CommandConcurrencyLimitReached|ErrorDirectoryConcurrencyLimit",
        narrows=True,
    ),
    GraphRule(
        "mailbox is moving", Reaction.DOUBT, "seen: graph-explorer 3143", status="5..",
        code="MailboxInfoStale|ErrorMailboxMoveInProgress", at_least=minutes(1),
    ),
    GraphRule("server busy", Reaction.DOUBT, "RFC 9110 section 15.6.4", status="503"),
    GraphRule(
        "gateway timeout", Reaction.DOUBT, "seen: 504 repeated gave readers four copies",
        status="504",
    ),
    GraphRule("server error", Reaction.DOUBT, "RFC 9110 section 15.6", status="5.."),
    # ------------------------------------------------ what remains
    GraphRule(
        "unusual success", Reaction.DOUBT, "seen: 200 for letters above 2,240 KB", status="2..",
    ),
    GraphRule(
        "unknown refusal", Reaction.HOLD, "RFC 9110 section 15.5", status="4..",
        wait=minutes(15), streak=3, remedy="Microsoft refuses for a reason that we do not know.",
    ),
    GraphRule(
        "redirected", Reaction.STOP, "RFC 9110 section 15.4: a token follows no redirect",
        status="3..", remedy="Graph answered with a redirect: is it the right national cloud?",
    ),
    GraphRule("no answer of HTTP", Reaction.DOUBT, "RFC 9110 section 15"),
)  # fmt: skip


def rule_for(status: int, codes: tuple[str, ...], text: str) -> GraphRule:
    """The first rule that fits. There always is one: the last fits everything."""
    return next(rule for rule in RULES if rule.fits(status, codes, text))


def read_error(body: bytes) -> tuple[tuple[str, ...], str]:
    """(codes from the outside in, message) of an error body; empty for HTML and nonsense."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return (), ""
    if not isinstance(error, Mapping):
        return (), ""
    message = error.get("message")
    codes = []
    inner: object = error
    # innerError, innererror: both are in use. Deeper than a few is nonsense.
    for _ in range(5):
        if not isinstance(inner, Mapping):
            break
        if isinstance(code := inner.get("code"), str) and code:
            codes.append(code)
        inner = inner.get("innerError") or inner.get("innererror")
    return tuple(codes), message if isinstance(message, str) else ""
