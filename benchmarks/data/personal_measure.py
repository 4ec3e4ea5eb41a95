"""How many made items each detector of personal data finds, and how many decoys it hits; kept beside the detectors.

    python -m benchmarks.data.personal_measure --write

The Clean page shows these figures, and a test measures them again.
"""

import sys
from pathlib import Path
from typing import Any

import orjson

from app.datasets.steps.personal import KINDS, found
from benchmarks.data.personal_items import ITEMS, SEED, decoys, items

STORED = Path("app/datasets/steps/personal_measured.json")


def measure(n: int = ITEMS) -> dict[str, Any]:
    """Per kind: items, how many were found, how many at exactly the right place, how many decoys were hit."""
    hits = [span.kind for spans in found([item.text for item in decoys(n)]).values() for span in spans]
    kinds = {}
    for kind in KINDS:
        made = list(items(kind, n))
        spans = found([item.text for item in made])
        right = [
            [s for s in spans.get(place, []) if s.kind == kind and s.start < item.end and s.end > item.start]
            for place, item in enumerate(made)
        ]
        kinds[kind] = {
            "items": n,
            "found": sum(map(bool, right)),
            "exact": sum(
                any((s.start, s.end) == (i.start, i.end) for s in r) for i, r in zip(made, right, strict=True)
            ),
            "decoys_hit": hits.count(kind),
        }
    return {"seed": SEED, "decoys": n, "kinds": kinds}


if __name__ == "__main__":
    result = orjson.dumps(measure(), option=orjson.OPT_INDENT_2) + b"\n"
    if "--write" in sys.argv:
        STORED.write_bytes(result)
    sys.stdout.buffer.write(result)
