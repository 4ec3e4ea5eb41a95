"""Several sequences in one forward pass, without padding, none of which sees another.

The linear layers see one long row of tokens; attention runs within each sequence and positions restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from worker.engine.attention import is_short, short_attention
from worker.engine.learning import LearningPass, pass_of
from worker.engine.shapes import rounded

NAME = "packed"
NOT_LEARNED = -1
MOST_WANTED = 0.9  # of the tokens; above, choosing costs more than it saves
# Families whose attention is plain softmax attention and whose head is one matrix; a test compares each with
# its own unpacked forward. Any other family runs one sequence at a time through its own code.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_builder"})


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end. All tensors have shape (sum of lengths,); a target is the next token or -1.

    Each sequence is filled at its end, where causal attention hides it, to a round length, and so is the whole;
    `tokens` does not count the filling.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    tokens: int
    supervised: int


def pack(rows: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device) -> Pack:
    """Lay (ids, learn) rows end to end, longest first so that equal lengths share one attention call.

    Each row of n tokens gives n - 1 inputs: the last token is only a target.
    """
    rows = sorted(rows, key=lambda row: -len(row[0]))
    lengths = [rounded(len(ids) - 1) for ids, _ in rows]
    if filling := rounded(sum(lengths)) - sum(lengths):
        lengths.append(filling)
    ids = np.zeros(sum(lengths), np.int64)
    targets = np.full(sum(lengths), NOT_LEARNED, np.int64)
    for start, (row, learn) in zip(np.cumsum([0, *lengths]), rows, strict=False):
        size = len(row) - 1
        ids[start : start + size] = row[:-1]
        targets[start : start + size] = np.where(learn[1:], row[1:].astype(np.int64), NOT_LEARNED)
    return Pack(
        ids=torch.from_numpy(ids).to(device),
        targets=torch.from_numpy(targets).to(device),
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(device),
        lengths=tuple(lengths),
        tokens=sum(len(ids) - 1 for ids, _ in rows),
        supervised=int((targets != NOT_LEARNED).sum()),
    )


def is_packable(model: PreTrainedModel) -> bool:
    """Whether this model's family is known to give the same result packed."""
    return model.config.model_type in FAMILIES


def hidden_states(
    model: PreTrainedModel, batch: Pack, noise_alpha: float = 0.0, wanted: Tensor | None = None
) -> Tensor:
    """Final hidden states of every token, shape (tokens, width), or of the tokens with the numbers `wanted`.

    `noise_alpha`: see `inputs_of`.
    """
    if (known := pass_of(model)) is not None:
        return _states_of(known, batch, noise_alpha, wanted)
    inputs = inputs_of(model, batch.ids, batch.lengths, noise_alpha)
    body = getattr(model, model.base_model_prefix)
    out = body(**inputs, position_ids=batch.positions[None], lengths=batch.lengths, use_cache=False)
    states: Tensor = out.last_hidden_state[0]
    return states if wanted is None else states[wanted]


def _states_of(known: LearningPass, batch: Pack, noise_alpha: float, wanted: Tensor | None) -> Tensor:
    """The same through the pass for training; of few wanted tokens only these go through the last block's end."""
    noise = partial(_noisy, lengths=batch.lengths, alpha=noise_alpha) if noise_alpha else None
    inputs = batch.ids, batch.positions, batch.lengths, noise
    if wanted is None or len(wanted) > MOST_WANTED * len(batch.ids):
        states = known.hidden(*inputs, None)
        return states if wanted is None else states[wanted]
    filled = F.pad(wanted, (0, rounded(len(wanted)) - len(wanted)))
    return known.hidden(*inputs, filled)[: len(wanted)]


def inputs_of(model: PreTrainedModel, ids: Tensor, lengths: tuple[int, ...], noise_alpha: float) -> dict[str, Tensor]:
    """The arguments of a forward pass over sequences laid end to end.

    `noise_alpha` > 0 adds uniform noise to the embeddings (NEFTune, Jain et al. 2023), scaled per sequence.
    """
    if not noise_alpha:
        return {"input_ids": ids[None]}
    return {"inputs_embeds": _noisy(model.get_input_embeddings()(ids), lengths, noise_alpha)[None]}


def _noisy(embedded: Tensor, lengths: tuple[int, ...], alpha: float) -> Tensor:
    scale = torch.cat([torch.full((n,), (n * embedded.shape[1]) ** -0.5) for n in lengths])
    noise = torch.empty_like(embedded).uniform_(-alpha, alpha)
    return embedded + noise * scale[:, None].to(noise)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Causal attention within each of `lengths`; tensors are (1, heads, tokens, head width).

    Without `lengths` the whole row is one sequence; with a cache the queries are its last tokens.
    """
    shared: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    mask: Tensor | None
    if lengths is None:
        mask = causal(query.shape[2], key.shape[2], sliding_window, query.device)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, **shared)
        return out.transpose(1, 2), None
    done, start = [], 0
    for length, group in groupby(lengths):
        count = len(list(group))
        q, k, v = (_as_batch(part, start, length, count) for part in (query, key, value))
        mask = causal(length, length, sliding_window, query.device) if (sliding_window or length) < length else None
        if mask is None and is_short(q, dropout):
            out = short_attention(q, k, v, scaling)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, **shared
            )
        done.append(out.transpose(1, 2).reshape(1, count * length, query.shape[1], -1))
        start += count * length
    return (done[0] if len(done) == 1 else torch.cat(done, dim=1)), None


def _as_batch(part: Tensor, start: int, length: int, count: int) -> Tensor:
    """(1, heads, tokens, width) to (count, heads, length, width) for `count` equal neighbours."""
    piece = part[0, :, start : start + count * length]
    return piece.unflatten(1, (count, length)).transpose(0, 1)


def causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """True where a query (one of the last `queries` of `keys` tokens) may look."""
    row = torch.arange(keys - queries, keys, device=device)[:, None]
    column = torch.arange(keys, device=device)[None]
    allowed = column <= row
    return allowed & (column > row - window) if window else allowed


def _no_mask(*_: object, **__: object) -> None:
    """The attention above needs no mask from the model."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
