"""Texts to sets of hashed word 3-grams, in numpy on bytes: the same numbers on every machine and in every process."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

Words = npt.NDArray[np.uint64]
WIDTH = 3
# A set is sorted together with its row in one 64-bit number: 16 bits of row, 48 bits of hash.
HASH_BITS = 48
BLOCK_ROWS = 1 << (64 - HASH_BITS)
BLOCK_BYTES = 1 << 17
_MASK = np.uint64((1 << HASH_BITS) - 1)
# Scripts that are written without spaces: each character is a token.
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_TOKEN = rf"[{_ALONE}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{_ALONE}]]+"
_BASE = 0x9E3779B97F4A7C15 | 1
_WEIGHTS = tuple(np.uint64(w) for w in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93))

# Byte to what is hashed: letters and digits in lower case, every byte of a character beyond ASCII, else 0 (a gap).
_BYTES = np.zeros(256, np.uint8)
for _byte in range(256):
    if chr(_byte).isalnum() or _byte >= 0x80:
        _BYTES[_byte] = ord(chr(_byte).lower()) if _byte < 0x80 else _byte


class Shingles(NamedTuple):
    """Sets of shingles: `values` ascending and distinct within a row (u64, 48 bits used); row i is
    `values[offsets[i]:offsets[i + 1]]` and never empty."""

    values: Words
    offsets: npt.NDArray[np.int64]

    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of shingles of each row."""
        return np.diff(self.offsets)


def mixed(x: Words) -> Words:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _WEIGHTS[0]
    x = (x ^ (x >> np.uint64(27))) * _WEIGHTS[1]
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=2)
def _powers(size: int) -> tuple[Words, Words]:
    """Powers of the base and of its inverse modulo 2^64."""
    found = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.empty(size, np.uint64)
        powers[0] = 1
        done = 1
        while done < size:
            step = min(done, size - done)
            powers[done : done + step] = powers[:step] * np.uint64(pow(base, done, 1 << 64))
            done += step
        found.append(powers)
    return found[0], found[1]


def tokenised(texts: pa.Array) -> pa.Array:
    """The texts with their tokens parted by blanks, where that is not plain to see from the bytes: outside ASCII."""
    is_plain = pc.string_is_ascii(texts)
    if pc.all(is_plain).as_py() is not False:
        return texts
    # Imported where it is used: most rows, and most worker processes, do without it.
    import polars as pl

    foreign = pl.from_arrow(texts.filter(pc.invert(is_plain)))
    assert isinstance(foreign, pl.Series)
    parted = foreign.str.to_lowercase().str.extract_all(_TOKEN).list.join(" ").to_arrow()
    return pc.replace_with_mask(texts, pc.invert(is_plain), parted.cast(texts.type))


def shingles(texts: pa.Array, width: int = WIDTH) -> Shingles:
    """The sets of all texts. A row with fewer than `width` tokens gets one hash of all of them; one without any
    token a hash of its characters: rows never share a constant."""
    return _sets(texts, width, None)


def shingles_and_keys(texts: pa.Array, width: int = WIDTH) -> tuple[Shingles, Words]:
    """(the sets of all texts, their `row_keys`), with one look at their tokens."""
    keys = np.zeros(len(texts), np.uint64)
    return _sets(texts, width, keys), keys


def _sets(texts: pa.Array, width: int, keys: Words | None) -> Shingles:
    """The sets of all texts; their keys are written into `keys`."""
    raw = texts.cast(pa.large_string())
    ready = tokenised(raw)
    values, counts = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for start, stop in _blocks(ready):
        hashes, rows = _row_tokens(ready.slice(start, stop - start))
        some = raw.slice(start, stop - start)
        block = _block(hashes, rows, some, width)
        values.append(block.values)
        counts.append(block.sizes())
        if keys is not None:
            keys[start:stop], _number = _keys(hashes, rows, some)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.concatenate(counts), out=offsets[1:])
    return Shingles(np.concatenate(values), offsets)


def _offsets(texts: pa.Array) -> npt.NDArray[np.int64]:
    buffer = texts.buffers()[1]
    return np.frombuffer(buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]


