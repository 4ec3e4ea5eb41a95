"""How the rows of a batch are laid out for the threads that train on them: see `replicas.py`."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec
from worker.engine import replicas
from worker.engine.data import TokenRows
from worker.engine.devices import Device
from worker.engine.learning import pass_of
from worker.engine.packing import Pack, pack

MOST_LEARNING = 32_000_000  # weights; above, gradients for each thread cost more than threads within operations


@dataclass(frozen=True)
class Part:
    """What one thread works on: rows by number, longest first, and their pack."""

    numbers: np.ndarray
    batch: Pack


def threads_of(model: PreTrainedModel, recipe: RecipeSpec) -> int:
    """How many threads train on rows of their own; one: those of the process help in each operation."""
    threads = torch.get_num_threads()
    # Noise is drawn from one generator, in one order; pairs of preferences stay together.
    if threads == 1 or pass_of(model) is None or recipe.neftune_alpha or recipe.learn_from == "preferences":
        return 1
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 1 if learning > MOST_LEARNING else threads


def parts_of(rows: TokenRows, numbers: np.ndarray, device: Device, threads: int) -> list[Part]:
    """These rows in as many packs as there are threads; the same ones for the same rows."""
    lengths = rows.lengths[numbers]
    found = []
    for share in replicas.shares(lengths.tolist(), threads):
        some = longest_first(rows, numbers[share])
        found.append(Part(some, pack([rows.row(i) for i in some], device.device)))
    return found


def longest_first(rows: TokenRows, numbers: np.ndarray) -> np.ndarray:
    """Row numbers in the order in which `pack` lays them."""
    return numbers[np.argsort(-rows.lengths[numbers], kind="stable")]


def make_ready(model: PreTrainedModel, device: Device, threads: int) -> None:
    """Before several threads use the model: what they share is brought up to date. One does that by itself."""
    if threads > 1 and (known := pass_of(model)) is not None:
        known.refresh(device.compute)
