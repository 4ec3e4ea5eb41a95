"""The forward pass of Llama-like models as training on a CPU wants it: joint products, gradients written out, no more
kept than they need, nothing computed where nothing is learned. Weights stay those of the model's own modules."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.engine import replicas
from worker.engine.blocks import Answered, Asked, Attended, Normed
from worker.engine.grouped import Group
from worker.engine.precision import is_rms
from worker.engine.replicas import leaf

FAMILIES = frozenset({"llama", "mistral", "qwen2", "gpt_builder"})
Noise = Callable[[Tensor], Tensor]
ACTIVATIONS = ("SiLU", "SiLUActivation")
_known: "WeakKeyDictionary[nn.Module, LearningPass]" = WeakKeyDictionary()


class Block:
    """One block: its products and norms."""

    def __init__(self, block: Any) -> None:
        attention, middle = block.self_attn, block.mlp
        self.heads: int = attention.config.num_attention_heads
        self.key_heads: int = attention.config.num_key_value_heads
        window = getattr(attention, "sliding_window", None)
        if attention.config.model_type == "mistral":
            window = attention.config.sliding_window
        self.window: int | None = window
        self.scaling: float = attention.scaling
        self.norms: list[Any] = [block.input_layernorm, block.post_attention_layernorm]
        self.asking = Group([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Group([attention.o_proj])
        self.middle = Group([middle.gate_proj, middle.up_proj])
        self.last = Group([middle.down_proj])

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.asking, self.out, self.middle, self.last

    def forward(
        self,
        states: Tensor,
        turns: tuple[Tensor, Tensor],
        lengths: tuple[int, ...],
        half: torch.dtype,
        wanted: Tensor | None,
    ) -> Tensor:
        """(rows, width) to the same; with `wanted` (numbers of rows) only these."""
        first, second = self.norms
        asked = self.asking, first.variance_epsilon, self.heads + self.key_heads, half
        joint = Asked.apply(states, leaf(first.weight), turns, asked, *self.asking.learning())
        found = Attended.apply(joint, (lengths, self.heads, self.key_heads, self.scaling, self.window))
        if wanted is not None:
            states, found = states.index_select(0, wanted), found.index_select(0, wanted)
        groups = self.out, self.middle, self.last
        learning = [part for group in groups for part in group.learning()]
        rest = *groups, second.variance_epsilon, half
        done: Tensor = Answered.apply(states, found, leaf(second.weight), rest, *learning)
        return done


class LearningPass:
    """The pass of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        body: Any = model.base_model
        self._embedding: Any = body.embed_tokens
        self._rotation: Any = body.rotary_emb
        self._norm: Any = body.norm
        self._blocks = [Block(block) for block in body.layers]
        self.border: Any = None

    def refresh(self, half: torch.dtype) -> None:
        """Bring copies of weights up to date, before threads use them."""
        for block in self._blocks:
            for group in block.groups:
                group.refresh(half)

    def hidden(
        self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...], noise: Noise | None, wanted: Tensor | None
    ) -> Tensor:
        """The final states (rows, width) of sequences laid end to end, or of the rows `wanted` of them; `noise` changes
        the embeddings."""
        border, first = self.border, 0
        if border is not None and border.given is not None:
            states, first = border.given.pop(0)[0], border.place
        else:
            embedding = self._embedding
            states = F.embedding(ids, leaf(embedding.weight), embedding.padding_idx)
            states = states if noise is None else noise(states)
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
        if not replicas.is_one():
            self.refresh(half)
        turns = self._turns(positions, half)
        for number, block in enumerate(self._blocks[first:], first):
            if border is not None and number == border.place:
                border.reach(states[None])
            is_last = number == len(self._blocks) - 1
            states = block.forward(states, turns, lengths, half, wanted if is_last else None)
        done: Tensor = Normed.apply(states, leaf(self._norm.weight), self._norm.variance_epsilon)
        return done

    def _turns(self, positions: Tensor, half: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (rows, 1, width), the first half of the sines negative: what `rotate_half` does."""
        cosines, sines = self._rotation(torch.empty(0), positions[None])
        sines[..., : sines.shape[-1] // 2].neg_()
        return cosines[0][:, None].to(half), sines[0][:, None].to(half)


def attach(model: PreTrainedModel) -> None:
    """Let `model` be trained this way from now on, where its kind and device are known to gain by it."""
    if _fits(model):
        _known[model] = LearningPass(model)


def pass_of(model: nn.Module) -> LearningPass | None:
    """How `model` is trained; None: through its own forward."""
    known = _known.get(model)
    return None if known is None or _recomputes(model) else known


def _recomputes(model: Any) -> bool:
    """Whether activations are made again for the gradient."""
    return any(getattr(module, "gradient_checkpointing", False) for module in (model.base_model, model))


def _fits(model: PreTrainedModel) -> bool:
    config: Any = model.config
    if config.model_type not in FAMILIES or model.device.type != "cpu":
        return False
    if (getattr(config, "positions", "rope"), getattr(config, "norm", "rms")) != ("rope", "rms"):
        return False
    body: Any = model.base_model
    for block in body.layers:
        attention, middle = block.self_attn, block.mlp
        groups = (
            [attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj],
            [middle.gate_proj, middle.up_proj], [middle.down_proj],
        )  # fmt: skip
        if attention.attention_dropout or type(middle.act_fn).__name__ not in ACTIVATIONS:
            return False
        if not is_rms(block.input_layernorm) or not all(Group.fits(layers) for layers in groups):
            return False
    return is_rms(body.norm)
