"""Personal data against presidio's recognisers: CPU seconds and hits on the same made items and real rows.

The same six kinds (e-mail, phone, card, IBAN, IP, SSN), no language model on either side. Bars: at least 10 times
cheaper, hits within 1 point of theirs or better for each kind.

    python -m benchmarks.data.personal [--peer-python PATH] [--rows FILE.jsonl]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data.bench import ROOT, Bench, Row
from benchmarks.data.personal_items import ITEMS, decoys, items

SHARED = ("email", "phone", "card", "iban", "ip", "ssn")
BAR, POINTS = 10.0, 0.01
_READ = """
import json, sys, time
made = json.load(open(sys.argv[1]))
def told(find):
    find([m["text"] for m in made["items"][:50]])
    began = time.process_time()
    found = find([m["text"] for m in made["items"]])
    plain = find(made["rows"])
    cpu = time.process_time() - began
    hits, total, wrong = {}, {}, 0
    for item, spans in zip(made["items"], found):
        if not item["kind"]:
            wrong += bool(spans)
            continue
        total[item["kind"]] = total.get(item["kind"], 0) + 1
        hits[item["kind"]] = hits.get(item["kind"], 0) + any(
            k == item["kind"] and s < item["end"] and e > item["start"] for k, s, e in spans)
    print(json.dumps({"rows": len(found) + len(plain), "cpu_s": cpu, "decoys_hit": wrong,
                      "share": {k: hits[k] / total[k] for k in total}}))
"""
OURS = (
    _READ
    + """
from app.datasets.steps.personal import found
KINDS = ("email", "phone", "card", "iban", "ip", "ssn")
def find(texts):
    spans = found(texts, KINDS)
    return [[tuple(s) for s in spans.get(i, [])] for i in range(len(texts))]
told(find)
"""
)
PRESIDIO = (
    _READ
    + """
import logging
logging.disable(logging.CRITICAL)
from presidio_analyzer import predefined_recognizers as p
REST = (("email", p.EmailRecognizer()), ("phone", p.PhoneRecognizer()), ("card", p.CreditCardRecognizer()),
        ("iban", p.IbanRecognizer()), ("ip", p.IpRecognizer()), ("ssn", p.UsSsnRecognizer()))
def find(texts):
    return [
        [(k, f.start, f.end) for k, r in REST for f in r.analyze(t, r.supported_entities, None) or () if f.score >= 0.4]
        for t in texts
    ]
told(find)
"""
)


def measure(python: str, program: str, rows: list[str]) -> dict[str, Any] | None:
    """What the program tells about the made items and `rows`; None when it cannot run."""
    made = [item._asdict() for kind in SHARED for item in items(kind)] + [item._asdict() for item in decoys(ITEMS)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"items": made, "rows": rows}, file)
        file.flush()
        done = subprocess.run(
            [python, "-c", program, file.name], capture_output=True, text=True, cwd=ROOT, check=False,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr[-600:])
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(peer_python: str, rows: list[str], why: str = "") -> list[dict[str, Any]]:
    """One dict a line of the table: who, rows, cpu_s, share found per kind, decoys hit, ratio, verdict, why not run."""
    ours = measure(sys.executable, OURS, rows)
    assert ours is not None
    peer = measure(peer_python, PRESIDIO, rows) if peer_python else None
    if peer is None:
        return [
            {"who": "ours", **ours, "verdict": "measured"},
            {"who": "presidio", "verdict": "not run", "bar": BAR, "why": why or "failed"},
        ]
    ratio = peer["cpu_s"] / ours["cpu_s"]
    is_near = all(ours["share"][kind] >= peer["share"][kind] - POINTS for kind in SHARED)
    return [
        {"who": "ours", **ours, "verdict": "met" if is_near else "missed"},
        {"who": "presidio", **peer, "ratio": ratio, "bar": BAR, "verdict": "met" if ratio >= BAR else "missed"},
    ]


def run(bench: Bench) -> list[Row]:
    """The lines of this part for `benchmarks/data_throughput.py`."""
    with bench.jsonl().open() as source:
        rows = [json.loads(line)["answer"] for line, _number in zip(source, range(5000), strict=False)]
    return [
        Row(
            "personal data", line["who"], line.get("cpu_s"), ratio=line.get("ratio"),
            verdict="measured" if bench.is_quick and "ratio" in line else line["verdict"],
            bar=f">= {line['bar']:g}" if "bar" in line else "within 1",
            note=f"({_words(line)})" if "share" in line else f"({line['why']})",
        )
        for line in lines(*_python(bench, rows))
    ]  # fmt: skip


def _python(bench: Bench, rows: list[str]) -> tuple[str, list[str], str]:
    python, why = bench.python()
    return python, rows, why


def _words(line: dict[str, Any]) -> str:
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in line["share"].items())
    return f"{line['rows']:,} texts; {shares}; {line['decoys_hit']} of {ITEMS} decoys hit"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default="", help="a Python with presidio-analyzer")
    parser.add_argument(
        "--rows", type=Path, help="real rows beside the items: JSON lines, all strings of each are read"
    )
    given = parser.parse_args()
    rows = []
    if given.rows:
        for line in given.rows.read_text("utf-8").splitlines():
            rows.append(" ".join(str(value) for value in json.loads(line).values()))
    table = lines(given.peer_python, rows)
    for line in table:
        print(json.dumps(line))
    return 1 if any(line["verdict"] == "missed" for line in table) else 0


if __name__ == "__main__":
    sys.exit(main())
