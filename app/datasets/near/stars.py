"""Which copies go: a star cover, so that a row goes only if it is itself near enough to a row that stays."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.near.edges import Edges
from app.datasets.near.spill import Rows

LONG, MIDDLE = 20, 8


class Cover(NamedTuple):
    """Rows that go, ascending; for each the kept twin that is nearest to it and their J."""

    out: Rows
    twin: Rows
    j: npt.NDArray[np.float32]


def thresholds(least_sizes: npt.NDArray[np.integer], threshold: float) -> npt.NDArray[np.float64]:
    """The J that a pair needs, by the shingles of the shorter row: from 20 on `threshold`; from 8 on 0.1 more;
    below that a near copy often asks something else ("arrive?" and "expire?"), so none is near enough."""
    middle = min(threshold + 0.1, 1.0)
    return np.where(least_sizes >= LONG, threshold, np.where(least_sizes >= MIDDLE, middle, 2.0))


def passing(edges: Edges, threshold: float, is_allowed: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """Which edges are near enough (J is stored as float32). `is_allowed`: False for pairs that must both stay."""
    least = np.minimum(edges.sizes[edges.a], edges.sizes[edges.b])
    found = edges.j.astype(np.float64) + 1e-6 >= thresholds(least, threshold)
    return found if is_allowed is None else found & is_allowed


def cover(edges: Edges, is_passing: npt.NDArray[np.bool_], priority: npt.NDArray[np.float64] | None = None) -> Cover:
    """Rows in order of `priority` (highest first, then by number): each stays unless a near copy of it already does.

    In rounds: a row stays when none of its open neighbours comes before it; its neighbours after it go.
    """
    left, right, j = edges.a[is_passing], edges.b[is_passing], edges.j[is_passing]
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    if priority is None:
        rank = np.arange(len(rows))
    else:
        rank = np.empty(len(rows), np.int64)
        rank[np.lexsort((rows, -priority[rows]))] = np.arange(len(rows))
    one, other = places[: len(left)], places[len(left) :]
    is_one_first = rank[one] < rank[other]
    before, after = np.where(is_one_first, one, other), np.where(is_one_first, other, one)
    is_kept, is_out = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    while not (is_kept | is_out).all():
        is_open = ~(is_kept | is_out)
        blocked = np.zeros(len(rows), bool)
        blocked[after[is_open[before]]] = True
        is_kept |= is_open & ~blocked
        is_out[after[is_kept[before]]] = True
    to, of = after[is_kept[before]], before[is_kept[before]]
    near = j[is_kept[before]]
    # The nearest kept twin; among equals the one that comes first.
    order = np.lexsort((rank[of], -near, to))
    first = np.concatenate([[True], to[order][1:] != to[order][:-1]]) if len(order) else np.empty(0, bool)
    chosen = order[first]
    return Cover(rows[to[chosen]], rows[of[chosen]], near[chosen])
