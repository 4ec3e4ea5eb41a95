"""Languages against py3langid and lingua: CPU seconds on the same paragraphs, and how many are named right.

The gold is `udhr/` (3,423 paragraphs in 58 languages). Bars: at least 8 times cheaper than py3langid and 50 times than
lingua in its low accuracy mode, at least 98.5 % right. Loading a model is not counted.

    python -m benchmarks.data.language [--peer-python PATH]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLD = Path(__file__).parent / "udhr" / "paragraphs.jsonl.gz"
BARS = {"py3langid": 8.0, "lingua, low": 50.0}
ACCURACY = 0.985
_READ = """
import gzip, json, sys, time
rows = [json.loads(line) for line in gzip.open(sys.argv[1])]
texts, gold = [r["text"] for r in rows], [r["language"] for r in rows]
def told(guess, step=1):
    guess(texts[::31])
    began = time.process_time()
    found = guess(texts[::step])
    cpu = time.process_time() - began
    right = sum(a == b for a, b in zip(found, gold[::step]))
    print(json.dumps({"rows": len(found), "cpu_s": cpu, "right": right / len(found)}))
"""
OURS = (
    _READ
    + """
from app.datasets.steps.language import guesses
told(lambda texts: [g.language for g in guesses(texts)])
"""
)
PY3LANGID = (
    _READ
    + """
from py3langid import langid
model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
told(lambda texts: [model.classify(t)[0] for t in texts])
"""
)
LINGUA = (
    _READ
    + """
from lingua import LanguageDetectorBuilder
model = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().with_preloaded_language_models().build()
def name(found):
    return {"nb": "no", "nn": "no"}.get(code := found.iso_code_639_1.name.lower(), code) if found else ""
told(lambda texts: [name(model.detect_language_of(t)) for t in texts], 3)
"""
)


def measure(python: str, program: str) -> dict[str, Any] | None:
    """Rows, CPU seconds and the share that is right, as the program tells; None when it cannot run."""
    done = subprocess.run(
        [python, "-c", program, str(GOLD)], capture_output=True, text=True, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr[-600:])
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(peer_python: str) -> list[dict[str, Any]]:
    """One dict a line of the table: who, rows, cpu_s, right, ratio of CPU a row, bar, verdict."""
    ours = measure(sys.executable, OURS)
    assert ours is not None
    per_row = ours["cpu_s"] / ours["rows"]
    table = [{"who": "ours", **ours, "verdict": "met" if ours["right"] >= ACCURACY else "missed"}]
    for who, program in (("py3langid", PY3LANGID), ("lingua, low", LINGUA)):
        peer = measure(peer_python, program) if peer_python else None
        if peer is None:
            table.append({"who": who, "verdict": "not run", "bar": BARS[who]})
            continue
        ratio = peer["cpu_s"] / peer["rows"] / per_row
        table.append(
            {"who": who, **peer, "ratio": ratio, "bar": BARS[who], "verdict": "met" if ratio >= BARS[who] else "missed"}
        )
    return table


def run(bench: Any) -> list[Any]:
    """The lines of this part for `benchmarks/data_throughput.py`."""
    from benchmarks.data.bench import Row

    return [
        Row(
            "language", line["who"], line.get("cpu_s"), ratio=line.get("ratio"), verdict=line["verdict"],
            bar=f">= {line['bar']:g}" if "bar" in line else "",
            note=f"({line['right']:.1%} right, {line['rows']} rows)" if "right" in line else "",
        )
        for line in lines(str(bench.peers or ""))
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default="", help="a Python with py3langid and lingua-language-detector")
    table = lines(parser.parse_args().peer_python)
    for line in table:
        print(json.dumps(line))
    return 1 if any(line["verdict"] == "missed" for line in table) else 0


if __name__ == "__main__":
    sys.exit(main())
