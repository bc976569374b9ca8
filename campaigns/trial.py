"""Typesetting and a first trial of a letter, in a child process that may die.

What an author writes can exhaust memory (``{% set a = a ~ a %}`` thirty times) or overflow the
stack of an HTML parser, and both end a Python process at once, past every ``except``. So a letter
is made ready in a child with little memory and little time (README.md, Decisions), and only what
comes back from it is ever compiled in a worker or a web process.

The child gets a job as JSON on its standard input and writes a result as JSON on its standard
output. It has no environment variables, so nothing in it can be read from a template.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaigns.inlining import inline_css
from campaigns.merge import LARGEST_TEMPLATE, LONGEST_VALUE, LetterError, MergeTemplate
from campaigns.plain_text import text_of_html

MEMORY = 512 * 1024 * 1024  # octets of address space; an idle child has 60 to 200 MB of it
STACK = 2 * 1024 * 1024  # octets, a quarter of a worker's: what fits here has room to spare there
CPU_SECONDS = 1
WALL_SECONDS = 5.0  # the processor's seconds are what is scarce; a busy machine may hand them late
_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Manuscript:
    """A letter as its author wrote it. ``text``: empty when it is to be made from the HTML."""

    subject: str
    preheader: str
    html: str
    text: str


@dataclass(frozen=True, slots=True)
class Typeset:
    """A letter ready to be frozen: CSS inlined, preheader in place, text part made."""

    html: str
    text: str


def typeset(manuscript: Manuscript, samples: list[dict[str, str]] | None = None) -> Typeset:
    """Makes a letter ready and renders it for ``samples`` (merge values of some readers), all in a
    child process. LetterError with the reason when that fails, or costs too much.
    """
    for part, source in asdict(manuscript).items():
        if len(source) > LARGEST_TEMPLATE:
            raise LetterError(f"{part}: larger than {LARGEST_TEMPLATE // 1024} KB")
    answer = _in_child(json.dumps({"manuscript": asdict(manuscript), "samples": samples or []}))
    if "error" in answer:
        raise LetterError(answer["error"])
    return Typeset(answer["html"], answer["text"])


def _in_child(job: str) -> dict[str, str]:
    try:
        child = subprocess.run(
            [sys.executable, "-m", "campaigns.trial"],
            input=job.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=_PROJECT,
            env={},
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": "the letter takes too long to render"}
    if child.returncode:
        return {"error": "the letter takes too much memory or time to render"}
    answer: dict[str, str] = json.loads(child.stdout)
    return answer


# ---------------------------------------------------------------------------------- in the child


def main() -> int:
    """Reads a job, writes its result. Any exit status but 0 means that a limit was hit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(result_of(json.load(sys.stdin)), sys.stdout)
    return 0


def result_of(job: dict[str, Any]) -> dict[str, str]:
    """What a job comes to, made here and now: only for a process that may die of it."""
    try:
        return asdict(_typeset(Manuscript(**job["manuscript"]), job["samples"]))
    except LetterError as error:
        return {"error": str(error)}


def _typeset(manuscript: Manuscript, samples: list[dict[str, str]]) -> Typeset:
    # The author's own templates first: their errors name lines that the author knows.
    _try("subject", manuscript.subject, samples)
    _try("preheader", manuscript.preheader, samples)
    _try("HTML", manuscript.html, samples, html=True)
    ready = Typeset(
        inline_css(manuscript.html, manuscript.preheader),
        manuscript.text or text_of_html(manuscript.html),
    )
    _try("HTML", ready.html, samples, html=True)
    _try("text", ready.text, samples)
    return ready


def _try(part: str, source: str, samples: list[dict[str, str]], *, html: bool = False) -> None:
    template = MergeTemplate(part, source, html=html)
    for values in [{}, *samples]:
        template.render_encoded(values)
    _render_for_the_greatest_reader(template)


def _render_for_the_greatest_reader(part: MergeTemplate) -> None:
    """Every name that the template mentions, as long as a value can be: what doubles a short
    name may well pass, and would end the worker at the first long one."""
    values: Mapping[str, str] = dict.fromkeys(part.identifiers, "x" * LONGEST_VALUE)
    try:
        part.render(values)
    except LetterError:
        return  # too large for sending, or no number where one is expected: no danger to a process


if __name__ == "__main__":
    sys.exit(main())
