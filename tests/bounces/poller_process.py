"""Pollers as processes of their own, without the seconds that Django takes to start for each.

    python -m tests.bounces.poller_process

Reads commands from its input, a line each. "poll" forks a process that runs `manage.py
poll_bounces` and answers with its id; "wait ID" waits for its end and answers with its status, and
with the most octets that it or its own children held.
"""

from __future__ import annotations

import os
import sys
from io import StringIO

import django
from django.core.management import call_command


def main() -> None:
    django.setup()
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "poll":
            # Nothing is open yet that a child could share with its parent.
            pid = os.fork()
            if not pid:
                poll()
            tell(pid)
        elif command == "wait":
            _, status, used = os.wait4(int(argument), 0)
            tell(status, used.ru_maxrss * 1024)


def tell(*numbers: int) -> None:
    sys.stdout.write(f"{' '.join(map(str, numbers))}\n")
    sys.stdout.flush()


def poll() -> None:
    status = 1
    try:
        call_command("poll_bounces", stdout=StringIO())
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
