"""Token ids of every row against tokenizers and datasets' map. Bars: at least 2 and 4 times cheaper, ids all equal.

The tokenizer is a byte-level BPE learned from the first rows. Ours is built and proved within its figure; each reads
the same Parquet, and prints a hash of all ids and of where each row ends.
"""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from app.contracts.conversation import Example
from app.text.accelerated import SAMPLED_ROWS, proved
from app.text.template import CHATML, ChatTemplate

if TYPE_CHECKING:
    from benchmarks.data.bench import Bench, Cost, Row

LEARNED_ROWS, VOCABULARY = 20_000, 32_000
PEER = r"""
import hashlib, os, sys
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from pathlib import Path
import numpy as np
digest = hashlib.sha256()
file = str(Path(sys.argv[1]).with_name("tokenizer.json"))
def texts(questions, answers):
    return [q + "\n" + a for q, a in zip(questions, answers)]
def add(rows):
    digest.update(np.array([len(ids) for ids in rows], np.uint32).tobytes())
    digest.update(np.concatenate(rows).astype(np.uint32).tobytes())
"""
TOKENIZERS = (
    PEER
    + r"""
import pyarrow.parquet as pq
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(file)
for batch in pq.ParquetFile(sys.argv[1]).iter_batches(1000, use_threads=False):
    rows = texts(batch.column("question").to_pylist(), batch.column("answer").to_pylist())
    add([e.ids for e in tokenizer.encode_batch_fast(rows, add_special_tokens=False)])
print(digest.hexdigest())
"""
)
# As the documentation of datasets shows it: the tokenizer of transformers, called on batches.
DATASETS = (
    PEER
    + r"""
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=file)
made = load_dataset("parquet", data_files=sys.argv[1], split="train").map(
    lambda batch: tokenizer(texts(batch["question"], batch["answer"]), add_special_tokens=False), batched=True,
    remove_columns=["question", "answer"],
)
for batch in made.with_format("numpy").iter(1000):
    add(list(batch["input_ids"]))
print(digest.hexdigest())
"""
)


def _texts(batch: Any) -> list[str]:
    sides = (batch.column(name).to_pylist() for name in ("question", "answer"))
    return [f"{question}\n{answer}" for question, answer in zip(*sides, strict=True)]


def ours(path: Path) -> str:
    """The hash of all ids. Raises SystemExit when the accelerator does not apply."""
    source = pq.ParquetFile(path)
    # Drawn from everywhere: one row group is 20,000 rows.
    groups = source.metadata.num_row_groups
    each = -(-SAMPLED_ROWS // groups)
    samples = [
        Example(rid=0, kind="text", text=text)
        for group in range(groups)
        for text in _texts(source.read_row_group(group, use_threads=False).slice(0, each))
    ]
    fast = proved(Tokenizer.from_file(str(path.with_name("tokenizer.json"))), ChatTemplate(CHATML), samples)
    if fast is None:
        raise SystemExit("not proved equal")
    digest = hashlib.sha256()
    for batch in source.iter_batches(1000, use_threads=False):
        made = [fast.ids(text) for text in _texts(batch)]
        digest.update(np.array([len(ids) for ids in made], np.uint32).tobytes())
        digest.update(np.concatenate(made).astype(np.uint32).tobytes())
    return digest.hexdigest()


def run(bench: "Bench") -> "list[Row]":
    """Interpreters and imports are in the figures of all."""
    from benchmarks.data.bench import Row, measured
    from benchmarks.make_rows import SETS, rows
    from worker.engine.tokenizer import train_bpe

    path = bench.parquet()
    learned = rows(min(LEARNED_ROWS, SETS[bench.set_name]))
    train_bpe((f"{question}\n{answer}" for question, answer, _kind in learned), VOCABULARY).save(
        str(path.with_name("tokenizer.json"))
    )
    mine = measured([sys.executable, "-m", "benchmarks.data.tokens", str(path)])
    if mine is None:
        return [Row("tokens", "ours", verdict="missed", note="(failed)")]
    bare = measured([sys.executable, "-c", TOKENIZERS, str(path)])
    table = [Row("tokens", "ours", mine.cpu_s, mine.wall_s, mine.peak_mb)]
    table.append(_line(bench, "tokenizers encode_batch_fast", mine, bare, 2))
    theirs = bench.peers and measured([str(bench.peers), "-c", DATASETS, str(path)])
    table.append(_line(bench, "datasets map batched", mine, theirs or None, 4))
    return table


def _line(bench: "Bench", who: str, mine: "Cost", theirs: "Cost | None", bar: float) -> "Row":
    from benchmarks.data.bench import Row

    if theirs is None:
        return Row("tokens", who, bar=f">= {bar:g}", verdict="not run", note="(could not be installed or failed)")
    is_equal = theirs.output.split()[-1] == mine.output.split()[-1]
    ratio = theirs.cpu_s / mine.cpu_s
    is_met = is_equal and (bench.is_quick or ratio >= bar)
    verdict = "missed" if not is_met else "measured" if bench.is_quick else "met"
    note = "(ids equal on every row)" if is_equal else "(IDS DIFFER)"
    return Row("tokens", who, theirs.cpu_s, theirs.wall_s, theirs.peak_mb, ratio, f">= {bar:g}", verdict, note)


if __name__ == "__main__":
    print(ours(Path(sys.argv[1])))
