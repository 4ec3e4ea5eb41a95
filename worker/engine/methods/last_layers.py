"""Last N layers: the last blocks and the final norm learn, the rest is frozen and computed without gradients."""

from collections.abc import Iterable
from pathlib import Path

import orjson
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec
from worker.engine.errors import BadData
from worker.engine.methods import Kind
from worker.engine.methods.whole import copy_into

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")


class LastLayers:
    """The changed tensors only, laid over the base when loaded.

    After `prepare`, `frozen` are the blocks before the first that learns, in order, and `first` is that one.
    """

    kind: Kind = "layers"

    def __init__(self) -> None:
        self.layers = 0
        self.frozen: list[nn.Module] = []
        self.first: nn.Module
        self.has_quieted = False

    def prepare(self, model: PreTrainedModel, recipe: RecipeSpec) -> None:
        body = getattr(model, model.base_model_prefix)
        blocks = find_blocks(body)
        if recipe.last_layers > len(blocks):
            raise BadData(
                f"The recipe trains the last {recipe.last_layers} layers, this base model has {len(blocks)}. "
                f"Choose at most {len(blocks)}."
            )
        self.layers = recipe.last_layers
        model.requires_grad_(False)
        learning: list[nn.Module] = list(blocks[-recipe.last_layers :])
        learning += [child for name, child in body.named_children() if name in FINAL_NORMS]
        if recipe.train_head:
            head = model.get_output_embeddings()
            if head.weight is model.get_input_embeddings().weight:
                raise BadData(
                    "This base model uses one matrix for its input and its output, so the output layer cannot be "
                    "trained alone. Switch “train the output layer” off."
                )
            learning.append(head)
        for module in learning:
            module.float().requires_grad_(True)
        self.frozen = list(blocks[: -recipe.last_layers])
        self.first = blocks[-recipe.last_layers]
        inside = {id(module) for block in blocks[-recipe.last_layers :] for module in block.modules()}
        self.has_quieted = quiet(module for module in body.modules() if id(module) not in inside)

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in _learning(model).items()}
        save_file(tensors, folder / "layers.safetensors", metadata={"format": "pt"})
        about = {"format": 1, "last_layers": self.layers, "tensors": sorted(tensors)}
        (folder / "layers.json").write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2))

    def read(self, model: PreTrainedModel, folder: Path) -> None:
        copy_into(_learning(model), load_file(folder / "layers.safetensors"))


def quiet(modules: Iterable[nn.Module]) -> bool:
    """Switch dropout off in these modules, where it is nothing but noise. True when there was any."""
    found = False
    for module in modules:
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            found = True
            setattr(module, "p" if isinstance(module, nn.Dropout) else "attention_dropout", 0.0)
    return found


def find_blocks(body: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a model's body. Raises BadData where there is none."""
    for child in body.children():
        if isinstance(child, nn.ModuleList) and len(child):
            return child
    raise BadData("This base model's layers could not be found. Choose LoRA or full tuning for it.")


def _learning(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
