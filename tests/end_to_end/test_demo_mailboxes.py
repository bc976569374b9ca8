"""`make demo BOUNCES=...`: the same campaign, and the same numbers, with each kind of mailbox."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from config.demo import dovecot
from config.demo.mailboxes import MailboxError, chosen_mailbox
from tests.end_to_end.test_demo import (
    LONGEST,
    assert_all_gone,
    assert_the_ledger_balances,
    demo,
    pids,
)
from tests.end_to_end.test_demo import ports as ports


@pytest.mark.parametrize(
    ("kind", "started"),
    [
        ("imap", r"Dovecot \(IMAP\) on \d+"),
        ("pop3", r"Dovecot \(POP3\) on \d+"),
        ("graph", r"emulator of Microsoft Graph on \d+"),
    ],
)
def test_a_campaign_whose_bounces_come_to_this_mailbox_has_a_ledger_that_balances(
    kind: str, started: str, tmp_path: Path, ports: tuple[int, int]
) -> None:
    if kind in {"imap", "pop3"} and not dovecot.BINARY:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("No Dovecot is installed.")
    with demo(tmp_path, ports, "--once", "--bounces", kind, readers=200) as process:
        output, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, output
    assert re.search(started, output)
    assert_the_ledger_balances(
        output,
        {
            "sent": "192",
            "sent, then bounced": "6",
            "rejected": "2",
            "Addresses suppressed": "8",
        },
    )
    assert_all_gone(pids(tmp_path), processes=5)


def test_without_a_dovecot_the_demo_says_which_package_it_needs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dovecot, "BINARY", None)
    with pytest.raises(MailboxError, match="dovecot-imapd"), chosen_mailbox("imap", tmp_path):
        pass


def test_a_campaign_sent_and_read_through_graph_equals_the_emulators_own_log(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    with demo(tmp_path, ports, "--once", "--graph", readers=200) as process:
        output, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 0, output
    assert "200 letters compared with the emulator of Microsoft Graph's own log" in output
    assert "SMTP server on" not in output
    assert_the_ledger_balances(
        output,
        {
            "sent": "192",
            "sent, then bounced": "8",
            "rejected": "0",
            "Letters that the emulator of Microsoft Graph accepted": "200",
            "Addresses suppressed": "8",
        },
    )
    assert_all_gone(pids(tmp_path), processes=4)
