"""The training loop, to be read from top to bottom: load, tokenise, resume, step, evaluate, save, finish."""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import torch

from app.contracts import events as e
from app.contracts.probe import SAMPLE_SHARE
from app.contracts.recipe import RecipeSpec, TrainOrder
from app.contracts.relief import Relief, ladder
from worker.engine import checkpoints, devices, evaluate, finish, optim, ranks, replicas, sharing
from worker.engine.checkpoints import Checkpoints
from worker.engine.control import Commands, Deadline
from worker.engine.data import TokenRows
from worker.engine.data import order as row_order
from worker.engine.errors import DiskFull, Diverged, EngineError, NeedsLess, OutOfMemory, is_out_of_memory
from worker.engine.loss import hold_fewer_logits, summed_loss
from worker.engine.packing import pack
from worker.engine.position import Position
from worker.engine.preference import judge, reference_of_run
from worker.engine.prefix import around
from worker.engine.prepare import Material, prepare


def train(order: TrainOrder, commands: Commands) -> Iterator[e.EngineEvent]:
    """Run one attempt and tell what happens. The last event is `Ended`; failures raise EngineError after it.

    When memory runs out, the attempt is repeated from the last checkpoint on the next rung of the ladder, with the
    same effective batch. Where several processes train together, the first one tells.
    """
    ranks.join()
    devices.keep_freed_memory()
    rungs = ladder(order.recipe, has_cuda=torch.cuda.is_available())
    rung, step = min(order.memory_rung, len(rungs) - 1), 0
    clock = Deadline(commands, order.recipe.max_hours, order.spent_s)
    while True:
        try:
            for event in _attempt(order, clock, rungs[rung]):
                step = getattr(event, "step", step)
                if isinstance(event, e.Ended):
                    event.peak_memory_bytes = devices.peak_memory_bytes(devices.choose(order.recipe).device)
                if ranks.is_first():
                    yield event
            return
        except EngineError as error:
            if ranks.is_first():
                reason: e.EndReason = "diverged" if isinstance(error, Diverged) else "failed"
                yield e.Ended(reason=reason, step=step, message=str(error))
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if ranks.count() > 1 and rung < len(rungs) - 1:
                # The others wait in the middle of this step: all have to begin again.
                raise NeedsLess("One of the processes that train together ran out of memory.") from error
            if rung == len(rungs) - 1:
                message = "The machine ran out of memory. Choose a smaller base model or shorter rows."
                yield e.Ended(reason="failed", step=step, message=message)
                raise OutOfMemory(message) from error
        devices.let_go()
        rung += 1
        order = order.model_copy(update={"resume": True})
        message = f"Memory ran out; going on from the last checkpoint with {rungs[rung].words}."
        yield e.Warned(step=step, kind="out_of_memory", message=message, rung=rung)


