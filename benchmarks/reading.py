"""How well and how fast bounces are read: the corpus of tests/samples by one command.

    python benchmarks/reading.py [--json]

Counts, of the samples with an expected report beside them: those with a status part and those in
words that are read exactly (recipient, action, status, class), as they are and in eight other
encodings; how many of the mails that are no bounce mark somebody, and how many of all samples do
when they are passed on in twelve ways. Then the time to read each sample with all detectors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, quantiles

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
os.environ.setdefault("LOG_LEVEL", "ERROR")
ROUNDS = 10


def correctness() -> dict[str, str]:
    from bounces.reading import read_bounce
    from tests.bounces.forwarding import WAYS
    from tests.bounces.reencodings import ALL, HARMLESS
    from tests.bounces.samples import SAMPLES, expected
    from tests.bounces.test_samples import read

    raws = {sample: sample.read_bytes() for sample in SAMPLES}
    positive = [sample for sample in SAMPLES if expected(sample)]
    negative = [sample for sample in SAMPLES if not expected(sample)]
    status = [s for s in positive if b"delivery-status" in raws[s].replace(b"report-type=", b"")]
    words = [s for s in positive if s not in status]
    encoded = [(s, way) for s in positive for way in ALL]
    harmless = [(s, way) for s in negative for way in [bytes, *HARMLESS]]
    forwarded = [(s, way) for s in SAMPLES for way in WAYS]

    def share(good: int, of: int) -> str:
        return f"{good} of {of} ({100 * good / of:.1f} %)"

    def exact(samples: list[Path]) -> str:
        return share(sum(read(raws[s]) == expected(s) for s in samples), len(samples))

    return {
        "samples": str(len(SAMPLES)),
        "reports_with_status_part_read_exactly": exact(status),
        "reports_in_words_and_complaints_read_exactly": exact(words),
        "re_encoded_in_eight_ways_read_exactly": share(
            sum(read(way(raws[s])) == expected(s) for s, way in encoded), len(encoded)
        ),
        "no_bounces": str(len(negative)),
        "no_bounces_in_six_encodings_that_mark_somebody": share(
            sum(bool(read_bounce(way(raws[s]))) for s, way in harmless), len(harmless)
        ),
        "passed_on_in_twelve_ways_that_mark_somebody": share(
            sum(bool(read_bounce(way(raws[s]))) for s, way in forwarded), len(forwarded)
        ),
    }


def speed() -> dict[str, str]:
    from bounces.reading import read_bounce

    samples = [path.read_bytes() for path in sorted((HERE / "tests/samples").glob("*.eml"))]
    took = []
    for raw in samples:
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            read_bounce(raw)
        took.append((time.perf_counter() - begin) / ROUNDS * 1000)
    return {
        "mean_ms": f"{mean(took):.3f}",
        "95_of_100_within_ms": f"{quantiles(took, n=20)[-1]:.3f}",
        "slowest_ms": f"{max(took):.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import django

    django.setup()
    found = correctness() | speed()
    if args.json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:48} {value}")


if __name__ == "__main__":
    main()
