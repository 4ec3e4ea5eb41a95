"""What the chosen model would read: tokens, words, and who is spoken of, counted on every row.

Of a large set 20,000 rows drawn evenly come first, so that there is something to look at; then one pass counts all,
keeps what it has every 50,000 rows, and goes on from there after a stop.
"""

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Example
from app.datasets.browsing.index import Lengths, lengths_of
from app.datasets.browsing.model_view import ReadingModel, example_of, reader_of
from app.datasets.browsing.sets import RowSet, batches
from app.datasets.browsing.sketches import Words, binned
from app.text.accelerated import SAMPLED_ROWS, Accelerator, proved
from app.text.template import TemplateFault

FIRST_ROWS = 20_000
SHOWN_WORDS = 30
SLICE_ROWS = 2_000
# A stop loses at most this many rows of work.
KEPT_EVERY_ROWS = 50_000
# Fewer rows are read sooner than another way of reading them is proved.
ACCELERATED_ROWS = 8_000
SAMPLED_CHARACTERS = 20_000_000
_WORD = re.compile(r"[^\W\d_]{2,}")
# English words only, and words only: who is meant, and how, no list can tell. The page says so.
GROUPS = {
    "She, her": {"she", "her", "hers", "herself", "woman", "women", "girl", "girls", "mother", "daughter", "wife"},
    "He, him": {"he", "him", "his", "himself", "man", "men", "boy", "boys", "father", "son", "husband"},
    "They, them": {"they", "them", "their", "theirs", "themselves", "themself"},
    "Older people": {"old", "elderly", "senior", "seniors", "grandmother", "grandfather", "retired", "pensioner"},
    "Younger people": {"young", "child", "children", "kid", "kids", "teenager", "teenagers", "student", "students"},
    "Religions": {"christian", "christians", "muslim", "muslims", "jewish", "jew", "jews", "hindu", "buddhist"},
    "Disabilities": {"disabled", "disability", "blind", "deaf", "wheelchair", "autistic"},
}  # fmt: skip


class Group(Contract):
    """How many counted rows speak of a group, and the most frequent labels of those rows."""

    name: str
    rows: int
    labels: list[tuple[str, int]] = Field(default_factory=list)


class TokenReport(Contract):
    """Lengths in tokens of the model named; counts are of `counted` rows out of `rows`."""

    model: str
    limit_tokens: int
    rows: int
    counted: int = 0
    tokens: int = 0
    learned: int = 0
    over_limit: int = 0
    unreadable: int = 0
    lengths: Lengths = Field(default_factory=Lengths)
    by_split: dict[str, int] = Field(default_factory=dict)
    missing: int = 0
    copies: int = 0
    top_words: list[tuple[str, int]] = Field(default_factory=list)
    distinct_words: int = 0
    rare_words: int = 0
    groups: list[Group] = Field(default_factory=list)


def report_path(rows: RowSet, model: ReadingModel) -> Path:
    """Where the counts of this set by this tokenizer and limit lie."""
    stat = model.tokenizer_file.stat()
    name = f"{model.tokenizer_file}|{stat.st_mtime_ns}|{stat.st_size}|{model.limit_tokens}"
    return rows.folder / f"tokens-{xxhash.xxh3_64_hexdigest(name.encode())}.json"


def report_of(rows: RowSet, model: ReadingModel) -> TokenReport | None:
    """The finished counts; None before they are."""
    try:
        return TokenReport.model_validate(orjson.loads(report_path(rows, model).read_bytes()))
    except FileNotFoundError:
        return None


Tell = Callable[[int, int], None]
_WANTED = ("_rid", "kind", "messages", "text", "label", "split")


class Progress(Contract):
    """Of the pass over all rows: how far, and how long it will take; -1 while nobody can tell."""

    done: int = 0
    total: int = 0
    left_s: int = -1


def progress_of(rows: RowSet, model: ReadingModel) -> Progress:
    """How far the counting is."""
    try:
        return Progress.model_validate_json(report_path(rows, model).with_suffix(".progress").read_bytes())
    except (FileNotFoundError, ValueError):
        return Progress(total=rows.rows)


