"""Tiny real models for tests: a Llama of a few thousand random weights with a byte-level BPE tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.text.template import CHATML
from worker.engine import tokenizer as own_tokenizers

TEXTS = [
    "How do I reset my password? Open the settings and choose security.",
    "Where is my card? It is on its way.",
] * 20


def make_tokenizer(vocabulary_size: int = 400) -> Tokenizer:
    """A small tokenizer of our own kind, learned from two sentences."""
    return own_tokenizers.train_bpe(iter(TEXTS), vocabulary_size)


def make_model(
    folder: Path,
    seed: int = 0,
    context_length: int = 128,
    architecture: str = "llama",
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a whole model folder (config, safetensors, tokenizer, template) and return it."""
    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    size = tokenizer.get_vocab_size()
    end = tokenizer.token_to_id("<|im_end|>")
    if architecture == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=context_length,
                eos_token_id=end,
                bos_token_id=None,
                tie_word_embeddings=True,
                initializer_range=0.4,
            )
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=context_length,
                eos_token_id=end,
                bos_token_id=None,
                initializer_range=0.4,
            )
        )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    ).save_pretrained(folder)
    return folder
