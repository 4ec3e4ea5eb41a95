"""Checkpoints that survive a kill at any moment: written aside, hashed, synced, renamed; verified when read.

Safetensors and JSON only. `weights/` is what serving can load; `optimizer.safetensors` and `state.json` are what
training needs to go on, bit for bit.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine import ranks
from worker.engine.errors import DiskFull, is_disk_full

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk and the ones that made room for it."""

    step: int
    path: Path
    manifest_sha256: str
    size_bytes: int
    removed: list[str]


@dataclass
class Checkpoints:
    """The checkpoints of one run. `spec_sha256` is the hash of all that the result depends on.

    `recorded`: the step of the newest one that the supervisor has written down, with the metrics up to it. A later
    attempt goes on from there, so it stays however many follow it.
    """

    folder: Path
    run_id: str
    attempt_id: str
    spec_sha256: str
    keep: int
    recorded: int | None = None

    def save(
        self,
        step: int,
        write_weights: Callable[[Path], None],
        memory: dict[str, Tensor],
        state: dict[str, Any],
        best_step: int | None,
    ) -> Saved:
        """Write checkpoint `step`, then delete all but the newest `keep` and the best. Raises DiskFull.

        `memory` is what the optimisers keep (`optimizer_tensors`), whole.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".tmp-{step:08d}-{self.attempt_id}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_weights(temporary / "weights")
            tensors = {**memory, **random_state()}
            tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, temporary / "optimizer.safetensors")
            head = {
                "format": 1,
                "run_id": self.run_id,
                "attempt_id": self.attempt_id,
                "spec_sha256": self.spec_sha256,
            }
            (temporary / "state.json").write_bytes(orjson.dumps({**head, "step": step, **state}))
            digest = seal(temporary)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_disk_full(error):
                raise DiskFull(_disk_sentence(self.folder)) from error
            raise
        replaced = self.folder / f".tmp-old-{step:08d}-{self.attempt_id}"
        if final.exists():  # put aside first: deleting takes long enough to be killed in the middle of it
            final.rename(replaced)
        temporary.rename(final)
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
        return Saved(step, final, digest, size, self.collect(best_step))

    def collect(self, best_step: int | None) -> list[str]:
        """Delete all but the newest `keep`, the best and the recorded checkpoint; return the names of the deleted."""
        spare = [path for path in self.newest_first()[self.keep :] if _step(path) not in (best_step, self.recorded)]
        for path in spare:
            shutil.rmtree(path)
        return [path.name for path in spare]

    def clear(self) -> None:
        """Delete the half-written leftovers of dead attempts."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def newest_first(self) -> list[Path]:
        """Finished checkpoints, by step downwards."""
        return sorted(self.folder.glob("step-*"), key=_step, reverse=True)

    def find(self) -> Iterator[tuple[Path, str | None]]:
        """Newest first, each with its damage (None: good), until a good one; damaged ones are put aside."""
        for path in self.newest_first():
            damage = damage_of(path) or self._mismatch(path)
            if damage:
                target = path.with_name(f"corrupt-{path.name}-{self.attempt_id}")
                shutil.rmtree(target, ignore_errors=True)
                path.rename(target)
            yield path, damage
            if not damage:
                return

    def _mismatch(self, path: Path) -> str | None:
        state = read_state(path)
        if state["run_id"] != self.run_id:
            return f"it belongs to run {state['run_id']}"
        if state["step"] != _step(path):
            return f"its name and its step {state['step']} disagree"
        return None if state["spec_sha256"] == self.spec_sha256 else "it was made by another recipe or dataset"


def seal(folder: Path) -> str:
    """Write MANIFEST.json (size and SHA-256 of every file), make all durable, return the manifest's SHA-256."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        path.chmod(0o644)  # safetensors writes 0600; the web and model server may run as another user
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    manifest = orjson.dumps({"format": 1, "files": files}, option=orjson.OPT_INDENT_2)
    (folder / MANIFEST).write_bytes(manifest)
    _sync(folder / MANIFEST)
    for path in [p for p in folder.rglob("*") if p.is_dir()]:
        sync_folder(path)
    sync_folder(folder)
    return hashlib.sha256(manifest).hexdigest()


def damage_of(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None."""
    try:
        files = orjson.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return "its manifest is missing or unreadable"
    for name, about in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != about["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {about['size']}"
        if _sha256(path) != about["sha256"]:
            return f"{name} has changed since it was written"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return orjson.loads((folder / "state.json").read_bytes())


def restore_optimizers(
    folder: Path, optimizers: dict[str, torch.optim.Optimizer], named: list[tuple[str, torch.nn.Parameter]]
) -> None:
    """Put back the optimisers' tensors and torch's random generators."""
    tensors = load_file(folder / "optimizer.safetensors")
    parameters = dict(named)
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "random":
            if rest == "cpu":
                torch.set_rng_state(tensor)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(tensor)
            continue
        slot, _, name = rest.partition("/")
        parameter = parameters[name]
        if slot == "step":
            # bitsandbytes counts in a plain number.
            optimizers[kind].state[parameter][slot] = int(tensor) if kind == "adamw_8bit" else tensor.clone()
        else:
            optimizers[kind].state[parameter][slot] = ranks.part_of(tensor, parameter).clone()


def optimizer_tensors(
    optimizers: dict[str, torch.optim.Optimizer], named: list[tuple[str, torch.nn.Parameter]]
) -> dict[str, Tensor]:
    """Every tensor of the optimisers' memory under <optimizer>/<slot>/<parameter>."""
    tensors = {}
    for kind, optimizer in optimizers.items():
        for name, parameter in named:
            for slot, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}/{slot}/{name}"] = torch.as_tensor(value)
    return tensors


def random_state() -> dict[str, Tensor]:
    """torch's generators, the only random numbers a step draws (dropout, embedding noise)."""
    state = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["random/cuda"] = torch.cuda.get_rng_state()
    return state


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _disk_sentence(folder: Path) -> str:
    free = shutil.disk_usage(folder.parent).free
    return f"The disk is full: {free / 1e9:.2f} GB are free. The last checkpoint is kept. Free some space, then resume."
