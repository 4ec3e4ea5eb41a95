"""Made-up rows for the benchmarks, from the texts that ship with the product: the same seed gives the same bytes.

Questions and answers of real sentences; 5 % exact copies, 5 % near copies (4 % of the words changed), and everyday
dirt: broken accents, double blanks, markup, addresses. A row is about 500 bytes, so `m1` is half a gigabyte.
"""

import argparse
import gzip
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "app" / "datasets" / "samples"
SETS = {"k10": 10_000, "k20": 20_000, "k100": 100_000, "m1": 1_000_000, "m2": 2_000_000, "m5": 5_000_000}
EXACT, NEAR, EDITED_WORDS, DIRTY = 0.05, 0.05, 0.04, 0.10
# Earlier rows that a copy may repeat: some thousand, so that memory stays small.
REMEMBERED = 20_000


def sentences() -> list[str]:
    """Sentences of the sample texts, each once, in order."""
    found: dict[str, None] = {}
    for path in sorted(SAMPLES.iterdir()):
        if path.suffix not in (".txt", ".csv", ".jsonl", ".gz", ".tsv"):
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for part in re.split(r"(?<=[.!?])\s+|\n+|\"[,:]\s*\"?", raw.decode("utf-8", "replace")):
            text = " ".join(re.sub(r"[{}\[\]\"\\]", " ", part).split())
            if 25 <= len(text) <= 220:
                found[text] = None
    return list(found)


def rows(count: int, seed: int = 1) -> Iterator[tuple[str, str, str]]:
    """(question, answer, what it is: new, exact or near), `count` of them."""
    draw = random.Random(seed)
    pool = sentences()
    words = sorted({word for text in pool for word in text.split() if word.isalpha()})
    earlier: list[tuple[str, str]] = []
    for number in range(count):
        chance = draw.random()
        if earlier and chance < EXACT:
            yield (*draw.choice(earlier), "exact")
            continue
        if earlier and chance < EXACT + NEAR:
            question, answer = draw.choice(earlier)
            yield question, _edited(answer, words, draw), "near"
            continue
        question = " ".join(draw.choices(pool, k=draw.randint(1, 2)))
        answer = " ".join(draw.choices(pool, k=draw.randint(4, 11)))
        # A number of its own keeps rows apart that were drawn from the same sentences.
        question = f"{question} ({number})"
        if draw.random() < DIRTY:
            question, answer = _dirty(question, draw), _dirty(answer, draw)
        if len(earlier) < REMEMBERED:
            earlier.append((question, answer))
        else:
            earlier[draw.randrange(REMEMBERED)] = (question, answer)
        yield question, answer, "new"


def _edited(text: str, words: list[str], draw: random.Random) -> str:
    parts = text.split(" ")
    for _ in range(max(1, round(EDITED_WORDS * len(parts)))):
        parts[draw.randrange(len(parts))] = draw.choice(words)
    return " ".join(parts)


def _dirty(text: str, draw: random.Random) -> str:
    kind = draw.randrange(5)
    if kind == 0:
        return text + " The café is open.".encode().decode("cp1252")
    if kind == 1:
        return text.replace(" ", "  ", 3) + " \n\n\n\n"
    if kind == 2:
        return f"<p>{text}</p><br/>"
    if kind == 3:
        return f"{text} Write to user{draw.randrange(10**6)}@example.org or 192.0.2.{draw.randrange(256)}."
    return text[:20] + "\u200b\x07" + text[20:]


def make(path: Path, count: int, seed: int = 1) -> Path:
    """Write `count` rows as JSONL unless they are there; the path."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb", buffering=1 << 20) as out:
        for question, answer, _kind in rows(count, seed):
            out.write(orjson.dumps({"question": question, "answer": answer}) + b"\n")
    temporary.rename(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    path = make(given.out, SETS[given.set], given.seed)
    print(f"{path}: {SETS[given.set]:,} rows, {path.stat().st_size / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
