"""manage.py explain_bounce FILE"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from bounces.reading import explain


class Command(BaseCommand):
    help = "Tells which detector answers for a raw mail, and why. Nothing is written."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", help="A mail as it was received (RFC 5322); - reads stdin.")

    def handle(self, *args: Any, **options: Any) -> None:
        for line in explain(_raw(options["file"])).lines():
            self.stdout.write(line)


def _raw(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from error
