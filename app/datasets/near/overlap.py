"""Every pair of a row and a queried row that is near, none missed: an exact search, for the proof of a split.

Prefix and position filter (Chaudhuri, Ganti and Kaushik 2006; Xiao et al. 2008): with all shingles in one order, the
rarest first, two sets with J >= t meet within the first n - ceil(t n) + 1 of both, early enough that what is left can
still suffice. Bitmap filter (Sandes et al. 2019): bits that differ bound the overlap. Then J is computed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.distinct import distinct
from app.datasets.near.edges import jaccard
from app.datasets.near.shingles import Shingles, Words
from app.datasets.near.spill import Rows, Spill, crew, take

_FILTER_BITS = 22, 26
BITMAP_BITS = 512
CHUNK_PAIRS, CHUNK_MEETINGS = 1 << 15, 1 << 20


class Near(NamedTuple):
    """Pairs: row of the set, number of the query, their J."""

    rows: Rows
    queries: Rows
    j: npt.NDArray[np.float32]


class Members:
    """Which of many hashes are among a few: a table of bits first, then a search."""

    def __init__(self, values: Words, *, is_sorted: bool = False) -> None:
        self.values = values if is_sorted else distinct(values)
        least, most = _FILTER_BITS
        self._bits = np.uint64((1 << min(most, max(least, (8 * len(self.values)).bit_length()))) - 1)
        self._table = np.zeros(int(self._bits) + 1, np.bool_)
        self._table[self._slots(self.values)] = True

    def _slots(self, values: Words) -> Rows:
        return (values & self._bits).astype(np.int64)

    def find(self, values: Words) -> tuple[Rows, Rows]:
        """(places in `values` that are members, which member each is)."""
        maybe = np.flatnonzero(self._table[self._slots(values)])
        if not len(self.values) or not len(maybe):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        asked = values[maybe]
        place = np.minimum(np.searchsorted(self.values, asked), len(self.values) - 1)
        is_in = self.values[place] == asked
        return maybe[is_in], place[is_in]


class _Index(NamedTuple):
    """What is looked up of the queries. `members`: their distinct shingles, ascending; `ranks`: how rare each is (0
    the rarest); the queries that hold shingle of rank r in their prefix are `owners[starts[r]:starts[r + 1]]`, with
    `left` shingles of theirs from this one on. `values`, `offsets`: their sets; `bits`: their bitmaps."""

    members: Words
    ranks: npt.NDArray[np.uint32]
    starts: Rows
    owners: npt.NDArray[np.int32]
    left: npt.NDArray[np.int32]
    values: Words
    offsets: Rows
    bits: Words
    queries: Rows

    def save(self, folder: Path) -> None:
        arrays: dict[str, npt.NDArray[Any]] = self._asdict()
        for name, array in arrays.items():
            np.save(folder / f"proof-{name}.npy", array)

    @classmethod
    def read(cls, folder: Path) -> "_Index":
        """As saved, mapped: the processes of a crew share it."""
        return cls(*(np.load(folder / f"proof-{name}.npy", mmap_mode="r") for name in cls._fields))


def near_pairs(spilled: Spill, queries: Rows, least: float, *, workers: int = 1) -> Near:
    """All pairs of a row (any of the spill, but not the query itself) and a query (ascending) with J >= `least`."""
    found = [Near(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    if len(queries):
        _indexed(spilled.gather(queries), queries, least).save(Path(spilled.folder))
        # One long run of batches each: a process reads the index once.
        runs = np.array_split(np.arange(len(spilled.batches)), min(4 * workers, len(spilled.batches)))
        with crew(workers) as work:
            found += work(_of_batches, [(spilled, run.tolist(), least) for run in runs])
    return Near(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _indexed(sets: Shingles, queries: Rows, least: float) -> _Index:
    """The prefixes of the queries, by shingle. How rare a shingle is among the queries stands for all rows: any order
    finds every pair, a good one only looks less."""
    sizes = sets.sizes()
    members, inverse, counts = np.unique(sets.values, return_inverse=True, return_counts=True)
    ranks = np.empty(len(members), np.uint32)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(members), dtype=np.uint32)
    keys = _by_rank(np.repeat(np.arange(len(sizes)), sizes), ranks[inverse])
    del inverse
    holders, place = keys >> np.uint64(32), np.arange(len(keys)) - np.repeat(sets.offsets[:-1], sizes)
    is_prefix = place < np.repeat(_prefix(sizes, least), sizes)
    left = (np.repeat(sizes, sizes) - place)[is_prefix].astype(np.int32)
    owners, ranked = holders[is_prefix].astype(np.int32), (keys[is_prefix] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = np.argsort(ranked, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(ranked, minlength=len(members)))])
    return _Index(
        members, ranks, starts, owners[order], left[order], sets.values, sets.offsets, _bitmaps(sets), queries
    )  # fmt: skip


def _by_rank(rows: npt.NDArray[np.integer], ranks: npt.NDArray[np.uint32]) -> Words:
    """(row, rank) in one number, ascending."""
    keys = (rows.astype(np.uint64) << np.uint64(32)) | ranks
    keys.sort()
    return keys


def _prefix(sizes: Rows, least: float) -> Rows:
    """How many of a set's shingles must be looked at: without a match among them too few are left."""
    return np.asarray(sizes - np.ceil(least * sizes - 1e-9).astype(np.int64) + 1)


