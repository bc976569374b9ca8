"""The words by which mail systems tell a failure, a delay and a success apart: data, by language.

Compared with text in lower case in which every run of white space is one blank and a curly
apostrophe is straight, so that a phrase may be folded over lines. A delay outweighs everything:
Gmail's "(Delay)" and sendmail's four-hour warning quote the words of a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

DELAY = (
    "warning message only", "this is a warning only", "not need to re-send", "not need to resend",
    "not need to do anything", "no action is required", "no action is needed", "has been delayed",
    "is delayed", "was delayed", "delivery delayed", "will be retried", "will be re-tried",
    "will be tried again", "will continue to try", "will continue trying", "will keep trying",
    "will try again", "will retry", "continue to be attempted", "attempts will continue",
    "still being retried", "still being processed", "still being tried", "still trying",
    "still in the queue", "not yet been delivered", "not been delivered yet",
    "hasn't been delivered yet", "kept in the queue", "kept in the mail queue",
    "temporarily deferred", "temporary problem delivering",
    "be delivered until", "could not send message for past", "will be tried for",
    "retry your message",
    "weiterhin versucht", "erneut versucht", "verzögert", "noch nicht zugestellt",
    "retardé", "sera réessayé", "retrasad", "se seguirá intentando", "vertraagd", "in ritardo",
)  # fmt: skip
DELAY_IN_SUBJECT = (
    "(delay)", "(delayed)", "delayed", "delay ", "delivery delay", "warning:", "still trying",
    "temporar", "queued", "verzögert",
)  # fmt: skip
SUCCESS = (
    "was successfully delivered", "were successfully delivered", "been successfully delivered",
    "successfully relayed", "successful mail delivery report", "delivery receipt", "return receipt",
    "delivery to the following recipients was successful", "erfolgreich zugestellt",
    "expanded to a mailing list", "relayed to non-dsn-aware",
)  # fmt: skip
FAILURE = (
    "permanent error", "permanent fatal error", "permanent failure", "permanent delivery",
    "permanently", "fatal error", "given up", "giving up", "undeliver", "not deliverable",
    "couldn't be delivered", "couldn't deliver", "could not be delivered", "could not deliver",
    "couldnot deliver", "can't be delivered", "cannot be delivered", "cannot deliver",
    "can not be delivered", "could not be reached", "could not be sent", "couldn't be sent",
    "unable to deliver", "unable to be delivered", "unable to send", "not able to deliver",
    "wasn't able to deliver", "was not delivered", "wasn't delivered", "were not delivered",
    "not been delivered", "has not been accepted", "not accepted", "delivery failed",
    "delivery failure", "delivery has failed", "delivery error", "delivery problem",
    "notification (failure)", "failed to deliver", "failure notice", "failed recipient",
    "failed address", "address(es) failed", "addresses failed", "returned mail",
    "returned to sender", "return to sender", "returning your message", "returning message",
    "being returned", "did not reach", "non-delivery", "nondelivery", "user unknown",
    "unknown user", "unknown recipient", "recipient unknown", "unknown address", "user not found",
    "recipient not found", "address not found", "no such user", "no such mailbox",
    "no such recipient", "no such person", "no such account", "does not exist", "doesn't exist",
    "doesn't have a", "not listed in", "mailbox unavailable", "mailbox full", "mailbox is full",
    "mailbox not found", "over quota", "quota exceeded", "size exceeded", "has expired",
    "message expired", "mail system error", "was rejected", "been rejected", "rejected by",
    "message refused", "account has been disabled",
    "unzustellbar", "nicht zugestellt", "nicht zustellbar", "nicht ausgeliefert", "zustellung fehl",
    "n'a pas pu être", "non remis", "échec de la remise", "impossible de remettre",
    "no se pudo entregar", "no se ha podido entregar", "no entregado", "no pudo ser entregado",
    "non è stato recapitato", "non recapitat", "mancato recapito", "niet bezorgd", "onbestelbaar",
    "kon niet worden", "não pôde ser entregue", "não foi entregue", "nie dostarczono",
    "nie mogła zostać", "配信できません", "配信不能", "недоставлен", "не доставлено",
    "не может быть доставлено",
)  # fmt: skip


class Matter(Enum):
    """What a notification is about."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"
    UNCLEAR = "unclear"


def matter_of(subject: str, text: str) -> Matter:
    """What the words say. Decoding of the subject is not tried: the text says it again."""
    subject, text = _plain(subject), _plain(text)
    if _DELAY.search(text) or _DELAY_IN_SUBJECT.search(subject):
        return Matter.DELAY
    if _SUCCESS.search(text):
        return Matter.SUCCESS
    if _FAILURE.search(text) or _FAILURE.search(subject):
        return Matter.FAILURE
    return Matter.UNCLEAR


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, phrases)))


_DELAY, _DELAY_IN_SUBJECT = _any_of(DELAY), _any_of(DELAY_IN_SUBJECT)
_SUCCESS, _FAILURE = _any_of(SUCCESS), _any_of(FAILURE)
