"""Exact copies of whole rows: 64-bit hashes in numpy arrays, sorted once over all rows."""

import re
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.contract import SIDES, Batch, Example, Indexes, Removal, Step, Store, Verdict, Words

Keys = npt.NDArray[np.uint64]
_WORDLESS = re.compile(r"[\W_]+")
_GOLD, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HASH_SEED = 0x67707462


class DuplicateParams(Contract):
    """Copies of a whole row: one stays."""

    is_folded: bool = Field(False, title="Ignore capitals and punctuation")
    kept: Literal["first", "longest"] = Field("first", title="Which copy stays")


def fold(text: str) -> str:
    """A text without case, punctuation and spacing; texts of signs only stay as they are."""
    return _WORDLESS.sub(" ", text.casefold()).strip() or text


def folded_texts(texts: pl.Series) -> pl.Series:
    """`fold` of every text: plain ASCII at once, the others one by one."""
    lowered = texts.str.to_lowercase().str.replace_all(r"[\W_]+", " ").str.strip_chars(" ")
    others = np.flatnonzero(texts.str.contains(r"[^\x00-\x7f]").to_numpy() | (lowered == "").to_numpy())
    if not len(others):
        return lowered
    places = np.arange(len(texts))
    places[others] = len(texts) + np.arange(len(others))
    slow = pl.Series([fold(text) for text in texts.gather(others).to_list()], dtype=pl.String)
    return pl.concat([lowered, slow.alias(lowered.name)]).gather(places)


def mixed(values: Keys) -> Keys:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input moves every bit."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def row_keys(batch: Batch, is_folded: bool = False) -> Keys:
    """64 bits for each row: its texts with their roles, in order. Equal in every process, not for ever."""
    texts = folded_texts(batch.texts) if is_folded else batch.texts
    hashes = texts.hash(_HASH_SEED).to_numpy()
    starts = batch.starts()
    # A factor for each place, side and role; there are few, and the hashes are well mixed already, so that the sum of
    # the products tells rows apart as the sum of whole mixes does.
    places = np.arange(len(hashes)) - np.repeat(starts[:-1], np.diff(starts))
    kinds = (places * 8 + batch.sides) * 8 + batch.roles
    with np.errstate(over="ignore"):
        # Looked up, unless a conversation is so long that the table would be larger than the batch.
        most = int(kinds.max(initial=0)) + 1
        wanted = np.arange(most) if most <= len(kinds) else kinds
        factors = mixed((wanted + 1).astype(np.uint64) * _GOLD) | np.uint64(1)
        sums = np.zeros(len(hashes) + 1, np.uint64)
        np.cumsum(hashes * (factors[kinds] if most <= len(kinds) else factors), dtype=np.uint64, out=sums[1:])
        return sums[starts[1:]] - sums[starts[:-1]]


def all_turns(example: Example) -> list[dict[str, Any]]:
    """The turns of the conversation, then those that were chosen and rejected where answers were compared."""
    return [m for key in SIDES for m in example.get(key) or ()]


def content_key(example: Example, is_folded: bool = False) -> int:
    """64-bit xxh3 of what is learned and read: turns with their roles, or the text. The same for ever."""
    parts = []
    if example["kind"] == "chat":
        for message in all_turns(example):
            parts += [message["role"], fold(message["content"]) if is_folded else message["content"]]
    else:
        parts = ["text", fold(example["text"]) if is_folded else example["text"]]
    return xxhash.xxh3_64_intdigest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


class _Exact:
    """The set runner: a key and a length for each row, then one sort."""

    def __init__(self, params: DuplicateParams) -> None:
        self._params = params

    def look(self, batch: Batch) -> dict[str, npt.NDArray[np.generic]]:
        found: dict[str, npt.NDArray[np.generic]] = {"key": row_keys(batch, self._params.is_folded)}
        if self._params.kept == "longest":
            lengths = batch.texts.str.len_bytes().to_numpy()
            found["length"] = np.bincount(batch.owners, weights=lengths, minlength=len(batch)).astype(np.int64)
        return found

    def decide(self, store: Store) -> Verdict:
        rows = np.flatnonzero(store.is_alive)
        keys = store.load("key")[rows]
        order = self._sorted(keys, rows, store)
        ordered = keys[order]
        is_first = np.concatenate([np.ones(min(1, len(rows)), np.bool_), ordered[1:] != ordered[:-1]])
        kept = order[is_first][np.cumsum(is_first) - 1]
        gone, twins = rows[order[~is_first]], rows[kept[~is_first]]
        by_row = np.argsort(gone, kind="stable")
        return Verdict([Removal("out.exact", gone[by_row], store.rids[twins[by_row]])])

    def _sorted(self, keys: Keys, rows: Indexes, store: Store) -> Indexes:
        """Places of the keys in their order; among equal ones first the one that stays."""
        # This sort takes half the time of one that keeps equal ones in place: those, few, are put in place after it.
        order = pl.Series(keys).arg_sort().to_numpy().astype(np.int64)
        is_same = keys[order[1:]] == keys[order[:-1]]
        equal = np.flatnonzero(np.append(is_same, False) | np.insert(is_same, 0, False))
        some = order[equal]
        if self._params.kept == "longest":
            order[equal] = some[np.lexsort((some, -store.load("length")[rows[some]], keys[some]))]
        else:
            order[equal] = some[np.lexsort((some, keys[some]))]
        return order


EXACT = Step(
    "exact", 1, "Exact copies", DuplicateParams, _Exact, 8,
    codes={"out.exact": "Copy of another row"},
    words=Words(
        "1 row is a copy of another", "%(n)s rows are copies of another",
        "Repeats make it memorise. One copy stays.", "Remove repeats", "copy",
    ),
    is_set=True,
)  # fmt: skip
