"""What a base model is: its size and shape, read from config.json and the headers of its weights."""

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from app.contracts.recipe import ScratchSpec
from app.core.errors import Invalid
from app.core.languages import LANGUAGES
from app.recipes import model_card, vetting


class BaseFacts(BaseModel):
    """Sizes of a model. `inner` is the width of the middle layer; `parameters` counts each value once.

    `languages` are codes, as its card states them; empty where it states none.
    """

    architecture: str = ""
    parameters: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    context_length: int
    is_tied: bool = False
    has_template: bool = False
    size_bytes: int = 0
    languages: list[str] = []

    @property
    def head_parameters(self) -> int:
        """Values of the vocabulary projection."""
        return self.vocabulary * self.width

    @property
    def layer_parameters(self) -> int:
        """Values of one block's matrices."""
        head_width = self.width // max(1, self.heads)
        attention = self.width * (2 * self.width + 2 * self.kv_heads * head_width)
        gates = 2 if self.architecture == "gpt2" else 3
        return attention + gates * self.width * self.inner

    def linear_shapes(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block."""
        head_width = self.width // max(1, self.heads)
        kv = self.kv_heads * head_width
        if self.architecture == "gpt2":
            middle = [(self.width, 3 * self.width), (self.width, self.width)]
            return [*middle, (self.width, self.inner), (self.inner, self.width)]
        attention = [(self.width, self.width), (self.width, kv), (self.width, kv), (self.width, self.width)]
        return [*attention, (self.width, self.inner), (self.width, self.inner), (self.inner, self.width)]


def from_folder(folder: Path) -> BaseFacts:
    """Facts of a vetted model folder. Raises Invalid when config.json lacks a size."""
    config = vetting.read_json(folder / "config.json")
    tensors: dict[str, vetting.Tensor] = {}
    weights = [p for p in folder.iterdir() if p.name == "model.safetensors" or vetting.SHARD.fullmatch(p.name)]
    for path in weights:
        tensors |= vetting.read_header(path)
    tokenizer_config = folder / "tokenizer_config.json"
    template = (folder / "chat_template.jinja").is_file() or (
        tokenizer_config.is_file() and bool(vetting.read_json(tokenizer_config).get("chat_template"))
    )
    facts = _from_config(
        config,
        parameters=sum(tensor.elements for tensor in tensors.values()),
        size_bytes=sum(path.stat().st_size for path in weights),
        has_template=template,
        languages=model_card.languages(folder / "README.md"),
    )
    _check_promise(facts)
    return facts


def _check_promise(facts: BaseFacts) -> None:
    """Raise Invalid when config.json describes a model many times the size of its weights: whoever loads it first makes
    room for what the config says. Packed weights hold up to eight values an element."""
    described = facts.head_parameters + facts.layers * facts.layer_parameters
    if described > 10 * facts.parameters + 10_000_000:
        raise Invalid(
            f"config.json describes about {described / 1e6:,.0f} million weights, but the files hold "
            f"{facts.parameters / 1e6:,.1f} million. Choose the folder of a whole model."
        )


def _from_config(config: dict[str, Any], **known: Any) -> BaseFacts:
    def number(*names: str) -> int:
        for name in names:
            if isinstance(config.get(name), int) and config[name] > 0:
                return int(config[name])
        raise Invalid(f"config.json does not give “{names[0]}”. This kind of model is not supported.")

    width = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "num_heads")
    kv = config.get("num_key_value_heads")
    inner = config.get("intermediate_size") or config.get("n_inner") or 4 * width
    return BaseFacts(
        architecture=str(config["model_type"])[:60],
        layers=number("num_hidden_layers", "n_layer", "num_layers"),
        width=width,
        heads=heads,
        kv_heads=kv if isinstance(kv, int) and kv > 0 else heads,
        inner=int(inner),
        vocabulary=number("vocab_size"),
        context_length=number("max_position_embeddings", "n_positions", "n_ctx"),
        is_tied=bool(config.get("tie_word_embeddings", config["model_type"] == "gpt2")),
        **known,
    )


def from_scratch(spec: ScratchSpec, vocabulary: int | None = None) -> BaseFacts:
    """Facts of a model that does not exist yet. `vocabulary` overrides the asked size (characters are counted)."""
    width, layers = spec.width, spec.layers
    words = vocabulary or spec.vocabulary_size
    kv_heads = spec.kv_heads or spec.heads
    inner = 4 * width if spec.architecture == "gpt2" else math.ceil(width * 8 / 3 / 32) * 32
    shape = BaseFacts(
        architecture=spec.architecture,
        parameters=0,
        layers=layers,
        width=width,
        heads=spec.heads,
        kv_heads=kv_heads,
        inner=inner,
        vocabulary=words,
        context_length=spec.context_length,
        is_tied=True,
        has_template=True,
    )
    has_learned = spec.architecture == "gpt2" or spec.positions == "learned"
    positions = spec.context_length * width if has_learned else 0
    norms = (2 * layers + 1) * width * (2 if spec.norm in ("layer", "batch") else 1)
    shape.parameters = words * width + positions + layers * shape.layer_parameters + norms
    return shape


def language_names(codes: list[str], most: int = 3) -> tuple[str, int]:
    """Names of the first few languages, and how many more there are."""
    names = list(dict.fromkeys(LANGUAGES.get(code, LANGUAGES.get(code.partition("-")[0], code)) for code in codes))
    return ", ".join(names[:most]), max(0, len(names) - most)
