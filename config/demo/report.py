"""The delivery status notification (RFC 3464) that a mail server writes to a letter's return path,
and its way into a Maildir, as a local delivery agent does it."""

from __future__ import annotations

import itertools
import os
import socket
import time
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

_deliveries = itertools.count(1)

REPORT = """\
Return-Path: <>
X-Original-To: {return_path}
Delivered-To: {return_path}
Received: by {host} (Postoffice) id {report_id}; {date}
Date: {date}
From: Mail Delivery System <MAILER-DAEMON@{host}>
To: {return_path}
Subject: Undelivered Mail Returned to Sender
Message-ID: <{report_id}@{host}>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="{boundary}"
Content-Transfer-Encoding: 7bit

This is a MIME-encapsulated message.

--{boundary}
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail server at {host}.

Your letter could not be delivered to the reader below, and no
further attempt will be made. The letter's header is attached.

<{recipient}>: host mailstore.{host} said:
    {diagnostic}

--{boundary}
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; {host}
X-Postoffice-Queue-ID: {queue_id}
X-Postoffice-Sender: rfc822; {return_path}
Arrival-Date: {date}

Final-Recipient: rfc822; {recipient}
Original-Recipient: rfc822; {recipient}
Action: failed
Status: 5.1.1
Remote-MTA: dns; mailstore.{host}
Diagnostic-Code: smtp; {diagnostic}

--{boundary}
Content-Description: Undelivered letter's header
Content-Type: text/rfc822-headers
Content-Transfer-Encoding: 7bit

"""


def non_delivery_report(
    *,
    host: str,
    return_path: str,
    recipient: str,
    letter: bytes,
    queue_id: str,
    at: datetime,
) -> bytes:
    """The report that ``recipient``'s mailbox does not exist, with LF line ends, as on disk.

    ``letter`` is the whole letter; its header goes back with the report, its body does not.
    """
    boundary = f"{queue_id}.{at:%H%M%S}/{host}"
    head = REPORT.format(
        host=host,
        return_path=return_path,
        recipient=recipient,
        queue_id=queue_id,
        report_id=f"R{queue_id}",
        date=format_datetime(at),
        boundary=boundary,
        diagnostic=f"550 5.1.1 <{recipient}>: User unknown",
    )
    header = letter.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n")
    return head.encode("ascii") + header + f"\n\n--{boundary}--\n".encode()


def make_maildir(maildir: Path) -> None:
    """Makes the three folders of a Maildir."""
    for folder in ("tmp", "new", "cur"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)


def deliver(mail: bytes, maildir: Path) -> Path:
    """Puts a mail into a Maildir: written whole in tmp/, then moved; nobody reads half of it."""
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    name = f"{time.time_ns() // 1000}.P{os.getpid()}Q{next(_deliveries)}.{host}"
    unfinished = maildir / "tmp" / name
    with unfinished.open("xb") as file:
        file.write(mail)
        file.flush()
        os.fsync(file.fileno())
    return unfinished.rename(maildir / "new" / name)
