"""The loss: cross-entropy summed over supervised tokens. The loop divides once, by their number in the whole batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine.packing import NOT_LEARNED, Pack, hidden_states, inputs_of, is_packable
from worker.engine.replicas import leaf
from worker.engine.shapes import rounded

CHUNK_ELEMENTS = 2**22  # logits held at once: 16 MB in fp32
HALVED_ELEMENTS = 2**23  # the same in bf16
LEAST = 1.2e-38  # the smallest number that bf16 holds exactly
_share = 1  # hold one part in so many of them
OF_SHARDS = "summed_loss_of_shards"  # the name under which a model split between processes has its own `packed_loss`


def summed_loss(
    model: PreTrainedModel, batch: Pack, *, label_smoothing: float = 0.0, noise_alpha: float = 0.0
) -> tuple[Tensor, int]:
    """Loss in nats summed over the supervised tokens of `batch`, and how many of them were the likeliest token."""
    if not is_packable(model):
        return _one_by_one(model, batch, label_smoothing, noise_alpha)
    own = getattr(model, OF_SHARDS, None)
    return own(batch, label_smoothing, noise_alpha) if own else packed_loss(model, batch, label_smoothing, noise_alpha)


def packed_loss(model: PreTrainedModel, batch: Pack, label_smoothing: float, noise_alpha: float) -> tuple[Tensor, int]:
    """`summed_loss` of a family that packs; its weights must be whole."""
    learned = (batch.targets != NOT_LEARNED).nonzero()[:, 0]
    hidden = hidden_states(model, batch, noise_alpha, learned)
    head: Any = model.get_output_embeddings()
    loss, correct = _ProjectedCrossEntropy.apply(
        hidden, leaf(head.weight), batch.targets[learned], label_smoothing, torch.is_grad_enabled()
    )
    return loss, int(correct)


def _one_by_one(
    model: PreTrainedModel, batch: Pack, label_smoothing: float, noise_alpha: float = 0.0
) -> tuple[Tensor, int]:
    """The plain way, through the model's own forward: for families that are not known to pack, and for tests."""
    total, correct = torch.zeros((), device=batch.ids.device), 0
    for ids, targets in zip(batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        learned = (targets != NOT_LEARNED).nonzero()[:, 0]
        if not len(learned):
            continue
        inputs = inputs_of(model, ids, (len(ids),), noise_alpha)
        logits = model(**inputs, use_cache=False, logits_to_keep=learned).logits[0].float()
        picked = targets[learned]
        total = total + F.cross_entropy(logits, picked, reduction="sum", label_smoothing=label_smoothing)
        correct += int((logits.argmax(-1) == picked).sum())
    return total, correct


def hold_fewer_logits(share: int) -> None:
    """Hold only the `share`-th part of the usual logits at once in this process; 1: all of them again."""
    global _share
    _share = share


def chunk_rows(vocabulary: int, elements: int | None = None) -> int:
    """Rows of logits held at once: a round size (see `shapes.rounded`), so that none of a product is filling.

    `elements` None: as many as fp32 holds.
    """
    rows = max(16, (elements or CHUNK_ELEMENTS) // (_share * vocabulary))
    step = max(8, 1 << max(0, rows.bit_length() - 4))
    return rows // step * step


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Vocabulary projection and cross-entropy in chunks, with the gradient made in the forward pass.

    Only one chunk of logits exists at a time; the same idea as Liger Kernel's fused linear cross-entropy
    (Hsu et al. 2024), in plain torch. Inputs: hidden (n, width), weight (vocabulary, width), targets (n,).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, learning: bool
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, matrix = hidden.to(half), weight.to(half)
        vocabulary = weight.shape[0]
        grad_hidden = torch.empty_like(states) if learning else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learning and weight.requires_grad else None
        loss = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        is_halved = half is torch.bfloat16 and device == "cpu" and not smoothing
        step = chunk_rows(vocabulary, HALVED_ELEMENTS if is_halved and learning else CHUNK_ELEMENTS)
        for start in range(0, len(targets), step):
            part, goal = states[start : start + step], targets[start : start + step]
            size = len(goal)
            part = F.pad(part, (0, 0, 0, rounded(size) - size))
            logits = (part @ matrix.T)[:size]
            if is_halved and grad_hidden is not None:
                grad, part_loss = _halved(logits, goal)
                loss += part_loss
                grad = F.pad(grad, (0, 0, 0, len(part) - size))
                grad_hidden[start : start + size] = (grad @ matrix)[:size]
                if grad_weight is not None:
                    grad_weight += grad.T @ part
                continue
            logits = logits.float()
            log_p = F.log_softmax(logits, dim=-1)
            loss -= (1 - smoothing) * log_p.gather(1, goal[:, None]).sum()
            if smoothing:
                loss -= smoothing / vocabulary * log_p.sum()
            if grad_hidden is None:
                correct += (logits.argmax(-1) == goal).sum()
                continue
            grad = log_p.exp_()
            grad.scatter_add_(1, goal[:, None], torch.full_like(goal, smoothing - 1, dtype=grad.dtype)[:, None])
            if smoothing:
                grad -= smoothing / vocabulary
            grad = F.pad(grad.to(half), (0, 0, 0, len(part) - size))
            grad_hidden[start : start + size] = (grad @ matrix)[:size]
            if grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.types = (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        to_hidden = (grad_hidden * grads[0]).to(ctx.types[0])
        to_weight = None if grad_weight is None else (grad_weight * grads[0]).to(ctx.types[1])
        return to_hidden, to_weight, None, None, None


def _halved(logits: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the logits (n, vocabulary) in bf16, where the next product needs it, and the summed loss.

    Torch adds in fp32 within a row, so no copy of the logits in fp32 is needed. Where a target is likely, what is left
    for all others tells its loss and its gradient exactly; bf16 has no room for that next to one.
    """
    shares = torch.softmax(logits, dim=-1)
    own = shares.gather(1, goal[:, None]).float()
    shares.scatter_(1, goal[:, None], 0.0)
    others = shares.sum(-1, keepdim=True)
    shares.scatter_(1, goal[:, None], -others)
    loss = torch.where(own > 0.5, torch.log1p(-others.float()), own.clamp_min(LEAST).log())
    return shares, -loss.sum()
