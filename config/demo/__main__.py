"""python -m config.demo [--once] [--bounces KIND]: all of Pennypost at work, on this machine alone.

Exit status: 0 when the ledger balances and equals the SMTP server's log, 1 when it does not or
something failed (the text says what), 130 and 143 when it was ended before by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from config.demo.folder import BASE_DIR, Folder, FolderInUseError, shown
from config.demo.mailboxes import KINDS, DemoMailbox, MailboxError, chosen_mailbox
from config.demo.ports import free_port
from config.demo.processes import ChildError, Children
from config.demo.show import Show, ShowError
from config.demo.terminal import BOLD, GREY, RED, Terminal

WEB_PORT, SMTP_PORT = 8000, 2525


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    terminal = Terminal()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # The children are started with paths of this project, wherever make was called.
    os.chdir(BASE_DIR)
    try:
        kind = "graph" if options.graph else options.bounces
        with (
            Folder.usual() as folder,
            chosen_mailbox(
                kind, folder.bounces, folder.smtp_log if options.graph else None
            ) as mailbox,
        ):
            return run(options, terminal, folder, mailbox)
    except (FolderInUseError, MailboxError, ChildError, ShowError, OSError) as error:
        try:
            terminal.keep()
            terminal.line(terminal.paint(str(error), RED))
        except OSError:
            # Nobody reads any more (`make demo | head`, a closed terminal): no last words either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        terminal.keep()
        return 130


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m config.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the ledger")
    parser.add_argument(
        "--bounces", choices=KINDS, default="maildir", help="the mailbox that reports come to"
    )
    parser.add_argument(
        "--graph", action="store_true",
        help="send and read through the emulator of Microsoft Graph instead of SMTP",
    )  # fmt: skip
    parser.add_argument("--web-port", type=int, default=WEB_PORT, help="or the next free one")
    parser.add_argument("--smtp-port", type=int, default=SMTP_PORT, help="or the next free one")
    return parser.parse_args(arguments)


def end(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: through every ``finally``."""
    sys.exit(128 + number)


def run(
    options: argparse.Namespace, terminal: Terminal, folder: Folder, mailbox: DemoMailbox
) -> int:
    """The demo in its folder; the exit status."""
    began = time.monotonic()
    terminal.line(terminal.paint("Pennypost: one campaign, from import to bounce", BOLD))
    terminal.line(
        terminal.paint(
            f"Nothing leaves this machine. Each run starts afresh in {shown(folder.path)}.", GREY
        )
    )
    terminal.line()
    folder.make_fresh()
    web_port = chosen(terminal, "web server", options.web_port)
    smtp_port = chosen(terminal, "SMTP server", options.smtp_port, but_not=web_port)
    environment = folder.environment(web_port, smtp_port, mailbox.entry, mailbox.provider)
    # This process is one of those that live in it: it uses the product's own functions.
    os.environ.clear()
    os.environ.update(environment)
    with Children(environment, folder.log, [folder.lock_descriptor]) as children:
        show = Show(terminal, folder, children, mailbox, web_port, smtp_port)
        try:
            show.perform()
            terminal.line()
            terminal.line(terminal.paint(f"All of it took {time.monotonic() - began:.0f} s.", GREY))
            if not options.once:
                show.stay_open()
        except KeyboardInterrupt:
            terminal.keep()
            if show.holds is None:
                raise
        finally:
            if not options.once:
                terminal.line("Stopping everything ...")
    return 0 if show.holds else 1


def chosen(terminal: Terminal, name: str, preferred: int, but_not: int | None = None) -> int:
    """The preferred port, or another one, which is said."""
    port = free_port(preferred, but_not)
    if port != preferred:
        terminal.line(f"  Port {preferred} is in use: the {name} takes {port}.")
    return port


if __name__ == "__main__":
    sys.exit(main())
