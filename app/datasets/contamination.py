"""The proof of a split: every row outside training is compared with every other row, exactly; what is too near goes to
training; what is left is counted. Called by `dividing`."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.distinct import distinct
from app.datasets.near.overlap import Members, near_pairs
from app.datasets.near.shingles import Words
from app.datasets.near.spill import Rows, Spill
from app.datasets.splitting import SPLITS, Sides

FAIL, WARN = 0.7, 0.5
SHOWN = 12


class Proof(NamedTuple):
    """`sides` after rows that were too near went to training. `pairs` of the report name rows by their number."""

    sides: Sides
    report: dict[str, Any]


def prove(spilled: Spill, sides: Sides, labels: npt.NDArray[np.integer], keys: Words, *, workers: int = 1) -> Proof:
    """Compare all rows outside training with all rows; J >= 0.7 with an earlier side sends a group to training.

    The bands that make the groups miss about one pair of a hundred at J = 0.7; this search misses none.
    """
    queries = np.flatnonzero(sides > 0)
    near = near_pairs(spilled, queries, WARN, workers=workers)
    asked = queries[near.queries]
    found = sides.copy()
    is_close = near.j >= np.float32(FAIL)
    rows, outside = near.rows[is_close], asked[is_close]
    while True:
        leaking = outside[found[rows] < found[outside]]
        if not len(leaking):
            break
        found[np.isin(labels, distinct(labels[leaking]))] = 0
    is_across = found[near.rows] < found[asked]
    report = {
        "compared": len(queries),
        "moved_rows": int((found != sides).sum()),
        "exact": _equal(keys[found > 0], keys[found == 0]),
        "leaks": len(distinct(asked[is_across & is_close])),
        "similar": len(distinct(asked[is_across & ~is_close])),
        "sides": {split: _all_and_clean(found == side, asked[is_across]) for side, split in enumerate(SPLITS) if side},
        "pairs": _nearest(near.rows[is_across], asked[is_across], near.j[is_across]),
    }
    return Proof(found, report)


def _equal(outside: Words, training: Words) -> int:
    """How many of the few keys outside training are in it, too."""
    few = Members(outside)
    is_met = np.zeros(len(few.values), np.bool_)
    is_met[few.find(training)[1]] = True
    return int(is_met[few.find(outside)[1]].sum())


def _all_and_clean(is_in: npt.NDArray[np.bool_], touched: Rows) -> dict[str, int]:
    """Rows of a side, and those of them without any row at J >= 0.5 on an earlier side."""
    rows = int(is_in.sum())
    return {"all": rows, "clean": rows - int(is_in[distinct(touched)].sum())}


def _nearest(rows: Rows, asked: Rows, j: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """The nearest pair of each of the rows that have one, the nearest first."""
    order = np.lexsort((rows, asked, -j))
    _queries, first = np.unique(asked[order], return_index=True)
    chosen = order[np.sort(first)][:SHOWN]
    return [{"row": int(asked[i]), "of": int(rows[i]), "j": round(float(j[i]), 3)} for i in chosen]
