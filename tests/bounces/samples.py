"""The sample mails of tests/samples, and the expected report beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "samples"
SAMPLES = sorted(FOLDER.glob("*.eml"))


def expected(sample: Path) -> list[dict[str, Any]] | None:
    """The reports beside a sample; None: no detector may know the mail."""
    reports: list[dict[str, Any]] | None = json.loads(sample.with_suffix(".json").read_text())[
        "reports"
    ]
    return reports


def raw_sample(name: str) -> bytes:
    """A sample by its name without the number."""
    (path,) = FOLDER.glob(f"[0-9]*-{name}.eml")
    return path.read_bytes()
