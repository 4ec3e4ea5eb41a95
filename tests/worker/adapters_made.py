"""Real adapters of every kind for the tiny models, as PEFT writes them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def make_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """Write an adapter of random weights that changes every answer, and return its folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    spec: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    peft = get_peft_model(model, LoraConfig(**{**spec, **config}))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or "lora_A" in name:
                parameter.normal_(std=0.3)
            elif "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    peft.save_pretrained(folder)
    return folder
