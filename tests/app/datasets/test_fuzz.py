"""Damaged files: every reader ends with records, problems or a refusal in words, and never with anything else."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.findings import Problem, Record, Refused
from app.datasets.importing import import_file
from app.datasets.options import ReadOptions
from app.datasets.reading.formats import sniff
from app.datasets.reading.readers import read

FIXTURES = Path(__file__).parents[2] / "fixtures"
SEEDS = [
    FIXTURES / "messy_made" / "ragged.csv",
    FIXTURES / "messy_made" / "utf16le_tab.tsv",
    FIXTURES / "messy_made" / "broken_lines.jsonl",
    FIXTURES / "messy_made" / "cp1251.csv",
    FIXTURES / "format_examples" / "sharegpt_tools.json",
    FIXTURES / "format_examples" / "alpaca_zh.json",
]
SIGNS = [b'"', b",", b"\n", b"\r", b"\0", b"[", b"]", b"{", b"}", b"\\", b"\xff", b"\xc3", b"\xed\xa0\x80", b";", b"\t"]
ROUNDS = 60


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The content with a few cuts, repeats, flipped bytes and signs in wrong places."""
    changed = bytearray(content[: dice.randrange(20, 6000)])
    for _ in range(dice.randrange(1, 12)):
        place = dice.randrange(len(changed) or 1)
        match dice.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                changed[place:place] = dice.choice(SIGNS) * dice.choice([1, 1, 2, 300])
            case 2:
                del changed[place : place + dice.randrange(1, 200)]
            case 3:
                changed += changed[place : place + dice.randrange(1, 500)]
    return bytes(changed)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "seed.parquet"
    rows = [{"q": f"question {i}", "n": i, "turns": [{"role": "user", "content": "x" * i}]} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def try_reading(path: Path, options: ReadOptions) -> None:
    try:
        sniffed = sniff(path, path.name)
        found = list(read(path, sniffed, options))
    except Refused:
        return
    assert all(isinstance(item, Record | Problem) for item in found)
    rows = [item.row for item in found if isinstance(item, Record)]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_damaged_text(tmp_path: Path, seed: Path) -> None:
    dice = random.Random(seed.name)
    content = seed.read_bytes()
    for number in range(ROUNDS):
        path = tmp_path / f"{number}{seed.suffix}"
        path.write_bytes(damaged(content, dice))
        repair = {"bad_json": "repair", "open_quotes": "repair", "mistyped_columns": "map"} if number % 2 else {}
        try_reading(path, ReadOptions.model_validate(repair))
        path.unlink()


def test_damaged_parquet(tmp_path: Path, parquet: Path) -> None:
    dice = random.Random(5)
    content = parquet.read_bytes()
    for number in range(ROUNDS):
        changed = bytearray(content)
        for _ in range(dice.randrange(1, 6)):
            changed[dice.randrange(4, len(changed))] = dice.randrange(256)
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(changed)
        try_reading(path, ReadOptions())
        path.unlink()


@pytest.mark.parametrize("seed", SEEDS[:3], ids=lambda path: path.name)
def test_what_was_read_can_be_kept(tmp_path: Path, seed: Path) -> None:
    """Whatever a reader lets through, Parquet and the ledger can hold."""
    dice = random.Random(f"keep {seed.name}")
    content = seed.read_bytes()
    for number in range(20):
        path = tmp_path / f"{number}{seed.suffix}"
        path.write_bytes(damaged(content, dice))
        try:
            report = import_file(path, path.name, tmp_path / f"out-{number}", ReadOptions(), lambda done, total: None)
        except Refused:
            continue
        assert report.rows > 0


def test_old_mac_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_bytes(b"question,answer\rwho?,me\rwhere?,here\r")
    found = list(read(path, sniff(path, path.name), ReadOptions()))
    assert [item.values["answer"] for item in found if isinstance(item, Record)] == ["me", "here"]


def test_every_reader_answers_damage_in_words() -> None:
    """A short run of the fuzzer: each file in a limited child, one typed verdict for each."""
    fuzzer = Path(__file__).parents[3] / "benchmarks" / "fuzz_readers.py"
    kinds = "docx,pdf,xlsx,epub,html,md,zip,irc,whatsapp,slack,arrow,gzip"
    done = subprocess.run(
        [sys.executable, str(fuzzer), "--count", "20", "--only", kinds], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 13