def _attempt(order: TrainOrder, clock: Deadline, relief: Relief) -> Iterator[e.EngineEvent]:
    spec_sha256, micro_batch_size = _spec_sha256(order), relief.micro_batch_size
    order = order.model_copy(update={"recipe": relief.applied(order.recipe)})
    hold_fewer_logits(relief.head_share)
    recipe, run_dir = order.recipe, Path(order.out_dir)
    threads = devices.set_threads(recipe.threads)
    device = devices.choose(recipe)
    torch.manual_seed(recipe.seed)

    # 1. The model, what of it learns, and the rows as tokens.
    yield e.Progress(phase="loading")
    if not ranks.is_first():
        ranks.wait()  # what the first one writes here, the others find
    material = yield from prepare(order, device, micro_batch_size)
    model, rows = material.model, material.train_rows
    if relief.recomputes:
        # Under its older name too, for the older releases of transformers.
        recompute = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        recompute({"use_reentrant": False})
    if recipe.learn_from == "preferences":
        reference = yield from reference_of_run(material, recipe, device, run_dir, spec_sha256)
        material = replace(material, reference=reference)
    if ranks.is_first():
        ranks.wait()
    is_split = recipe.shards and ranks.count() > 1
    if is_split:
        from worker.engine import sharding

        sharding.shard(model, device.device)
    named = optim.learning_parameters(model)
    optimizers = optim.build(named, recipe, material.embedding_ids)

    # 2. Go on from the newest checkpoint that is whole.
    position = Position(micro_batch_size, recipe.learning_rate, recipe.epochs, recipe.evaluate_every_steps)
    store = Checkpoints(run_dir / "checkpoints", order.run_id, order.attempt_id, spec_sha256, recipe.keep_checkpoints)
    store.folder.mkdir(parents=True, exist_ok=True)
    whole: Path | None = None
    if ranks.is_first():
        store.clear()
        for path, damage in store.find() if order.resume else ():
            if damage:
                yield e.CheckpointDamaged(dir=f"checkpoints/{path.name}", reason=damage)
            else:
                whole = path
    whole = ranks.told(whole)
    if whole is not None:
        material.method.read(model, whole / "weights")
        checkpoints.restore_optimizers(whole, optimizers, named)
        state = checkpoints.read_state(whole)
        if state.get("processes", 1) == ranks.count():
            threads = devices.set_threads(state["threads"])
        position = Position(**state["position"])
        clock.have_spent(state.get("spent_s", 0.0))
        position.micro_batch_size = min(position.micro_batch_size, micro_batch_size)
    ranks.draw_apart(recipe.seed, position.step)

    steps_per_epoch = recipe.steps_per_epoch(len(rows))
    total_steps = recipe.total_steps(len(rows), position.epochs)
    yield e.Started(
        step=position.step,
        total_steps=total_steps,
        train_rows=len(rows),
        validation_rows=len(material.validation_rows),
        tokens_per_epoch=int(rows.offsets[-1]),
        supervised_tokens_per_epoch=rows.supervised_tokens,
        cut_rows=rows.cut_rows,
        skipped_rows=rows.skipped_rows,
        parameters=material.parameters,
        trainable_parameters=sum(p.numel() for _, p in named),
        device=device.device.type,
        precision=device.precision,
        resumed_from=f"checkpoints/{whole.name}" if whole else None,
    )

    # 3. Step by step.
    started_at = saved_at = time.monotonic()
    sampled_s, epoch_order, epoch_of_order = 0.0, np.empty(0, np.int64), -1
    model.train()
    while position.step < total_steps and position.ending is None:
        evaluate_now = False
        while command := ranks.told(clock.next(position.step)):
            if command.verb == "cancel":
                yield e.Ended(reason="cancelled", step=position.step, best_step=position.best_step)
                return
            if command.verb == "pause":
                yield from _save(store, material, optimizers, named, position, threads, clock.spent_s)
                yield e.Ended(reason="paused", step=position.step, best_step=position.best_step)
                return
            if command.verb == "recorded":
                store.recorded = int(command.value or 0)
            elif command.verb in ("stop_and_keep", "time_is_up"):
                position.ending = "time_is_up" if command.verb == "time_is_up" else "stopped_and_kept"
            elif command.verb == "evaluate_now":
                evaluate_now = True
            elif command.name and command.value:
                value = command.value if command.name != "evaluate_every_steps" else max(1, int(command.value))
                if getattr(position, command.name) == value:
                    continue  # said again to a new attempt, whose checkpoint knows it
                setattr(position, command.name, value)
                total_steps = max(position.step, recipe.total_steps(len(rows), position.epochs))
                yield e.Adjusted(step=position.step, name=command.name, value=value, total_steps=total_steps)

        if position.ending is None and position.step < total_steps:
            step_started = time.monotonic()
            epoch, offset = divmod(position.step, steps_per_epoch)
            if epoch != epoch_of_order:
                epoch_order, epoch_of_order = (
                    row_order(rows, recipe.seed, epoch, recipe.chats_last_share),
                    epoch,
                )
            chosen = epoch_order[offset * recipe.batch_size : (offset + 1) * recipe.batch_size]
            factor = optim.rate_factor(position.step, total_steps, recipe)
            optim.set_rate(optimizers, factor * position.learning_rate / recipe.learning_rate)
            found = backward(material, chosen, device, recipe, position.micro_batch_size)
            if not is_split:  # else they are added on the way back, and each has its part
                ranks.add_gradients(named)
            norm = optim.clip(named, recipe.clip_norm)
            position.step += 1
            if np.isfinite(found.loss) and np.isfinite(norm):
                for optimizer in optimizers.values():
                    optimizer.step()
                position.losses = [*position.losses[-99:], found.loss]
                yield e.Step(
                    step=position.step,
                    epoch=position.step / steps_per_epoch,
                    loss=found.loss,
                    learning_rate=factor * position.learning_rate,
                    grad_norm=norm,
                    tokens=found.tokens,
                    supervised_tokens=found.supervised,
                    margin=found.margin,
                    accuracy=found.accuracy,
                    step_s=time.monotonic() - step_started,
                    memory_bytes=devices.memory_bytes(device.device),
                )
            else:
                position.count_bad_step()
                yield _left_out(position.step, rows, chosen)
            for optimizer in optimizers.values():
                optimizer.zero_grad(set_to_none=True)

        # 4. Look, save, and perhaps stop early.
        is_last = position.step >= total_steps or position.ending is not None
        is_finite = not position.bad_steps or position.bad_steps[-1] != position.step
        is_due = position.step % position.evaluate_every_steps == 0 or evaluate_now or is_last
        looked_at = time.monotonic()
        if is_due and len(material.validation_rows) and recipe.validation_rows:
            # Split weights come together only where all processes look; they look at the same then, and one tells.
            if ranks.is_first() or is_split:
                model.eval()
                yield evaluate.evaluate(material, device, recipe, position)
                has_time = sampled_s <= SAMPLE_SHARE * (time.monotonic() - started_at) or is_last or not sampled_s
                if ranks.told(has_time) if is_split else has_time:
                    sampling_at = time.monotonic()
                    yield from evaluate.samples(material, device, recipe, position.step)
                    sampled_s += time.monotonic() - sampling_at
                model.train()
            position = ranks.told(position)
            is_finite = True  # a validation loss that is a number proves the weights, too
            if recipe.early_stopping and position.evaluations_without_gain >= recipe.patience_evaluations:
                position.ending = position.ending or "early_stopped"
        waited = time.monotonic() - saved_at >= recipe.checkpoint_every_s
        counted = recipe.checkpoint_every_steps and position.step % recipe.checkpoint_every_steps == 0
        if is_finite and ranks.told(bool(is_due or waited or counted or position.ending)):
            yield from _save(store, material, optimizers, named, position, threads, clock.spent_s)
            saved_at = time.monotonic()
            clock.reserve(saved_at - looked_at)

    # 5. What the run leaves behind: the best checkpoint, reloaded and tried.
    yield e.Progress(phase="finishing")
    reason = position.ending or "completed"
    if ranks.is_first():
        yield finish.finish(order, material, store, position.best_step, position.step, reason)
    ranks.wait()


