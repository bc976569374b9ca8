"""One run of another Django sender, in the configuration that its documentation calls fast.

    DATABASE_URL=postgres://... python benchmarks/peers.py post_office \\
        --recipients 5000 --processes 4 --smtp HOST:PORT

Run by side_by_side.py with a virtualenv that holds the peers (requirements-peers.txt); nothing of
Pennypost is imported but the text of the letter. The last line is JSON: ``enqueue_s``, ``send_s``,
``recorded`` (None for one that stores nothing) and ``mb``, the memory of its largest process.

- ``post_office``: send_many() fills the queue, send_queued_mail sends: large batches, one thread
  a process (more are slower: Python is busy, not waiting), log of failures only, kept connections.
- ``mailer``: its backend fills the queue in one bulk_create, send_all() in each process: without
  the file lock, so that they share the queue by row locks.
- ``send_mass_mail``: EmailMultiAlternatives over one kept connection a process, a share of the
  readers each. Nothing is queued and nothing stored.

The letters are filled by Django templates that were compiled once, for all three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import newsletter

CHUNK = 1000
Run = Callable[[int, int], tuple[float, float, int | None]]


def configure(smtp: str, peer: str) -> None:
    import dj_database_url
    import django
    from django.conf import settings

    host, _, port = smtp.rpartition(":")
    apps = {"post_office": ["post_office"], "mailer": ["mailer"], "send_mass_mail": []}[peer]
    settings.configure(
        SECRET_KEY="of a benchmark",
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DATABASES={"default": dj_database_url.config()},
        INSTALLED_APPS=["django.contrib.contenttypes", *apps],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        EMAIL_HOST=host,
        EMAIL_PORT=int(port),
        EMAIL_BACKEND="mailer.backend.DbBackend"
        if peer == "mailer"
        else "django.core.mail.backends.smtp.EmailBackend",
        POST_OFFICE={
            "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
            "BATCH_SIZE": 5000,
            "THREADS_PER_PROCESS": 1,
            "LOG_LEVEL": 1,
            "BATCH_DELIVERY_TIMEOUT": 1800,
        },
        MAILER_EMAIL_BACKEND="django.core.mail.backends.smtp.EmailBackend",
        MAILER_USE_FILE_LOCK=False,
        MAILER_MESSAGES_BATCH_SIZE=CHUNK,
        LOGGING_CONFIG=None,
    )
    django.setup()


def letters(numbers: range) -> Iterator[tuple[str, str, str, str]]:
    """Recipient, text, HTML and unsubscribe address of each reader."""
    from django.template import Context, Template

    html = Template(newsletter.HTML.replace(" | default('reader')", ""))
    text = Template(newsletter.TEXT.replace(" | default('reader')", ""))
    for number in numbers:
        address = f"reader{number}@example.org"
        link = f"https://news.example.org/u/{number:029x}"
        context = {"first_name": f"Ada{number}", "email": address, "unsubscribe_url": link}
        yield address, text.render(Context(context)), html.render(Context(context)), link


def messages(numbers: range) -> Iterator[object]:
    from django.core.mail import EmailMultiAlternatives

    sender = f"{newsletter.FROM_NAME} <{newsletter.FROM_EMAIL}>"
    for address, text, html, link in letters(numbers):
        headers = {"List-Unsubscribe": f"<{link}>"}
        message = EmailMultiAlternatives(
            newsletter.SUBJECT, text, sender, [address], headers=headers
        )
        message.attach_alternative(html, "text/html")
        yield message


def in_processes(count: int, work: Callable[[int], object]) -> None:
    """Each with a connection of its own to the database."""
    from django.db import connections

    connections.close_all()
    if count == 1:
        work(0)
        return
    started = [
        multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            sys.exit(f"a process ended with {process.exitcode}")


def post_office(recipients: int, processes: int) -> tuple[float, float, int | None]:
    from post_office import mail
    from post_office.models import STATUS, Email

    Email.objects.all().delete()
    sender = f"{newsletter.FROM_NAME} <{newsletter.FROM_EMAIL}>"
    began = time.perf_counter()
    for start in range(0, recipients, CHUNK):
        mail.send_many(
            [
                {
                    "recipients": [address],
                    "sender": sender,
                    "subject": newsletter.SUBJECT,
                    "message": text,
                    "html_message": html,
                    "headers": {"List-Unsubscribe": f"<{link}>"},
                }
                for address, text, html, link in letters(
                    range(start, min(start + CHUNK, recipients))
                )
            ]
        )
    filled = time.perf_counter()
    mail.send_queued_mail_until_done(processes=processes)
    ended = time.perf_counter()
    return filled - began, ended - filled, Email.objects.filter(status=STATUS.sent).count()


def mailer(recipients: int, processes: int) -> tuple[float, float, int | None]:
    from django.core.mail import get_connection
    from mailer.engine import send_all
    from mailer.models import RESULT_SUCCESS, Message, MessageLog

    Message.objects.all().delete()
    MessageLog.objects.all().delete()
    began = time.perf_counter()
    queue = get_connection()
    for start in range(0, recipients, CHUNK):
        queue.send_messages(list(messages(range(start, min(start + CHUNK, recipients)))))
    filled = time.perf_counter()
    in_processes(processes, lambda _number: send_all())
    ended = time.perf_counter()
    sent = MessageLog.objects.filter(result=RESULT_SUCCESS).count()
    return filled - began, ended - filled, sent


def _send_share(recipients: int, processes: int, number: int) -> None:
    from django.core.mail import get_connection

    connection = get_connection()
    connection.open()
    mine = range(number * recipients // processes, (number + 1) * recipients // processes)
    for start in range(mine.start, mine.stop, CHUNK):
        connection.send_messages(list(messages(range(start, min(start + CHUNK, mine.stop)))))
    connection.close()


def send_mass_mail(recipients: int, processes: int) -> tuple[float, float, int | None]:
    began = time.perf_counter()
    in_processes(processes, partial(_send_share, recipients, processes))
    return 0.0, time.perf_counter() - began, None


PEERS: dict[str, Run] = {
    "post_office": post_office,
    "mailer": mailer,
    "send_mass_mail": send_mass_mail,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--recipients", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--smtp", required=True, metavar="HOST:PORT")
    args = parser.parse_args()
    # Peers that keep a lock file keep it in the current folder.
    os.environ.setdefault("DATABASE_URL", "sqlite:///peers.sqlite3")
    configure(args.smtp, args.peer)
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    enqueue, send, recorded = PEERS[args.peer](args.recipients, args.processes)
    size = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(
        json.dumps(
            {
                "enqueue_s": round(enqueue, 3),
                "send_s": round(send, 3),
                "recorded": recorded,
                "mb": size // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
