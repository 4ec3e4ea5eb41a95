"""Train, validation and test: groups of rows that belong together are handed to the sides, the same rows always to the
same side. Which rows belong together is found in `grouping`; that nothing leaks is proved in `contamination`.

Within each stratum (label, source, script, length) groups are ordered by a keyed hash of their smallest content hash
and handed to the side with the largest shortage.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from app.contracts.base import Contract
from app.datasets.near.shingles import Words, mixed

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Sides = npt.NDArray[np.int8]
LARGE_GROUP_SHARE = 0.02


class SplitSettings(Contract):
    """Shares in per cent. The rest is for training."""

    validation_percent: float = Field(5, ge=0, le=50, title="For validation", description="per cent")
    test_percent: float = Field(5, ge=0, le=50, title="For the test", description="per cent")
    validation_rows_min: int = Field(50, ge=0, le=100_000)
    validation_rows_max: int = Field(2000, ge=1, le=1_000_000)
    seed: int = Field(1, ge=0, le=2**31 - 1, title="Seed of the order")
    is_stratified: bool = Field(True, title="Same mix on every side")
    group_columns: list[str] = Field(default_factory=list, max_length=5, title="Columns that keep rows together")
    time_column: str = Field("", max_length=200, title="Column with the date: the newest rows are the test")

    @model_validator(mode="after")
    def _leaves_training(self) -> "SplitSettings":
        if self.validation_percent + self.test_percent > 80:
            raise ValueError("Validation and test together may take at most 80 per cent.")
        return self


def wanted_rows(total: int, settings: SplitSettings) -> dict[Split, int]:
    """How many rows each side should have: the shares, with the bounds of validation, and most rows in training."""
    bounded: dict[Split, int] = {}
    for split, percent in (("validation", settings.validation_percent), ("test", settings.test_percent)):
        rows = round(total * percent / 100)
        if percent and total:
            # A small share of a small set is raised, but never past a tenth; what was asked for beyond that is given.
            rows = max(rows, min(settings.validation_rows_min, total // 10))
            # Every side that is asked for gets a row.
            rows = max(1, min(rows, settings.validation_rows_max)) if total >= 3 else 0
        bounded[split] = rows  # type: ignore[index]
    return {"train": total - sum(bounded.values()), **bounded}


def assign(
    labels: npt.NDArray[np.integer],
    keys: Words,
    settings: SplitSettings,
    *,
    strata: npt.NDArray[np.integer] | None = None,
    known: Sides | None = None,
    times: npt.NDArray[np.float64] | None = None,
) -> tuple[Sides, dict[str, Any]]:
    """(side of each row as an index of SPLITS, report). `labels`: group of each row, counted from 0; `keys`: its
    content hash; `known`: its side in an earlier version or -1; `times`: seconds or NaN, for a split by time.

    Nothing depends on the order of the rows, only on what they hold.
    """
    total = len(labels)
    wanted = wanted_rows(total, settings)
    order = np.lexsort((keys, labels))
    firsts = order[np.searchsorted(labels[order], np.arange(labels.max() + 1 if total else 0))]
    sizes = np.bincount(labels) if total else np.zeros(0, np.int64)
    sides = np.full(len(sizes), -1, np.int8)
    if known is not None:
        # A group that joins rows of several sides goes where a model may have seen it already.
        least = np.full(len(sizes), len(SPLITS), np.int8)
        np.minimum.at(least, labels[known >= 0], known[known >= 0])
        sides[least < len(SPLITS)] = least[least < len(SPLITS)]
    kept = int(sizes[sides >= 0].sum())
    is_large = (sides < 0) & (sizes > max(20, LARGE_GROUP_SHARE * total))
    sides[is_large] = 0
    placed = np.array([sizes[sides == side].sum() for side in range(len(SPLITS))], float)
    open_groups = np.flatnonzero(sides < 0)
    if times is not None:
        _by_time(sides, open_groups, sizes, _earliest(labels, times, len(sizes)), keys[firsts], wanted, placed)
    else:
        seed = mixed(np.array([settings.seed + 1], np.uint64))
        ranks = mixed(keys[firsts] ^ seed)
        of_group = strata[firsts] if strata is not None and settings.is_stratified else np.zeros(len(sizes), np.int64)
        _by_shortage(sides, open_groups, sizes, of_group, ranks, wanted, placed)
    found = sides[labels] if total else np.zeros(0, np.int8)
    large = np.flatnonzero(is_large)
    large = large[np.argsort(-sizes[large], kind="stable")][:20]
    report = {
        "wanted": dict(wanted),
        "groups": len(sizes),
        "grouped_rows": int(sizes[sizes > 1].sum()),
        "large_groups": [{"rows": int(sizes[group]), "row": int(firsts[group])} for group in large],
        "kept_rows": kept,
        "strata": len(np.unique(strata)) if strata is not None and settings.is_stratified else 1,
    }
    return found, report


def _earliest(labels: npt.NDArray[np.integer], times: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    found = np.full(groups, np.inf)
    is_dated = ~np.isnan(times)
    np.minimum.at(found, labels[is_dated], times[is_dated])
    return found


def _by_time(
    sides: Sides,
    open_groups: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    times: npt.NDArray[np.float64],
    keys: Words,
    wanted: dict[Split, int],
    placed: npt.NDArray[np.float64],
) -> None:
    """The newest groups for the test, those before for validation. A group is as old as its oldest row; one without a
    date is for training."""
    sides[open_groups] = 0
    dated = open_groups[np.isfinite(times[open_groups])]
    dated = dated[np.lexsort((keys[dated], -times[dated]))]
    before = np.cumsum(sizes[dated]) - sizes[dated]
    test = max(0.0, wanted["test"] - placed[2])
    both = test + max(0.0, wanted["validation"] - placed[1])
    sides[dated[before < both]] = 1
    sides[dated[before < test]] = 2


def _by_shortage(
    sides: Sides,
    open_groups: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    strata: npt.NDArray[np.integer],
    ranks: Words,
    wanted: dict[Split, int],
    placed: npt.NDArray[np.float64],
) -> None:
    """Stratum by stratum: first the groups of several rows, the biggest first, each to the largest shortage; then the
    single rows. What rounding left over in one stratum is owed to the same side in the next."""
    total = sizes[open_groups].sum()
    if not total:
        return
    lacking = np.array([max(0.0, wanted[split] - placed[i]) for i, split in enumerate(SPLITS)])
    share = lacking / max(lacking.sum(), 1)
    groups = open_groups[
        np.lexsort((ranks[open_groups], -np.where(sizes > 1, sizes, 0)[open_groups], strata[open_groups]))
    ]
    due, given = np.zeros(len(SPLITS)), np.zeros(len(SPLITS))
    for members in np.split(groups, np.flatnonzero(np.diff(strata[groups])) + 1):
        due += sizes[members].sum() * share
        single = int(np.searchsorted(-sizes[members], -1))
        for group in members[:single]:
            side = int(np.argmax(due - given))
            sides[group] = side
            given[side] += sizes[group]
        rest = members[single:]
        validation = min(max(0, round(due[1] - given[1])), len(rest))
        test = min(max(0, round(due[2] - given[2])), len(rest) - validation)
        sides[rest] = 0
        sides[rest[:validation]] = 1
        sides[rest[validation : validation + test]] = 2
        given += (len(rest) - validation - test, validation, test)
