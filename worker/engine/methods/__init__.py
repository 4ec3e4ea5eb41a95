"""The ways of learning: each says which weights learn, and how they are written and read back."""

from pathlib import Path
from typing import Literal, Protocol

from transformers import PreTrainedModel

from app.contracts.recipe import RecipeSpec

Kind = Literal["lora", "layers", "whole"]


class Method(Protocol):
    """One way of learning. Called in this order: `prepare`, then `write` and `read` as often as needed."""

    kind: Kind

    def prepare(self, model: PreTrainedModel, recipe: RecipeSpec) -> None:
        """Mark what learns (requires_grad), hold it in fp32, add what is new. `model` is changed in place."""

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the weights in the form that serving loads; exact, so that training can go on from them."""

    def read(self, model: PreTrainedModel, folder: Path) -> None:
        """Put back what `write` wrote, bit for bit."""


def choose(recipe: RecipeSpec, tokenizer_dir: Path) -> Method:
    """The recipe's method. `tokenizer_dir` holds the tokenizer files that go with whole weights."""
    if recipe.method == "lora":
        from worker.engine.methods.lora import Lora

        return Lora()
    if recipe.method == "last_layers":
        from worker.engine.methods.last_layers import LastLayers

        return LastLayers()
    from worker.engine.methods.whole import Whole

    return Whole(tokenizer_dir)
