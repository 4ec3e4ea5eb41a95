"""What is measured and shown while training: validation loss, next-token accuracy, sample answers."""

import math
from collections.abc import Iterator

import torch

from app.contracts import events as e
from app.contracts.recipe import RecipeSpec
from worker.engine.answers import answer
from worker.engine.devices import Device
from worker.engine.errors import Diverged
from worker.engine.loss import summed_loss
from worker.engine.packing import pack
from worker.engine.position import Position
from worker.engine.prepare import Material

PROMPTS = 3  # validation rows shown when the recipe names no prompts of its own


@torch.no_grad()
def evaluate(material: Material, device: Device, recipe: RecipeSpec, position: Position) -> e.Evaluated:
    """Loss in nats a token and accuracy over the same validation rows each time; `position` keeps the best.

    The model must be in evaluation mode. Raises Diverged when the loss is no number.
    """
    rows = material.validation_rows
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.randperm(len(rows), generator=generator)[: recipe.validation_rows].sort().values.tolist()
    total, correct, supervised = 0.0, 0, 0
    for start in range(0, len(chosen), recipe.micro_batch_size):
        part = pack([rows.row(i) for i in chosen[start : start + recipe.micro_batch_size]], device.device)
        with device.autocast():
            loss, right = summed_loss(material.model, part)
        total, correct, supervised = total + float(loss), correct + right, supervised + part.supervised
    mean = total / supervised
    if not math.isfinite(mean):
        raise Diverged(f"The validation loss is no number at step {position.step}. {position.advice()}")
    is_best = position.evaluated(mean)
    return e.Evaluated(step=position.step, loss=mean, accuracy=correct / supervised, rows=len(chosen), is_best=is_best)


def samples(material: Material, device: Device, recipe: RecipeSpec, step: int) -> Iterator[e.Sample]:
    """Answers to the sample prompts. The model must be in evaluation mode."""
    for index, prompt in enumerate(material.prompts[: len(recipe.sample_prompts) or PROMPTS]):
        with device.autocast():
            said = answer(material.loaded, prompt, recipe.sample_max_tokens, recipe.seed)
        yield e.Sample(step=step, prompt_index=index, prompt=prompt.shown, text=said.text, ended=said.ended)
