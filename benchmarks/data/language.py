"""Languages against py3langid and lingua: CPU seconds on the same ordinary rows, and the share named right.

Speed: the answers of the made rows, the dearer a peer the fewer of them. Right: `udhr/`, 3,423 paragraphs in 58
languages. Bars: at least 8 times cheaper a row than py3langid and 50 times than lingua in its low accuracy mode, at
least 98.5 % right. Loading a model is not counted.

    python -m benchmarks.data.language [--peers FOLDER]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data.bench import ROOT, Bench, Row

GOLD = Path(__file__).parent / "udhr" / "paragraphs.jsonl.gz"
BARS = {"py3langid": 8.0, "lingua, low": 50.0}
ACCURACY = 0.985
_READ = """
import gzip, json, sys, time
made = [json.loads(line) for line in gzip.open(sys.argv[1])]
texts, gold = [r["text"] for r in made], [r["language"] for r in made]
def told(guess, step=1, gold_step=1):
    rows = []
    for number, line in enumerate(open(sys.argv[2])):
        if number % step == 0:
            rows.append(json.loads(line)["answer"])
    guess(texts[::31] + rows[:100])
    began = time.process_time()
    guess(rows)
    cpu = time.process_time() - began
    found = guess(texts[::gold_step])
    right = sum(a == b for a, b in zip(found, gold[::gold_step]))
    print(json.dumps({"rows": len(rows), "cpu_s": cpu, "right": right / len(found)}))
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
told(lambda texts: [model.classify(t)[0] for t in texts], 5)
"""
)
LINGUA = (
    _READ
    + """
from lingua import LanguageDetectorBuilder
model = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().with_preloaded_language_models().build()
def name(found):
    return {"nb": "no", "nn": "no"}.get(code := found.iso_code_639_1.name.lower(), code) if found else ""
told(lambda texts: [name(model.detect_language_of(t)) for t in texts], 20, 3)
"""
)


def measure(python: str, program: str, rows: Path) -> dict[str, Any] | None:
    """Rows, CPU seconds and the share that is right, as the program tells; None when it cannot run."""
    done = subprocess.run(
        [python, "-c", program, str(GOLD), str(rows)], capture_output=True, text=True, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr[-600:])
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(bench: Bench) -> list[Row]:
    """The lines of this part for `benchmarks/data_throughput.py`."""
    ours = measure(sys.executable, OURS, bench.jsonl())
    if ours is None:
        return [Row("language", "ours", verdict="missed", note="(failed)")]
    verdict = "met" if ours["right"] >= ACCURACY else "missed"
    table = [Row("language", "ours", ours["cpu_s"], bar="98.5 %", verdict=verdict, note=_note(ours))]
    python, why = bench.python()
    for who, program in (("py3langid", PY3LANGID), ("lingua, low", LINGUA)):
        peer = measure(python, program, bench.jsonl()) if python else None
        if peer is None:
            table.append(bench.not_run("language", who, BARS[who], why or "failed"))
            continue
        ratio = peer["cpu_s"] / peer["rows"] / (ours["cpu_s"] / ours["rows"])
        verdict = bench.verdict(ratio >= BARS[who])
        bar = f">= {BARS[who]:g}"
        table.append(Row("language", who, peer["cpu_s"], ratio=ratio, bar=bar, verdict=verdict, note=_note(peer)))
    return table


def _note(found: dict[str, Any]) -> str:
    return f"({found['rows']:,} rows, {found['rows'] / found['cpu_s']:,.0f} rows/CPU s; {found['right']:.1%} right)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--set", default="k100")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = run(Bench(Path(folder), False, given.set, given.peers))
    for line in table:
        print(line)
    return int(any(line.verdict == "missed" for line in table))


if __name__ == "__main__":
    sys.exit(main())
