"""Counts of very many things in little memory: lengths in bins, frequent words, how many words there are."""

from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import xxhash

# Lengths below are exact; above, bins of a 2,048th of the length.
EXACT_BITS = 12
KEPT_WORDS = 65_536
PLACES = 1 << 22
_FLUSH_WORDS = 200_000


def binned(length: int) -> int:
    """The lower edge of the bin of a length."""
    shift = max(0, length.bit_length() - EXACT_BITS)
    return length >> shift << shift


class Words:
    """The most frequent words, and how many there are, altogether and once only.

    Frequent words: the rare half is forgotten whenever twice 65,536 are held. Numbers of words: each word has one of
    four million places by its hash, which holds 0, 1 or 2 (linear counting, Whang et al. 1990): exact for some
    thousand words, within one per cent for some million.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places = np.zeros(PLACES, np.uint8)
        self._new: list[str] = []

    def add(self, words: list[str]) -> None:
        """Words of a text, each as often as it stands there."""
        self._new.extend(words)
        if len(self._new) >= _FLUSH_WORDS:
            self._flush()

    def _flush(self) -> None:
        found = Counter(self._new)
        self._new = []
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(w.encode("utf-8", "replace")) for w in found), np.uint64)
        numbers = np.minimum(np.fromiter(found.values(), np.int64), 2)
        places, of = np.unique((hashes % np.uint64(PLACES)).astype(np.int64), return_inverse=True)
        self._places[places] = np.minimum(self._places[places] + np.bincount(of, numbers, len(places)), 2)
        self._counts.update(found)
        if len(self._counts) > 2 * KEPT_WORDS:
            self._counts = Counter(dict(self._counts.most_common(KEPT_WORDS)))

    def top(self, number: int) -> list[tuple[str, int]]:
        """The most frequent words; as often, in the order of the alphabet."""
        self._flush()
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    def sizes(self) -> tuple[int, int]:
        """(different words, words that stand there once)."""
        self._flush()
        empty = max(1, int((self._places == 0).sum())) / PLACES
        distinct = -PLACES * float(np.log(empty))
        once = int((self._places == 1).sum()) / empty
        return round(distinct), min(round(once), round(distinct))

    def save(self, path: Path) -> None:
        """Write it down."""
        self._flush()
        counts = np.frombuffer(orjson.dumps(list(self._counts.items())), np.uint8)
        np.savez_compressed(path, places=self._places, counts=counts)

    @classmethod
    def loaded(cls, path: Path) -> "Words":
        """As it was saved."""
        found = cls()
        with np.load(path) as stored:
            found._places = stored["places"]
            found._counts = Counter(dict(orjson.loads(stored["counts"].tobytes())))
        return found