@dataclass(frozen=True)
class _Gradients:
    """What a step's rows said: mean loss and counts; of preferences, the mean margin and the share told apart."""

    loss: float
    tokens: int
    supervised: int
    margin: float | None = None
    accuracy: float | None = None


def backward(
    material: Material, chosen: np.ndarray, device: devices.Device, recipe: RecipeSpec, micro: int
) -> _Gradients:
    """Gradients of the mean loss over all supervised tokens of the effective batch, or over its preferences.

    Of several processes each makes the part of its own rows; `ranks.add_gradients` puts them together.
    """
    of_all, chosen = chosen, ranks.share(chosen)
    rows, kept, reference = material.train_rows, material.prefix.train if material.prefix else None, material.reference
    threads = sharing.threads_of(material.model, recipe)
    micros = [
        sharing.parts_of(rows, rows.of(chosen[start : start + micro]), device, threads)
        for start in range(0, len(chosen), micro)
    ]
    packs = [part.batch for parts in micros for part in parts]
    counts = [sum(batch.tokens for batch in packs), sum(batch.supervised for batch in packs), len(chosen)]
    tokens, supervised, examples = (int(value) for value in ranks.summed(counts, device.device))
    share = supervised if reference is None else examples

    def one(part: sharing.Part) -> torch.Tensor:
        """Loss, margin and how many were told rightly apart, of one thread's rows; their gradients are left behind."""
        margin, right = torch.zeros(2, device=device.device)
        with device.autocast(), around(kept, part.numbers, part.batch):
            if reference is None:
                loss, _ = summed_loss(
                    material.model, part.batch, label_smoothing=recipe.label_smoothing, noise_alpha=recipe.neftune_alpha
                )
            else:
                judged = judge(material.model, part.batch, part.numbers, reference.train, recipe, recipe.neftune_alpha)
                loss, margin, right = judged.loss, judged.margin, judged.right
        (loss / share).backward()
        return torch.stack([loss.detach(), margin, right.to(loss)])

    learning = [parameter for parameter in material.model.parameters() if parameter.requires_grad]
    found = torch.zeros(3, device=device.device)
    for parts in micros:
        if kept is not None:
            kept.make_ready(np.concatenate([part.numbers for part in parts]))
        sharing.make_ready(material.model, device, len(parts))
        for told in replicas.run([partial(one, part) for part in parts], learning):
            found += told
    if ranks.is_split(next(material.model.parameters())):
        _take_part(material, of_all, len(micros), device, recipe, micro)
    sums = ranks.summed(found.tolist(), device.device)
    mean, margin_mean, accuracy = (value / share for value in sums)
    if reference is None:
        return _Gradients(mean, tokens, supervised)
    return _Gradients(mean, tokens, supervised, margin_mean, accuracy)


