"""Exact copies against pandas' duplicated and datasets' map and filter. Bars: at least 3 and 50 times cheaper.

Counted whole, from an Arrow table in memory to the rows that are copies: ours from the tables of a working set, as
every step gets its rows, with bringing them into batches; pandas from a table of the same questions and answers, with
bringing it into a frame; datasets from its own Arrow file. A million rows, as the bars were set on; the least of five
turns (datasets: one), without reading the file and loading the libraries, which would take longer than all three.
"""

import json
import sys
from pathlib import Path

from benchmarks.data.bench import Bench, Row, measured

PART, ROWS = "exact copies", "m1"
_TOLD = r"""
import json, sys, time
def told(rows, copies, turns=5):
    took = []
    for _ in range(turns):
        began = time.process_time()
        found = copies(rows)
        took.append(time.process_time() - began)
    print(json.dumps({"copies": found, "work_s": min(took)}))
"""
OURS = (
    _TOLD
    + r"""
import pyarrow.parquet as pq
from benchmarks.data.ours import exact, working_set
told(working_set(pq.read_table(sys.argv[1])), exact)
"""
)
PANDAS = (
    _TOLD
    + r"""
import pyarrow.parquet as pq
def copies(rows):
    found = rows.to_pandas().duplicated(["question", "answer"])
    return len(found.index[found])
told(pq.read_table(sys.argv[1]), copies)
"""
)
DATASETS = (
    _TOLD
    + r"""
import hashlib
from datasets import disable_caching, load_dataset
disable_caching()
def copies(rows):
    keyed = rows.map(lambda row: {"key": hashlib.md5((row["question"] + "\x1f" + row["answer"]).encode()).hexdigest()})
    seen = set()
    return len(rows) - len(keyed.filter(lambda key: not (key in seen or seen.add(key)), input_columns="key"))
told(load_dataset("parquet", data_files=sys.argv[1], split="train"), copies, 1)
"""
)
PEERS = (("pandas duplicated", PANDAS, 3.0), ("datasets map, filter", DATASETS, 50.0))


def run(bench: Bench) -> list[Row]:
    """One line each; all must find the same number of copies."""
    rows = bench.parquet(bench.set_name if bench.is_quick else ROWS)
    found = _counted(sys.executable, OURS, rows)
    if found is None:
        return [Row(PART, "ours", verdict="missed", note="(failed)")]
    copies, ours_s = found[0], found[1].cpu_s or 0.0
    table = [Row(PART, "ours", ours_s, None, found[1].peak_mb, note=f"({copies:,} copies)")]
    for who, program, bar in PEERS:
        python, why = bench.python()
        other = _counted(python, program, rows) if python else None
        if other is None:
            table.append(bench.not_run(PART, who, bar, why or "failed"))
            continue
        ratio = (other[1].cpu_s or 0.0) / ours_s
        verdict = bench.verdict(ratio >= bar) if other[0] == copies else "missed"
        note = f"({other[0]:,} copies)"
        table.append(Row(PART, who, other[1].cpu_s, None, other[1].peak_mb, ratio, f">= {bar:g}", verdict, note))
    return table


def _counted(python: str, program: str, rows: Path) -> tuple[int, Row] | None:
    cost = measured([python, "-c", program, str(rows)])
    if cost is None:
        return None
    told = json.loads(cost.output.splitlines()[-1])
    return told["copies"], Row(PART, "", told["work_s"], None, cost.peak_mb)
