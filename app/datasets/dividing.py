"""The split of a version from its examples: groups, sides, proof. Called by the freezing, in its child process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.contamination import prove
from app.datasets.grouping import GRAM_WIDTH, Facts, facts_of
from app.datasets.near.overlap import Members
from app.datasets.near.shingles import Words, shingles
from app.datasets.near.spill import Tell, workers_for
from app.datasets.splitting import SPLITS, Sides, SplitSettings, assign
from app.datasets.tables import count, page

EXCERPT_CHARACTERS = 160


class Divided(NamedTuple):
    """The side of every row (an index of SPLITS), its content hash, and the report for the manifest."""

    sides: Sides
    keys: Words
    report: dict[str, Any]


def divide(
    paths: Sequence[Path],
    settings: SplitSettings,
    folder: Path,
    *,
    known: Path | None = None,
    evaluation: Sequence[str] = (),
    workers: int | None = None,
    tell: Tell = lambda _done, _total: None,
) -> Divided:
    """Split the examples of `paths`. `known`: the sides of an earlier version (see `save_sides`), whose rows stay
    where they were; `evaluation`: texts that the project evaluates with. `folder` is scratch."""
    if workers is None:
        workers = workers_for(count(paths))
    facts = facts_of(paths, settings, folder, workers=workers, evaluation=evaluation, tell=tell)
    sides, report = assign(
        facts.labels, facts.keys, settings, strata=facts.strata, times=facts.times,
        known=_known(known, facts.keys) if known else None,
    )  # fmt: skip
    proof = prove(facts.spilled, sides, facts.labels, facts.keys, workers=workers)
    placed = np.bincount(proof.sides, minlength=len(SPLITS))
    report |= {
        "placed": {split: int(placed[side]) for side, split in enumerate(SPLITS)},
        "near_edges": facts.edges,
        "leaks": proof.report["leaks"],
        "contamination": {**proof.report, "evaluation": _overlap(facts, proof.sides, evaluation)},
    }
    if facts.times is not None:
        report["undated_rows"] = int(np.isnan(facts.times).sum())
    for group in report["large_groups"]:
        group["text"] = _excerpt(paths, group["row"])
    for pair in proof.report["pairs"]:
        pair |= {"text": _excerpt(paths, pair["row"]), "of_text": _excerpt(paths, pair["of"])}
    return Divided(proof.sides, facts.keys, report)


def _overlap(facts: Facts, sides: Sides, evaluation: Sequence[str]) -> dict[str, int]:
    """Texts that the project evaluates with, those that share 13 words in a row with any row here, and the rows of
    training that do."""
    if not evaluation:
        return {"all": 0, "clean": 0, "train_rows": 0}
    runs = shingles(pa.array(list(evaluation), pa.string()), GRAM_WIDTH)
    places, _ = Members(facts.touched).find(runs.values)
    met = len(np.unique(np.searchsorted(runs.offsets, places, side="right")))
    return {
        "all": len(evaluation), "clean": len(evaluation) - met, "train_rows": int((facts.hits & (sides == 0)).sum()),
    }  # fmt: skip


def _excerpt(paths: Sequence[Path], row: int) -> str:
    example = page(paths, row, 1)[0]
    turns = [m["content"] for m in example["messages"] or () if m["role"] != "system"]
    return " ".join((turns[0] if turns else example["text"]).split())[:EXCERPT_CHARACTERS]


def save_sides(path: Path, divided: Divided) -> None:
    """Keep the sides with the version: columns key (content hash, ascending) and side."""
    keys, first = np.unique(divided.keys, return_index=True)
    table = pa.table({"key": pa.array(keys), "side": pa.array(divided.sides[first])})
    pq.write_table(table, path, compression="zstd")


def _known(path: Path, keys: Words) -> Sides:
    """The side that each row had in an earlier version, or -1."""
    table = pq.read_table(path)
    earlier, sides = table.column("key").to_numpy(), table.column("side").to_numpy()
    found = np.full(len(keys), -1, np.int8)
    if len(earlier):
        place = np.minimum(np.searchsorted(earlier, keys), len(earlier) - 1)
        is_known = earlier[place] == keys
        found[is_known] = sides[place[is_known]]
    return found
