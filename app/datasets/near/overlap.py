"""Every pair of a row and a queried row that is near, none missed: an exact search, for the proof of a split.

Prefix filter (Chaudhuri, Ganti and Kaushik 2006): of a query with n shingles, a row with J >= t holds at least one of
the n - ceil(t n) + 1 that are rarest among the rows. Only those are looked up, then J is computed.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.near.edges import jaccard
from app.datasets.near.shingles import Shingles, Words
from app.datasets.near.spill import Rows, Spill, take

_FILTER_BITS = 22
CHUNK_PAIRS = 1 << 15


class Near(NamedTuple):
    """Pairs: row of the set, number of the query, their J."""

    rows: Rows
    queries: Rows
    j: npt.NDArray[np.float32]


class Members:
    """Which of many hashes are among a few: a table of bits first, then a search."""

    def __init__(self, values: Words) -> None:
        self.values = np.unique(values)
        self._table = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._table[self._slots(self.values)] = True

    @staticmethod
    def _slots(values: Words) -> Rows:
        return (values & np.uint64((1 << _FILTER_BITS) - 1)).astype(np.int64)

    def find(self, values: Words) -> tuple[Rows, Rows]:
        """(places in `values` that are members, which member each is)."""
        maybe = np.flatnonzero(self._table[self._slots(values)])
        if not len(self.values) or not len(maybe):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        asked = values[maybe]
        place = np.minimum(np.searchsorted(self.values, asked), len(self.values) - 1)
        is_in = self.values[place] == asked
        return maybe[is_in], place[is_in]


def near_pairs(spilled: Spill, queries: Rows, least: float) -> Near:
    """All pairs of a row (any of the spill, but not the query itself) and a query with J >= `least`."""
    sets = spilled.gather(queries)
    if not len(queries):
        return Near(queries, queries, np.empty(0, np.float32))
    everything = Members(sets.values)
    frequency = np.zeros(len(everything.values), np.int64)
    for number in range(len(spilled.batches)):
        _places, members = everything.find(np.asarray(spilled.sets(number).values))
        frequency += np.bincount(members, minlength=len(frequency))
    postings, owners = _prefixes(sets, frequency[np.searchsorted(everything.values, sets.values)], least)
    index = Members(postings)
    starts = np.searchsorted(postings, index.values)
    counts = np.diff(np.concatenate([starts, [len(postings)]]))
    found: list[Near] = []
    for number, batch in enumerate(spilled.batches):
        rows_sets = spilled.sets(number)
        places, members = index.find(np.asarray(rows_sets.values))
        rows = np.searchsorted(rows_sets.offsets, places, side="right") - 1
        many = counts[members]
        begins = np.repeat(starts[members] - np.cumsum(many) + many, many)
        asked = owners[begins + np.arange(many.sum())]
        pairs = np.unique(np.repeat(rows, many) * len(queries) + asked)
        rows, asked = pairs // len(queries), pairs % len(queries)
        sizes, query_sizes = rows_sets.sizes()[rows], sets.sizes()[asked]
        is_possible = np.minimum(sizes, query_sizes) >= least * np.maximum(sizes, query_sizes)
        is_possible &= batch.start + rows != queries[asked]
        rows, asked = rows[is_possible], asked[is_possible]
        for place in range(0, len(rows), CHUNK_PAIRS):
            part = _exact(rows_sets, sets, rows[place : place + CHUNK_PAIRS], asked[place : place + CHUNK_PAIRS], least)
            found.append(Near(part.rows + batch.start, part.queries, part.j))
    if not found:
        nothing = np.empty(0, np.int64)
        return Near(nothing, nothing, np.empty(0, np.float32))
    return Near(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _prefixes(sets: Shingles, frequency: npt.NDArray[np.int64], least: float) -> tuple[Words, Rows]:
    """(shingles to look up, ascending; the query of each)."""
    sizes = sets.sizes()
    owners = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((sets.values, frequency, owners))
    rank = np.arange(len(order)) - sets.offsets[owners]
    taken = sizes - np.ceil(least * sizes - 1e-9).astype(np.int64) + 1
    chosen = order[rank < taken[owners]]
    by_value = np.lexsort((owners[chosen], sets.values[chosen]))
    return sets.values[chosen][by_value], owners[chosen][by_value]


def _exact(rows_sets: Shingles, sets: Shingles, rows: Rows, asked: Rows, least: float) -> Near:
    left, right = np.unique(rows), np.unique(asked)
    some, others = take(rows_sets, left), take(sets, right)
    both = Shingles(
        np.concatenate([some.values, others.values]),
        np.concatenate([some.offsets, others.offsets[1:] + some.offsets[-1]]),
    )
    j = jaccard(both, np.searchsorted(left, rows), np.searchsorted(right, asked) + len(left))
    is_near = j >= np.float32(least)
    return Near(rows[is_near], asked[is_near], j[is_near])
