"""Weights under GGUF's names: Llama- and GPT-2-shaped models, as llama.cpp reads them."""

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from worker.engine.errors import BadData

Array = np.ndarray[Any, Any]
_ELSE = "Export the whole folder instead."
_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_BLOCK = re.compile(r"^(?:model\.layers|transformer\.h)\.(\d+)\.(.+)\.(weight|bias)$")


def architecture(model: PreTrainedModel) -> str:
    """GGUF's word for the model's shape. Raises BadData for one that is not written here."""
    config: Any = model.config
    kind = str(config.model_type)
    if kind == "mistral" and not getattr(config, "sliding_window", None):
        kind = "llama"
    if kind not in ("llama", "gpt2"):
        raise BadData(f"GGUF is written here for Llama- and GPT-2-shaped models, and this one is {kind}. {_ELSE}")
    if kind == "llama" and config.hidden_act != "silu":
        raise BadData(f"This model's middle layer uses {config.hidden_act}, which GGUF's Llama shape has not. {_ELSE}")
    if kind == "gpt2" and config.activation_function != "gelu_new":
        raise BadData(f"This model uses {config.activation_function}, which GGUF's GPT-2 shape has not. {_ELSE}")
    if kind == "gpt2" and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
        raise BadData(f"This model scales its attention in a way that GGUF's GPT-2 shape has not. {_ELSE}")
    if kind == "llama":
        rope_kind(model)
    return kind


def rope_kind(model: PreTrainedModel) -> str:
    """How positions turn: default or llama3. Raises BadData for others."""
    config: Any = model.config
    kind = str((config.rope_parameters or {}).get("rope_type", "default"))
    if kind not in ("default", "llama3"):
        raise BadData(f"This model stretches its positions by “{kind}”, which is not written to GGUF here. {_ELSE}")
    return kind


def settings(model: PreTrainedModel) -> dict[str, int | float]:
    """Sizes under GGUF's keys, without the architecture's name before them."""
    config: Any = model.config
    if architecture(model) == "gpt2":
        return {
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "block_count": config.n_layer,
            "feed_forward_length": config.n_inner or 4 * config.n_embd,
            "attention.head_count": config.n_head,
            "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        }
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "vocab_size": config.vocab_size,
    }


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Array]]:
    """(name, fp32 array) of every weight as GGUF has it; a tied output layer is left out."""
    config: Any = model.config
    kind = architecture(model)
    names = _LLAMA if kind == "llama" else _GPT2
    is_tied = bool(config.tie_word_embeddings)
    for name, parameter in model.named_parameters():
        if is_tied and name == "lm_head.weight":
            continue
        array: Array = parameter.detach().float().cpu().numpy()
        block = _BLOCK.match(name)
        inner, _, ending = name.rpartition(".") if block is None else (block.group(2), "", block.group(3))
        if inner not in names:
            raise BadData(f"GGUF has no place for this model's weights “{name}”. {_ELSE}")
        if kind == "gpt2" and inner.partition(".")[2].startswith("c_") and array.ndim == 2:
            array = array.T  # kept as (in, out)
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if inner.endswith("q_proj") else config.num_key_value_heads
            array = paired(array, heads)
        place = f"blk.{block.group(1)}.{names[inner]}" if block else names[inner]
        yield f"{place}.{ending}", np.ascontiguousarray(array)
    if kind == "llama" and rope_kind(model) == "llama3":
        yield "rope_freqs.weight", stretched(config)


def paired(array: Array, heads: int) -> Array:
    """Rows of each head with the two halves interleaved: llama.cpp turns neighbours, transformers turns halves."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def stretched(config: Any) -> Array:
    """Llama 3.1's factor of each rotation's wave length (Meta's reference code, `apply_scaling`), shape (head / 2)."""
    found = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    low, high = found["low_freq_factor"], found["high_freq_factor"]
    length, factor = found["original_max_position_embeddings"], found["factor"]
    factors = []
    for position in range(0, head, 2):
        wave = 2 * math.pi * found["rope_theta"] ** (position / head)
        if wave < length / high:
            factors.append(1.0)
        elif wave > length / low:
            factors.append(float(factor))
        else:
            smooth = (length / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, dtype=np.float32)
