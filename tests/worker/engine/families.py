"""Tiny random base models in the shapes that people bring, each with our tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM

from app.text.template import CHATML
from worker.engine import tokenizer
from worker.engine.methods.whole import write_model

WORDS = 400
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "bos_token_id": None,
    "pad_token_id": 3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": WORDS,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "eos_token_id": 2,
        "bos_token_id": None,
    },
    "llama": SHAPE,
    "qwen2": {**SHAPE, "tie_word_embeddings": True},
    "qwen3": {**SHAPE, "head_dim": 8},
    "gemma": {**SHAPE, "head_dim": 8, "tie_word_embeddings": True},
    "phi": {**SHAPE, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "mistral": {**SHAPE, "sliding_window": 32, "tie_word_embeddings": False},
}


def make(
    family: str, folder: Path, texts: list[str], *, template: str = CHATML, markers: Sequence[str] = (), **changes: Any
) -> Path:
    """Write a base model of this family into `folder` and return it. Seeded. `markers`: special tokens beside ours."""
    learned = tokenizer.train_bpe(texts, WORDS)
    learned.add_special_tokens([AddedToken(text, special=True) for text in markers])
    tokenizer.save(learned, folder / "tokenizer", chat_template=template, context_length=64)
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], "vocab_size": learned.get_vocab_size(), **changes})
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = [2, 0]
    write_model(model, dict(model.named_parameters()), folder, folder / "tokenizer")
    return folder