def _bitmaps(sets: Shingles) -> Words:
    """(rows, 8): 512 bits of each set, one for each of its shingles."""
    rows = len(sets.offsets) - 1
    found = np.empty((rows, BITMAP_BITS // 64), np.uint64)
    for start in range(0, rows, 1 << 14):
        stop = min(start + (1 << 14), rows)
        flags = np.zeros((stop - start, BITMAP_BITS), np.bool_)
        values = np.asarray(sets.values[sets.offsets[start] : sets.offsets[stop]])
        places = np.repeat(np.arange(stop - start), np.diff(sets.offsets[start : stop + 1]))
        flags[places, (values & np.uint64(BITMAP_BITS - 1)).astype(np.int64)] = True
        found[start:stop] = np.packbits(flags, axis=1).view(np.uint64)
    return found


def _of_batches(order: tuple[Spill, list[int], float]) -> Near:
    """The pairs of all rows of some batches."""
    spilled, numbers, least = order
    index = _Index.read(Path(spilled.folder))
    members = Members(index.members, is_sorted=True)
    sets = Shingles(index.values, index.offsets)
    found: list[Near] = []
    for number in numbers:
        start, rows_sets = spilled.batches[number].start, spilled.sets(number)
        rows_sets = Shingles(np.asarray(rows_sets.values), rows_sets.offsets)
        parts = list(_candidates(index, members, rows_sets, start, least))
        pairs = distinct(np.concatenate(parts)) if parts else np.empty(0, np.int64)
        for place in range(0, len(pairs), CHUNK_PAIRS):
            rows, asked = np.divmod(pairs[place : place + CHUNK_PAIRS], len(index.queries))
            part = _exact(rows_sets, sets, rows, asked, least)
            found.append(Near(part.rows + start, part.queries, part.j))
    if not found:
        nothing = np.empty(0, np.int64)
        return Near(nothing, nothing, np.empty(0, np.float32))
    return Near(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _candidates(index: _Index, members: Members, sets: Shingles, start: int, least: float) -> Iterator[Rows]:
    """Pairs that no filter rules out, as row * queries + query; the same pair may come twice."""
    sizes, query_sizes = sets.sizes(), np.diff(index.offsets)
    bits = _bitmaps(sets)
    places, which = members.find(sets.values)
    keys = _by_rank(np.repeat(np.arange(len(sizes)), sizes)[places], np.asarray(index.ranks[which]))
    rows = (keys >> np.uint64(32)).astype(np.int64)
    ranks = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    # Shingles that no query holds come before all others: they meet nothing.
    left = np.cumsum(np.bincount(rows, minlength=len(sizes)))[rows] - np.arange(len(rows))
    is_prefix = sizes[rows] - left < _prefix(sizes, least)[rows]
    rows, ranks, left = rows[is_prefix], ranks[is_prefix], left[is_prefix]
    begins = np.asarray(index.starts[ranks])
    many = np.asarray(index.starts[ranks + 1]) - begins
    ends = np.cumsum(many)
    first = 0
    while first < len(rows):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + CHUNK_MEETINGS, side="right")))
        part = slice(first, last)
        met = np.repeat(begins[part] - (ends[part] - many[part] - before), many[part])
        met += np.arange(len(met))
        asked = np.asarray(index.owners[met])
        own, others = np.repeat(sizes[rows[part]], many[part]), query_sizes[asked]
        needed = (own + others) * (least / (1 + least)) - 1e-6
        is_possible = np.minimum(np.repeat(left[part], many[part]), index.left[met]) >= needed
        at = np.repeat(rows[part], many[part])[is_possible]
        asked = asked[is_possible]
        pairs = distinct(at * len(index.queries) + asked)
        at, asked = np.divmod(pairs, len(index.queries))
        differing = np.bitwise_count(bits[at] ^ index.bits[asked]).sum(axis=1, dtype=np.int64)
        overlap = (sizes[at] + query_sizes[asked] - differing) / 2
        is_possible = overlap >= (sizes[at] + query_sizes[asked]) * (least / (1 + least)) - 1e-6
        is_possible &= start + at != index.queries[asked]
        yield pairs[is_possible]
        first = last


def _exact(rows_sets: Shingles, sets: Shingles, rows: Rows, asked: Rows, least: float) -> Near:
    left, right = distinct(rows), distinct(asked)
    some, others = take(rows_sets, left), take(sets, right)
    both = Shingles(
        np.concatenate([some.values, others.values]),
        np.concatenate([some.offsets, others.offsets[1:] + some.offsets[-1]]),
    )
    j = jaccard(both, np.searchsorted(left, rows), np.searchsorted(right, asked) + len(left))
    is_near = j >= np.float32(least)
    return Near(rows[is_near], asked[is_near], j[is_near])