def _take_part(
    material: Material, of_all: np.ndarray, done: int, device: devices.Device, recipe: RecipeSpec, micro: int
) -> None:
    """Go through the motions, learning nothing, while others of a split model still have rows of this step."""
    rows = material.train_rows
    most = math.ceil(len(of_all) / ranks.count())
    for _ in range(done, math.ceil(most / micro)):
        with device.autocast():
            loss, _ = summed_loss(material.model, pack([rows.row(rows.of(of_all[:1])[0])], device.device))
        (0 * loss).backward()


def _save(
    store: Checkpoints,
    material: Material,
    optimizers: dict[str, torch.optim.Optimizer],
    named: optim.Named,
    position: Position,
    threads: int,
    spent_s: float,
) -> Iterator[e.CheckpointSaved]:
    """Save a checkpoint; on a full disk make room among our own older ones and try once more. All processes call it."""
    state = {"position": asdict(position), "threads": threads, "processes": ranks.count(), "spent_s": spent_s}
    state["versions"] = finish.versions()
    memory = checkpoints.optimizer_tensors(optimizers, named)
    write_weights: Callable[[Path], None] = partial(material.method.write, material.model)
    if any(ranks.is_split(parameter) for _, parameter in named):
        from worker.engine import sharding

        memory, write_weights = sharding.whole(memory), sharding.writer(material)
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


def _spec_sha256(order: TrainOrder) -> str:
    """Hash of recipe, base and dataset: what a checkpoint must share with the run that goes on from it."""
    manifest = Path(order.data_dir) / "manifest.json"
    version = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    # A run may go on with fewer rows at a time (want of memory) or other saving habits.
    habits = {"micro_batch_size", "keep_checkpoints", "checkpoint_every_s", "checkpoint_every_steps"}
    habits.add("max_hours")
    # Or on another number of devices: the result is that of one.
    habits |= {"processes", "devices", "shards"}
    parts = [order.recipe.model_dump(mode="json", exclude=habits), version, order.system_prompt]
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _left_out(step: int, rows: TokenRows, chosen: np.ndarray) -> e.Warned:
    """Say which rows made a step whose loss or gradient was no number."""
    named = ", ".join(str(int(rows.rids[i * rows.rows_each])) for i in chosen[:8])
    return e.Warned(
        step=step, kind="not_finite", message=f"The loss of step {step} was no number; left out. Rows: {named}."
    )
