"""The frozen layers in front of those that learn: what they say of a row is computed once and kept for later passes.

Used by the loop and by evaluation where only the last layers learn. Nothing is lost with what is kept: a row that is
missing (after a restart) is computed again, in the same company as the first time, so that it comes out the same.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec
from worker.engine import devices, replicas, sharing
from worker.engine.data import TokenRows, order
from worker.engine.learning import pass_of
from worker.engine.packing import Pack, hidden_states, is_packable, pack
from worker.engine.sharing import longest_first

MEMORY_SHARE, DISK_SHARE = 0.25, 0.5  # of what is free


class _Reached(Exception):
    """The forward pass came to the first layer that learns, and no more of it is wanted."""


class Border:
    """Where frozen blocks end and learning ones begin. Idle unless told to take or to give, each thread for itself.

    `place` is the number of the first block that learns.
    """

    def __init__(self, frozen: Sequence[nn.Module], first: nn.Module) -> None:
        self._here = threading.local()
        self.place = len(frozen)
        for block in frozen:
            block.forward = self._passing(block.forward)
        first.register_forward_pre_hook(self._cross)

    @property
    def taken(self) -> list[Tensor] | None:
        """What has come to the border; None: nobody wants it."""
        return getattr(self._here, "taken", None)

    @property
    def given(self) -> list[Tensor] | None:
        """What begins here in place of what the frozen blocks would say; None: they run."""
        return getattr(self._here, "given", None)

    def reach(self, states: Tensor) -> None:
        """End the pass here where somebody takes what comes to the border."""
        if self.taken is not None:
            self.taken.append(states)
            raise _Reached

    def _passing(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def step(*args: Any, **kwargs: Any) -> Tensor:
            return forward(*args, **kwargs) if self.given is None else args[0]

        return step

    def _cross(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args:
            return None  # a family that calls its blocks in another way; nothing is ever given to it
        if self.given is not None:
            return (self.given.pop(0), *args[1:])
        self.reach(args[0])
        return None

    @contextlib.contextmanager
    def taking(self) -> Iterator[list[Tensor]]:
        """Collect what comes to the border; each pass ends there with _Reached."""
        found: list[Tensor] = []
        self._here.taken = found
        try:
            yield found
        finally:
            self._here.taken = None

    @contextlib.contextmanager
    def giving(self, states: list[Tensor]) -> Iterator[None]:
        """Leave the frozen blocks out; the passes get these states instead, one after the other."""
        self._here.given = states
        try:
            yield
        finally:
            self._here.given = None


@dataclass
class Kept:
    """What the frozen layers said of the rows of one split: `store` (tokens, width), row i from `starts[i]` on.

    `bundles` are the packs in which rows are computed, `bundle_of` tells that of each row, -1 for none.
    """

    model: PreTrainedModel
    border: Border
    device: devices.Device
    rows: TokenRows
    bundles: list[np.ndarray]
    starts: np.ndarray
    bundle_of: np.ndarray
    store: Tensor
    threads: int = 1
    done: set[int] = field(default_factory=set)

    @contextlib.contextmanager
    def around(self, numbers: np.ndarray, batch: Pack) -> Iterator[None]:
        """A forward pass over `batch`, the pack of the rows `numbers` in its order, may run inside; it begins at the
        border."""
        self.make_ready(numbers)
        with self.border.giving(self._states(numbers, batch.lengths)):
            yield

    def make_ready(self, numbers: np.ndarray) -> None:
        """Compute what of these rows is not there yet; by one thread, before others ask for it."""
        for bundle in sorted({int(self.bundle_of[i]) for i in numbers} - self.done):
            self._compute(bundle)

    @torch.no_grad()
    def _compute(self, bundle: int) -> None:
        sharing.make_ready(self.model, self.device, self.threads)
        parts = sharing.parts_of(self.rows, self.bundles[bundle], self.device, self.threads)
        replicas.run([partial(self._read, part) for part in parts])
        self.done.add(bundle)

    def _read(self, part: sharing.Part) -> None:
        with self.border.taking() as taken, self.device.autocast():
            read_until(self.model, part.batch, len(part.numbers))
        is_one = is_packable(self.model)
        pieces = taken[0][0].split(part.batch.lengths) if is_one else [states[0] for states in taken]
        for number, piece in zip(part.numbers, pieces, strict=False):
            size = int(self.rows.lengths[number]) - 1
            start = int(self.starts[number])
            self.store[start : start + size] = piece[:size].to(self.store)

    def _states(self, numbers: np.ndarray, lengths: tuple[int, ...]) -> list[Tensor]:
        """As the blocks expect them: zeros where a sequence is filled, which causal attention hides."""
        pieces = []
        for number, length in zip(numbers, lengths, strict=False):
            size, start = int(self.rows.lengths[number]) - 1, int(self.starts[number])
            piece = torch.zeros(length, self.store.shape[1], dtype=self.store.dtype)
            piece[:size] = self.store[start : start + size]
            pieces.append(piece)
        if not is_packable(self.model):
            return [piece[None].to(self.device.device) for piece in pieces]
        if len(lengths) > len(pieces):
            pieces.append(torch.zeros(lengths[-1], self.store.shape[1], dtype=self.store.dtype))
        return [torch.cat(pieces)[None].to(self.device.device)]


@dataclass(frozen=True)
class Prefix:
    """What is kept of the training rows (None where they are read once only) and of the validation rows."""

    train: Kept | None
    validation: Kept | None


@contextlib.contextmanager
def around(kept: Kept | None, numbers: np.ndarray, batch: Pack) -> Iterator[None]:
    """`Kept.around` where something is kept, else nothing."""
    with kept.around(numbers, batch) if kept is not None else contextlib.nullcontext():
        yield


def read_until(model: PreTrainedModel, batch: Pack, count: int) -> None:
    """Run the first `count` sequences of `batch` up to the border."""
    if is_packable(model):
        with contextlib.suppress(_Reached):
            hidden_states(model, batch)
        return
    for ids in batch.ids.split(batch.lengths)[:count]:
        with contextlib.suppress(_Reached):
            model(input_ids=ids[None], use_cache=False, logits_to_keep=1)


def plan(
    model: PreTrainedModel,
    blocks: tuple[Sequence[nn.Module], nn.Module],
    rows: tuple[TokenRows, TokenRows],
    looked_at: np.ndarray,
    recipe: RecipeSpec,
    micro_batch_size: int,
    device: devices.Device,
    folder: Path,
    reserve_bytes: int,
) -> tuple[Prefix | None, str]:
    """What to keep for this run, and a sentence where it cannot be kept.

    `blocks` are the frozen ones and the first that learns, `rows` those of training and validation, `looked_at` the
    validation examples of every evaluation. Kept in memory, else in a file without a name below `folder`.
    """
    frozen, first = blocks
    if not frozen:
        return None, ""
    if recipe.neftune_alpha:
        return None, "The frozen layers run in every pass, because noise on the input changes what they see each time."
    micro = micro_batch_size
    passes = recipe.total_steps(len(rows[0])) > recipe.steps_per_epoch(len(rows[0]))
    chosen = order(rows[0], recipe.seed, 0, recipe.chats_last_share) if passes else np.empty(0, np.int64)
    steps = [chosen[start : start + recipe.batch_size] for start in range(0, len(chosen), recipe.batch_size)]
    bundles = (
        [
            longest_first(rows[0], rows[0].of(step[start : start + micro]))
            for step in steps
            for start in range(0, len(step), micro)
        ],
        [
            longest_first(rows[1], rows[1].of(looked_at[start : start + recipe.micro_batch_size]))
            for start in range(0, len(looked_at), recipe.micro_batch_size)
        ],
    )
    tokens = [sum(int(part.lengths[b].sum()) - len(b) for b in of) for part, of in zip(rows, bundles, strict=True)]
    if not sum(tokens):
        return None, ""
    border = Border(frozen, first)
    if (known := pass_of(model)) is not None:
        known.border = border
    sample = _sample(model, border, rows[0], device)
    if sample is None:
        return None, "The frozen layers run in every pass: those of this kind of model cannot be run apart."
    size = sum(tokens) * sample.shape[-1] * sample.element_size()
    store = _room(sum(tokens), sample, folder, reserve_bytes)
    if store is None:
        return None, (
            f"The frozen layers run in every pass: keeping what they say would take {size / 1e9:.1f} GB, and "
            f"{devices.free_memory_bytes() / 1e9:.1f} GB of memory and {shutil.disk_usage(folder).free / 1e9:.1f} GB "
            "of disk are free for everything. The result is the same, only later."
        )
    threads = sharing.threads_of(model, recipe)
    both = [
        _kept(model, border, device, part, of, piece, threads) if len(of) else None
        for part, of, piece in zip(rows, bundles, store.split(tokens), strict=True)
    ]
    return Prefix(*both), ""


def _kept(
    model: PreTrainedModel,
    border: Border,
    device: devices.Device,
    rows: TokenRows,
    bundles: list[np.ndarray],
    store: Tensor,
    threads: int,
) -> Kept:
    starts, bundle_of = np.full((2, len(rows.rids)), -1, np.int64)
    place = 0
    for number, bundle in enumerate(bundles):
        for row in bundle:
            starts[row], bundle_of[row] = place, number
            place += int(rows.lengths[row]) - 1
    return Kept(model, border, device, rows, bundles, starts, bundle_of, store, threads)


@torch.no_grad()
def _sample(model: PreTrainedModel, border: Border, rows: TokenRows, device: devices.Device) -> Tensor | None:
    """What crosses the border, for its width and number format; None where that cannot be seen."""
    ids, learn = rows.row(0)
    batch = pack([(ids[:9], learn[:9])], device.device)
    with border.taking() as taken, device.autocast():
        read_until(model, batch, 1)
    return taken[0] if taken else None


def _room(tokens: int, sample: Tensor, folder: Path, reserve_bytes: int) -> Tensor | None:
    """An empty (tokens, width) in memory, else in a file that vanishes with this process, else None."""
    width, dtype = sample.shape[-1], sample.dtype
    size = tokens * width * sample.element_size()
    if size <= MEMORY_SHARE * devices.free_memory_bytes():
        return torch.empty(tokens, width, dtype=dtype)
    if size > DISK_SHARE * (shutil.disk_usage(folder).free - reserve_bytes) or not hasattr(os, "posix_fallocate"):
        return None
    path = folder / ".frozen-layers"
    try:
        with path.open("wb") as file:
            # Taken now: a disk that fills later would end the process without a word.
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype).view(tokens, width)
    except (OSError, RuntimeError):
        return None
    finally:
        path.unlink(missing_ok=True)
