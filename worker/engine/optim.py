"""Optimisers and the learning-rate schedule. The schedule is a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from app.contracts.recipe import RecipeSpec
from worker.engine import ranks
from worker.engine.errors import BadData
from worker.engine.muon import Muon

Named = list[tuple[str, nn.Parameter]]


def learning_parameters(model: nn.Module) -> Named:
    """What learns, by name; weights that share storage appear once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def build(named: Named, recipe: RecipeSpec, is_embedding: Iterable[int] = ()) -> dict[str, torch.optim.Optimizer]:
    """The optimisers by name. `is_embedding` holds the ids of embedding and head parameters.

    AdamW (Loshchilov & Hutter 2019), one fused pass; the B matrices of adapters may learn faster (LoRA+, Hayou et al.
    2024). Adafactor (Shazeer & Stern 2018) keeps sums of rows and columns in place of AdamW's two numbers a weight.
    Muon (Jordan et al. 2024) takes the matrices between embeddings and head, AdamW the rest.
    """
    embeddings = set(is_embedding)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if recipe.optimizer == "muon":
        matrices = [p for _, p in named if p.ndim == 2 and id(p) not in embeddings]
        if matrices:
            optimizers["muon"] = Muon(
                matrices, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
            )
        named = [(name, p) for name, p in named if p.ndim != 2 or id(p) in embeddings]
        rate = recipe.adamw_learning_rate or rate
    faster = [p for name, p in named if "lora_B" in name and recipe.lora.b_rate_ratio != 1]
    chosen = {id(p) for p in faster}
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2 and id(p) not in chosen], "weight_decay": decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
        {"params": faster, "weight_decay": decay, "lr": rate * recipe.lora.b_rate_ratio},
    ]
    groups = [group for group in groups if group["params"]]
    if groups and recipe.optimizer == "adafactor":
        from transformers.optimization import Adafactor  # with it come all the trainer's settings

        # Without its own schedule and scaling: the learning rate means what it means for AdamW.
        optimizers["adafactor"] = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    elif groups and recipe.optimizer == "adamw_8bit":
        optimizers["adamw_8bit"] = _in_eight_bits()(groups, lr=rate, betas=(0.9, 0.95))
    elif groups:
        # 0.95 keeps the second moment short: runs here have hundreds of steps, not hundreds of thousands.
        optimizers["adamw"] = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _in_eight_bits() -> Any:
    """AdamW whose two numbers a weight are held in 8 bit, block by block (Dettmers et al. 2022), of bitsandbytes."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise BadData(
            "AdamW in 8 bit needs the package bitsandbytes, which is not installed here. Install it for the trainer "
            "(pip install “gpt-builder[gpu]”), or choose AdamW."
        ) from error
    return bnb.optim.AdamW8bit


def refuse_elsewhere(recipe: RecipeSpec, device: torch.device) -> None:
    """Raise BadData where the recipe's optimiser is of no use."""
    if recipe.optimizer == "adamw_8bit" and device.type != "cuda":
        raise BadData(
            "AdamW in 8 bit needs an NVIDIA graphics card (CUDA), and this machine has none to use. Choose AdamW in "
            "the recipe; where memory is short, Adafactor."
        )


def rate_factor(step: int, total_steps: int, recipe: RecipeSpec) -> float:
    """Share of the full learning rate at `step` (0-based), after `warmup_steps` of linear rise."""
    warmup = min(recipe.warmup_steps, total_steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    final, span = recipe.final_learning_rate_ratio, max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / span)
    if recipe.schedule == "cosine":
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    if recipe.schedule == "linear":
        return final + (1 - final) * (1 - done)
    if recipe.schedule == "wsd":
        left = (total_steps - step) / max(1, round(total_steps * recipe.decay_share))
        return final + (1 - final) * min(1.0, left)
    return 1.0


def set_rate(optimizers: dict[str, torch.optim.Optimizer], factor: float) -> None:
    """Every group's rate = its full rate x factor."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def clip(named: Named, limit: float) -> float:
    """Scale the gradients down to norm `limit` in place; return the norm before."""
    gradients = [p.grad for _, p in named if p.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    if ranks.is_split(norm):
        norm = norm.full_tensor()  # each process has the norm of its part
    torch.nn.utils.clip_grads_with_norm_([p for _, p in named], limit, norm)
    return float(norm)
