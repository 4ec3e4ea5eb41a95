"""Learning from preferences (DPO, Rafailov et al. 2023): the preferred answer becomes likelier against the rejected,
measured from where the model began. What it thought of both then is computed once, before the first step, and kept.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from app.contracts import events as e
from app.contracts.recipe import RecipeSpec
from worker.engine.data import TokenRows
from worker.engine.devices import Device
from worker.engine.loss import chunk_rows
from worker.engine.packing import NOT_LEARNED, Pack, hidden_states, inputs_of, is_packable, pack
from worker.engine.prepare import Material, Reference, looked_at
from worker.engine.shapes import rounded
from worker.engine.sharing import longest_first

TOLD_EVERY_S = 1.0


@dataclass(frozen=True)
class Judged:
    """Summed over pairs: the loss in nats, the reward margins (strength x log-ratio), and pairs told rightly apart."""

    loss: Tensor
    margin: Tensor
    right: Tensor


def judge(
    model: PreTrainedModel,
    batch: Pack,
    numbers: np.ndarray,
    reference: np.ndarray,
    recipe: RecipeSpec,
    noise_alpha: float = 0.0,
) -> Judged:
    """The DPO loss of whole pairs. `numbers` are the token rows of `batch` in its order: 2k and 2k + 1 are pair k.

    Label smoothing is the share of pairs taken to be the wrong way round (conservative DPO, Mitchell 2023).
    """
    now = answer_log_probabilities(model, batch, noise_alpha)[: len(numbers)]
    before = torch.from_numpy(reference[numbers]).to(now)
    by_pair = torch.from_numpy(np.argsort(numbers)).to(now.device)
    preferred, rejected = (now - before)[by_pair].view(-1, 2).unbind(1)
    margins = recipe.preference_strength * (preferred - rejected)
    doubt = recipe.label_smoothing
    loss = -(1 - doubt) * F.logsigmoid(margins) - doubt * F.logsigmoid(-margins)
    margins = margins.detach()
    return Judged(loss.sum(), margins.sum(), (margins > 0).sum())


def answer_log_probabilities(model: PreTrainedModel, batch: Pack, noise_alpha: float = 0.0) -> Tensor:
    """Summed log-probability in nats of the supervised tokens of each sequence of `batch`, shape (sequences,)."""
    learned = (batch.targets != NOT_LEARNED).nonzero()[:, 0]
    targets = batch.targets[learned]
    if is_packable(model):
        hidden = hidden_states(model, batch, noise_alpha, learned)
        values = _TokenLogProbabilities.apply(hidden, model.get_output_embeddings().weight, targets)
    else:
        values = torch.cat(_one_by_one(model, batch, noise_alpha))
    lengths = torch.tensor(batch.lengths, device=values.device)
    sequence = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)[learned]
    return torch.zeros(len(lengths), device=values.device).index_add(0, sequence, values)


def _one_by_one(model: PreTrainedModel, batch: Pack, noise_alpha: float) -> list[Tensor]:
    found = []
    for ids, targets in zip(batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        learned = (targets != NOT_LEARNED).nonzero()[:, 0]
        if len(learned):
            inputs = inputs_of(model, ids, (len(ids),), noise_alpha)
            logits = model(**inputs, use_cache=False, logits_to_keep=learned).logits[0].float()
            found.append(logits.log_softmax(-1).gather(1, targets[learned][:, None])[:, 0])
    return found


def reference_of(
    model: PreTrainedModel,
    rows: TokenRows,
    examples: np.ndarray,
    recipe: RecipeSpec,
    device: Device,
    path: Path,
) -> Generator[e.EngineEvent, None, np.ndarray]:
    """What the model thinks of the answers of `examples`, from `path` where it was kept there."""
    size = len(rows.rids)
    if path.is_file() and (known := np.load(path)).shape == (size,):
        return known
    found, told_at = np.zeros(size, np.float32), time.monotonic()
    yield e.Progress(phase="reference", total=len(examples))
    model.eval()
    for start in range(0, len(examples), recipe.micro_batch_size):
        numbers = longest_first(rows, rows.of(examples[start : start + recipe.micro_batch_size]))
        batch = pack([rows.row(i) for i in numbers], device.device)
        with torch.no_grad(), device.autocast():
            values = answer_log_probabilities(model, batch)
        found[numbers] = values[: len(numbers)].float().cpu().numpy()
        if time.monotonic() - told_at >= TOLD_EVERY_S:
            yield e.Progress(phase="reference", done=start, total=len(examples))
            told_at = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, found)
    temporary.rename(path)
    return found


def reference_of_run(
    material: Material, recipe: RecipeSpec, device: Device, run_dir: Path, spec_sha256: str
) -> Generator[e.EngineEvent, None, Reference]:
    """The reference of the training rows and of the validation rows of every evaluation, made once a run.

    To be called before anything was learned or read back.
    """
    found = []
    for split, rows, examples in (
        ("train", material.train_rows, np.arange(len(material.train_rows))),
        ("validation", material.validation_rows, looked_at(material.validation_rows, recipe)),
    ):
        # Another recipe, base or version has another file.
        path = run_dir / "reference" / f"{split}-{spec_sha256[:16]}.npy"
        found.append((yield from reference_of(material.model, rows, examples, recipe, device, path)))
    return Reference(*found)


class _TokenLogProbabilities(torch.autograd.Function):
    """Log-probability of each target: projection and softmax in chunks, again on the way back, so that only one chunk
    of logits exists at a time. Inputs: hidden (n, width), weight (vocabulary, width), targets (n,); output (n,)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device = hidden.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, matrix = hidden.to(half), weight.to(half)
        values = torch.empty(len(targets), device=hidden.device)
        for start, end in _chunks(len(targets), weight.shape[0]):
            log_p = _logits(states[start:end], matrix).log_softmax(-1)
            values[start:end] = log_p.gather(1, targets[start:end, None])[:, 0]
        ctx.save_for_backward(states, matrix, targets)
        ctx.types = (hidden.dtype, weight.dtype if weight.requires_grad else None)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, matrix, targets = ctx.saved_tensors
        to_hidden = torch.empty_like(states)
        to_weight = torch.zeros_like(matrix, dtype=torch.float32) if ctx.types[1] else None
        for start, end in _chunks(len(targets), matrix.shape[0]):
            goal, share = targets[start:end, None], grads[0][start:end, None]
            grad = -share * _logits(states[start:end], matrix).softmax(-1)
            grad.scatter_add_(1, goal, share)
            padded = F.pad(grad.to(states.dtype), (0, 0, 0, rounded(end - start) - (end - start)))
            to_hidden[start:end] = (padded @ matrix)[: end - start]
            if to_weight is not None:
                to_weight += padded[: end - start].T @ states[start:end]
        return to_hidden.to(ctx.types[0]), None if to_weight is None else to_weight.to(ctx.types[1]), None


def _chunks(count: int, vocabulary: int) -> list[tuple[int, int]]:
    step = chunk_rows(vocabulary)
    return [(start, min(count, start + step)) for start in range(0, count, step)]


def _logits(states: Tensor, matrix: Tensor) -> Tensor:
    """In fp32; the product is made in a round size, as everywhere (see `shapes.rounded`)."""
    size = len(states)
    return (F.pad(states, (0, 0, 0, rounded(size) - size)) @ matrix.T)[:size].float()
