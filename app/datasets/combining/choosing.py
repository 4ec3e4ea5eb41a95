"""Which rows of which parents a combined version has: arrays of numbers, no texts. Same parents and seed, same rows."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from app.datasets.combining.contract import Combination
from app.datasets.freezing import canonical, learned
from app.datasets.splitting import SPLITS, Sides
from app.datasets.tables import iterate, parts

Tell = Callable[[int, int], None]
Places = np.ndarray


@dataclass(frozen=True)
class Facts:
    """One parent's rows: what each holds (64-bit hash), its side (0 train, 1, 2 test), its label or source."""

    content: np.ndarray
    side: np.ndarray
    group: np.ndarray
    groups: list[str]


@dataclass(frozen=True)
class Chosen:
    """Rows by number within each parent, in order; `copy` counts repetitions; `side` is where each row goes."""

    parent: np.ndarray
    row: np.ndarray
    copy: np.ndarray
    side: np.ndarray
    moved: int
    copies_left_out: int


def rows_of(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """All rows of a frozen version, in order, in batches."""
    return iterate(parts(folder, "data-"))


def facts(folder: Path, by: str, tell: Callable[[int], None]) -> Facts:
    """One pass over a parent. `by`: label or source."""
    content, side, group = array("Q"), array("b"), array("q")
    names: dict[str, int] = {}
    for batch in rows_of(folder):
        for row in batch:
            content.append(xxhash.xxh3_64_intdigest(canonical(learned(row))))
            side.append(SPLITS.index(row["split"]))
            value = str(orjson.loads(row["meta"]).get(by) or "")
            group.append(names.setdefault(value, len(names)))
        tell(len(content))
    return Facts(
        np.frombuffer(content, np.uint64), np.frombuffer(side, np.int8), np.frombuffer(group, np.int64), list(names),
    )  # fmt: skip


def settled(sides: Sides, belongs: np.ndarray) -> Sides:
    """Sides on which no group (`belongs`: its number for each row) stands twice.

    Of parents that disagree, test goes before validation and validation before training.
    """
    highest = np.zeros(int(belongs.max(initial=-1)) + 1, np.int8)
    np.maximum.at(highest, belongs, sides)
    return highest[belongs]


def choose(order: Combination, found: list[Facts], side: Sides) -> Chosen:
    """The rows that the order takes. `side`: where each row of all parents stands, also those that are left out."""
    random = np.random.default_rng(order.seed)
    parent = np.concatenate([np.full(len(f.side), i, np.int64) for i, f in enumerate(found)])
    row = np.concatenate([np.arange(len(f.side), dtype=np.int64) for f in found])
    own = np.concatenate([f.side for f in found])
    content = np.concatenate([f.content for f in found])
    copies = 0
    if order.operation == "sample":
        keep = _sampled(side, order.rows, random)
    elif order.operation == "rebalance":
        keep = _rebalanced(found[0], order, random)
    else:
        # The same row in two parents is one row: the first stays.
        first = np.sort(np.unique(content, return_index=True)[1])
        copies = len(content) - len(first)
        keep = first
        if order.operation == "mix":
            keep = first[_mixed(parent[first], side[first], order, random)]
    before = np.concatenate([[True], keep[1:] != keep[:-1]]) if len(keep) else np.zeros(0, bool)
    copy = np.arange(len(keep)) - np.maximum.accumulate(np.where(before, np.arange(len(keep)), 0))
    moved = int((side[keep] != own[keep]).sum())
    return Chosen(parent[keep], row[keep], copy, side[keep], moved, copies)


def _some(places: Places, count: int, random: np.random.Generator) -> Places:
    """`count` of the places, in their own order."""
    return np.sort(random.permutation(places)[: max(0, count)])


def _shares(total: int, sizes: list[int]) -> list[int]:
    """`total` rows handed out by size, the largest remainders first."""
    wanted = [total * size / max(1, sum(sizes)) for size in sizes]
    given = [min(size, int(want)) for size, want in zip(sizes, wanted, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: given[i] - wanted[i])
    for i in order:
        if sum(given) < total and given[i] < sizes[i]:
            given[i] += 1
    return given


def _sampled(side: np.ndarray, total: int, random: np.random.Generator) -> Places:
    """The same share of training, validation and test."""
    places = [np.flatnonzero(side == number) for number in range(len(SPLITS))]
    given = _shares(min(total, len(side)), [len(p) for p in places])
    return np.sort(np.concatenate([_some(p, n, random) for p, n in zip(places, given, strict=True)]))


def _rebalanced(found: Facts, order: Combination, random: np.random.Generator) -> Places:
    """At most so many rows of each value, split by split; training rows of rare values repeated where wanted."""
    sizes = np.bincount(found.group, minlength=len(found.groups))
    limit = order.at_most or int(sizes.min())
    kept = []
    for group in range(len(found.groups)):
        places = [np.flatnonzero((found.group == group) & (found.side == number)) for number in range(len(SPLITS))]
        given = _shares(min(limit, int(sizes[group])), [len(p) for p in places])
        kept += [_some(p, n, random) for p, n in zip(places, given, strict=True)]
        missing = limit - int(sizes[group])
        if order.is_repeated and missing > 0 and len(places[0]):
            whole, rest = divmod(missing, len(places[0]))
            kept += [places[0]] * whole + [_some(places[0], rest, random)]
    return np.sort(np.concatenate(kept))


def _mixed(parent: np.ndarray, side: np.ndarray, order: Combination, random: np.random.Generator) -> Places:
    """Training rows in the proportion of the weights, without repetition; validation and test keep all of theirs."""
    weights = np.array([p.weight for p in order.parents])
    share = weights / weights.sum()
    kept = [np.flatnonzero(side != 0)]
    places = [np.flatnonzero((side == 0) & (parent == i)) for i in range(len(share))]
    total = min(len(p) / s for p, s in zip(places, share, strict=True))
    if order.rows:
        total = min(total, order.rows)
    kept += [_some(p, round(total * s), random) for p, s in zip(places, share, strict=True)]
    return np.sort(np.concatenate(kept))
