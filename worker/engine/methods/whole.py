"""Full tuning and models from scratch: everything learns, whole weights are kept."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec
from worker.engine import ranks
from worker.engine.methods import Kind
from worker.engine.tokenizer_files import TOKENIZER_FILES


class Whole:
    """All weights learn in fp32."""

    kind: Kind = "whole"

    def __init__(self, tokenizer_dir: Path) -> None:
        self.tokenizer_dir = tokenizer_dir

    def prepare(self, model: PreTrainedModel, recipe: RecipeSpec) -> None:
        model.float().requires_grad_(True)

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        write_model(model, weights(model), folder, self.tokenizer_dir)

    def read(self, model: PreTrainedModel, folder: Path) -> None:
        copy_into(weights(model), load_file(folder / "model.safetensors"))


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All that a model keeps, by name, tied weights once: parameters and the running statistics of a BatchNorm."""
    kept = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def write_model(
    model: PreTrainedModel,
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
    tokenizer_dir: Path,
) -> None:
    """A folder that transformers loads: weights (tied ones once), configurations, tokenizer, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    model.config.dtype = next(iter(tensors.values())).dtype
    model.config.save_pretrained(folder)
    if model.generation_config:
        model.generation_config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, folder / name)


def copy_into(parameters: Mapping[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Overwrite parameters with tensors of the same names; raises ValueError when the names differ."""
    if set(parameters) != set(tensors):
        raise ValueError(f"weights differ in {sorted(set(parameters) ^ set(tensors))[:5]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ranks.part_of(tensors[name], parameter))
