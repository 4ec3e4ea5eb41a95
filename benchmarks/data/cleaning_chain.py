"""The cleaning chain with its trace (unicode, HTML, whitespace, e-mail, IP, length) against row-by-row peers.

Bars: at least 4 times cheaper than datasets' map, 3.5 times than pandas' apply, 10 times than data-juicer, whole
processes each, with loading. The same steps for all: what ours tries beside the chain when a plan does not say that it
is off (near copies, languages and other steps, for the page) is off; a line of its own says what it costs. Within the
chain ours does more than its peers: nine kinds of personal data where they look for two, and for every row its trace,
with statistics and previews. data-juicer, many times slower, gets the first 20,000 of the rows, and ours is measured
on those 20,000 again.
"""

import sys

from benchmarks.data.bench import Bench, Cost, Row, measured
from benchmarks.make_rows import SETS

ONE_ROW = r"""
import re, sys, ftfy
from bs4 import BeautifulSoup
TAG = re.compile(r"</?(p|br|div|span|b|i|a|ul|li|table|tr|td)\b[^>]*>")
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")
IP = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")
def clean(text):
    text = ftfy.fix_text(text, uncurl_quotes=False, unescape_html=False)
    if TAG.search(text):
        text = BeautifulSoup(text, "lxml").get_text()
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"\n{3,}", "\n\n", text)).strip()
    return IP.sub("<IP>", EMAIL.sub("<EMAIL>", text))
"""
PANDAS = (
    ONE_ROW
    + r"""
import pandas as pd
df = pd.read_parquet(sys.argv[1])
for name in ("question", "answer"):
    df[name] = df[name].apply(clean)
df = df[(df["answer"].str.len() >= 1) & (df["question"].str.len() + df["answer"].str.len() <= 20000)]
df.to_parquet(sys.argv[1] + ".pandas")
"""
)
DATASETS = (
    ONE_ROW
    + r"""
from datasets import load_dataset
ds = load_dataset("parquet", data_files=sys.argv[1], split="train")
ds = ds.map(lambda row: {name: clean(row[name]) for name in ("question", "answer")})
ds = ds.filter(lambda row: 1 <= len(row["answer"]) and len(row["question"]) + len(row["answer"]) <= 20000)
ds.to_parquet(sys.argv[1] + ".datasets")
"""
)
DATA_JUICER = r"""
import json, sys, tempfile
from data_juicer.config import init_configs
from data_juicer.core import DefaultExecutor
steps = []
for column in ("question", "answer"):
    for name in ("fix_unicode", "clean_html", "whitespace_normalization", "clean_email", "clean_ip"):
        steps.append({name + "_mapper": {"text_key": column}})
steps.append({"text_length_filter": {"text_key": "answer", "min_len": 1, "max_len": 20000}})
with tempfile.TemporaryDirectory() as out:
    settings = {"dataset_path": sys.argv[1], "export_path": out + "/out.jsonl", "np": 1, "process": steps,
                "text_keys": ["question", "answer"]}
    with open(out + "/c.yaml", "w") as file:
        json.dump(settings, file)
    DefaultExecutor(init_configs(["--config", out + "/c.yaml"])).run()
"""


PART = "cleaning chain"


def _ours(bench: Bench, name: str, verb: str) -> Cost | None:
    """Mapping, chain, trace, statistics and Parquet, from the rows as they lie after import."""
    folder, out = bench.folder / f"rows-{name}", bench.folder / "chain"
    program = [sys.executable, "-m", "benchmarks.data.ours"]
    if measured([*program, "import", str(bench.jsonl(name)), str(folder)]) is None:
        return None
    cost = measured([*program, verb, str(folder), str(out)])
    assert cost is None or (out / "trace.parquet").exists()
    return cost


def run(bench: Bench) -> list[Row]:
    """Ours and each peer (read, chain, write)."""
    some = bench.few
    ours, tried = (_ours(bench, bench.set_name, verb) for verb in ("chain", "chain-and-trials"))
    few = ours if some == bench.set_name else _ours(bench, some, "chain")
    if ours is None or tried is None or few is None:
        return [Row(PART, "ours", verdict="missed", note="(failed)")]
    number = f"{SETS[some]:,} rows"
    return [
        Row(PART, "ours, with trace", ours.cpu_s, ours.wall_s, ours.peak_mb),
        Row(PART, "ours, others tried, too", tried.cpu_s, tried.wall_s, tried.peak_mb),
        bench.peer(PART, "datasets map", DATASETS, ours, 4),
        bench.peer(PART, "pandas apply", PANDAS, ours, 3.5),
        Row(PART, f"ours, {number}", few.cpu_s, few.wall_s, few.peak_mb),
        bench.peer(
            PART, f"data-juicer, {number}", DATA_JUICER, few, 10, environment="data-juicer",
            paths=(bench.parquet(some),),
        ),
    ]  # fmt: skip
