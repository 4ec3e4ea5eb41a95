"""The likeliest continuation, token by token: the samples shown while training and the stop test."""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Answer:
    """What a model said. `ended`: by its own end token, not by the limit."""

    text: str
    tokens: int
    ended: bool


@torch.inference_mode()
def answer(
    model: PreTrainedModel, tokenizer: Tokenizer, prompt: list[int], end_ids: list[int], max_tokens: int
) -> Answer:
    """Continue `prompt` (token ids) greedily by at most `max_tokens`. The model must be in evaluation mode."""
    limit = getattr(model.config, "max_position_embeddings", None) or 2048
    prompt = prompt[-max(1, limit - max_tokens) :]
    device = model.device
    cache = DynamicCache(config=model.config)
    said: list[int] = []
    ids = torch.tensor([prompt], device=device)
    while len(said) < max_tokens and len(prompt) + len(said) < limit:
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = int(out.logits[0, -1].argmax())
        if token in end_ids:
            return Answer(tokenizer.decode(said), len(said), True)
        said.append(token)
        ids = torch.tensor([[token]], device=device)
    return Answer(tokenizer.decode(said), len(said), False)
