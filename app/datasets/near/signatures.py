"""MinHash signatures (64 multiply-shift hashes, Broder 1997; bands after Leskovec, Rajaraman and Ullman, chapter 3)."""

import numpy as np
import numpy.typing as npt

from app.datasets.near.shingles import HASH_BITS, Shingles, mixed

HASHES, BANDS = 64, 16
BAND = HASHES // BANDS
BLOCK_VALUES = 1 << 15
Signatures = npt.NDArray[np.uint32]

_drawn = mixed(np.arange(1, 2 * HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
_FACTORS = (_drawn[:HASHES] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_SHIFTS = (_drawn[HASHES:] >> np.uint64(32)).astype(np.uint32)


def signatures(sets: Shingles) -> Signatures:
    """(rows, 64): for each hash the smallest value over a row's shingles. Two rows agree in about J of them."""
    rows = len(sets.offsets) - 1
    found = np.empty((HASHES, rows), np.uint32)
    values = (sets.values >> np.uint64(HASH_BITS - 32)).astype(np.uint32)
    start = 0
    while start < rows:
        first = sets.offsets[start]
        stop = max(start + 1, int(np.searchsorted(sets.offsets, first + BLOCK_VALUES, side="right")) - 1)
        block, places = values[first : sets.offsets[stop]], sets.offsets[start:stop] - first
        scratch = np.empty_like(block)
        for index in range(HASHES):
            np.multiply(block, _FACTORS[index], out=scratch)
            np.add(scratch, _SHIFTS[index], out=scratch)
            np.minimum.reduceat(scratch, places, out=found[index, start:stop])
        start = stop
    return np.ascontiguousarray(found.T)


def band_keys(band: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """One number for the four hashes of a band: (rows, 4) to (rows,)."""
    pairs = np.ascontiguousarray(band).view(np.uint64)
    return mixed(mixed(pairs[:, 0]) ^ pairs[:, 1])
