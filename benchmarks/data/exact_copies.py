"""Exact copies against pandas' duplicated and datasets' map and filter. Bars: at least 3 and 50 times cheaper."""

import sys

from benchmarks.data.bench import Bench, Row, measured

PANDAS = r"""
import sys
import pandas as pd
df = pd.read_parquet(sys.argv[1])
print(int(df.duplicated(["question", "answer"]).sum()))
"""
DATASETS = r"""
import hashlib, sys
from datasets import load_dataset
ds = load_dataset("parquet", data_files=sys.argv[1], split="train")
ds = ds.map(lambda row: {"key": hashlib.md5((row["question"] + "\x1f" + row["answer"]).encode()).hexdigest()})
seen = set()
kept = ds.filter(lambda key: not (key in seen or seen.add(key)), input_columns="key")
print(len(ds) - len(kept))
"""


def run(bench: Bench) -> list[Row]:
    """Each reads the same Parquet and counts the copies; interpreters and imports are in the figures of all."""
    command = [sys.executable, "-m", "benchmarks.data.ours", "exact", str(bench.parquet())]
    ours = measured(command)
    if ours is None:
        return [Row("exact copies", "ours", verdict="missed", note="(failed)")]
    first = Row("exact copies", "ours", ours.cpu_s, ours.wall_s, ours.peak_mb, note=f"({ours.output.strip()} copies)")
    return [
        first,
        bench.peer("exact copies", "pandas duplicated", PANDAS, ours, 3),
        bench.peer("exact copies", "datasets map, filter", DATASETS, ours, 50),
    ]
