"""Between the passes: the set steps decide over all rows, from what the shards left on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from app.datasets.cleaning import start
from app.datasets.looking import SHOWN_EXAMPLES, Shard, draws
from app.datasets.plan import Plan
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.contract import ChosenStep, Indexes, Removal, Verdict


class DiskStore:
    """See `contract.Store`: arrays of all shards for one set step."""

    def __init__(self, looked: Path, shards: list[Shard], position: int, scratch: Path) -> None:
        self._folders = [looked / shard.name for shard in shards]
        self._firsts = [shard.first for shard in shards]
        self._position = position
        seen = [
            np.load(path).astype(np.int64) + shard.first
            for shard, folder in zip(shards, self._folders, strict=True)
            for path in sorted(folder.glob(f"seen-{position}-*.npy"))
        ]
        self.rids: Indexes = np.concatenate([np.zeros(0, np.int64), *seen])
        self.is_alive: npt.NDArray[np.bool_] = np.ones(len(self.rids), np.bool_)
        self.scratch = scratch

    def parts(self, name: str) -> Iterator[npt.NDArray[Any]]:
        for folder in self._folders:
            for path in sorted(folder.glob(f"state-{self._position}-{name}-???.npy")):
                yield np.load(path, mmap_mode="r")

    def load(self, name: str) -> npt.NDArray[Any]:
        found = list(self.parts(name))
        return found[0] if len(found) == 1 else np.concatenate(found) if found else np.zeros(0)

    def spared(self, code: str) -> Indexes:
        """Rids that a person told the step to leave alone for this reason."""
        found = [
            np.load(path).astype(np.int64) + int(first)
            for first, folder in zip(self._firsts, self._folders, strict=True)
            for path in sorted(folder.glob(f"spared-{self._position}-{code}-*.npy"))
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])


class Decisions:
    """What all set steps decided, as arrays sorted by rid: for each row that goes its step, code, twin and score."""

    def __init__(self, codes: list[str]) -> None:
        self.codes = codes
        self.rids = np.zeros(0, np.int64)
        self.positions = np.zeros(0, np.uint8)
        self.code_ids = np.zeros(0, np.uint16)
        self.of = np.zeros(0, np.int64)
        self.scores = np.zeros(0, np.float32)
        self.marked_rids = np.zeros(0, np.int64)
        self.marked_positions = np.zeros(0, np.uint8)
        self.marked_ids = np.zeros(0, np.uint16)

    _NAMES = (
        "rids", "positions", "code_ids", "of", "scores", "marked_rids", "marked_positions", "marked_ids",
    )  # fmt: skip

    def remove(self, position: int, removal: Removal, rids: Indexes) -> None:
        rows = len(rids)
        if removal.code not in self.codes:
            self.codes.append(removal.code)
        of = np.full(rows, -1, np.int64) if removal.of is None else removal.of
        scores = np.full(rows, np.nan, np.float32) if removal.score is None else removal.score
        self.rids = np.concatenate([self.rids, rids])
        self.positions = np.concatenate([self.positions, np.full(rows, position, np.uint8)])
        self.code_ids = np.concatenate([self.code_ids, np.full(rows, self.codes.index(removal.code), np.uint16)])
        self.of, self.scores = np.concatenate([self.of, of]), np.concatenate([self.scores, scores])

    def mark(self, position: int, code: str, rids: Indexes) -> None:
        if code not in self.codes:
            self.codes.append(code)
        rows = len(rids)
        self.marked_rids = np.concatenate([self.marked_rids, rids])
        self.marked_positions = np.concatenate([self.marked_positions, np.full(rows, position, np.uint8)])
        self.marked_ids = np.concatenate([self.marked_ids, np.full(rows, self.codes.index(code), np.uint16)])

    def sorted(self) -> "Decisions":
        order = np.argsort(self.rids, kind="stable")
        for name in ("rids", "positions", "code_ids", "of", "scores"):
            setattr(self, name, getattr(self, name)[order])
        order = np.argsort(self.marked_rids, kind="stable")
        for name in ("marked_rids", "marked_positions", "marked_ids"):
            setattr(self, name, getattr(self, name)[order])
        return self

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in self._NAMES:
            np.save(folder / f"{name}.npy", getattr(self, name))
        (folder / "codes.json").write_bytes(orjson.dumps(self.codes))

    @classmethod
    def read(cls, folder: Path) -> "Decisions":
        """As saved; arrays are mapped, so that many processes share them."""
        found = cls(orjson.loads((folder / "codes.json").read_bytes()))
        for name in cls._NAMES:
            setattr(found, name, np.load(folder / f"{name}.npy", mmap_mode="r"))
        return found


def decide(plan: Plan, shards: list[Shard], looked: Path, folder: Path) -> Decisions:
    """Every set step of the chain in order; a row that one took out is not seen by the next."""
    decisions = Decisions([])
    for position, chosen in enumerate(plan.applied()):
        if not STEPS[chosen.name].is_set:
            continue
        scratch = folder / f"set-{position}"
        scratch.mkdir(parents=True, exist_ok=True)
        store = DiskStore(looked, shards, position, scratch)
        store.is_alive = ~np.isin(store.rids, decisions.rids)
        verdict: Verdict = start(chosen).decide(store)
        _keep(decisions, position, chosen, verdict, store)
    return decisions.sorted()


def _keep(decisions: Decisions, position: int, chosen: ChosenStep, verdict: Verdict, store: DiskStore) -> None:
    for removal in verdict.removals:
        rids = store.rids[removal.rows]
        is_wanted = ~np.isin(rids, store.spared(removal.code))
        if chosen.mode == "mark":
            decisions.mark(position, removal.code, rids[is_wanted])
            continue
        of = None if removal.of is None else np.asarray(removal.of)[is_wanted]
        score = None if removal.score is None else np.asarray(removal.score, np.float32)[is_wanted]
        decisions.remove(position, Removal(removal.code, removal.rows[is_wanted], of, score), rids[is_wanted])
    for code, rows in verdict.marked.items():
        decisions.mark(position, code, store.rids[rows])


def drawn(decisions: Decisions, plan: Plan) -> dict[int, list[int]]:
    """For each set step's place in the chain, some of the rows that it took out, drawn as all samples are."""
    found: dict[int, list[int]] = {}
    for position, chosen in enumerate(plan.applied()):
        rids = np.asarray(decisions.rids)[np.asarray(decisions.positions) == position]
        if len(rids):
            order = np.argsort(draws(rids, STEPS[chosen.name].bit), kind="stable")
            found[position] = rids[order[:SHOWN_EXAMPLES]].tolist()
    return found
