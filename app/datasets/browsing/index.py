"""The index of a set of rows, made once in one pass: what can be filtered and sorted, and the cells a table shows.

Columns are described in `columns`; `meta.json` is written last, so an index without it is not finished.
"""

import os
import shutil
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.browsing.columns import ColumnWriter
from app.datasets.browsing.languages import Languages
from app.datasets.browsing.sets import RowSet, batches
from app.datasets.edits import row_keys
from app.datasets.tables import INPUT_BITS

Tell = Callable[[int, int], None]
FORMAT = 1
SPLITS = ("train", "validation", "test")
NAMED = 1000
BARS = 12
MARKS = 63
_READ = ("_rid", "_file", "_row", "kind", "messages", "text", "label", "meta", "split", "source", "row")


class Choice(Contract):
    """One value of a filter, with how many rows have it. `value` is what the address says."""

    value: str
    label: str
    number: int
    count: int


class Lengths(Contract):
    """Counted lengths in words. Bar i holds those from `edges[i]` up to the next edge; the last bar has no end, and the
    highest 1 % is in it."""

    low: int = 0
    high: int = 0
    edges: list[int] = Field(default_factory=list)
    counts: list[int] = Field(default_factory=list)


def lengths_of(counted: Counter[int]) -> Lengths:
    """At most twelve bars that an outlier does not squeeze."""
    if not counted:
        return Lengths()
    total, seen, top = counted.total(), 0, 0
    for value in sorted(counted):
        seen, top = seen + counted[value], value
        if seen >= 0.99 * total:
            break
    low = min(counted)
    bins = min(BARS, top - low + 1)
    edges = [low + (top + 1 - low) * i // bins for i in range(bins)]
    counts = [0] * bins
    for value, number in counted.items():
        counts[bisect_right(edges, value) - 1] += number
    return Lengths(low=low, high=max(counted), edges=edges, counts=counts)


class Meta(Contract):
    """What an index holds. Lists are sorted by count, at most 1,000 long; `label_count` counts all labels."""

    rows: int = 0
    chat_rows: int = 0
    labels: list[Choice] = Field(default_factory=list)
    label_count: int = 0
    sources: list[Choice] = Field(default_factory=list)
    splits: list[Choice] = Field(default_factory=list)
    languages: list[Choice] = Field(default_factory=list)
    marks: list[Choice] = Field(default_factory=list)
    has_score: bool = False
    first: Lengths = Field(default_factory=Lengths)
    second: Lengths = Field(default_factory=Lengths)
    words: Lengths = Field(default_factory=Lengths)
    words_total: int = 0


def folder_of(rows: RowSet) -> Path:
    """Where the index of the set lies or will lie."""
    return rows.folder / f"index-{FORMAT}"


@lru_cache(maxsize=64)
def _meta(path: Path, _modified_ns: int) -> Meta:
    return Meta.model_validate_json(path.read_bytes())


def meta_of(rows: RowSet) -> Meta | None:
    """What the finished index holds; None before it is finished."""
    path = folder_of(rows) / "meta.json"
    try:
        return _meta(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def name_of(rows: RowSet) -> str:
    """What tells this finished index from every other, and from one that is made anew in its place."""
    path = folder_of(rows) / "meta.json"
    return f"{path}:{path.stat().st_mtime_ns}"


def build(rows: RowSet, tell: Tell) -> Meta:
    """Make the index, whole or not at all; the one that is there stays."""
    target = folder_of(rows)
    if (found := meta_of(rows)) is not None:
        return found
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}-{os.urandom(4).hex()}")
    temporary.mkdir(parents=True)
    try:
        meta = _Pass(rows, temporary, tell).run()
        (temporary / "meta.json").write_text(meta.model_dump_json())
        try:
            temporary.rename(target)
        except OSError:
            if (found := meta_of(rows)) is not None:
                return found
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


class _Numbered:
    """Values as numbers in the order of their first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.counts: Counter[int] = Counter()

    def of(self, column: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """The number of each value; -1 for empty ones."""
        coded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        coded = pc.fill_null(coded, "").dictionary_encode()
        table = np.array([self._number(value) for value in coded.dictionary.to_pylist()] or [-1], np.int32)
        found = table[coded.indices.to_numpy(zero_copy_only=False)] if len(coded) else np.zeros(0, np.int32)
        values, counts = np.unique(found, return_counts=True)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        return found

    def _number(self, value: str) -> int:
        return self.numbers.setdefault(value, len(self.numbers)) if value else -1

    def choices(self, names: dict[str, str] | None = None, limit: int = NAMED) -> list[Choice]:
        """The most frequent values."""
        found = [Choice(value=v, label=(names or {}).get(v, v), number=n, count=self.counts[n])
                 for v, n in self.numbers.items()]  # fmt: skip
        return sorted(found, key=lambda c: (-c.count, c.label))[:limit]


class _Pass:
    """One pass over the rows. Memory: a batch, the trace of the kept rows (16 bytes each) and the distinct labels."""

    def __init__(self, rows: RowSet, folder: Path, tell: Tell) -> None:
        self.rows, self.tell, self.total, self.folder = rows, tell, rows.rows, folder
        self.writer = ColumnWriter(folder)
        self.labels, self.sources, self.languages = _Numbered(), _Numbered(), _Numbered()
        self.lengths: dict[str, Counter[int]] = {name: Counter() for name in ("first", "second", "words")}
        self.splits: Counter[int] = Counter()
        self.mark_counts: Counter[int] = Counter()
        self.meta = Meta()
        self.detect = Languages()

    def run(self) -> Meta:
        trace = Trace(self.rows)
        for _group, start, table in batches(self.rows, _READ):
            self._add(table, trace)
            self.tell(start + table.num_rows, self.total)
        self.writer.close()
        counts = {s: self.splits[i] for i, s in enumerate(SPLITS) if self.splits[i]}
        return self.meta.model_copy(
            update={
                "rows": self.total, "labels": self.labels.choices(), "label_count": len(self.labels.numbers),
                "sources": self.sources.choices(self.rows.sources), "languages": self.languages.choices(),
                "splits": [Choice(value=s, label=s, number=SPLITS.index(s), count=n) for s, n in counts.items()],
                "marks": [
                    Choice(value=name, label=name, number=bit, count=self.mark_counts[bit])
                    for name, bit in trace.marks.items() if self.mark_counts[bit]
                ],
                "has_score": trace.has_score,
                **{name: lengths_of(counted) for name, counted in self.lengths.items()},
                "words_total": sum(n * c for n, c in self.lengths["words"].items()),
            }
        )  # fmt: skip

    def _add(self, table: pa.Table, trace: "Trace") -> None:
        texts = shown_texts(table)
        for name, array in (("first", texts.first), ("second", texts.second)):
            self.writer.add_cells(name, array)
            self._lengths(name, word_counts(array))
        all_words = word_counts(texts.contents)
        words = np.bincount(texts.row_of, weights=all_words, minlength=table.num_rows).astype(np.int64)
        words += np.where(texts.is_text, word_counts(texts.first), 0)
        self._lengths("words", words)
        self.writer.add("turns", texts.turns)
        self.meta.chat_rows += int(table.num_rows - texts.is_text.sum())
        self._origin(table)
        if "split" in table.schema.names:
            split = pc.index_in(table.column("split"), pa.array(SPLITS)).to_numpy(zero_copy_only=False).astype("u1")
        else:
            split = np.full(table.num_rows, 255, "u1")
        self.splits.update(dict(enumerate(np.bincount(split, minlength=3)[:3].tolist())))
        self.writer.add("split", split)
        marks, score, language = trace.of(table.column("_rid").to_numpy())
        for bit in trace.marks.values():
            self.mark_counts[bit] += int(((marks >> np.uint64(bit)) & np.uint64(1)).sum())
        self.writer.add("marks", marks)
        self.writer.add("score", score)
        codes = pa.array(language, pa.string()) if language is not None else self.detect.of(texts)
        self.writer.add("language", np.minimum(self.languages.of(codes), 254).astype("u1"))

    def _lengths(self, name: str, values: np.ndarray) -> None:
        self.writer.add(name, values)
        distinct, counts = np.unique(values, return_counts=True)
        self.lengths[name].update(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))

    def _origin(self, table: pa.Table) -> None:
        names = table.schema.names
        if "_file" in names:
            source, label = table.column("_file"), table.column("label")
            keys = row_keys(source.to_pylist(), table.column("_row").to_numpy())
        else:
            if {"source", "label"} <= set(names):
                source, label = table.column("source"), table.column("label")
            else:
                metas = [orjson.loads(raw) if raw else {} for raw in table.column("meta").to_pylist()]
                source = pa.array([str(m.get("source", "")) for m in metas], pa.string())
                label = pa.array([str(m.get("label") or "") for m in metas], pa.string())
            keys = np.zeros(table.num_rows, "<u8")
        self.writer.add("key", keys)
        self.writer.add("source", np.maximum(self.sources.of(source), 0))
        self.writer.add("label", self.labels.of(label))


class Texts:
    """The texts of a batch: every content with its row, and the two that a table shows."""

    def __init__(self, contents: pa.Array, row_of: np.ndarray, first: pa.Array, second: pa.Array, turns: np.ndarray,
                 is_text: np.ndarray) -> None:  # fmt: skip
        self.contents, self.row_of, self.first, self.second = contents, row_of, first, second
        self.turns, self.is_text = turns, is_text


def shown_texts(table: pa.Table) -> Texts:
    """First question and last answer of conversations; the text of text rows in the first place."""
    messages = table.column("messages").combine_chunks()
    counts = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    row_of = np.repeat(np.arange(table.num_rows), counts)
    flat = messages.flatten()
    roles, contents = flat.field("role"), flat.field("content")
    is_text = pc.equal(table.column("kind"), "text").to_numpy(zero_copy_only=False)

    def picked(role: str, is_last: bool) -> pa.Array:
        places = np.flatnonzero(pc.equal(roles, role).to_numpy(zero_copy_only=False))
        rows = row_of[places]
        if is_last:
            found, at = np.unique(rows[::-1], return_index=True)
            places = places[::-1][at]
        else:
            found, at = np.unique(rows, return_index=True)
            places = places[at]
        index = np.full(table.num_rows, -1, np.int64)
        index[found] = places
        return contents.take(pa.array(index, mask=index < 0))

    text = table.column("text").combine_chunks()
    first = pc.if_else(pa.array(is_text), text, picked("user", False))
    system = np.bincount(
        row_of, weights=pc.equal(roles, "system").to_numpy(zero_copy_only=False), minlength=table.num_rows
    )
    return Texts(contents, row_of, pc.fill_null(first, ""), pc.fill_null(picked("assistant", True), ""),
                 (counts - system.astype(np.int64)), is_text)  # fmt: skip


def word_counts(texts: pa.Array) -> np.ndarray:
    """Words (runs between ASCII blanks) of each text, counted on the bytes."""
    if not len(texts):
        return np.zeros(0, np.int64)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    body = texts.buffers()[2]
    if body is None or offsets[-1] == offsets[0]:
        return np.zeros(len(texts), np.int64)
    data = np.frombuffer(body, np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    begins = np.ones(len(data), bool)
    np.less_equal(data[:-1], 32, out=begins[1:])
    begins[offsets[:-1][offsets[:-1] < len(data)]] = True
    begins &= data > 32
    sums = np.add.reduceat(begins, np.minimum(offsets[:-1], len(data) - 1), dtype=np.int64)
    return np.where(offsets[1:] > offsets[:-1], sums, 0)


class Trace:
    """What was done to each kept row: marks as bits, a score and a language where a step gave one."""

    def __init__(self, rows: RowSet) -> None:
        # Not above: a process that only scans has no use for all the cleaning steps and what they import.
        from app.datasets.steps.catalogue import STEPS

        self._steps = {step.name: step.bit for step in STEPS.values()}
        self.marks: dict[str, int] = {}
        self.has_score = False
        self._languages: list[str] = []
        pieces: list[tuple[np.ndarray, ...]] = []
        self._language_numbers: dict[str, int] = {}
        for path in rows.traces:
            with pq.ParquetFile(path) as source:
                names = set(source.schema_arrow.names)
                if "status" not in names:
                    continue  # made of other versions: it tells which rows of which parents, and no marks
                wanted = [
                    n for n in ("_rid", "status", "codes", "changed", "quality", "score", "language") if n in names
                ]
                for group in range(source.metadata.num_row_groups):
                    table = source.read_row_group(group, columns=wanted, use_threads=False)
                    pieces.append(self._piece(table.filter(pc.equal(table.column("status"), "kept"))))
        empty = (np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.float32), np.zeros(0, np.int16))
        joined: list[np.ndarray] = [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)] or list(empty)
        if (joined[0][1:] < joined[0][:-1]).any():
            order = np.argsort(joined[0], kind="stable")
            joined = [array[order] for array in joined]
        self._rid, self._bits, self._score, self._language = joined
        self._names = np.array([*self._language_numbers, ""], object)

    def _piece(self, table: pa.Table) -> tuple[np.ndarray, ...]:
        count, names = table.num_rows, table.schema.names
        bits = np.zeros(count, np.uint64)
        if "changed" in names:
            changed = table.column("changed").to_numpy()
            for name, step_bit in self._steps.items():
                if (hit := (changed & step_bit) > 0).any():
                    bits |= hit.astype(np.uint64) << np.uint64(self._bit(f"changed:{name}"))
        if "codes" in names:
            coded = pc.fill_null(table.column("codes").combine_chunks(), "").dictionary_encode()
            per_value = np.array([self._bits_of(value) for value in coded.dictionary.to_pylist()] or [0], np.uint64)
            if count:
                bits |= per_value[coded.indices.to_numpy(zero_copy_only=False)]
        score = np.full(count, np.nan, np.float32)
        if by := next((name for name in ("quality", "score") if name in names), None):
            score = pc.cast(table.column(by), pa.float32()).to_numpy()
            self.has_score = self.has_score or bool(np.isfinite(score).any())
        language = np.full(count, -1, np.int16)
        if "language" in names:
            coded = pc.fill_null(table.column("language").combine_chunks(), "").dictionary_encode()
            numbers = [
                self._language_numbers.setdefault(v, len(self._language_numbers)) for v in coded.dictionary.to_pylist()
            ]
            if count:
                language = np.array(numbers, np.int16)[coded.indices.to_numpy(zero_copy_only=False)]
        return table.column("_rid").to_numpy(), bits, score, language

    def _bit(self, name: str) -> int:
        return self.marks.setdefault(name, len(self.marks)) if name in self.marks or len(self.marks) < MARKS else MARKS

    def _bits_of(self, codes: str) -> int:
        found = 0
        for code in codes.split():
            found |= 1 << self._bit(code)
        return found

    def of(self, rids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        """(marks, score, languages or None where nobody looked for them) of rows by their rid."""
        if not len(self._rid):
            return np.zeros(len(rids), np.uint64), np.full(len(rids), np.nan, np.float32), None
        # Rows made of one input row share what was done to it. In versions of versions the whole number counts.
        rids = np.where(np.isin(rids, self._rid), rids, rids & (2**INPUT_BITS - 1))
        at = np.minimum(np.searchsorted(self._rid, rids), len(self._rid) - 1)
        is_known = self._rid[at] == rids
        languages = self._names[self._language[at]].tolist() if any(self._language_numbers) else None
        return np.where(is_known, self._bits[at], 0), np.where(is_known, self._score[at], np.nan), languages
