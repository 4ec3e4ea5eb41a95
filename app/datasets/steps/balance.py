"""At most so many rows of a label or a source: which ones stay is drawn by hash, the same for any order of the rows."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.steps.contract import Batch, Removal, Step, Store, Verdict, Words
from app.datasets.steps.copies import mixed, row_keys

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


class CapParams(Contract):
    """How many rows of one label or one file may stay."""

    by: Literal["label", "file"] = Field("label", title="Count by")
    most: int = Field(0, ge=0, le=10_000_000, title="Most rows of each", description="0: no limit")
    ratio: float = Field(0, ge=0, le=1000, title="Most times the rarest", description="0: no limit; 1: all alike")
    seed: int = Field(1, ge=0, le=2**31 - 1, title="Seed", description="another one draws other rows")


def beyond(groups: Keys, keys: Keys, most: int, is_counted: npt.NDArray[np.bool_] | None = None) -> Rows:
    """Rows of groups with more than `most`, ascending: those with the largest keys. Rows not counted stay."""
    rows = np.arange(len(groups)) if is_counted is None else np.flatnonzero(is_counted)
    order = rows[np.lexsort((rows, keys[rows], groups[rows]))]
    ordered = groups[order]
    is_first = np.concatenate([np.ones(min(1, len(order)), np.bool_), ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank >= most]).astype(np.int64)


def balanced_size(groups: Keys, ratio: float) -> int:
    """How many rows a group may have when the largest may be `ratio` times the smallest."""
    _names, counts = np.unique(groups, return_counts=True)
    return max(1, int(counts.min() * ratio)) if len(counts) else 1


class _Cap:
    """The set runner: a group and a drawn number for each row."""

    def __init__(self, params: CapParams) -> None:
        self._params = params

    def look(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        if self._params.by == "label":
            names = batch.labels
        else:
            names = pl.Series([batch.file_id], dtype=pl.String).new_from_index(0, len(batch))
        # Rows without a label are no group.
        groups = np.where((names == "").to_numpy(), np.uint64(0), names.hash(7).to_numpy() | np.uint64(1))
        with np.errstate(over="ignore"):
            drawn = mixed(row_keys(batch) + np.uint64(self._params.seed) * np.uint64(0x9E3779B97F4A7C15))
        return {"group": groups, "drawn": drawn}

    def decide(self, store: Store) -> Verdict:
        groups = store.load("group")
        is_counted = store.is_alive & (groups != 0)
        limits = [self._params.most] if self._params.most else []
        if self._params.ratio and is_counted.any():
            limits.append(balanced_size(groups[is_counted], self._params.ratio))
        if not limits or not is_counted.any():
            return Verdict([])
        return Verdict([Removal("out.cap", beyond(groups, store.load("drawn"), min(limits), is_counted))])


CAP = Step(
    "cap", 1, "Balance", CapParams, _Cap, 4096,
    codes={"out.cap": "More of its kind than you allow"},
    words=Words(
        "1 row is more than its label or file may have", "%(n)s rows are more than their label or file may have",
        "Labels with far more rows than others are answered too often. Which rows stay is drawn.",
        "Leave them out", "scale",
    ),
    default="off", is_set=True, is_sampled=False,
)  # fmt: skip
