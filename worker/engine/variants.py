"""The Llama shape with other positions and other norms, to see what they do: models of this product's own kind.

Their folders say model_type "gpt_builder"; only GPT Builder loads them. Importing this makes transformers know them.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

MODEL_TYPE = "gpt_builder"


@strict
class VariantConfig(LlamaConfig):
    """A Llama's sizes; `positions` is rope, learned or sinusoidal, `norm` is rms, layer or batch."""

    model_type = MODEL_TYPE
    positions: str = "rope"
    norm: str = "rms"


class BatchNorm(nn.Module):
    """Each channel over all tokens at hand while training, by running statistics afterwards (Ioffe & Szegedy 2015).

    For teaching: a token then sees a little of those after it and of other rows, which no text model should.
    """

    def __init__(self, width: int, eps: float = 1e-5, pace: float = 0.1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.eps, self.pace = eps, pace

    def forward(self, states: Tensor) -> Tensor:
        """(…, width) to the same shape and number format."""
        values, mean, variance = states.float(), self.mean, self.variance
        if self.training:
            flat = values.flatten(0, -2)
            mean, variance = flat.mean(0), flat.var(0, unbiased=False)
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean), self.pace)
                self.variance.lerp_(variance.to(self.variance), self.pace)
        values = (values - mean) * torch.rsqrt(variance + self.eps)
        return (values * self.weight + self.bias).to(states.dtype)


class _NoRotation(nn.Module):
    """Rotary positions that turn nothing."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*position_ids.shape, self.head_width)
        return states.new_ones(shape), states.new_zeros(shape)


class VariantModel(LlamaModel):
    """A Llama's blocks; positions that are no rotation are added to the embeddings."""

    def __init__(self, config: VariantConfig) -> None:
        super().__init__(config)
        if config.norm != "rms":
            for block in self.layers:
                block.input_layernorm, block.post_attention_layernorm = _norm(config), _norm(config)
            self.norm = _norm(config)  # type: ignore[assignment]
        if config.positions != "rope":
            width = config.head_dim or config.hidden_size // config.num_attention_heads
            self.rotary_emb = _NoRotation(width)  # type: ignore[assignment]
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> Any:
        """As a Llama's."""
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            read = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(read, read + embedded.shape[1], device=embedded.device)[None]
        if self.config.positions == "learned":
            embedded = embedded + self.embed_positions(position_ids)
        elif self.config.positions == "sinusoidal":
            # At the size that embeddings begin with, or the waves drown the words.
            waves = sinusoids(position_ids, self.config.hidden_size) * self.config.initializer_range * 2**0.5
            embedded = embedded + waves.to(embedded)
        return super().forward(
            inputs_embeds=embedded, position_ids=position_ids, past_key_values=past_key_values, **others
        )


class VariantForCausalLM(LlamaForCausalLM):
    """The model with its head."""

    config_class = VariantConfig

    def __init__(self, config: VariantConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = VariantModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of wavelengths from 2π to 20,000π (Vaswani et al. 2017): (…,) to (…, width), fp32."""
    rates = torch.exp(-torch.arange(0, width, 2, device=positions.device).float() / width * torch.tensor(1e4).log())
    angles = positions[..., None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]


def _norm(config: VariantConfig) -> nn.Module:
    return BatchNorm(config.hidden_size) if config.norm == "batch" else nn.LayerNorm(config.hidden_size, eps=1e-5)


AutoConfig.register(MODEL_TYPE, VariantConfig)
AutoModelForCausalLM.register(VariantConfig, VariantForCausalLM)