def _blocks(texts: pa.Array) -> Iterator[tuple[int, int]]:
    """Runs of rows that fit a processor's cache together; a longer row stands alone."""
    if not len(texts):
        return
    offsets = _offsets(texts)
    start = 0
    while start < len(texts):
        stop = int(np.searchsorted(offsets, offsets[start] + BLOCK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + BLOCK_ROWS, len(texts))
        yield start, stop
        start = stop


def row_keys(texts: pa.Array) -> Words:
    """64 bits for each text without case, punctuation and spacing: equal for the same tokens in the same order, on
    every machine and for ever. A text without tokens is its characters; an empty one is 0."""
    return keys_and_counts(texts)[0]


def keys_and_counts(texts: pa.Array) -> tuple[Words, npt.NDArray[np.uint32]]:
    """(row_keys, number of tokens) of every text."""
    raw = texts.cast(pa.large_string())
    ready = tokenised(raw)
    found, tokens = np.zeros(len(texts), np.uint64), np.zeros(len(texts), np.uint32)
    for start, stop in _blocks(ready):
        hashes, rows = _row_tokens(ready.slice(start, stop - start))
        found[start:stop], tokens[start:stop] = _keys(hashes, rows, raw.slice(start, stop - start))
    return found, tokens


def _keys(hashes: Words, rows: npt.NDArray[np.int64], raw: pa.Array) -> tuple[Words, npt.NDArray[np.int64]]:
    """(key, number of tokens) of the rows of a block, from the hashes of their tokens."""
    counts = np.bincount(rows, minlength=len(raw))
    starts = np.cumsum(counts) - counts
    salted = mixed(hashes + (np.arange(len(hashes)) - starts[rows]).astype(np.uint64) * _WEIGHTS[2])
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(salted, dtype=np.uint64)])
    keys = mixed(sums[starts + counts] - sums[starts] + counts.astype(np.uint64))
    for index in np.flatnonzero(counts == 0):
        keys[index] = _whole(raw[int(index)].as_py())
    return keys, counts


def _whole(text: str | None) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8")) if text else 0


def _row_tokens(texts: pa.Array) -> tuple[Words, npt.NDArray[np.int64]]:
    """(hash of every token of a block, its row)."""
    offsets = _offsets(texts)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    if not size:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    letters = _BYTES[np.frombuffer(texts.buffers()[2], np.uint8, count=size, offset=first)]
    hashes, places = _tokens(letters, offsets - first)
    return hashes, np.searchsorted(offsets - first, places, side="right") - 1


def _block(hashes: Words, token_rows: npt.NDArray[np.int64], raw: pa.Array, width: int) -> Shingles:
    rows = len(raw)
    counts = np.bincount(token_rows, minlength=rows)
    starts = np.cumsum(counts) - counts
    found, found_rows = _grams(hashes, token_rows, width)
    short = np.flatnonzero(counts < width)
    if len(short):
        whole = np.full(len(short), np.uint64(width))
        for place in range(width - 1):
            has = counts[short] > place
            whole[has] = mixed(whole[has] + hashes[starts[short[has]] + place] * _WEIGHTS[place % len(_WEIGHTS)])
        for index in np.flatnonzero(counts[short] == 0):
            whole[index] = _whole(raw[int(short[index])].as_py())
        found, found_rows = np.concatenate([found, whole]), np.concatenate([found_rows, short])
    keys = (found_rows.astype(np.uint64) << np.uint64(HASH_BITS)) | (found >> np.uint64(64 - HASH_BITS))
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    sizes = np.bincount((keys >> np.uint64(HASH_BITS)).astype(np.int64), minlength=rows)
    return Shingles(keys & _MASK, np.concatenate([[0], np.cumsum(sizes)]))


def _tokens(letters: npt.NDArray[np.uint8], limits: npt.NDArray[np.int64]) -> tuple[Words, npt.NDArray[np.int64]]:
    """(polynomial hash of every token, its first byte). A token never goes on into the next row."""
    size = len(letters)
    is_token = letters != 0
    begins = is_token.copy()
    begins[1:] &= ~is_token[:-1]
    ends = is_token.copy()
    ends[:-1] &= ~is_token[1:]
    edges = limits[(limits > 0) & (limits < size)]
    begins[edges] = is_token[edges]
    ends[edges - 1] = is_token[edges - 1]
    places, last = np.flatnonzero(begins), np.flatnonzero(ends)
    powers, inverse = _powers(max(BLOCK_BYTES, 1 << (size - 1).bit_length()))
    sums = np.zeros(size + 1, np.uint64)
    np.cumsum(letters * powers[:size], out=sums[1:])
    return mixed((sums[last + 1] - sums[places]) * inverse[places]), places


def _grams(hashes: Words, rows: npt.NDArray[np.int64], width: int) -> tuple[Words, npt.NDArray[np.int64]]:
    """(hash of every run of `width` tokens inside a row, its row)."""
    count = len(hashes) - width + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    is_inside = rows[: len(rows) - width + 1] == rows[width - 1 :]
    found = np.zeros(count, np.uint64)
    for place in range(width):
        # Each place has its own weight, so the order of the words counts.
        found = (found ^ hashes[place : place + count]) * _WEIGHTS[place % len(_WEIGHTS)]
        found ^= found >> np.uint64(29)
    return mixed(found[is_inside]), rows[:count][is_inside]
