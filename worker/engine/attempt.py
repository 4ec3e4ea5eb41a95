"""One attempt at a run: what it holds between its steps, and what it can do with it."""

import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.contracts import events as e
from app.contracts.probe import SAMPLE_SHARE
from app.contracts.recipe import RecipeSpec
from worker.engine import checkpoints, devices, evaluate, finish, optim, ranks
from worker.engine.checkpoints import Checkpoints
from worker.engine.control import Deadline
from worker.engine.data import TokenRows, order
from worker.engine.errors import DiskFull
from worker.engine.gradients import backward
from worker.engine.position import Position
from worker.engine.prepare import Material

_WHOLE = ("evaluate_every_steps", "max_steps")


@dataclass
class Attempt:
    """Material, optimisers, checkpoints and position of a run that trains. Where several processes train, each has its
    own, and calls the same in the same order."""

    recipe: RecipeSpec
    device: devices.Device
    material: Material
    named: optim.Named
    optimizers: dict[str, torch.optim.Optimizer]
    store: Checkpoints
    clock: Deadline
    position: Position
    threads: int
    began_at: float = field(default_factory=time.monotonic)
    sampled_s: float = 0.0
    _epoch: int = -1
    _order: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> TokenRows:
        """What is learned from."""
        return self.material.train_rows

    @property
    def is_split(self) -> bool:
        """Whether the weights are spread over several processes."""
        return self.recipe.shards and ranks.count() > 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""
        return self.recipe.steps_per_epoch(len(self.rows))

    @property
    def total_steps(self) -> int:
        """Where the run ends if nothing ends it sooner; never before where it is."""
        position = self.position
        return max(position.step, self.recipe.total_steps(len(self.rows), position.epochs, position.max_steps))

    @property
    def is_going_on(self) -> bool:
        """Whether there is a step to make."""
        return self.position.ending is None and self.position.step < self.total_steps

    def restore(self) -> Generator[e.CheckpointDamaged, None, Path | None]:
        """Go on from the newest checkpoint that is whole, and return it; damaged ones are told and put aside."""
        whole: Path | None = None
        for path, damage in self.store.find() if ranks.is_first() else ():
            if damage:
                yield e.CheckpointDamaged(dir=f"checkpoints/{path.name}", reason=damage)
            else:
                whole = path
        whole = ranks.told(whole)
        if whole is None:
            return None
        self.material.method.read(self.material.model, whole / "weights")
        checkpoints.restore_optimizers(whole, self.optimizers, self.named)
        state = checkpoints.read_state(whole)
        if state.get("processes", 1) == ranks.count():
            self.threads = devices.set_threads(state["threads"])
        fewer = self.position.micro_batch_size
        self.position = Position(**state["position"])
        self.position.micro_batch_size = min(self.position.micro_batch_size, fewer)
        self.clock.have_spent(state.get("spent_s", 0.0))
        return whole

    def started(self, resumed_from: Path | None) -> e.Started:
        """What is about to be trained, and from where on."""
        return e.Started(
            step=self.position.step,
            total_steps=self.total_steps,
            train_rows=len(self.rows),
            validation_rows=len(self.material.validation_rows),
            tokens_per_epoch=int(self.rows.offsets[-1]),
            supervised_tokens_per_epoch=self.rows.supervised_tokens,
            cut_rows=self.rows.cut_rows,
            skipped_rows=self.rows.skipped_rows,
            parameters=self.material.parameters,
            trainable_parameters=sum(parameter.numel() for _, parameter in self.named),
            device=self.device.device.type,
            precision=self.device.precision,
            resumed_from=f"checkpoints/{resumed_from.name}" if resumed_from else None,
        )

    def obey(self, command: e.Control) -> Iterator[e.Adjusted]:
        """Do what a command asks of the steps that follow."""
        position = self.position
        if command.verb == "recorded":
            self.store.recorded = int(command.value or 0)
        elif command.verb in ("stop_and_keep", "time_is_up"):
            position.ending = "time_is_up" if command.verb == "time_is_up" else "stopped_and_kept"
        elif command.name and command.value:
            value = max(1, int(command.value)) if command.name in _WHOLE else command.value
            if command.name == "max_hours":
                is_new = self.clock.limit(value)
            elif is_new := getattr(position, command.name) != value:  # else its checkpoint knows it
                setattr(position, command.name, value)
            if is_new:
                yield e.Adjusted(step=position.step, name=command.name, value=value, total_steps=self.total_steps)

    def learn(self) -> e.Step | e.Warned:
        """One optimiser step. One whose loss or gradient is no number is left out. Raises Diverged after too many."""
        position, recipe, began_at = self.position, self.recipe, time.monotonic()
        total_steps = self.total_steps
        chosen = self._chosen()
        factor = optim.rate_factor(position.step, total_steps, recipe)
        optim.set_rate(self.optimizers, factor * position.learning_rate / recipe.learning_rate)
        found = backward(self.material, chosen, self.device, recipe, position.micro_batch_size)
        if not self.is_split:  # else they are added on the way back, and each has its part
            ranks.add_gradients(self.named)
        norm = optim.clip(self.named, recipe.clip_norm)
        position.step += 1
        told: e.Step | e.Warned
        if np.isfinite(found.loss) and np.isfinite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            position.losses = [*position.losses[-99:], found.loss]
            told = e.Step(
                step=position.step,
                epoch=position.step / self.steps_per_epoch,
                loss=found.loss,
                learning_rate=factor * position.learning_rate,
                grad_norm=norm,
                tokens=found.tokens,
                supervised_tokens=found.supervised,
                margin=found.margin,
                accuracy=found.accuracy,
                step_s=time.monotonic() - began_at,
                memory_bytes=devices.memory_bytes(self.device.device),
            )
        else:
            position.count_bad_step()
            told = self._left_out(chosen)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return told

    def _chosen(self) -> np.ndarray:
        """The numbers of the next step's rows: a function of seed, epoch and step alone."""
        epoch, offset = divmod(self.position.step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = order(self.rows, self.recipe.seed, epoch, self.recipe.chats_last_share)
            self._epoch = epoch
        return self._order[offset * self.recipe.batch_size : (offset + 1) * self.recipe.batch_size]

    def _left_out(self, chosen: np.ndarray) -> e.Warned:
        """Say which rows made a step whose loss or gradient was no number."""
        named = ", ".join(str(int(self.rows.rids[i * self.rows.rows_each])) for i in chosen[:8])
        message = f"The loss of step {self.position.step} was no number; left out. Rows: {named}."
        return e.Warned(step=self.position.step, kind="not_finite", message=message)

    def look(self, is_last: bool) -> Iterator[e.Evaluated | e.Sample]:
        """Loss over the validation rows and, where time allows, answers to them. Raises Diverged for a loss that is no
        number."""
        # Split weights come together only where all processes look; they look at the same then, and one tells.
        if ranks.is_first() or self.is_split:
            self.material.model.eval()
            yield evaluate.evaluate(self.material, self.device, self.recipe, self.position)
            began_at = time.monotonic()
            has_time = self.sampled_s <= SAMPLE_SHARE * (began_at - self.began_at) or is_last or not self.sampled_s
            if ranks.told(has_time) if self.is_split else has_time:
                yield from evaluate.samples(self.material, self.device, self.recipe, self.position.step)
                self.sampled_s += time.monotonic() - began_at
            self.material.model.train()
        self.position = ranks.told(self.position)
        if self.recipe.early_stopping and self.position.evaluations_without_gain >= self.recipe.patience_evaluations:
            self.position.ending = self.position.ending or "early_stopped"

    def save(self) -> Iterator[e.CheckpointSaved]:
        """Save a checkpoint; on a full disk make room among our own older ones and try once more."""
        position, store = self.position, self.store
        state = {
            "position": asdict(position),
            "threads": self.threads,
            "processes": ranks.count(),
            "spent_s": self.clock.spent_s,
            "versions": finish.versions(),
        }
        memory = checkpoints.optimizer_tensors(self.optimizers, self.named)
        write_weights: Callable[[Path], None] = partial(self.material.method.write, self.material.model)
        if any(ranks.is_split(parameter) for _, parameter in self.named):
            from worker.engine import sharding

            memory, write_weights = sharding.whole(memory), sharding.writer(self.material)
        if not ranks.is_first():
            return

        def write(keep_fewer: bool) -> checkpoints.Saved:
            if keep_fewer:
                needed = {f"step-{step or 0:08d}" for step in (position.best_step, store.recorded)}
                for path in [p for p in store.newest_first()[1:] if p.name not in needed]:
                    shutil.rmtree(path)
            return store.save(position.step, write_weights, memory, state, position.best_step)

        try:
            saved = write(keep_fewer=False)
        except DiskFull:
            saved = write(keep_fewer=True)
        yield e.CheckpointSaved(
            step=saved.step,
            dir=f"checkpoints/{saved.path.name}",
            manifest_sha256=saved.manifest_sha256,
            size_bytes=saved.size_bytes,
            validation_loss=position.last_loss,
            removed=[f"checkpoints/{name}" for name in saved.removed],
        )

    def ended(self, reason: e.EndReason) -> e.Ended:
        """The last event."""
        return e.Ended(reason=reason, step=self.position.step, best_step=self.position.best_step)
