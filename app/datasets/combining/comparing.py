"""Two versions row by row: what was added, removed, changed or moved to another side. Runs in the limited child.

Rows that hold the same are the same, wherever they stand. Of the others, two that come from the same line of the same
source are one row that changed. Kept: numbers of rows as sorted arrays, so that a page reads only what it shows.
"""

import shutil
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import xxhash

from app.contracts.base import Contract
from app.datasets.combining.choosing import rows_of
from app.datasets.freezing import canonical, learned
from app.datasets.splitting import SPLITS

Tell = Callable[[int, int], None]


class Comparison(Contract):
    """Rows by what became of them. `moved` rows hold the same and stand on another side of the split."""

    old_rows: int
    new_rows: int
    same: int
    added: int
    removed: int
    changed: int
    moved: int


class _Rows:
    """A version's rows as arrays: hash of what they hold, hash of where they come from, side."""

    def __init__(self, folder: Path, tell: Callable[[int], None]) -> None:
        content, place, side = array("Q"), array("Q"), array("b")
        for batch in rows_of(folder):
            for row in batch:
                meta = orjson.loads(row["meta"])
                content.append(xxhash.xxh3_64_intdigest(canonical(learned(row))))
                place.append(
                    xxhash.xxh3_64_intdigest(
                        canonical(
                            [meta.get("source"), meta.get("row"), row["_rid"] if meta.get("row") is None else None]
                        )
                    )
                )
                side.append(SPLITS.index(row["split"]))
            tell(len(content))
        self.content, self.place = np.frombuffer(content, np.uint64), np.frombuffer(place, np.uint64)
        self.side = np.frombuffer(side, np.int8)


def _numbered(keys: np.ndarray) -> np.ndarray:
    """For each key how many equal ones stand before it, so that copies pair one by one."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(keys) else np.zeros(0, bool)
    positions = np.arange(len(keys))
    counts = np.empty(len(keys), np.int64)
    counts[order] = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return counts


def _paired(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `old` and `new` with equal keys, as two arrays of row numbers; each row is in at most one pair."""
    kind = np.dtype([("key", np.uint64), ("copy", np.int64)])
    sides = []
    for keys in (old, new):
        table = np.empty(len(keys), kind)
        table["key"], table["copy"] = keys, _numbered(keys)
        sides.append(table)
    _common, first, second = np.intersect1d(sides[0], sides[1], assume_unique=True, return_indices=True)
    return first, second


def compare(old_dir: Path, new_dir: Path, out_dir: Path, totals: Sequence[int], tell: Tell) -> Comparison:
    """Write added.npy, removed.npy, changed.npy (pairs) and moved.npy (pairs) into `out_dir`, whole or not at all."""
    total = sum(totals)
    old = _Rows(old_dir, lambda n: tell(n, total))
    new = _Rows(new_dir, lambda n: tell(totals[0] + n, total))
    same_old, same_new = _paired(old.content, new.content)
    rest_old = np.setdiff1d(np.arange(len(old.content)), same_old, assume_unique=True)
    rest_new = np.setdiff1d(np.arange(len(new.content)), same_new, assume_unique=True)
    changed_old, changed_new = _paired(old.place[rest_old], new.place[rest_new])
    changed = np.stack([rest_old[changed_old], rest_new[changed_new]], axis=1)
    changed = changed[np.argsort(changed[:, 1], kind="stable")]
    removed = np.setdiff1d(rest_old, changed[:, 0], assume_unique=True)
    added = np.setdiff1d(rest_new, changed[:, 1], assume_unique=True)
    moves = old.side[same_old] != new.side[same_new]
    moved = np.stack([same_old[moves], same_new[moves]], axis=1)
    moved = moved[np.argsort(moved[:, 1], kind="stable")]
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, rows in (("added", added), ("removed", removed), ("changed", changed), ("moved", moved)):
            np.save(temporary / f"{name}.npy", rows.astype(np.int64))
        shutil.rmtree(out_dir, ignore_errors=True)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Comparison(
        old_rows=len(old.content), new_rows=len(new.content), same=len(same_old), added=len(added),
        removed=len(removed), changed=len(changed), moved=len(moved),
    )  # fmt: skip
