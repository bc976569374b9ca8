"""What the SMTP server saw of each letter, against what the database says of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from campaigns.models import Campaign
from delivery.models import Attempt, Delivery
from tests.delivery.conftest import statuses
from tests.end_to_end.clusters import Killed
from tests.smtp_server import SMTPServer

_RECIPIENT = re.compile(r"RCPT TO:<([^>]*)>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to, in letters."""

    sent: int
    unconfirmed: int
    killed_connections: int

    def __str__(self) -> str:
        return (
            f"{self.sent} sent, {self.unconfirmed} unconfirmed, "
            f"{self.killed_connections} connections were killed"
        )


def prove(
    campaign: Campaign,
    server: SMTPServer,
    killed: Sequence[Killed],
    lost_answers: Collection[str] = (),
) -> Verdict:
    """Lost 0, doubled 0, and each letter in doubt named rightly.

    ``lost_answers``: the readers to whose letters the server gave no final answer. They must be in
    doubt, and beside them at most one letter for each connection of a killed process: the one
    that was at its final dot there.
    """
    taken = Counter(letter.rcpt_to[0] for letter in server.accepted)
    by_status = {
        status: set(Delivery.objects.filter(status=status).values_list("rcpt_to", flat=True))
        for status in statuses(campaign)
    }
    sent, in_doubt = by_status.get("sent", set()), by_status.get("unconfirmed", set())
    assert set(by_status) <= {"sent", "unconfirmed"}
    assert max(taken.values()) == 1, "doubled"
    assert sent <= set(taken), "called sent, and was not taken"
    assert set(taken) <= sent | in_doubt, "taken, and neither sent nor in doubt"
    assert set(lost_answers) <= in_doubt, "had no answer, and is not in doubt"

    by_process = {port: process for process in killed for port in process.ports}
    blamed: Counter[int] = Counter()
    last_tries = _last_tries(server)
    for attempt in Attempt.objects.filter(status="unconfirmed").select_related("delivery"):
        reader = attempt.delivery.rcpt_to
        if attempt.rule != "worker lost":
            assert attempt.rule == "lost after the final dot"
            assert reader in lost_answers, f"{reader}: its answer was given"
            continue
        number = last_tries[reader]
        blamed[number] += 1
        process = by_process.get(server.connections[number - 1].port)
        if process is None:
            # The server had just ended it, and its worker was killed before it could say so.
            assert reader in lost_answers, f"{reader}: nobody was killed who had its connection"
            continue
        assert attempt.reply.endswith(f":{process.pid})"), f"{reader}: not {attempt.reply}"
        assert reader in _at_the_final_dot(server, number), f"{reader}: its dot had not left"
    assert not blamed or max(blamed.values()) == 1, "two letters of one connection in doubt"
    return Verdict(len(sent), len(in_doubt), len(by_process))


def _last_tries(server: SMTPServer) -> dict[str, int]:
    """On which connection each reader was named last."""
    return {
        found[1]: command.connection
        for command in server.commands
        if (found := _RECIPIENT.match(command.line))
    }


def _at_the_final_dot(server: SMTPServer, number: int) -> set[str]:
    """Whose letter may have been at its final dot when a connection ended: the last that was
    taken on it, and the next, if the server had asked for it."""
    tries: list[str] = []
    asked_for: set[str] = set()
    for command in server.commands:
        if command.connection != number:
            continue
        if found := _RECIPIENT.match(command.line):
            tries.append(found[1])
        elif command.verb == "DATA" and tries:
            asked_for.add(tries[-1])
    taken = {letter.rcpt_to[0] for letter in server.accepted if letter.connection == number}
    last = max((n for n, reader in enumerate(tries) if reader in taken), default=-1)
    return {reader for reader in tries[max(last, 0) : last + 2] if reader in asked_for}
