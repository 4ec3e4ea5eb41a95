"""Pairs of rows that are near copies: candidates from equal bands, then the exact Jaccard of their shingles."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.distinct import distinct
from app.datasets.near.shingles import HASH_BITS, Shingles
from app.datasets.near.signatures import BANDS, band_keys
from app.datasets.near.spill import Crew, Rows, Spill, Tell, crew, spill
from app.datasets.near.texts import What

Pairs = npt.NDArray[np.uint64]
LEAST = 0.7
# At J = 0.7 a signature agrees in 44.8 of 64 hashes, give or take 3.7: this bound loses 3 pairs of 10,000.
LEAST_AGREEING = 32
LARGE_BUCKET = 1000
# Every pair of a smaller component is compared, so that any threshold and any choice of the copy that stays finds
# its edges; in a larger one every row with the first and the longest.
WHOLE_COMPONENT = 32
CHUNK_PAIRS, PARTITION_PAIRS = 1 << 14, 1 << 18
_LOW = np.uint64(0xFFFFFFFF)


class Edges(NamedTuple):
    """Verified pairs, ascending by (a, b), a < b, with J >= 0.7; `sizes`: shingles of every row.
    `large_buckets`: rows of each bucket over 1,000, which were compared to their neighbours only."""

    a: Rows
    b: Rows
    j: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.uint32]
    large_buckets: list[int]


def packed(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> Pairs:
    """(smaller, larger) in one number."""
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return np.asarray((low << np.uint64(32)) | high)


def unpacked(pairs: Pairs) -> tuple[Rows, Rows]:
    """(a, b) of packed pairs."""
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & _LOW).astype(np.int64)


def _band_pairs(order: tuple[Spill, int]) -> list[int]:
    """Write the candidates of one band; the sizes of its large buckets."""
    spilled, band = order
    alive = spilled.alive()
    rows = len(alive)
    bits = np.uint64(max(1, (rows - 1).bit_length()))
    signed = spilled.band(band)
    keys = band_keys(signed[alive] if spilled.has_dead else signed) >> bits << bits
    keys |= np.arange(rows, dtype=np.uint64)
    keys.sort()
    buckets = keys >> bits
    ordered = alive[(keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)]
    is_new = np.concatenate([[True], buckets[1:] != buckets[:-1]])
    del keys, buckets
    starts = np.flatnonzero(is_new)
    sizes = np.diff(np.concatenate([starts, [rows]]))
    follows = np.flatnonzero(~is_new)
    bucket = np.cumsum(is_new)[follows] - 1
    heads = starts[bucket]
    is_beyond = (follows > heads + 1) & (sizes[bucket] <= LARGE_BUCKET)
    pairs = np.concatenate(
        [
            packed(ordered[follows - 1], ordered[follows]),
            packed(ordered[heads[is_beyond]], ordered[follows[is_beyond]]),
        ]
    )
    np.sort(pairs).tofile(Path(spilled.folder, f"pairs-{band:02d}.u64"))
    return [int(size) for size in sizes[sizes > LARGE_BUCKET]]


def jaccard(sets: Shingles, a: Rows, b: Rows) -> npt.NDArray[np.float32]:
    """Exact J of pairs of rows of `sets` (at most 65,536 rows)."""
    sizes = sets.sizes()
    is_swapped = sizes[a] > sizes[b]
    few, many = np.where(is_swapped, b, a), np.where(is_swapped, a, b)
    keys = sets.values | (np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes) << np.uint64(HASH_BITS))
    counts = sizes[few]
    begins = np.cumsum(counts) - counts
    values = sets.values[np.repeat(sets.offsets[few] - begins, counts) + np.arange(counts.sum())]
    asked = values | (np.repeat(many.astype(np.uint64), counts) << np.uint64(HASH_BITS))
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    both = np.add.reduceat((keys[place] == asked).astype(np.int64), begins) if len(a) else np.empty(0, np.int64)
    return np.asarray(both / (sizes[a] + sizes[b] - both), np.float32)


def _verified(spilled: Spill, pairs: Pairs, sizes: npt.NDArray[np.uint32]) -> tuple[Pairs, npt.NDArray[np.float32]]:
    """The pairs with J >= 0.7, and their J."""
    kept, found = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    a, b = unpacked(pairs)
    least, most = np.minimum(sizes[a], sizes[b]), np.maximum(sizes[a], sizes[b])
    pairs = pairs[least >= LEAST * most]
    for chunk in _chunks(pairs, sizes):
        rows, places = np.unique(np.concatenate(unpacked(chunk)), return_inverse=True)
        j = jaccard(spilled.gather(rows), places[: len(chunk)], places[len(chunk) :])
        kept.append(chunk[j >= LEAST])
        found.append(j[j >= LEAST])
    return np.concatenate(kept), np.concatenate(found)


def _chunks(pairs: Pairs, sizes: npt.NDArray[np.uint32]) -> Iterator[Pairs]:
    """Runs of pairs with few enough rows for the keys and about 64 MB of shingles at most."""
    a, b = unpacked(pairs)
    values = np.cumsum(sizes[a].astype(np.int64) + sizes[b])
    start = 0
    while start < len(pairs):
        before = values[start - 1] if start else 0
        stop = int(np.searchsorted(values, before + (1 << 23), side="right"))
        stop = min(max(stop, start + 1), start + CHUNK_PAIRS)
        yield pairs[start:stop]
        start = stop


def _verify_partition(order: tuple[Spill, int, int]) -> tuple[Pairs, npt.NDArray[np.float32]]:
    """All candidates whose first row is in [low, high)."""
    spilled, low, high = order
    limits = np.array([low, high], np.uint64) << np.uint64(32)
    slices = []
    for band in range(BANDS):
        pairs = _mapped(Path(spilled.folder, f"pairs-{band:02d}.u64"))
        first, last = np.searchsorted(pairs, limits)
        slices.append(np.asarray(pairs[first:last]))
    candidates = distinct(np.concatenate(slices))
    rows, places = np.unique(np.concatenate(unpacked(candidates)), return_inverse=True)
    signed = spilled.signatures(rows)
    a, b = places[: len(candidates)], places[len(candidates) :]
    agreeing = np.zeros(len(candidates), np.uint8)
    for place in range(0, len(candidates), CHUNK_PAIRS):
        part = slice(place, place + CHUNK_PAIRS)
        for band in signed:
            agreeing[part] += (band[a[part]] == band[b[part]]).sum(1, dtype=np.uint8)
    return _verified(spilled, candidates[agreeing >= LEAST_AGREEING], spilled.sizes())


def _mapped(path: Path) -> Pairs:
    return np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)


def _partitions(spilled: Spill) -> list[tuple[Spill, int, int]]:
    """Ranges of first rows with about the same number of candidates each."""
    files = [_mapped(Path(spilled.folder, f"pairs-{band:02d}.u64")) for band in range(BANDS)]
    total = sum(len(file) for file in files)
    sample = np.sort(np.concatenate([np.asarray(file[::256]) for file in files])) >> np.uint64(32)
    wanted = max(1, -(-total // PARTITION_PAIRS))
    cuts = sample[np.linspace(0, len(sample), wanted, endpoint=False).astype(int)[1:]] if len(sample) else []
    limits = sorted({0, spilled.rows, *(int(cut) for cut in cuts)})
    return [(spilled, low, high) for low, high in pairwise(limits)]


def components(rows: int, a: Rows, b: Rows) -> npt.NDArray[np.int32]:
    """Label of every row: rows with the same label are connected by edges."""
    # Imported where it is used: the worker processes do without it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(rows, rows))
    return np.asarray(connected_components(links, directed=False)[1], np.int32)


def _missing(rows: int, pairs: Pairs, sizes: npt.NDArray[np.uint32]) -> Pairs:
    """Pairs inside components that no band offered."""
    a, b = unpacked(pairs)
    touched, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    labels = components(len(touched), places[: len(a)], places[len(a) :])
    order = np.argsort(labels, kind="stable")
    found = []
    for members in np.split(touched[order], np.flatnonzero(np.diff(labels[order])) + 1):
        if 3 <= len(members) <= WHOLE_COMPONENT:
            left, right = np.triu_indices(len(members), 1)
            found.append(packed(members[left], members[right]))
        elif len(members) > WHOLE_COMPONENT:
            longest = members[int(np.argmax(sizes[members]))]
            found += [packed(members[1:], np.full(len(members) - 1, members[0]))]
            found += [packed(members[members != longest], np.full(len(members) - 1, longest))]
    wanted = distinct(np.concatenate(found)) if found else np.empty(0, np.uint64)
    return np.asarray(np.setdiff1d(wanted, pairs, assume_unique=True))


def _verify_pairs(order: tuple[Spill, Pairs]) -> tuple[Pairs, npt.NDArray[np.float32]]:
    spilled, pairs = order
    return _verified(spilled, pairs, spilled.sizes())


def find(
    paths: Sequence[Path], folder: Path, *, workers: int = 1, what: What = "example", tell: Tell = lambda _d, _t: None
) -> tuple[Edges, Spill]:
    """All near copies among the rows of `paths`; the spill stays in `folder` until the caller removes it.

    Rows are numbered from 0 in the order of the files. The same for any number of workers.
    """
    with crew(workers) as work:
        spilled = spill(paths, folder, work, what, lambda done, total: tell(done, 2 * total))
        return edges_of(spilled, work, lambda done, total: tell(total + done, 2 * total)), spilled


def edges_of(spilled: Spill, work: Crew, tell: Tell = lambda _d, _t: None) -> Edges:
    """All near copies among spilled rows (at most 2^32)."""
    rows, sizes = spilled.rows, spilled.sizes()
    if rows < 2:
        nothing = np.empty(0, np.int64)
        return Edges(nothing, nothing, np.empty(0, np.float32), sizes, [])
    large: list[int] = []
    for band, found in enumerate(work(_band_pairs, [(spilled, band) for band in range(BANDS)])):
        large += found
        tell(rows * band // (2 * BANDS), rows)
    pairs, j = _joined(work(_verify_partition, _partitions(spilled)))
    more = _missing(rows, pairs, sizes)
    orders = [(spilled, more[place : place + PARTITION_PAIRS]) for place in range(0, len(more), PARTITION_PAIRS)]
    added, added_j = _joined(work(_verify_pairs, orders))
    pairs, j = np.concatenate([pairs, added]), np.concatenate([j, added_j])
    order = np.argsort(pairs)
    a, b = unpacked(pairs[order])
    tell(rows, rows)
    return Edges(a, b, j[order], sizes, sorted(large, reverse=True))


def _joined(
    results: Iterator[tuple[Pairs, npt.NDArray[np.float32]]],
) -> tuple[Pairs, npt.NDArray[np.float32]]:
    pairs, found = [np.empty(0, np.uint64)], [np.empty(0, np.float32)]
    for some, j in results:
        pairs.append(some)
        found.append(j)
    return np.concatenate(pairs), np.concatenate(found)
