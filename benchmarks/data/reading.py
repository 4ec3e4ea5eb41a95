"""Reading CSV and JSONL to rows on disk: ours against Arrow's stream and pandas, CPU seconds and peak memory.

Each reader runs alone in a process of its own on the same seeded file; ours is the whole import (told, checked,
sampled, detected, written). Exits non-zero when a bar is missed: CPU at most 1.3 times Arrow's stream on clean files,
memory at most a tenth of pandas', ours never over 512 MB, the same row count from both of our paths.

    python benchmarks/data/reading.py --rows 1000000 [--pandas]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WORDS = "the order card shop kettle arrives return money week please letter number when where how why not is my a to of"
CPU_BAR, MEMORY_BAR, CEILING_MB = 1.3, 0.1, 512


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

    if reader == "pandas":
        import pandas

        frame = pandas.read_json(path, lines=True) if path.suffix == ".jsonl" else pandas.read_csv(path)
        frame.to_parquet(out / "pandas.parquet", compression="zstd")
        return len(frame)
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


def measured(reader: str, path: Path) -> dict[str, float]:
    """CPU seconds, wall seconds, peak MB and rows of one reader in a process of its own, imports included."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        command = [sys.executable, __file__, "--one", reader, str(path), out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": round(time.monotonic() - began, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pandas", action="store_true", help="needs pandas beside the product")
    parser.add_argument("--tolerant", action="store_true", help="our tolerant path on the same files, too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        rows = read(chosen.one[0], Path(chosen.one[1]), Path(chosen.one[2]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = round(used.ru_utime + used.ru_stime, 2)
        print(json.dumps({"rows": rows, "cpu_s": cpu, "peak_mb": used.ru_maxrss // 1024}))
        return 0
    missed = []
    readers = ["arrow", "ours", *(["tolerant"] if chosen.tolerant else []), *(["pandas"] if chosen.pandas else [])]
    with tempfile.TemporaryDirectory() as folder:
        for path in make(Path(folder), chosen.rows):
            found = {reader: measured(reader, path) for reader in readers}
            print(f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")
            for reader, values in found.items():
                print(f"  {reader:9} {values}")
            ours, arrow = found["ours"], found["arrow"]
            ratio = ours["cpu_s"] / arrow["cpu_s"]
            print(f"  CPU against Arrow's stream: {ratio:.2f} (bar {CPU_BAR})")
            if ratio > CPU_BAR:
                missed.append(f"{path.suffix} CPU {ratio:.2f}")
            if ours["peak_mb"] > CEILING_MB:
                missed.append(f"{path.suffix} memory {ours['peak_mb']} MB")
            if len({values["rows"] for values in found.values()}) != 1:
                missed.append(f"{path.suffix} row counts differ")
            if "pandas" in found and path.suffix == ".jsonl":
                share = ours["peak_mb"] / found["pandas"]["peak_mb"]
                print(f"  memory against pandas: {share:.2f} (bar {MEMORY_BAR})")
                if share > MEMORY_BAR:
                    missed.append(f"JSONL memory {share:.2f} of pandas")
    print("missed: " + "; ".join(missed) if missed else "every bar was met")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