def count(rows: RowSet, model: ReadingModel, tell: Tell) -> TokenReport:
    """Count every row, and keep the report beside the set; a pass that was stopped goes on where it was."""
    place, total = report_path(rows, model), rows.rows
    folder = place.with_suffix(".part")
    tally = Tally.restored(folder, model)
    if tally is None:
        tally = Tally(model, total)
        tally.choose_reader(_samples(rows) if total >= ACCELERATED_ROWS else [])
        first = Tally(model, total, tally.fast)
        for row in _drawn(rows, min(total, FIRST_ROWS)):
            first.add(row)
        report = first.report()
        _write(place, orjson.dumps(report.model_dump(mode="json")))
        if report.counted == total:
            return report
        del first
    began, before = time.monotonic(), tally.counted
    for group, start, table in batches(rows, _WANTED, tally.group):
        for at in range(0, table.num_rows, SLICE_ROWS):
            for row in table.slice(at, SLICE_ROWS).to_pylist():
                tally.add(row)
            tell(start + at, total)
            rate = (tally.counted - before) / max(1e-9, time.monotonic() - began)
            progress = Progress(done=tally.counted, total=total, left_s=round((total - tally.counted) / rate))
            _write(place.with_suffix(".progress"), progress.model_dump_json().encode())
        tally.group = group + 1
        if tally.counted - tally.kept >= KEPT_EVERY_ROWS:
            tally.keep(folder)
    report = tally.report(folder)
    _write(place, orjson.dumps(report.model_dump(mode="json")))
    shutil.rmtree(folder, ignore_errors=True)
    place.with_suffix(".progress").unlink(missing_ok=True)
    return report


def _drawn(rows: RowSet, number: int) -> Iterator[dict[str, Any]]:
    """Rows spread evenly over the set."""
    drawn = np.unique(np.linspace(0, rows.rows - 1, number).astype(np.int64))
    for _group, start, table in batches(rows, _WANTED):
        mine = drawn[(drawn >= start) & (drawn < start + table.num_rows)] - start
        for at in range(0, len(mine), SLICE_ROWS):
            yield from table.take(mine[at : at + SLICE_ROWS]).to_pylist()


def _samples(rows: RowSet) -> list[Example]:
    """Rows on which two ways to tokens are compared; fewer where they are very long."""
    found: list[Example] = []
    characters = 0
    for row in _drawn(rows, SAMPLED_ROWS):
        example = example_of(row)
        characters += len(example.text) + sum(len(m.content) for m in example.messages)
        if found and characters > SAMPLED_CHARACTERS:
            break
        found.append(example)
    return found


