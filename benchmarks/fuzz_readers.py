"""Damaged files against every reader: seeds are cut, repeated and flipped, also inside the members of ZIP containers.

Each file is read in a limited child, as in the product. A good answer is rows, problems or a refusal in words; a child
that the system ends (memory, time, a fault in native code) is one too, for the parent turns it into a sentence, and is
counted. Exits non-zero for any other exception, or when a file takes longer than the limit and is not ended.

    python benchmarks/fuzz_readers.py --count 10000 [--only pdf,docx]
"""

import argparse
import io
import json
import random
import select
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FIXTURES = ROOT / "tests" / "fixtures"
FILE_S = 20
SIGNS = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"[",
    b"]",
    b"{",
    b"}",
    b"<",
    b">",
    b"&",
    b"\xff",
    b"\xed\xa0\x80",
    b"%",
    b"/",
]
SEEDS = {
    "csv": "messy_made/ragged.csv", "tsv": "messy_made/utf16le_tab.tsv", "jsonl": "messy_made/broken_lines.jsonl",
    "json": "format_examples/sharegpt_tools.json", "cp1251": "messy_made/cp1251.csv", "docx": "documents/returns.docx",
    "pdf": "documents/kettle.pdf", "xlsx": "documents/orders.xlsx", "xls": "documents/old.xls",
    "epub": "documents/book.epub", "html": "documents/page.html", "md": "documents/notes.md",
    "zip": "documents/mixed.zip", "irc": "documents/irc.txt", "whatsapp": "documents/whatsapp.txt",
    "turns": "documents/turns.txt", "slack": "documents/slack.json", "discord": "documents/discord.json",
    "parquet": "", "arrow": "", "gzip": "",
}  # fmt: skip


def seed(kind: str) -> bytes:
    """The undamaged file."""
    if SEEDS[kind]:
        return (FIXTURES / SEEDS[kind]).read_bytes()
    if kind == "gzip":
        import gzip

        return gzip.compress((FIXTURES / SEEDS["csv"]).read_bytes(), mtime=0)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"q": f"question {i}", "n": i, "turns": [{"role": "user", "content": "x" * i}]} for i in range(200)]
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out)
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def bent(content: bytes, dice: random.Random) -> bytes:
    """The content with a few flipped bytes, signs in wrong places, cuts and repeats."""
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 4, 12])):
        place = dice.randrange(len(changed) or 1)
        match dice.randrange(5):
            case 0 | 1:
                changed[place : place + 1] = bytes([dice.randrange(256)])
            case 2:
                changed[place:place] = dice.choice(SIGNS) * dice.choice([1, 1, 2, 300])
            case 3:
                del changed[place : place + dice.randrange(1, 200)]
            case 4:
                changed[place:place] = changed[place : place + dice.randrange(1, 500)]
    return bytes(changed[: dice.randrange(len(changed) + 1)] if dice.random() < 0.05 else changed)


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Bent as it is, or, for a ZIP container, one of its members bent and packed again."""
    if not content.startswith(b"PK\x03\x04") or dice.random() < 0.4:
        return bent(content, dice)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        chosen = dice.choice([n for n in names if n.endswith((".xml", ".opf", ".xhtml", ".csv", ".md"))] or names)
        for name in names:
            member = source.read(name)
            target.writestr(name, bent(member, dice) if name == chosen else member)
    return out.getvalue()


def serve() -> int:
    """The child: one path a line on standard input, one verdict a line on standard output."""
    import resource

    from app.datasets import confinement
    from app.datasets.findings import REASONS, Problem, Record, Refused
    from app.datasets.importing import import_file
    from app.datasets.options import ReadOptions
    from app.datasets.reading.formats import sniff
    from app.datasets.reading.readers import read

    confinement.limit(2 * 2**30, 24 * 3600, 2**30)
    confinement.shut_in()
    for line in sys.stdin:
        path = Path(line.strip())
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + FILE_S, 24 * 3600))
        try:
            if path.stem.endswith("0"):
                import_file(path, path.name, path.with_name("rows-1"), ReadOptions(), lambda done, total: None)
            found = list(read(path, sniff(path, path.name), ReadOptions(bad_json="repair", open_quotes="repair")))
            assert all(isinstance(f, Record) or (isinstance(f, Problem) and f.code in REASONS) for f in found)
            verdict = "rows" if any(isinstance(f, Record) for f in found) else "problems"
        except Refused:
            verdict = "refused"
        except MemoryError:
            verdict = "refused, memory"
        except BaseException as error:
            verdict = f"UNTYPED {type(error).__name__}: {str(error)[:200]}"
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    return 0


class Child:
    """A reading child that is started again when it has ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> str:
        """The verdict on a file."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, __file__, "--serve"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        # Wall time is generous: the machine may be busy; the limit that counts is of processor time, in the child.
        ready, _, _ = select.select([self.process.stdout], [], [], 30 * FILE_S)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return str(json.loads(line))
        self.process.kill()
        return f"ended by signal {-self.process.wait()}" if ready else "UNTYPED not ended by its limits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="files a reader")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        return serve()
    bad, child = 0, Child()
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.only.split(",") if chosen.only else SEEDS:
            content, counts = seed(kind), Counter[str]()
            for number in range(chosen.count):
                path = Path(folder) / f"{number}.{kind}"
                path.write_bytes(damaged(content, random.Random(f"{chosen.seed} {kind} {number}")))
                verdict = child.ask(path)
                counts[verdict] += 1
                if verdict.startswith(("UNTYPED", "ended")):
                    print(f"{kind} {number}: {verdict}", flush=True)
                bad += verdict.startswith("UNTYPED")
                path.unlink()
            print(kind, dict(counts.most_common()), flush=True)
    if child.process is not None and child.process.stdin is not None:
        child.process.stdin.close()
        child.process.wait()
    print(f"{bad} without a typed answer")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
