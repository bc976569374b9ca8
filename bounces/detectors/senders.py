"""Did a mail system write this mail? A hint, never a proof: the field is anybody's to fill."""

from __future__ import annotations

import re

from bounces.detectors.base import IncomingMail

# Names of mail systems, in the spellings of thirty years. The last but one is Exchange's own
# sender in every tenant: MicrosoftExchange and 32 hexadecimal digits.
_MAIL_SYSTEM = re.compile(
    r"""mailer[-_. ]?daemon | mail[-_. ]daemon | \bmdaemon\b | \bpost[-_]?master\b
    | mail[ ](?:delivery|transport|transfer)[ ](?:sub)?(?:system|service|agent|software)
    | (?:system|mail|e-mail)[ ]administrator | \bmail[ ]?(?:system|router|server)\b
    | \bmaildelivery\b | delivery[-_. ](?:subsystem|notification) | \bmail[ ]delivery\b
    | microsoft[ ]?(?:exchange|outlook)[0-9a-f]{8,} | \binternet[ ]mail\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FORWARDED = re.compile(
    r"\s*(?:fwd?|wg|tr|rv|enc|re|aw|sv|vs|antw|odp|r|i|doorst|vb)\s*(?:\[\d+\])?\s*:", re.IGNORECASE
)


def is_a_mail_system(mail: IncomingMail) -> bool:
    """Whether From names one, or Exim's header says that this is its report."""
    return bool(
        _MAIL_SYSTEM.search(mail.header("from")[:1000]) or mail.header("x-failed-recipients")
    )


def has_null_return_path(mail: IncomingMail) -> bool:
    """RFC 5321 section 4.5.5. Automatic replies have it too."""
    return mail.header("return-path").strip() in {"<>", "<MAILER-DAEMON>"}


def is_a_machine(mail: IncomingMail) -> bool:
    """Whether anything says that no person wrote it."""
    return (
        is_a_mail_system(mail)
        or has_null_return_path(mail)
        or mail.header("auto-submitted").strip().lower().startswith("auto-")
    )


def is_an_answer_or_forwarded(mail: IncomingMail) -> bool:
    """Whether the subject begins as a person's mail program begins one: Re, Fwd, AW, WG, Tr."""
    return bool(_FORWARDED.match(mail.header("subject")))