def _write(path: Path, body: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_bytes(body)
    temporary.replace(path)


class Tally:
    """The counts so far. Memory does not grow with the rows, but for 8 bytes each that tell copies and lie on disk."""

    def __init__(self, model: ReadingModel, rows: int, fast: Accelerator | None = None) -> None:
        self.model, self.reader, self.fast = model, reader_of(model), fast
        self.numbers = dict.fromkeys(
            ("counted", "tokens", "learned", "over_limit", "unreadable", "missing", "longest", "group"), 0
        )
        self.rows, self.kept = rows, 0
        self.lengths: Counter[int] = Counter()
        self.splits: Counter[str] = Counter()
        self.groups = {name: Counter[str]() for name in GROUPS}
        self.words = Words()
        self.keys: list[int] = []

    @property
    def counted(self) -> int:
        """Rows so far."""
        return self.numbers["counted"]

    @property
    def group(self) -> int:
        """The row group to go on with."""
        return self.numbers["group"]

    @group.setter
    def group(self, number: int) -> None:
        self.numbers["group"] = number

    def choose_reader(self, samples: list[Example]) -> None:
        """Take the faster way to tokens where it is proved equal on these rows."""
        reader = self.reader
        if reader.template is not None and self.rows >= ACCELERATED_ROWS:
            self.fast = proved(reader.tokenizer, reader.template, samples, end_id=reader.end_id)

    def add(self, row: dict[str, Any]) -> None:
        """Count a row."""
        numbers, example = self.numbers, example_of(row)
        numbers["counted"] += 1
        texts = [example.text] if example.kind == "text" else [m.content for m in example.messages]
        numbers["missing"] += any(not text.strip() for text in texts)
        self.keys.append(xxhash.xxh3_64_intdigest("\x1f".join(texts).encode("utf-8", "replace")))
        words = _WORD.findall(" ".join(texts).lower())
        self.words.add(words)
        present = set(words)
        for name, terms in GROUPS.items():
            if not present.isdisjoint(terms):
                self.groups[name][str(row.get("label") or "")] += 1
        try:
            length, learned = self._measured(example)
        except TemplateFault:
            numbers["unreadable"] += 1
            return
        self.lengths[binned(length)] += 1
        numbers["tokens"] += length
        numbers["learned"] += learned
        numbers["over_limit"] += length > self.model.limit_tokens
        numbers["longest"] = max(numbers["longest"], length)
        self.splits[str(row.get("split") or "")] += length

    def _measured(self, example: Example) -> tuple[int, int]:
        if self.fast is not None and self.reader.template is not None:
            ids, learn = self.fast.example(self.reader.template, example, end_id=self.reader.end_id)
            return len(ids), sum(learn)
        encoded = self.reader.encode(example)
        return len(encoded.ids), sum(encoded.learn)

    def report(self, folder: Path | None = None) -> TokenReport:
        """The counts as they stand; `folder`: where earlier keys were kept."""
        earlier = folder / "keys.u64" if folder else None
        keys = [np.array(self.keys, np.uint64)]
        if earlier is not None and self.kept:
            keys.append(np.fromfile(earlier, np.uint64, self.kept))
        joined = np.concatenate(keys)
        lengths = lengths_of(self.lengths)
        numbers = {k: v for k, v in self.numbers.items() if k not in ("longest", "group")}
        distinct, once = self.words.sizes()
        return TokenReport(
            model=self.model.name, limit_tokens=self.model.limit_tokens, rows=self.rows, **numbers,
            lengths=lengths.model_copy(update={"high": self.numbers["longest"]}), by_split=dict(self.splits),
            copies=len(joined) - len(np.unique(joined)), top_words=self.words.top(SHOWN_WORDS),
            distinct_words=distinct, rare_words=once,
            groups=[Group(name=n, rows=c.total(), labels=c.most_common(3)) for n, c in self.groups.items() if c],
        )  # fmt: skip

    def keep(self, folder: Path) -> None:
        """Write all of it down; the state last, so that a stop in between leaves the one before."""
        folder.mkdir(exist_ok=True)
        with (folder / "keys.u64").open("ab") as out:
            out.truncate(8 * self.kept)
            out.write(np.array(self.keys, np.uint64).tobytes())
        self.keys, self.kept = [], self.counted
        words = folder / f"words-{self.counted}.npz"
        self.words.save(words)
        state = {
            "rows": self.rows, "is_fast": self.fast is not None, "numbers": self.numbers, "words": words.name,
            "lengths": list(self.lengths.items()), "splits": self.splits, "groups": self.groups,
        }  # fmt: skip
        _write(folder / "state.json", orjson.dumps(state))
        for path in folder.glob("words-*.npz"):
            if path != words:
                path.unlink()

    @classmethod
    def restored(cls, folder: Path, model: ReadingModel) -> "Tally | None":
        """The counts of a pass that was stopped; None where there are none."""
        try:
            state = orjson.loads((folder / "state.json").read_bytes())
        except FileNotFoundError:
            return None
        found = cls(model, state["rows"])
        if state["is_fast"]:
            found.choose_reader([])
        found.numbers, found.kept = state["numbers"], state["numbers"]["counted"]
        found.lengths, found.splits = Counter(dict(state["lengths"])), Counter(state["splits"])
        found.groups = {name: Counter(labels) for name, labels in state["groups"].items()}
        found.words = Words.loaded(folder / state["words"])
        return found
