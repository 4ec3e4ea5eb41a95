"""LoRA (Hu et al. 2021), rank-stabilised (Kalajdzievski 2023), with plain or PiSSA start (Meng et al. 2024); DoRA (Liu
et al. 2024); QLoRA (Dettmers et al. 2023)."""

import copy
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec
from worker.engine.adapted import lighten
from worker.engine.errors import BadData
from worker.engine.methods import Kind
from worker.engine.methods.four_bit import hold_in_four_bit
from worker.engine.methods.whole import copy_into

ADAPTER = "default"
FULL_SVD_SIDE = 1024  # above this the randomised decomposition is far faster and good enough


class Lora:
    """Adapters on every linear layer but the head; base weights frozen.

    With PiSSA the adapter starts as the principal part of each weight, which leaves the base. It is written as a
    plain adapter of twice the rank for the untouched base: [A; A0] and [B, -B0], which also holds the start exactly.
    """

    kind: Kind = "lora"

    def __init__(self) -> None:
        self.config: LoraConfig
        self.peft: Any = None
        self.starts: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare(self, model: PreTrainedModel, recipe: RecipeSpec) -> None:
        spec = recipe.lora
        self.config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides it, a fraction is fine
            lora_dropout=spec.dropout,
            target_modules=spec.target_modules or "all-linear",
            use_rslora=spec.rank_stabilised,
            use_dora=spec.dora,
            task_type="CAUSAL_LM",
        )
        if spec.four_bit:
            hold_in_four_bit(model, torch.device("cuda"))
        try:
            self.peft = get_peft_model(model, self.config)
        except ValueError as error:
            raise BadData(f"LoRA found no layer to adapt: {error}") from error
        for _, layer in _layers(model):
            for strength in layer.lora_magnitude_vector.values():
                strength.float()  # PEFT leaves it in the base's number format, too coarse to learn in
        if spec.initialisation == "pissa":
            for name, layer in _layers(model):
                self.starts[name] = principal_part(_matrix(layer), spec.rank, layer.scaling[ADAPTER])
                self._start(name, layer)
        for _, layer in _layers(model):
            lighten(layer, ADAPTER)

    def _start(self, name: str, layer: Any) -> None:
        """Set the adapter to its stored start and take that part out of the base weight."""
        a, b = self.starts[name]
        _add_to_base(layer, a, b, -1.0)
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.copy_(a)
            layer.lora_B[ADAPTER].weight.copy_(b)

    def _restart(self, name: str, layer: Any, a: Tensor, b: Tensor) -> None:
        """Take over the start of a checkpoint: the same one here, another one from a different machine."""
        mine = self.starts[name]
        if torch.equal(mine[0], a) and torch.equal(mine[1], b):
            return
        _add_to_base(layer, *mine, 1.0)
        self.starts[name] = (a, b)
        self._start(name, layer)

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(self.peft)
        config = copy.deepcopy(self.config).to_dict()
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = None
        config["inference_mode"] = True
        if self.starts:
            for name, (a, b) in self.starts.items():
                a_name, b_name = (f"base_model.model.{name}.lora_{side}.weight" for side in "AB")
                tensors[a_name] = torch.cat([tensors[a_name].cpu(), a])
                tensors[b_name] = torch.cat([tensors[b_name].cpu(), -b], dim=1)
            config["r"] *= 2
            config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
        plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_bytes(
            orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS, default=_plain)
        )

    def read(self, model: PreTrainedModel, folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, layer in _layers(model):
            a = tensors[f"base_model.model.{name}.lora_A.weight"]
            b = tensors[f"base_model.model.{name}.lora_B.weight"]
            if self.starts:
                rank = a.shape[0] // 2
                self._restart(name, layer, a[rank:].clone(), -b[:, rank:])
                a, b = a[:rank], b[:, :rank]
            copy_into({"a": layer.lora_A[ADAPTER].weight, "b": layer.lora_B[ADAPTER].weight}, {"a": a, "b": b})
            if ADAPTER in layer.lora_magnitude_vector:
                strength = tensors[f"base_model.model.{name}.lora_magnitude_vector"]
                copy_into({"m": layer.lora_magnitude_vector[ADAPTER].weight}, {"m": strength})


def principal_part(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) in fp32 on the CPU with scaling x B A = the `rank` largest parts of `weight`."""
    matrix = weight.detach().float().cpu()
    if rank > min(matrix.shape):
        raise BadData(f"Rank {rank} is more than this base model's width {min(matrix.shape)}. Choose a smaller rank.")
    if min(matrix.shape) <= FULL_SVD_SIDE:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        v = vh.T
    else:
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + 16, *matrix.shape), niter=8)
    root = (s[:rank] / scaling).sqrt()
    return (root[:, None] * v[:, :rank].T).contiguous(), (u[:, :rank] * root).contiguous()


def _add_to_base(layer: Any, a: Tensor, b: Tensor, sign: float) -> None:
    part = sign * layer.scaling[ADAPTER] * (b @ a)
    weight = layer.get_base_layer().weight
    with torch.no_grad():
        weight.copy_(weight.float() + (part.T if _is_transposed(layer) else part).to(weight.device))


def _layers(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """Every adapted layer (a LoraLayer) by its name in the model."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _is_transposed(layer: Any) -> bool:
    """GPT-2 keeps its weights as (in, out)."""
    return bool(getattr(layer, "fan_in_fan_out", False))


def _matrix(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight
    return weight.T if _is_transposed(layer) else weight


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)
