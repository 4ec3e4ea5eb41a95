"""Cleaning of examples in memory: one step over a few rows. The steps themselves are in `app.datasets.steps`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app.datasets.steps.batches import examples_of, of_examples, with_changes
from app.datasets.steps.catalogue import CODES, STEPS, in_order
from app.datasets.steps.contract import Batch, Changes, ChosenStep, Example, Indexes, Removal, Verdict
from app.datasets.steps.copies import all_turns, content_key

__all__ = [
    "CODES", "STEPS", "ChosenStep", "Example", "Outcome", "content_key", "in_order", "run", "start", "texts_of",
]  # fmt: skip


class Outcome(NamedTuple):
    """What a step did with one example: its new form, or None with the code why. `of`: the kept twin's rid."""

    example: Example | None
    codes: tuple[str, ...] = ()
    of: int | None = None


def texts_of(example: Example) -> list[str]:
    """Every text of the example, in order."""
    return [m["content"] for m in all_turns(example)] if example["kind"] == "chat" else [example["text"]]


def start(chosen: ChosenStep) -> Any:
    """The runner of a chosen step. Raises KeyError for an unknown name, ValueError for another version."""
    step = STEPS[chosen.name]
    if chosen.version != step.version:
        raise ValueError(f"step {chosen.name}@{chosen.version} is not known here (this is @{step.version})")
    return step.start(step.params.model_validate(chosen.params))


class MemoryStore:
    """The state of one batch, for a set step over a few rows. See `contract.Store`."""

    def __init__(self, batch: Batch, arrays: dict[str, npt.NDArray[Any]], scratch: Path) -> None:
        self.rids, self.is_alive, self.scratch = batch.rids, np.ones(len(batch), np.bool_), scratch
        self._arrays = arrays

    def load(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def spared(self, _code: str) -> Indexes:
        return np.zeros(0, np.int64)

    def parts(self, name: str) -> Iterator[npt.NDArray[Any]]:
        yield self._arrays[name]


def changes_of(chosen: ChosenStep, batch: Batch, scratch: Path) -> tuple[Changes, list[Removal]]:
    """What a step wants with one batch that is the whole set; removals of a set step come with their twins."""
    runner = start(chosen)
    if not STEPS[chosen.name].is_set:
        changes: Changes = runner(batch)
        return changes, [Removal(code, np.asarray(rows, np.int64)) for code, rows in changes.removed.items()]
    verdict: Verdict = runner.decide(MemoryStore(batch, runner.look(batch), scratch))
    marked: dict[str, Indexes] = verdict.marked
    return Changes(codes=dict(marked)), verdict.removals


def run(
    chosen: ChosenStep, examples: Sequence[Example], rids: Sequence[int] | None = None, scratch: Path | None = None
) -> list[Outcome]:
    """One step over these examples, taken as the whole set; what becomes of each. They are not changed.

    `scratch`: a folder that a set step may write to (the steps here need none for few rows).
    """
    batch = of_examples(examples, rids)
    changes, removals = changes_of(chosen, batch, scratch or Path())
    codes: list[list[str]] = [[] for _ in examples]
    for code, rows in changes.codes.items():
        for row in rows:
            codes[int(row)].append(code)
    after = examples_of(with_changes(batch, changes))
    found: list[Outcome] = []
    gone: dict[int, tuple[str, int | None]] = {}
    for removal in removals:
        twins = removal.of if removal.of is not None else np.full(len(removal.rows), -1, np.int64)
        for row, twin in zip(removal.rows.tolist(), twins.tolist(), strict=True):
            gone.setdefault(row, (removal.code, None if twin < 0 else twin))
    for row, example in enumerate(after):
        if row in gone:
            code, of = gone[row]
            found.append(Outcome(None, (*codes[row], code), of))
        else:
            found.append(Outcome(example, tuple(codes[row])))
    return found
