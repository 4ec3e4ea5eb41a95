"""The gradients of one optimiser step: rows packed, split among threads and processes, and their losses added up."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from app.contracts.recipe import RecipeSpec
from worker.engine import devices, ranks, replicas, sharing
from worker.engine.loss import summed_loss
from worker.engine.packing import pack
from worker.engine.preference import judge
from worker.engine.prefix import around
from worker.engine.prepare import Material


@dataclass(frozen=True)
class Gradients:
    """What a step's rows said: mean loss and counts; of preferences, the mean margin and the share told apart."""

    loss: float
    tokens: int
    supervised: int
    margin: float | None = None
    accuracy: float | None = None


def backward(
    material: Material, chosen: np.ndarray, device: devices.Device, recipe: RecipeSpec, micro: int
) -> Gradients:
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
        return Gradients(mean, tokens, supervised)
    return Gradients(mean, tokens, supervised, margin_mean, accuracy)


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
