"""Answers of one model made together: each step is one forward pass over the next token of every answer and a piece
of one prompt. Answers join and leave at any step; none sees another (continuous batching after Orca, Yu et al. 2022).

The pass is a packed row (`packing.py`), so every packable family serves through its own code. Keys and values lie in
a slot for each answer; answers that speak hold the first slots, those that still read hold the next.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.contracts.generation import TokenEvent
from worker.engine.errors import BadData
from worker.engine.generate import PREFILL_CHUNK, Generation, Loaded
from worker.engine.packing import causal
from worker.engine.reserve import zeros

# Rows that wait while a prompt is read: a smaller piece then, so that nobody's words falter.
SHARED_CHUNK = 64
LEAST_SLOTS = 8
RESERVED_BYTES = 2**30  # of addresses, not of memory
LEAST_REUSED = 16  # a shorter common beginning is read again sooner than copied
MEMORY_BYTES = 128 * 2**20
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class _Kept:
    """What an ended answer had read: (layers, 2, key heads, tokens, head width)."""

    reuse_key: tuple[str, str]
    ids: list[int]
    cache: Tensor


class Slots:
    """The answers in the making of one packable base model, each with its own adapter or none. Not thread-safe: it
    belongs to the model thread.

    What an ended answer had read is kept, up to `memory_bytes`, least recently used first out: the next turn of a
    conversation, or another one with the same beginning, workspace and adapter, goes on from there.
    """

    def __init__(self, loaded: Loaded, memory_bytes: int = MEMORY_BYTES, cache_bytes: int = CACHE_BYTES) -> None:
        self.model, self.context_length, self._mixer = loaded.model, loaded.context_length, loaded.mixer
        self.memory_bytes, self.cache_bytes = memory_bytes, cache_bytes
        self.answers: list[Generation] = []
        self._speaking = 0
        self._turn = 0
        self._kept: list[_Kept] = []  # least recently used first
        self._cache = self._empty_cache()
        # The plan of the current pass.
        self._positions = torch.empty(0, dtype=torch.long)
        self._places = torch.empty(0, dtype=torch.long)
        self._mask: Tensor | None = None
        self._piece_mask: Tensor | None = None
        self._seen = self._reader = self._piece = 0

    def _empty_cache(self) -> Tensor:
        """(layers, 2, slots, key heads, tokens, head width); it grows with the answers and is let go after the last."""
        model, config = self.model, self.model.config
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return torch.empty(config.num_hidden_layers, 2, 0, key_heads, 0, width, dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def add(self, answer: Generation) -> None:
        """Let an answer join; what is already known of its prompt is not read again."""
        best, length = None, 0
        for kept in self._kept:
            if kept.reuse_key == answer.reuse_key and (common := _common(kept.ids, answer.ids)) > length:
                best, length = kept, common
        # The last token of the prompt is always read: its logits are the answer's beginning.
        length = min(length, len(answer.ids) - 1)
        if best is not None and length >= LEAST_REUSED:
            self._kept.remove(best)
            self._kept.append(best)
            self._make_room(length, len(self.answers) + 1)
            self._cache[:, :, len(self.answers), :, :length] = best.cache[:, :, :, :length]
            answer.read = length
        self.answers.append(answer)

    @torch.inference_mode()
    def drop(self, answer: Generation) -> None:
        """Let an answer go, ended or not; its slot is free at once."""
        place = self.answers.index(answer)
        self._keep(answer, place)
        if place < self._speaking:
            self._speaking -= 1
            self._swap(place, self._speaking)
            place = self._speaking
        self._swap(place, len(self.answers) - 1)
        self.answers.pop()
        if not self.answers:
            self._cache = self._empty_cache()

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        a, b = self.answers[one], self.answers[other]
        length = max(a.read, b.read)
        pair = self._cache[:, :, [other, one], :, :length]  # a copy
        self._cache[:, :, [one, other], :, :length] = pair
        self.answers[one], self.answers[other] = b, a

    def _keep(self, answer: Generation, place: int) -> None:
        """Remember what an answer had read, and forget the oldest beyond the memory."""
        if answer.read < LEAST_REUSED:
            return
        ids = answer.ids[: answer.read]
        self._kept = [k for k in self._kept if k.reuse_key != answer.reuse_key or _common(k.ids, ids) < len(k.ids)]
        self._kept.append(_Kept(answer.reuse_key, ids, self._cache[:, :, place, :, : answer.read].clone()))
        while sum(kept.cache.nbytes for kept in self._kept) > self.memory_bytes:
            self._kept.pop(0)

    def _make_room(self, tokens: int, slots: int) -> None:
        """Have at least `slots` slots for at least `tokens` each. What lies unused in them costs no memory."""
        old = self._cache
        room = old.shape[4]
        if old.shape[2] >= slots and room >= tokens:
            return
        slots = max(slots, old.shape[2], LEAST_SLOTS)
        if room < tokens:
            likely = RESERVED_BYTES // (slots * self.token_bytes)
            room = min(max(2 * room, likely, tokens), max(self.context_length, tokens))
        shape = (*old.shape[:2], slots, old.shape[3], room, old.shape[5])
        self._cache = zeros(shape, old.dtype, old.device)
        for place, answer in enumerate(self.answers[: old.shape[2]]):
            self._cache[:, :, place, :, : answer.read] = old[:, :, place, :, : answer.read]

    @property
    def token_bytes(self) -> int:
        """What keys and values of one token take."""
        layers, two, _, heads, _, width = self._cache.shape
        return layers * two * heads * width * self._cache.element_size()

    def has_room(self, answer: Generation) -> bool:
        """Whether the longest that this answer and the others may become fits into `cache_bytes`; alone it may be
        as long as the model reads."""
        tokens = answer.longest + sum(other.longest for other in self.answers)
        return not self.answers or tokens * self.token_bytes <= self.cache_bytes

    @property
    def is_reading(self) -> bool:
        """Whether a prompt has yet to be read."""
        return len(self.answers) > self._speaking

    @torch.inference_mode()
    def step(self, most: int | None = None) -> list[tuple[Generation, TokenEvent]]:
        """One pass that reads at most so many tokens of one prompt. What can be told of each answer that spoke; ended
        answers have left. `most` None: few while others speak, many otherwise; 0: none."""
        if most is None:
            most = SHARED_CHUNK if self._speaking else PREFILL_CHUNK
        if not self.answers or (not most and not self._speaking):
            return []
        ids = [answer.wanted()[0] for answer in self.answers[: self._speaking]]
        lengths = [answer.read for answer in self.answers[: self._speaking]]
        piece = self._next_piece(most)
        self._plan(lengths, len(piece))
        logits = self._forward(ids + piece)
        spoke = self.answers[: self._speaking]
        for answer in spoke:
            answer.read += 1
        if piece:
            reader = self.answers[self._reader]
            reader.read += len(piece)
            if not reader.is_reading:
                self._swap(self._reader, self._speaking)
                self._speaking += 1
                spoke.append(reader)
        told = [(answer, _told(answer, row)) for answer, row in zip(spoke, logits, strict=False)]
        for answer, _ in told:
            if answer.is_done:
                self.drop(answer)
        return told

    def _next_piece(self, most: int) -> list[int]:
        """A piece of the prompt of whoever reads next; readers take turns, so a long prompt holds up no short one."""
        readers = len(self.answers) - self._speaking
        if not readers or not most:
            return []
        self._turn += 1
        self._reader = self._speaking + self._turn % readers
        return self.answers[self._reader].wanted(most)

    def _plan(self, lengths: list[int], piece: int) -> None:
        device = self.model.device
        begin = self.answers[self._reader].read if piece else 0
        self._piece = piece
        if self._mixer is not None:
            rows = [(answer.loaded.adapter, 1) for answer in self.answers[: self._speaking]]
            self._mixer.use([*rows, (self.answers[self._reader].loaded.adapter, piece)] if piece else rows)
        self._positions = torch.tensor(lengths + list(range(begin, begin + piece)), device=device)
        self._seen, end = max(lengths, default=0) + 1, begin + piece
        self._make_room(max(self._seen, end), len(self.answers))
        self._mask = self._piece_mask = None
        if lengths and min(lengths) != max(lengths):
            column = torch.arange(self._seen, device=device)
            self._mask = (column <= self._positions[: self._speaking, None])[:, None, None]
        if begin:
            self._piece_mask = causal(piece, end, None, device)
        # Where each token's keys and values go, by (head, token), counted in rows of one layer's slots.
        heads, room = self._cache.shape[3:5]
        slots = torch.tensor([*range(self._speaking), *[self._reader] * piece], device=device)
        first = torch.arange(heads, device=device)[:, None] + slots * heads
        self._places = (first * room + self._positions).flatten()

    def _forward(self, ids: list[int]) -> Tensor:
        """Logits of every answer that speaks, and of the reader's newest token: (at most answers, vocabulary)."""
        model = self.model
        body = getattr(model, model.base_model_prefix)
        tensor = torch.tensor([ids], device=model.device)
        out = body(input_ids=tensor, position_ids=self._positions[None], slots=self, use_cache=False)
        hidden = out.last_hidden_state[0]
        if self._piece:
            hidden = torch.cat([hidden[: self._speaking], hidden[-1:]])
        head = model.get_output_embeddings()
        assert head is not None
        return head(hidden)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Attention of the pass; see `packing.Attends`."""
        keys, values = self._cache[layer]
        for kept, new in ((keys, key), (values, value)):
            kept.view(-1, kept.shape[-1]).index_copy_(0, self._places, new[0].reshape(-1, kept.shape[-1]))
        speaking = self._speaking
        shared: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
        done = []
        if speaking:
            seen, mask = self._seen, self._mask
            if window is not None and seen > window:
                column, places = torch.arange(seen, device=key.device), self._positions[:speaking]
                mask = ((column <= places[:, None]) & (column > places[:, None] - window))[:, None, None]
            one = query[0, :, :speaking].transpose(0, 1)[:, :, None]
            out = F.scaled_dot_product_attention(
                one, keys[:speaking, :, :seen], values[:speaking, :, :seen], attn_mask=mask, **shared
            )
            done.append(out[:, :, 0][None])
        if self._piece:
            reader, end = self._reader, self.answers[self._reader].read + self._piece
            mask = self._piece_mask
            if window is not None and end > window:
                mask = causal(self._piece, end, window, key.device)
            out = F.scaled_dot_product_attention(
                query[:, :, speaking:], keys[None, reader, :, :end], values[None, reader, :, :end],
                attn_mask=mask, is_causal=mask is None, **shared,
            )  # fmt: skip
            done.append(out.transpose(1, 2))
        return done[0] if len(done) == 1 else torch.cat(done, dim=1)


def _told(answer: Generation, logits: Tensor) -> TokenEvent:
    """What an answer says next; one that cannot go on ends alone."""
    try:
        return answer.take(logits)
    except BadData as refusal:
        return answer.refuse(refusal)


def _common(one: list[int], other: list[int]) -> int:
    """Length of the common beginning."""
    least = min(len(one), len(other))
    if one[:least] == other[:least]:
        return least
    return next(place for place in range(least) if one[place] != other[place])
