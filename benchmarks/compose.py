"""What it costs to write one letter, beside the ways that were not taken.

    python benchmarks/compose.py [--letters 2000] [--rounds 9] [--json]

A letter of 10 KB (text and HTML; first name, unsubscribe link and address merged), one recipient
each. Rounds are interleaved, so that a busy machine is busy for all; printed are the medians and,
first, the ratios, which are what travels to another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django

django.setup()

from django.core.mail import EmailMultiAlternatives  # noqa: E402

from campaigns.letter import Addressee, Letter, LetterSource, audit  # noqa: E402

WORDS = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor à côté. "
PARAGRAPH = f'<p style="margin:0 0 16px;font:16px/1.5 sans-serif">{WORDS * 2}</p>\n'
HTML = (
    "<!DOCTYPE html><html><body><p>Dear {{ first_name | default('reader') }},</p>\n"
    + PARAGRAPH * 29
    + '<p>Sent to {{ email }}. <a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>\n'
)
TEXT = (
    "Dear {{ first_name | default('reader') }},\n\n"
    + f"{WORDS}\n" * 32
    + "\nSent to {{ email }}. Unsubscribe: {{ unsubscribe_url }}\n"
)
SOURCE = LetterSource(
    from_name="Brand",
    from_email="news@example.com",
    reply_to="hello@example.com",
    subject="The news of the week",
    html=HTML,
    text=TEXT,
)


def addressees(count: int) -> list[Addressee]:
    now = datetime.now(UTC)
    return [
        Addressee(
            rcpt_to=f"reader{number}@example.org",
            name=f"Ada Lovelace {number}",
            language="en",
            attributes={"first_name": f"Ada{number}"},
            campaign_id=12,
            list_name="Weekly",
            list_label="weekly",
            message_id=f"<{number:024x}.12@news.example.org>",
            unsubscribe_url=f"https://news.example.org/u/{number:029x}",
            date=now,
        )
        for number in range(count)
    ]


def compiled(source: LetterSource) -> Letter:
    return Letter(source, list_id_domain="news.example.org", sender_id="pennypost")


def headers(addressee: Addressee) -> dict[str, str]:
    return {
        "Reply-To": "<hello@example.com>",
        "Message-ID": addressee.message_id,
        "List-Id": "Weekly <weekly.news.example.org>",
        "Feedback-ID": "c12:weekly:pennypost",
        "List-Unsubscribe": f"<{addressee.unsubscribe_url}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }


def ways() -> dict[str, Callable[[Addressee], bytes]]:
    """The skeleton first; the others are given their rendered parts by the same templates."""
    skeleton = compiled(SOURCE)
    # A block that captures what it holds cannot be encoded beforehand: the general path.
    captured = "{% filter trim %}"
    general = compiled(
        replace(
            SOURCE,
            html=captured + HTML + "{% endfilter %}",
            text=captured + TEXT + "{% endfilter %}",
        )
    )

    def by_django(addressee: Addressee) -> bytes:
        message = EmailMultiAlternatives(
            SOURCE.subject,
            skeleton.render_text(addressee),
            "Brand <news@example.com>",
            [f"{addressee.name} <{addressee.rcpt_to}>"],
            headers=headers(addressee),
        )
        message.attach_alternative(skeleton.render_html(addressee), "text/html")
        return message.message().as_bytes(linesep="\r\n")

    def by_standard_library(addressee: Addressee) -> bytes:
        message = EmailMessage(policy=SMTP)
        message["From"] = "Brand <news@example.com>"
        message["To"] = f"{addressee.name} <{addressee.rcpt_to}>"
        message["Subject"] = SOURCE.subject
        for name, value in headers(addressee).items():
            message[name] = value
        message.set_content(skeleton.render_text(addressee), cte="quoted-printable")
        message.add_alternative(
            skeleton.render_html(addressee), subtype="html", cte="quoted-printable"
        )
        return message.as_bytes()

    return {
        "skeleton (what is sent)": skeleton.render,
        "general path (templates that capture)": general.render,
        "Django EmailMultiAlternatives": by_django,
        "standard library EmailMessage": by_standard_library,
    }


def measure(letters: int, rounds: int) -> dict[str, float]:
    """Microseconds a letter, the median of the rounds, by way."""
    people = addressees(letters)
    contenders = ways()
    for person in people[:3]:
        audit(contenders["skeleton (what is sent)"](person))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _round in range(rounds):
        for name, compose in contenders.items():
            # The slow ones get fewer letters, so that a round is over in seconds.
            some = people if "path" in name or "skeleton" in name else people[: len(people) // 10]
            start = time.perf_counter()
            for person in some:
                compose(person)
            taken[name].append((time.perf_counter() - start) / len(some) * 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--letters", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    options = parser.parse_args()
    size = len(compiled(SOURCE).render(addressees(1)[0]))
    medians = measure(options.letters, options.rounds)
    fastest = next(iter(medians.values()))
    print(f"A letter of {size:,} octets; medians of {options.rounds} interleaved rounds")
    print(f"{'ratio':>8} {'µs a letter':>12}")
    for name, median in medians.items():
        print(f"{median / fastest:8.1f} {median:12.1f}  {name}")
    if options.json:
        print(json.dumps({"octets": size, "microseconds": medians}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
