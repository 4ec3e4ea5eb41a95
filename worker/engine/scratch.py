"""A new GPT: random weights in the shape that the recipe asks for."""

import math
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from app.contracts.recipe import ScratchSpec
from worker.engine.packing import NAME
from worker.engine.variants import VariantConfig, VariantForCausalLM

OWN = {"positions": "rope", "norm": "rms"}


def create(spec: ScratchSpec, *, vocabulary_size: int, end_ids: list[int], pad_id: int) -> PreTrainedModel:
    """A Llama-like or GPT-2-like model in fp32 with tied embeddings; seeded by torch's global generator.

    Projections back into the residual stream start scaled by 1/sqrt(2 x layers) (Radford et al. 2019).
    """
    shared: dict[str, Any] = {"bos_token_id": None, "eos_token_id": end_ids[0], "pad_token_id": pad_id}
    shared["attn_implementation"] = NAME
    model: PreTrainedModel
    if spec.architecture == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary_size,
                n_positions=spec.context_length,
                n_embd=spec.width,
                n_layer=spec.layers,
                n_head=spec.heads,
                resid_pdrop=spec.dropout,
                embd_pdrop=spec.dropout,
                attn_pdrop=spec.dropout,
                **shared,
            )
        )
    else:
        kind: Any = (LlamaForCausalLM, LlamaConfig)
        if spec.is_variant:
            kind = (VariantForCausalLM, VariantConfig)
            shared |= {"positions": spec.positions, "norm": spec.norm}
            shared |= {name: own for name, own in OWN.items() if shared[name] == "own"}
        model = kind[0](
            kind[1](
                vocab_size=vocabulary_size,
                max_position_embeddings=spec.context_length,
                hidden_size=spec.width,
                intermediate_size=inner_width(spec.width),
                num_hidden_layers=spec.layers,
                num_attention_heads=spec.heads,
                num_key_value_heads=spec.kv_heads or spec.heads,
                attention_dropout=spec.dropout,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
                **shared,
            )
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(1 / math.sqrt(2 * spec.layers))
    model.generation_config.eos_token_id = end_ids
    model.generation_config.pad_token_id = pad_id
    return model


def inner_width(width: int) -> int:
    """Width of the gated middle layer: 8/3 of the model's, as in Llama, rounded up to a multiple of 32."""
    return math.ceil(width * 8 / 3 / 32) * 32
