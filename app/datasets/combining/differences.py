"""A page of what two versions do not have in common, with word for word differences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from app.datasets.cleaning import texts_of
from app.datasets.shown import diff_parts, visible
from app.datasets.tables import page, parts

Kind = Literal["changed", "added", "removed", "moved"]
PER_PAGE = 50
CHARACTERS = 1200


@dataclass(frozen=True, slots=True)
class Difference:
    """One row: `texts` of a row that is in one version only, or `diffs` of one that changed (kind, before, after)."""

    number: int
    source: str
    split: str
    texts: list[tuple[str, str]] = field(default_factory=list)
    diffs: list[tuple[str, list[tuple[str, str, str]]]] = field(default_factory=list)
    was: str = ""


def rows(folder: Path, old_dir: Path, new_dir: Path, kind: Kind, number: int) -> list[Difference]:
    """Page `number` (from 1) of one kind, in the order of the newer version. Reads only the rows that it shows."""
    places = np.load(folder / f"{kind}.npy", mmap_mode="r")[(number - 1) * PER_PAGE : number * PER_PAGE]
    if kind == "added":
        return [_alone(n, row) for n, row in _taken(new_dir, places.tolist())]
    if kind == "removed":
        return [_alone(n, row) for n, row in _taken(old_dir, places.tolist())]
    old, new = dict(_taken(old_dir, places[:, 0].tolist())), dict(_taken(new_dir, places[:, 1].tolist()))
    pairs = [(old[a + 1], b + 1, new[b + 1]) for a, b in places.tolist()]
    if kind == "moved":
        return [_alone(n, after, was=before["split"]) for before, n, after in pairs]
    return [_changed(before, n, after) for before, n, after in pairs]


def _taken(folder: Path, places: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
    paths = parts(folder, "data-")
    return [(place + 1, page(paths, place, 1)[0]) for place in places]


def _roles(row: dict[str, Any]) -> list[str]:
    if row["kind"] == "text":
        return ["text"]
    named = [m["role"] for m in row["messages"]]
    return named + [name for name in ("chosen", "rejected") for _turn in row.get(name) or ()]


def _source(row: dict[str, Any]) -> str:
    meta = orjson.loads(row["meta"])
    return f"{meta.get('source', '')} · {meta.get('row', '')}"


def _alone(number: int, row: dict[str, Any], was: str = "") -> Difference:
    texts = [(role, visible(text)[:CHARACTERS]) for role, text in zip(_roles(row), texts_of(row), strict=True)]
    return Difference(number, _source(row), row["split"], texts[:8], was=was)


def _changed(before: dict[str, Any], number: int, after: dict[str, Any]) -> Difference:
    old, new = texts_of(before), texts_of(after)
    roles = max(_roles(before), _roles(after), key=len)
    diffs = []
    for i in range(max(len(old), len(new))):
        a, b = (side[i][:CHARACTERS] if i < len(side) else "" for side in (old, new))
        if a != b:
            diffs.append((roles[i], diff_parts(a, b)))
    return Difference(number, _source(after), after["split"], diffs=diffs[:8], was=before["split"])
