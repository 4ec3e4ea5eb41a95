"""What is measured and shown while training: validation loss, next-token accuracy, sample answers."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from app.contracts import events as e
from app.contracts.recipe import RecipeSpec
from worker.engine import replicas, sharing
from worker.engine.answers import answer
from worker.engine.devices import Device
from worker.engine.errors import Diverged
from worker.engine.loss import summed_loss
from worker.engine.packing import pack
from worker.engine.position import Position
from worker.engine.preference import judge
from worker.engine.prefix import around
from worker.engine.prepare import Material, looked_at
from worker.engine.sharing import longest_first

PROMPTS = 3  # validation rows shown when the recipe names no prompts of its own


@torch.no_grad()
def evaluate(material: Material, device: Device, recipe: RecipeSpec, position: Position) -> e.Evaluated:
    """Loss in nats a token and accuracy over the same validation rows each time; `position` keeps the best.

    The model must be in evaluation mode. Raises Diverged when the loss is no number.
    """
    if material.reference is not None:
        return _preferences(material, device, recipe, position, material.reference.validation)
    rows = material.validation_rows
    chosen, kept = looked_at(rows, recipe), material.prefix.validation if material.prefix else None
    total, correct, supervised = 0.0, 0, 0
    threads = sharing.threads_of(material.model, recipe)
    sharing.make_ready(material.model, device, threads)

    def one(part: sharing.Part) -> tuple[float, int, int]:
        with device.autocast(), around(kept, part.numbers, part.batch):
            loss, right = summed_loss(material.model, part.batch)
        return float(loss), right, part.batch.supervised

    for start in range(0, len(chosen), recipe.micro_batch_size):
        numbers = rows.of(chosen[start : start + recipe.micro_batch_size])
        if kept is not None:
            kept.make_ready(numbers)
        parts = sharing.parts_of(rows, numbers, device, threads)
        for loss, right, count in replicas.run([partial(one, part) for part in parts]):
            total, correct, supervised = total + loss, correct + right, supervised + count
    mean, is_best = _judged(total / supervised, position)
    return e.Evaluated(step=position.step, loss=mean, accuracy=correct / supervised, rows=len(chosen), is_best=is_best)


def _preferences(
    material: Material, device: Device, recipe: RecipeSpec, position: Position, reference: np.ndarray
) -> e.Evaluated:
    """Loss in nats a preference, mean reward margin, and as accuracy the share of pairs told rightly apart."""
    rows = material.validation_rows
    chosen, kept = looked_at(rows, recipe), material.prefix.validation if material.prefix else None
    loss, margin, right = torch.zeros(3)
    for start in range(0, len(chosen), recipe.micro_batch_size):
        numbers = longest_first(rows, rows.of(chosen[start : start + recipe.micro_batch_size]))
        part = pack([rows.row(i) for i in numbers], device.device)
        with device.autocast(), around(kept, numbers, part):
            judged = judge(material.model, part, numbers, reference, recipe)
        loss, margin, right = loss + judged.loss.cpu(), margin + judged.margin.cpu(), right + judged.right.cpu()
    mean, is_best = _judged(float(loss) / len(chosen), position)
    shares = {"accuracy": float(right) / len(chosen), "margin": float(margin) / len(chosen)}
    return e.Evaluated(step=position.step, loss=mean, rows=len(chosen), is_best=is_best, **shares)


def _judged(mean: float, position: Position) -> tuple[float, bool]:
    if not math.isfinite(mean):
        raise Diverged(f"The validation loss is no number at step {position.step}. {position.advice()}")
    return mean, position.evaluated(mean)


def samples(material: Material, device: Device, recipe: RecipeSpec, step: int) -> Iterator[e.Sample]:
    """Answers to the sample prompts. The model must be in evaluation mode."""
    for index, prompt in enumerate(material.prompts[: len(recipe.sample_prompts) or PROMPTS]):
        with device.autocast():
            said = answer(material.loaded, prompt, recipe.sample_max_tokens, recipe.seed)
        yield e.Sample(step=step, prompt_index=index, prompt=prompt.shown, text=said.text, ended=said.ended)
