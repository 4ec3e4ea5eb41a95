"""The forward pass of the packable families over rows of tokens, as answers need it: joined products, rotation in
place, no masks, caches or hooks of transformers. Weights and norms are the model's own; a test compares both passes."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.engine.adapters import Mixer
from worker.engine.precision import norm_of
from worker.engine.products import Part, sizes
from worker.engine.variants import sinusoids

TURNS = 1024  # positions whose rotation is computed at once


class Attends(Protocol):
    """Whoever knows which row belongs to which answer, and what each has read before."""

    def attend(self, layer: int, query: Tensor, new: Tensor, scaling: float, window: int | None) -> Tensor:
        """Queries (rows, heads, width) and new keys and values (rows, 2 key heads, width) to (rows, heads · width); in
        the last layer only the rows that `wanted` names."""
        ...

    @property
    def wanted(self) -> Tensor | None:
        """The places of the rows whose results are asked for; None: all."""
        ...


class Product:
    """One product of a block and the names of the layers that it joins, with their outputs."""

    def __init__(self, layers: list[nn.Module], names: dict[nn.Module, str]) -> None:
        first = layers[0]
        whole: Any = first.joined if isinstance(first, Part) and len(layers) > 1 else first
        self.of, self.bias = whole.forward, whole.bias
        ends = [0]
        for layer in layers:
            ends.append(ends[-1] + sizes(layer)[0])
        self.parts = tuple((names[layer], ends[i], ends[i + 1]) for i, layer in enumerate(layers))


@dataclass(frozen=True)
class _Block:
    norm_first: Any
    attention_in: list[Product]
    norm_heads: tuple[Any, Any] | None
    scaling: float
    window: int | None
    attention_out: Product
    norm_second: Any
    middle_in: list[Product]
    activation: Any
    middle_out: Product


class Lean:
    """The pass of one model. Weights that are replaced in the model afterwards are not seen."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        body: Any = getattr(model, model.base_model_prefix)
        self.heads: int = config.num_attention_heads
        self.key_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
        is_gpt2 = config.model_type == "gpt2"
        self._embedding: Any = model.get_input_embeddings()
        self._places: Any = body.wpe if is_gpt2 else None
        self._rotation: Any = None
        self._turned: Tensor | None = None
        self._waves = 0.0
        if not is_gpt2:
            positions = getattr(config, "positions", "rope")
            self._rotation = body.rotary_emb if positions == "rope" else None
            self._places = body.embed_positions if positions == "learned" else None
            # See `variants.py`.
            self._waves = config.initializer_range * 2**0.5 if positions == "sinusoidal" else 0.0
        blocks = body.h if is_gpt2 else body.layers[: config.num_hidden_layers]
        self._blocks = [_gpt2_block(one, names) if is_gpt2 else _llama_block(one, names) for one in blocks]
        self._last_norm = norm_of(body.ln_f if is_gpt2 else body.norm)
        self._head: Any = model.get_output_embeddings()

    def hidden(self, ids: Tensor, positions: Tensor, reach: int, slots: Attends, mixer: Mixer | None) -> Tensor:
        """The last block's result (rows that `slots` wants, width) for ids and positions (rows,), all positions below
        `reach`."""
        states = self.embedded(ids, positions)
        cosines, sines = self._turns(positions, reach)
        turned, queries = (self.heads + self.key_heads), self.heads
        half, last = self.width // 2, len(self._blocks) - 1
        for layer, block in enumerate(self._blocks):
            rows = block.norm_first(states)
            joined = _of(block.attention_in, rows, mixer).view(len(rows), -1, self.width)
            if block.norm_heads is not None:
                for norm, part in zip(block.norm_heads, (joined[:, :queries], joined[:, queries:turned]), strict=True):
                    part.copy_(norm(part))
            if cosines is not None and sines is not None:
                part = joined[:, :turned]
                swapped = torch.cat((part[..., half:], part[..., :half]), -1)
                part.mul_(cosines).addcmul_(swapped, sines)
            rows = slots.attend(layer, joined[:, :queries], joined[:, queries:], block.scaling, block.window)
            if layer == last and slots.wanted is not None:
                states = states[slots.wanted]
            states = states.add_(_of([block.attention_out], rows, mixer))
            rows = _of(block.middle_in, block.norm_second(states), mixer)
            states = states.add_(_of([block.middle_out], block.activation(rows), mixer))
        return states

    def embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(rows, width): the embedded tokens, with their positions where these are no rotation."""
        states: Tensor = self._embedding(ids)
        if self._places is not None:
            return states + self._places(positions)
        if self._waves:
            return states + (sinusoids(positions, states.shape[1]) * self._waves).to(states)
        return states

    @property
    def windows(self) -> list[int | None]:
        """How far back each layer looks; None: to the beginning."""
        return [block.window for block in self._blocks]

    def logits(self, states: Tensor) -> Tensor:
        """(rows, vocabulary) from what `hidden` gave."""
        return self._head(self._last_norm(states))

    def _turns(self, positions: Tensor, reach: int) -> tuple[Tensor | None, Tensor | None]:
        """Cosines and sines (rows, 1, width), the first half of the sines negative: what `rotate_half` does.

        Computed once for each position: the last bit of a cosine depends on its place in the vector, and an answer
        must not depend on who is beside it.
        """
        turned = self.table(reach)
        if turned is None:
            return None, None
        cosines, sines = turned[:, positions]
        return cosines[:, None], sines[:, None]

    def table(self, reach: int) -> Tensor | None:
        """Cosines and sines (2, at least `reach` positions, width); None: nothing is turned."""
        if self._rotation is None:
            return None
        if self._turned is None or reach > self._turned.shape[1]:
            self._turned = self._computed_turns(-(-reach // TURNS) * TURNS)
        return self._turned

    def _computed_turns(self, count: int) -> Tensor:
        """(2, positions, width)."""
        places = torch.arange(count, device=self._embedding.weight.device)
        cosines, sines = self._rotation(self._embedding.weight[:1, None], places[None])
        sines = sines[0].clone()
        sines[:, : self.width // 2].neg_()
        return torch.stack([cosines[0], sines])


def _of(products: list[Product], rows: Tensor, mixer: Mixer | None) -> Tensor:
    done = []
    for product in products:
        out = product.of(rows)
        if mixer is not None:
            mixer.add(product.parts, rows, out, product.bias)
        done.append(out)
    return done[0] if len(done) == 1 else torch.cat(done, dim=1)


def _products(layers: list[nn.Module], names: dict[nn.Module, str]) -> list[Product]:
    """One product where the layers are joined, else one each."""
    if all(isinstance(layer, Part) for layer in layers):
        return [Product(layers, names)]
    return [Product([layer], names) for layer in layers]


def _llama_block(block: Any, names: dict[nn.Module, str]) -> _Block:
    attention, middle = block.self_attn, block.mlp
    window = getattr(attention, "sliding_window", None)
    if attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    has_norms = hasattr(attention, "q_norm")
    activation, size = middle.act_fn, sizes(middle.gate_proj)[0]

    def gated(rows: Tensor) -> Tensor:
        return activation(rows[:, :size]).mul_(rows[:, size:])

    return _Block(
        norm_first=norm_of(block.input_layernorm),
        attention_in=_products([attention.q_proj, attention.k_proj, attention.v_proj], names),
        norm_heads=(norm_of(attention.q_norm), norm_of(attention.k_norm)) if has_norms else None,
        scaling=attention.scaling,
        window=window,
        attention_out=Product([attention.o_proj], names),
        norm_second=norm_of(block.post_attention_layernorm),
        middle_in=_products([middle.gate_proj, middle.up_proj], names),
        activation=gated,
        middle_out=Product([middle.down_proj], names),
    )


def _gpt2_block(block: Any, names: dict[nn.Module, str]) -> _Block:
    return _Block(
        norm_first=norm_of(block.ln_1),
        attention_in=[Product([block.attn.c_attn], names)],
        norm_heads=None,
        scaling=block.attn.scaling,
        window=None,
        attention_out=Product([block.attn.c_proj], names),
        norm_second=norm_of(block.ln_2),
        middle_in=[Product([block.mlp.c_fc], names)],
        activation=block.mlp.act,
        middle_out=Product([block.mlp.c_proj], names),
    )
