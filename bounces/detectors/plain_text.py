"""Bounces in words, without a status part: the last resort, behind the two-witness rule.

Their writers, each with its form: qmail (QSBMF: ``<address>:`` and a paragraph), which Yahoo, AOL
and old Postfix share; Exim (``The following address(es) failed:``, two spaces, the address, four
spaces, the reason, ``(generated from our@address)``); sendmail before 8.8 (``The following
addresses had permanent fatal errors``, ``(expanded from: <ours>)``); Exchange 5.5 to 2003
(``did not reach some or all of the intended recipients``), 2007 and later (``Diagnostic
information for administrators``), and Microsoft 365 where a mover lost the status part (``Status
code: 550 5.1.10``, ``Recipient Address:``); Gmail before 2017 and Microsoft's SMTP service
(``Delivery to the following recipient failed permanently``); MailEnable and hMailServer
(``could not be reached``); Cisco; KDDI. Domino, GroupWise, MDaemon, IMail and all others are read
as any text is: the one address in it that is also a recipient of the returned copy.

Quirks: Exim's X-Failed-Recipients stands on delay warnings too; its "failed" subject as well;
sendmail's transcript names the relay's postmaster; Yahoo quotes the remote server, which quotes
somebody's policy page; Gmail's "(Delay)" uses the words of a failure. So a text that speaks of a
delay is one, whatever else it says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bounces.detectors.addresses import is_address
from bounces.detectors.auto_reply import is_titled_as_one
from bounces.detectors.base import IncomingMail
from bounces.detectors.mime import own_parts
from bounces.detectors.witnesses import (
    LONGEST_REASON,
    Notice,
    Suspect,
    read_notice,
    reports_of,
    the_only_witnessed,
)
from bounces.detectors.wording import Matter
from bounces.report import BounceReport

MOST_SUSPECTS = 50
_ADDRESS = r"[^\s<>()\[\]\",;:]{1,64}@[^\s<>()\",;:]{1,255}"


@dataclass(frozen=True, slots=True)
class Form:
    """How one family of servers writes. ``says`` opens the notification; behind it each match of
    ``names`` is a recipient: the group ``address``, and ``ours`` where it was made from another."""

    name: str
    says: re.Pattern[str]
    names: re.Pattern[str]


def _form(name: str, says: str, names: str) -> Form:
    return Form(
        name,
        re.compile(says, re.IGNORECASE | re.MULTILINE),
        re.compile(names.replace("ADDRESS", _ADDRESS), re.IGNORECASE | re.MULTILINE),
    )


FORMS = (
    _form(
        "qmail, Yahoo, Postfix",
        r"^Hi\. (?:This is|The)\b|unable to deliver (?:your )?(?:message|mail)"
        r"|able to deliver your message to the following|^This is the (?:Postfix|mail system)"
        r"|could not be delivered to (?:one or more|the following)|Mail sent to the following",
        r"^[ \t]*<(?P<address>ADDRESS)>(?:[ \t]\(expanded from <(?P<ours>ADDRESS)>\))?:",
    ),
    _form(
        "Exim",
        r"The following address(?:\(es\)|es)? failed:?",
        r"^ {2,3}<?(?P<address>ADDRESS)>?:?[ \t]*$"
        r"(?:\n[ \t]*\((?:ultimately )?generated from (?P<ours>ADDRESS)\))?",
    ),
    _form(
        "sendmail",
        r"^[ \t]*-{2,}[ ]?The following addresses? (?:had|have|has) (?:permanent|delivery|"
        r"unrecoverable|fatal|undelivered)[^\n]*",
        r"^[ \t]*<?(?P<address>ADDRESS)>?(?:[ \t]+\([^)\n]*\))?[ \t]*$"
        r"(?:\n[ \t]*\(reason: [^\n]*\))?"
        r"(?:\n[ \t]*\(expanded from: <?(?P<ours>ADDRESS)>?\))?",
    ),
    _form(
        "Exchange 2003",
        r"did not reach some or all of the intended recipients?",
        r"^[ \t]*[<'\"]?(?P<address>ADDRESS)[>'\"]?[ \t]+on[ \t]+[^\n]*\d",
    ),
    _form(
        "Exchange 2007",
        r"^(?:Diagnostic information for administrators|Diagnoseinformationen f.r Administratoren"
        r"|Informations de diagnostic pour les administrateurs"
        r"|Informaci.n de diagn.stico para (?:los )?administradores"
        r"|Informazioni di diagnostica per gli amministratori"
        r"|Diagnostische gegevens voor beheerders"
        r"|Informa..es de diagn.stico para administradores)\s*:?",
        r"^[ \t]*<?(?P<address>ADDRESS)>?[ \t]*$(?=\n[^\n]*(?:#|\b[45]\d\d\b|Remote Server))",
    ),
    _form(
        "Microsoft 365",
        r"^[ \t]*Original Message Details\b|^[ \t]*Status code:",
        r"^[ \t]*Recipient Address:[ \t]*<?(?P<address>ADDRESS)>?",
    ),
    _form(
        "Gmail, Microsoft SMTP",
        r"^Delivery to the following recipients? (?:has )?failed[^\n]*",
        r"^[ \t]+<?(?P<address>ADDRESS)>?[ \t]*$",
    ),
    _form(
        "sendmail's transcript",
        r"^[ \t]*-{2,}[ ]?Transcript of session follows[^\n]*",
        r"^5\d\d[ -](?:5\.\d\.\d{1,3} )?<?(?P<address>ADDRESS)>?\.\.\. ",
    ),
    _form(
        "MailEnable, hMailServer",
        r"^The following recipient(?:s|\(s\))? could not be reached:?",
        r"^[ \t]*(?:Recipient:[ \t]*\[SMTP:)?<?"
        r"(?P<address>[^\s<>()\[\]\",;:]{1,64}@[\w.-]{1,255})>?\]?[ \t]*$",
    ),
    _form(
        "Cisco",
        r"^The following message to <ADDRESS> was undeliverable".replace("ADDRESS", _ADDRESS),
        r"^The following message to <(?P<address>ADDRESS)> was undeliverable",
    ),
    _form(
        "KDDI",
        r"^Each of the following recipients was rejected\b",
        r"^[ \t]*Recipient:[ \t]*<(?P<address>ADDRESS)>",
    ),
)
# Behind the last recipient: qmail's break paragraph, the transcript, a rule.
_ENDS = re.compile(r"^[ \t]*-{3,}", re.MULTILINE)


class PlainTextDetector:
    """Answers for failures and delays that a machine tells in words."""

    version = "2"

    def detect(self, mail: IncomingMail) -> list[BounceReport] | None:
        notice = _notice(mail)
        if notice is None:
            return None
        match notice.matter:
            case Matter.DELAY | Matter.SUCCESS:
                return []
            case Matter.FAILURE:
                return reports_of(notice, _suspects(notice)[1])
            case _:
                return None

    def because(self, mail: IncomingMail) -> str:
        notice = _notice(mail)
        if notice is None:
            return "no notification of a mail system"
        form, suspects = _suspects(notice)
        lines = [f"a mail system's text about a {notice.matter.value}, in the form of: {form}"]
        for suspect in suspects[:10]:
            seen = notice.is_witnessed(suspect.address) or notice.is_witnessed(suspect.ours)
            second = "and the returned letter was for it" if seen else "and nothing else does"
            lines.append(f"the text names {suspect.address}, {second}")
        return "\n".join(lines)


def _notice(mail: IncomingMail) -> Notice | None:
    """None for mail that has a structure of its own: then words prove nothing."""
    if any(
        part.content_type.startswith("message/") and "status" in part.content_type
        for part, _ in own_parts(mail.parts)
    ):
        return None
    # A postmaster has holidays too.
    return None if is_titled_as_one(mail) else read_notice(mail)


def _suspects(notice: Notice) -> tuple[str, list[Suspect]]:
    """Whom the text names, and the name of the form in which it does."""
    for form in FORMS:
        opening = form.says.search(notice.text)
        if opening is None:
            continue
        start = opening.start() if form.names.match(opening[0]) else opening.end()
        found = list(form.names.finditer(notice.text, start))[:MOST_SUSPECTS]
        suspects = []
        for place, match in enumerate(found):
            following = found[place + 1].start() if place + 1 < len(found) else len(notice.text)
            suspects.append(_suspect(notice.text, match, following))
        suspects = [suspect for suspect in suspects if is_address(suspect.address)]
        if suspects:
            return form.name, suspects
    return "no known writer", the_only_witnessed(notice)


def _suspect(text: str, match: re.Match[str], following: int) -> Suspect:
    """``following`` is where the next recipient begins."""
    end = _ENDS.search(text, match.end(), following)
    reason = text[match.start() : end.start() if end else following]
    ours = match.groupdict().get("ours") or ""
    return Suspect(match["address"].rstrip("."), reason[:LONGEST_REASON], ours)
