"""What the chosen model would read: tokens, words, and who is spoken of, counted on rows drawn evenly from the set.

Every row of a small set is counted; of a large one 20,000, so that the answer comes in seconds, and the page says so.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import xxhash
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.browsing.index import Lengths, lengths_of
from app.datasets.browsing.model_view import ReadingModel, example_of, reader_of
from app.datasets.browsing.sets import RowSet, batches
from app.text.template import TemplateFault

COUNTED_ROWS = 20_000
SHOWN_WORDS = 30
MOST_WORDS = 200_000
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


def count(rows: RowSet, model: ReadingModel, tell: Callable[[int, int], None]) -> TokenReport:
    """Count, and keep the report beside the set."""
    made = _Counts(rows, model).run(tell)
    path = report_path(rows, model)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_bytes(orjson.dumps(made.model_dump(mode="json")))
    temporary.replace(path)
    return made


class _Counts:
    def __init__(self, rows: RowSet, model: ReadingModel) -> None:
        self.rows, self.model, self.reader = rows, model, reader_of(model)
        self.lengths: Counter[int] = Counter()
        self.words: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.groups = {name: Counter[str]() for name in GROUPS}
        self.seen: set[int] = set()
        self.learned = self.over = self.unreadable = self.missing = self.copies = self.counted = 0

    def run(self, tell: Callable[[int, int], None]) -> TokenReport:
        total = self.rows.rows
        drawn = np.unique(np.linspace(0, total - 1, min(total, COUNTED_ROWS)).astype(np.int64))
        wanted = ("_rid", "kind", "messages", "text", "label", "split")
        for _group, start, table in batches(self.rows, wanted):
            mine = drawn[(drawn >= start) & (drawn < start + table.num_rows)] - start
            for row in table.take(mine).to_pylist() if len(mine) else ():
                self._add(row)
            tell(self.counted, len(drawn))
        return TokenReport(
            model=self.model.name, limit_tokens=self.model.limit_tokens, rows=total, counted=self.counted,
            tokens=sum(n * c for n, c in self.lengths.items()), learned=self.learned, over_limit=self.over,
            unreadable=self.unreadable, lengths=lengths_of(self.lengths), by_split=dict(self.splits),
            missing=self.missing, copies=self.copies, top_words=self.words.most_common(SHOWN_WORDS),
            distinct_words=len(self.words), rare_words=sum(n == 1 for n in self.words.values()),
            groups=[Group(name=n, rows=c.total(), labels=c.most_common(3)) for n, c in self.groups.items() if c],
        )  # fmt: skip

    def _add(self, row: dict[str, object]) -> None:
        self.counted += 1
        example = example_of(row)
        texts = [example.text] if example.kind == "text" else [m.content for m in example.messages]
        self.missing += any(not text.strip() for text in texts)
        key = xxhash.xxh3_64_intdigest("\x1f".join(texts).encode("utf-8", "replace"))
        self.copies += key in self.seen
        self.seen.add(key)
        words = _WORD.findall(" ".join(texts).lower())
        if len(self.words) < MOST_WORDS:
            self.words.update(words)
        present = set(words)
        for name, terms in GROUPS.items():
            if not present.isdisjoint(terms):
                self.groups[name][str(row.get("label") or "")] += 1
        try:
            encoded = self.reader.encode(example)
        except TemplateFault:
            self.unreadable += 1
            return
        length = len(encoded.ids)
        self.lengths[length] += 1
        self.learned += sum(encoded.learn)
        self.over += length > self.model.limit_tokens
        self.splits[str(row.get("split") or "")] += length
