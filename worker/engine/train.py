"""The training loop, to be read from top to bottom: load, tokenise, resume, step, evaluate, save, finish."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import torch

from app.contracts import events as e
from app.contracts.recipe import TrainOrder
from app.contracts.relief import Relief, ladder
from worker.engine import devices, finish, optim, ranks
from worker.engine.attempt import Attempt
from worker.engine.checkpoints import Checkpoints
from worker.engine.control import Commands, Deadline
from worker.engine.errors import Diverged, EngineError, NeedsLess, OutOfMemory, is_out_of_memory
from worker.engine.loss import hold_fewer_logits
from worker.engine.position import Position
from worker.engine.preference import reference_of_run
from worker.engine.prepare import prepare


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
    spec_sha256 = _spec_sha256(order)
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
    material = yield from prepare(order, device, relief.micro_batch_size)
    model = material.model
    if relief.recomputes:
        # Under its older name too, for the older releases of transformers.
        recompute = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        recompute({"use_reentrant": False})
    if recipe.learn_from == "preferences":
        reference = yield from reference_of_run(material, recipe, device, run_dir, spec_sha256)
        material = replace(material, reference=reference)
    if ranks.is_first():
        ranks.wait()
    if recipe.shards and ranks.count() > 1:
        from worker.engine import sharding

        sharding.shard(model, device.device)
    named = optim.learning_parameters(model)
    optimizers = optim.build(named, recipe, material.embedding_ids)

    # 2. Go on from the newest checkpoint that is whole.
    position = Position(relief.micro_batch_size, recipe.learning_rate, recipe.epochs, recipe.evaluate_every_steps)
    store = Checkpoints(run_dir / "checkpoints", order.run_id, order.attempt_id, spec_sha256, recipe.keep_checkpoints)
    store.folder.mkdir(parents=True, exist_ok=True)
    if ranks.is_first():
        store.clear()
    run = Attempt(recipe, device, material, named, optimizers, store, clock, position, threads)
    whole = (yield from run.restore()) if order.resume else None
    ranks.draw_apart(recipe.seed, run.position.step)
    yield run.started(whole)

    # 3. Step by step.
    saved_at = time.monotonic()
    model.train()
    while run.is_going_on:
        evaluate_now = False
        while command := ranks.told(clock.next(run.position.step)):
            if command.verb == "cancel":
                yield run.ended("cancelled")
                return
            if command.verb == "pause":
                yield from run.save()
                yield run.ended("paused")
                return
            evaluate_now = evaluate_now or command.verb == "evaluate_now"
            yield from run.obey(command)
        if run.is_going_on:
            yield run.learn()

        # 4. Look, save, and perhaps stop early.
        position, is_last, looked_at = run.position, not run.is_going_on, time.monotonic()
        is_due = position.step % position.evaluate_every_steps == 0 or evaluate_now or is_last
        is_sound = not position.bad_steps or position.bad_steps[-1] != position.step
        if is_due and len(material.validation_rows) and recipe.validation_rows:
            yield from run.look(is_last)
            is_sound = True  # a validation loss that is a number proves the weights, too
        waited = time.monotonic() - saved_at >= recipe.checkpoint_every_s
        counted = recipe.checkpoint_every_steps and position.step % recipe.checkpoint_every_steps == 0
        if is_sound and ranks.told(bool(is_due or waited or counted or run.position.ending)):
            yield from run.save()
            saved_at = time.monotonic()
            clock.reserve(saved_at - looked_at)

    # 5. What the run leaves behind: the best checkpoint, reloaded and tried.
    yield e.Progress(phase="finishing")
    position = run.position
    if ranks.is_first():
        yield finish.finish(order, material, store, position.best_step, position.step, position.ending or "completed")
    ranks.wait()


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
