"""Reading CSV and JSONL to rows on disk: ours against Arrow's stream and pandas, CPU seconds and peak memory.

Each reader runs alone in a process of its own on the same seeded file; ours is the whole import (told, checked,
sampled, detected, written). Bars: CPU at most 1.3 times Arrow's stream on clean files, memory at most a tenth of
pandas' on JSONL, ours never over 512 MB, the same row count from all.

    python -m benchmarks.data.reading [--rows 1000000] [--peers FOLDER] [--tolerant]
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.data.bench import Bench, Cost, Row, measured

PART = "reading"
WORDS = "the order card shop kettle arrives return money week please letter number when where how why not is my a to of"
CPU_BAR, MEMORY_BAR, CEILING_MB = 1.3, 0.1, 512


PANDAS = """
import sys
import pandas
frame = pandas.read_json(sys.argv[1], lines=True) if sys.argv[1].endswith("l") else pandas.read_csv(sys.argv[1])
frame.to_parquet(sys.argv[2] + "/pandas.parquet", compression="zstd")
print(len(frame))
"""


def make(folder: Path, rows: int) -> tuple[Path, Path]:
    """The same seeded rows as CSV and JSONL, about 500 bytes each."""
    dice, words = random.Random(11), WORDS.split()
    sentences = [" ".join(dice.choices(words, k=dice.randrange(8, 60))) for _ in range(5000)]
    table, lines = folder / f"rows-{rows}.csv", folder / f"rows-{rows}.jsonl"
    with table.open("w") as csv_out, lines.open("w") as json_out:
        csv_out.write("question,answer,source\n")
        for number in range(rows):
            question, answer = (
                f"{dice.choice(sentences)} {number}?",
                f"{dice.choice(sentences)}, {dice.choice(sentences)}",
            )
            csv_out.write(f'{question},"{answer}",made\n')
            json_out.write(json.dumps({"question": question, "answer": answer, "source": "made"}) + "\n")
    return table, lines


def read(reader: str, path: Path, out: Path) -> int:
    """Rows that `reader` brought from `path` to `out`."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    if reader == "arrow":
        is_json = path.suffix == ".jsonl"
        stream = pa.json.open_json(path) if is_json else pa.csv.open_csv(path)
        rows = 0
        with pq.ParquetWriter(out / "arrow.parquet", stream.schema, compression="zstd") as writer:
            for batch in stream:
                writer.write_batch(batch)
                rows += batch.num_rows
        return rows
    from app.datasets.importing import import_file
    from app.datasets.options import ReadOptions
    from app.datasets.reading import fast

    if reader == "tolerant":
        fast.FROM_BYTES = 1 << 60
    return import_file(path, path.name, out / reader, ReadOptions(), lambda done, total: None).rows


def _read(python: str, reader: str, path: Path) -> tuple[int, Cost] | None:
    with tempfile.TemporaryDirectory() as out:
        program = ["-c", PANDAS] if reader == "pandas" else ["-m", "benchmarks.data.reading", "--one", reader]
        cost = measured([python, *program, str(path), out])
    return (int(cost.output.splitlines()[-1]), cost) if cost else None


def _lines(bench: Bench, path: Path, is_tolerant: bool) -> list[Row]:
    kind = path.suffix[1:].upper()
    part = f"{PART} {kind}"
    arrow, ours = (_read(sys.executable, reader, path) for reader in ("arrow", "ours"))
    if arrow is None or ours is None:
        return [Row(part, "ours", verdict="missed", note="(failed)")]
    # The ratio is the peer's over ours, as everywhere: 1 / 1.3.
    ratio = arrow[1].cpu_s / ours[1].cpu_s
    is_met = ratio >= 1 / CPU_BAR and ours[0] == arrow[0]
    is_small = ours[1].peak_mb <= CEILING_MB
    size = f"{path.stat().st_size / 1e6:.0f} MB"
    table = [
        _row(part, "ours, the whole import", ours, None, f"{CEILING_MB} MB", "met" if is_small else "missed", size),
        _row(part, "Arrow's stream", arrow, ratio, f">= {1 / CPU_BAR:.2f}", bench.verdict(is_met), ""),
    ]
    if is_tolerant:
        tolerant = _read(sys.executable, "tolerant", path)
        if tolerant is None or tolerant[0] != ours[0]:
            return [*table, Row(part, "ours, tolerant", verdict="missed", note="(failed)")]
        table.append(_row(part, "ours, tolerant", tolerant, None, "", "measured", ""))
    python, why = bench.python()
    pandas = _read(python, "pandas", path) if python else None
    if pandas is None:
        return [*table, bench.not_run(part, "pandas", 1, why or "failed")]
    share = ours[1].peak_mb / pandas[1].peak_mb
    is_barred = kind == "JSONL" and not bench.is_quick
    verdict = "measured" if not is_barred else "met" if share <= MEMORY_BAR else "missed"
    said = f"ours takes {share:.0%} of its memory" + (f", bar {MEMORY_BAR:.0%}" if is_barred else "")
    return [*table, _row(part, "pandas", pandas, pandas[1].cpu_s / ours[1].cpu_s, "memory", verdict, said)]


def _row(
    part: str, who: str, found: tuple[int, Cost], ratio: float | None, bar: str, verdict: str, note: str
) -> Row:  # fmt: skip
    rows, cost = found
    note = f"({rows:,} rows{', ' if note else ''}{note})"
    return Row(part, who, cost.cpu_s, cost.wall_s, cost.peak_mb, ratio, bar, verdict, note)


def measure(bench: Bench, rows: int, is_tolerant: bool = False) -> list[Row]:
    """The lines of both formats."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        return [line for path in make(Path(folder), rows) for line in _lines(bench, path, is_tolerant)]


def run(bench: Bench) -> list[Row]:
    """The lines of this part for `benchmarks/data_throughput.py`."""
    return measure(bench, 20_000 if bench.is_quick else 1_000_000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--tolerant", action="store_true", help="our tolerant path on the same files, too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(read(chosen.one[0], Path(chosen.one[1]), Path(chosen.one[2])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Bench(Path(folder), False, "k100", chosen.peers), chosen.rows, chosen.tolerant)
    for line in lines:
        print(line)
    return int(any(line.verdict == "missed" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
