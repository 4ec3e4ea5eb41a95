"""A range test of the learning rate: the same few steps at five rates, judged on rows that were not learned from.

After Smith (2017), whose single rising sweep was left for short runs side by side: what people see is then a table of
plain results, and one rate's mistake does not spoil the next one's.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch

from app.contracts import events as e
from app.contracts.probe import RatesTried, RateTried
from app.contracts.recipe import RecipeSpec, TrainOrder
from worker.engine import devices, evaluate, optim
from worker.engine.data import order as row_order
from worker.engine.errors import BadData, Diverged
from worker.engine.gradients import backward
from worker.engine.position import Position
from worker.engine.prepare import Material, prepare

FACTORS = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
LEAST_STEPS, LOOKED_ROWS = 6, 48


def try_rates(order: TrainOrder, seconds: float) -> Iterator[e.EngineEvent]:
    """Tell what happens, and at the end what each rate came to. `seconds`: for all rates together, without loading.

    Raises BadData without unseen rows, and for preferences, whose loss of a few steps says too little.
    """
    recipe = order.recipe
    devices.keep_freed_memory()
    devices.set_threads(recipe.threads)
    device = devices.choose(recipe)
    torch.manual_seed(recipe.seed)
    if recipe.learn_from == "preferences":
        raise BadData(
            "Learning from preferences needs hundreds of steps to tell rates apart. Search for values instead."
        )
    yield e.Progress(phase="loading")
    material = yield from prepare(order, device, recipe.micro_batch_size if recipe.packing else 1)
    if not len(material.validation_rows) or not recipe.validation_rows:
        raise BadData(
            "Rates are compared on unseen rows, and this version has none. Freeze one with a validation share."
        )
    named = optim.learning_parameters(material.model)
    began = [parameter.detach().clone() for _, parameter in named]
    start = _looked(material, recipe, device)
    tried: list[RateTried] = []
    steps = 0
    for number, factor in enumerate((1.0, *(one for one in FACTORS if one != 1.0))):
        yield e.Progress(phase="trying", done=number, total=len(FACTORS))
        with torch.no_grad():
            torch._foreach_copy_([parameter for _, parameter in named], began)
        rate = recipe.learning_rate * factor
        until = time.monotonic() + seconds / len(FACTORS)
        done = _learn(material, _slower(recipe, factor), device, named, steps, until)
        # The recipe's own rate says how many steps there is time for; all others take as many.
        steps = steps or done
        tried.append(RateTried(learning_rate=rate, loss=_looked(material, recipe, device)))
    tried.sort(key=lambda one: one.learning_rate)
    yield RatesTried(start_loss=start, steps=steps, tried=tried, proposed=chosen(tried, recipe.learning_rate, start))


def _slower(recipe: RecipeSpec, factor: float) -> RecipeSpec:
    other = recipe.adamw_learning_rate * factor if recipe.adamw_learning_rate else None
    return recipe.model_copy(update={"learning_rate": recipe.learning_rate * factor, "adamw_learning_rate": other})


def _learn(
    material: Material, recipe: RecipeSpec, device: devices.Device, named: optim.Named, steps: int, until: float
) -> int:
    """`steps` steps of the first pass, or (0) as many as fit until then; fewer where the loss is no number."""
    rows, micro = material.train_rows, recipe.micro_batch_size if recipe.packing else 1
    first = row_order(rows, recipe.seed, 0, recipe.chats_last_share)
    optimizers = optim.build(named, recipe, material.embedding_ids)
    material.model.train()
    torch.manual_seed(recipe.seed)
    done, planned = 0, steps or recipe.total_steps(len(rows))
    while done < planned and (steps or done < LEAST_STEPS or time.monotonic() < until):
        at = (done * recipe.batch_size) % len(first)
        # A short rise, then level: how a rate does in the long part of a run is what is asked.
        optim.set_rate(optimizers, min(1.0, (done + 1) / LEAST_STEPS))
        found = backward(material, first[at : at + recipe.batch_size], device, recipe, micro)
        norm = optim.clip(named, recipe.clip_norm)
        if not (np.isfinite(found.loss) and np.isfinite(norm)):
            break
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done += 1
    for _, parameter in named:
        parameter.grad = None  # of a step that was no number, too
    return done


def _looked(material: Material, recipe: RecipeSpec, device: devices.Device) -> float | None:
    """Loss on a few unseen rows in nats a token; None where it is no number."""
    fewer = recipe.model_copy(update={"validation_rows": min(recipe.validation_rows, LOOKED_ROWS)})
    material.model.eval()
    try:
        loss = evaluate.evaluate(material, device, fewer, Position(1, recipe.learning_rate, 1.0, 1)).loss
    except Diverged:
        return None
    return loss if math.isfinite(loss) else None


def chosen(tried: list[RateTried], own: float, start: float | None) -> float:
    """The rate with the lowest loss; the recipe's own where that is hardly worse (a twentieth of what was gained)."""
    finite = [one for one in tried if one.loss is not None]
    if not finite:
        return min(one.learning_rate for one in tried) / 3
    best = min(finite, key=lambda one: one.loss or 0.0)
    gained = max(0.0, (start if start is not None else 0.0) - (best.loss or 0.0))
    mine = next((one for one in finite if one.learning_rate == own), None)
    is_near = mine is not None and (mine.loss or 0.0) - (best.loss or 0.0) <= gained / 20
    return own if is_near else best.learning_rate
