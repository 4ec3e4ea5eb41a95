"""QLoRA's base: linear layers in 4 bit (nf4, scales quantised again; Dettmers et al. 2023), through bitsandbytes."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from worker.engine.devices import Device
from worker.engine.errors import BadData

BITS = "nf4"


def refuse_elsewhere(device: Device) -> None:
    """Raise BadData where 4-bit products cannot be trained."""
    if device.device.type != "cuda":
        raise BadData(
            "QLoRA needs an NVIDIA graphics card (CUDA), and this machine has none to use. Switch “Hold the base in 4 "
            "bit” off in the recipe; where memory is short, choose a smaller base model."
        )


def hold_in_four_bit(model: PreTrainedModel, device: torch.device) -> None:
    """Replace every linear layer but the head, in place, by its rounded values on `device`."""
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise BadData(
            "QLoRA needs the package bitsandbytes, which is not installed here. Install it for the trainer "
            "(pip install “gpt-builder[gpu]”), or switch “Hold the base in 4 bit” off."
        ) from error
    head = model.get_output_embeddings()
    linear = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    linear = [found for found in linear if type(found[2]) is nn.Linear and found[2] is not head]
    if not linear:
        raise BadData("QLoRA does not know the layers of this kind of base model. Choose LoRA without 4 bit for it.")
    for parent, name, child in linear:
        setattr(parent, name, _four_bit(bnb, child, device))
    # PEFT asks this before it chooses its layer for 4-bit weights.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def _four_bit(bnb: Any, linear: Any, device: torch.device) -> nn.Module:
    made: nn.Module = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=True,
        quant_type=BITS,
        device="meta",
    )
    made.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type=BITS, compress_statistics=True, module=made
    )
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return made.to(device)
