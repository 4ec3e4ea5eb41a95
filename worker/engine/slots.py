"""Answers of one model made together: each step is one forward pass over the next token of every answer and pieces of
prompts. Answers join and leave at any step; none sees another (continuous batching after Orca, Yu et al. 2022).

The rows of the pass lie end to end, without padding between them (`lean.py`). Keys and values lie in a slot for each
answer; answers that speak hold the first slots, those that still read hold the next.
"""

import time
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from app.contracts.generation import TokenEvent
from worker.engine.answer_attention import begun, is_short, spoken
from worker.engine.chunk_size import ChunkSize
from worker.engine.compiled_pass import Stretch, compiled_pass
from worker.engine.errors import BadData
from worker.engine.generate import PREFILL_CHUNK, Generation, Loaded
from worker.engine.lean import Lean
from worker.engine.packing import causal
from worker.engine.reserve import zeros
from worker.engine.shapes import rounded

# Rows that wait while a prompt is read: smaller pieces then, so that nobody's words falter.
SHARED_CHUNK = 64
SHORT_PROMPT = 160  # tokens; read in one pass whoever waits: a newcomer's first word is worth one pause
FULL_PASS = 96  # tokens; more of other prompts would not make each token of the pass cheaper
FINE_ROWS = 256  # up to which passes come in numbers of rows that are multiples of 8
LINE = 16  # keys
LEAST_SLOTS = 8
RESERVED_BYTES = 2**30  # of addresses, not of memory
LEAST_REUSED = 16  # a shorter common beginning is read again sooner than copied
MEMORY_BYTES = 128 * 2**20
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class _Piece:
    """A part of a prompt: whose (a place among the answers), from which token on, how many."""

    place: int
    begin: int
    ids: list[int]

    @property
    def end(self) -> int:
        """The token after the last."""
        return self.begin + len(self.ids)


@dataclass(frozen=True, eq=False)
class _Kept:
    """What an answer had read: (layers, 2, key heads, tokens, head width)."""

    reuse_key: tuple[str, str]
    ids: list[int]
    cache: Tensor


class Slots:
    """The answers in the making of one packable base model, each with its own adapter or none. For one thread.

    What an ended answer had read is kept, up to `memory_bytes`, least recently used first out: the next turn of a
    conversation, or another one with the same beginning, workspace and adapter, goes on from there. A beginning that
    answers in the making share is read once, too.
    """

    def __init__(self, loaded: Loaded, memory_bytes: int = MEMORY_BYTES, cache_bytes: int = CACHE_BYTES) -> None:
        self.model, self.context_length, self._mixer = loaded.model, loaded.context_length, loaded.mixer
        self._lean = Lean(loaded.model)
        self._compiled = compiled_pass(loaded.model, self._lean)
        self.memory_bytes, self.cache_bytes = memory_bytes, cache_bytes
        self.answers: list[Generation] = []
        self._speaking = 0
        self._turn = 0
        self._kept: list[_Kept] = []  # least recently used first
        self._cache = self._empty_cache()
        self._chunk = ChunkSize()
        # The plan of the current pass.
        self._positions = torch.empty(0, dtype=torch.long)
        self._places: Tensor | None = None
        self._mask: Tensor | None = None
        self._pieces: list[tuple[_Piece, Tensor | None]] = []
        self._level: int | None = None
        self.wanted: Tensor | None = None
        self._seen = self._reach = self._rows = self._beside = 0

    def _empty_cache(self) -> Tensor:
        """(layers, 2, slots, key heads, tokens, head width); it grows with the answers and is let go after the last."""
        model, lean = self.model, self._lean
        shape = (model.config.num_hidden_layers, 2, 0, lean.key_heads, 0, lean.width)
        dtype = model.dtype if self._compiled is None else self._compiled.cache_dtype
        return torch.empty(shape, dtype=dtype, device=model.device)

    @torch.inference_mode()
    def add(self, answer: Generation) -> None:
        """Let an answer join; what is already known of its prompt is not read again."""
        self.answers.append(answer)
        if (best := self._reused(answer, self._kept)) is not None:
            self._kept.append(self._kept.pop(self._kept.index(best)))

    def _reused(self, answer: Generation, known: list[_Kept]) -> _Kept | None:
        """Let an answer that has read nothing go on from what of `known` has the most of its beginning."""
        best, length = None, LEAST_REUSED - 1
        for kept in known:
            if kept.reuse_key == answer.reuse_key and (common := _common(kept.ids, answer.ids)) > length:
                best, length = kept, common
        if best is not None:
            # The last token of the prompt is always read: its logits are the answer's beginning.
            length = min(length, len(answer.ids) - 1)
            self._make_room(length, len(self.answers))
            self._cache[:, :, self.answers.index(answer), :, :length] = best.cache[:, :, :, :length]
            answer.read = length
        return best

    @torch.inference_mode()
    def drop(self, answer: Generation) -> None:
        """Let an answer go, ended or not; its slot is free at once."""
        place = self.answers.index(answer)
        self._keep(answer, place)
        if place < self._speaking:
            self._speaking -= 1
            self._move(self._speaking, place)
            place = self._speaking
        self._move(len(self.answers) - 1, place)
        self.answers.pop()
        if not self.answers:
            self._cache = self._empty_cache()

    def _move(self, place: int, to: int) -> None:
        """Let an answer take the place of one that goes."""
        if place != to:
            answer = self.answers[to] = self.answers[place]
            self._cache[:, :, to, :, : answer.read] = self._cache[:, :, place, :, : answer.read]

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            a, b = self.answers[one], self.answers[other]
            length = max(a.read, b.read)
            self._cache[:, :, [one, other], :, :length] = self._cache[:, :, [other, one], :, :length]  # of a copy
            self.answers[one], self.answers[other] = b, a

    def _keep(self, answer: Generation, place: int) -> None:
        """Remember what an answer had read, and forget the oldest beyond the memory."""
        if answer.read < LEAST_REUSED or answer.read * self.token_bytes > self.memory_bytes:
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
            room = -(-room // LINE) * LINE
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
        """Whether it and the others fit into `cache_bytes` at their longest; alone it may be of any length."""
        tokens = answer.longest + sum(other.longest for other in self.answers)
        return not self.answers or tokens * self.token_bytes <= self.cache_bytes

    @property
    def is_reading(self) -> bool:
        """Whether a prompt has yet to be read."""
        return len(self.answers) > self._speaking

    @torch.inference_mode()
    def step(self, most: int | None = None) -> list[tuple[Generation, TokenEvent]]:
        """One pass that reads at most so many tokens of prompts. What can be told of each answer that spoke; ended
        answers have left. `most` None: few while others speak, many otherwise; 0: none."""
        if most is None:
            most = self._chunk.tokens(SHARED_CHUNK) if self._speaking else PREFILL_CHUNK
        if not self.answers or (not most and not self._speaking):
            return []
        began = time.perf_counter()
        spoke = self.answers[: self._speaking]
        ids = [answer.wanted()[0] for answer in spoke]
        pieces = self._next_pieces(most)
        logits = self._logits(ids, [answer.read for answer in spoke], pieces)
        for answer in spoke:
            answer.read += 1
        readers, numbers = [(self.answers[piece.place], piece) for piece in pieces], list(range(len(spoke)))
        for reader, piece in readers:
            reader.read += len(piece.ids)
        for number, (reader, _) in enumerate(readers, len(spoke)):
            if not reader.is_reading:
                self._swap(self.answers.index(reader), self._speaking)
                self._speaking += 1
                spoke.append(reader)
                numbers.append(number)
        self._chunk.note(time.perf_counter() - began, sum(len(piece.ids) for piece in pieces), len(ids))
        if len(numbers) < len(logits):
            logits = logits[numbers]
        told = [(answer, _told(answer, row)) for answer, row in zip(spoke, logits, strict=True)]
        for answer, _ in told:
            if answer.is_done:
                self.drop(answer)
        return told

    def _next_pieces(self, most: int) -> list[_Piece]:
        """Pieces of prompts: whose has least left first, so that a long one holds up no short one, and by turns whose
        has waited longest. Whole short prompts, until the pass is worth its time."""
        places = range(self._speaking, len(self.answers))
        if not places or not most:
            return []
        self._turn += 1
        left = {place: len(self.answers[place].ids) - self.answers[place].read for place in places}
        oldest_first = sorted(places, key=lambda place: self.answers[place].asked_at)
        order = sorted(oldest_first, key=lambda place: left[place])
        if self._turn % 4 == 0:
            order = oldest_first
        pieces, total = [], 0
        for place in order:
            answer = self.answers[place]
            room = most - total
            if not total and len(answer.ids) <= SHORT_PROMPT:
                room = max(room, left[place])
            if total and left[place] > room:
                continue
            if not answer.read:  # of another that was asked at the same time
                self._reused(answer, self._being_read())
            pieces.append(_Piece(place, answer.read, answer.wanted(room)))
            total += len(pieces[-1].ids)
            if total >= min(most, FULL_PASS):
                break
        return pieces

    def _being_read(self) -> list[_Kept]:
        """What answers in the making have read of their prompts."""
        read = [(n, one, min(one.read, one.prompt_length)) for n, one in enumerate(self.answers)]
        return [_Kept(one.reuse_key, one.ids[:end], self._cache[:, :, n]) for n, one, end in read if end]

    def _logits(self, ids: list[int], lengths: list[int], pieces: list[_Piece]) -> Tensor:
        """Logits of every answer that speaks, then of each piece's last token: (answers and pieces, vocabulary)."""
        if self._compiled is None:
            self._plan(lengths, pieces)
            return self._forward([*ids, *(token for piece in pieces for token in piece.ids)])
        self._make_room(max([*lengths, *(piece.end - 1 for piece in pieces)]) + 1, len(self.answers))
        adapters = [answer.loaded.adapter for answer in self.answers]
        stretches = [Stretch(n, lengths[n], [token], adapters[n], False) for n, token in enumerate(ids)]
        stretches += [Stretch(p.place, p.begin, p.ids, adapters[p.place], True) for p in pieces]
        return self._compiled.logits(stretches, self._cache)

    def _plan(self, lengths: list[int], pieces: list[_Piece]) -> None:
        """Lay out a pass through torch of the answers that speak (their lengths) and of pieces of prompts."""
        device, speaking = self.model.device, len(lengths)
        self._beside = speaking
        read = sum(len(piece.ids) for piece in pieces)
        self._rows = speaking + read
        # Rows that nobody looks at, so that the products meet few different numbers of rows.
        filling = (-self._rows % 8 if self._rows < FINE_ROWS else rounded(self._rows) - self._rows) if read else 0
        if self._mixer is not None:
            rows = [(answer.loaded.adapter, 1) for answer in self.answers[:speaking]]
            rows += [(self.answers[piece.place].loaded.adapter, len(piece.ids)) for piece in pieces]
            rows[-1] = (rows[-1][0], rows[-1][1] + filling)
            self._mixer.use(rows, single=speaking)
        places = [place for piece in pieces for place in range(piece.begin, piece.end)]
        self._positions = torch.tensor(lengths + places + [0] * filling, device=device)
        # Keys in whole lines of 16, the rest hidden: the sums of the attention, in vectors of 16, are then in one order
        # whoever else speaks. In int8 the last bit can make another answer.
        self._seen = (max(lengths, default=0) // LINE + 1) * LINE
        self._reach = max([self._seen, *(piece.end for piece in pieces)])
        self._make_room(self._reach, len(self.answers))
        self._mask = self._places = None
        self._level = lengths[0] if lengths and not pieces and min(lengths) == max(lengths) else None
        if lengths:
            self._mask = self._hiding(None)
        self._pieces = [(p, causal(len(p.ids), p.end, None, device) if p.begin else None) for p in pieces]
        # Of a piece only the last token's result is looked at.
        ends = accumulate((len(piece.ids) for piece in pieces), initial=speaking - 1)
        next(ends)
        self.wanted = torch.tensor([*range(speaking), *ends], device=device) if pieces else None
        if lengths and self._level is None:
            # Where the keys and values of who speaks go, counted in rows of one layer's slots.
            _, two, slots, heads, room, _ = self._cache.shape
            which = torch.arange(speaking, device=device)
            first = torch.arange(two, device=device)[:, None] * slots
            lines = (first + which[:, None, None]) * heads + torch.arange(heads, device=device)
            self._places = (lines * room + self._positions[:speaking, None, None]).flatten()

    def _hiding(self, window: int | None) -> Tensor:
        """(answers, 1, 1, tokens) to be added to the scores of who speaks: minus infinity where they may not look."""
        column, places = torch.arange(self._seen, device=self.model.device), self._positions[: self._beside, None]
        is_hidden = column > places
        if window is not None:
            is_hidden |= column <= places - window
        mask = torch.zeros(is_hidden.shape, dtype=self._cache.dtype, device=self.model.device)
        return mask.masked_fill_(is_hidden, -torch.inf)[:, None, None]

    def _forward(self, ids: list[int]) -> Tensor:
        """What `_logits` gives, of the pass that was planned."""
        lean, filling = self._lean, len(self._positions) - len(ids)
        tensor = torch.tensor(ids + [0] * filling, device=self.model.device)
        mixer = self._mixer if self._mixer is not None and self._mixer.is_used else None
        return lean.logits(lean.hidden(tensor, self._positions, self._reach, self, mixer))

    def attend(self, layer: int, query: Tensor, new: Tensor, scaling: float, window: int | None) -> Tensor:
        """Attention of the pass; see `lean.Attends`."""
        cache, speaking = self._cache[layer], self._beside
        heads = cache.shape[2]
        fresh = new.unflatten(1, (2, heads))
        if self._level is not None:
            cache[:, :speaking, :, self._level] = fresh[:speaking].transpose(0, 1)
        elif self._places is not None:
            lines = new[:speaking].reshape(-1, new.shape[-1])
            cache.view(-1, cache.shape[-1]).index_copy_(0, self._places, lines)
        keys, values = cache
        done = []
        if speaking:
            seen = self._seen
            mask = self._mask if window is None or seen <= window else self._hiding(window)
            grouped = query[:speaking].unflatten(1, (heads, -1))
            out = spoken(grouped, keys[:speaking, :, :seen], values[:speaking, :, :seen], mask, scaling)
            done.append(out.reshape(speaking, -1))
        start = speaking
        for piece, mask in self._pieces:
            end, count = piece.end, len(piece.ids)
            rows = slice(start, start + count)
            cache[:, piece.place, :, piece.begin : end] = fresh[rows].permute(1, 2, 0, 3)
            start += count
            is_seen_whole = window is None or end <= window
            if not piece.begin and is_seen_whole and is_short(query[rows]):
                done.append(begun(query[rows], fresh[rows, 0], fresh[rows, 1], scaling))
                continue
            if not is_seen_whole:
                mask = causal(count, end, window, query.device)
            out = F.scaled_dot_product_attention(
                query[None, rows].transpose(1, 2),
                keys[None, piece.place, :, :end].to(query), values[None, piece.place, :, :end].to(query),
                attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=query.shape[1] != heads,
            )  # fmt: skip
            done.append(out[0].transpose(0, 1).reshape(count, -1))
        if start < len(query):
            done.append(done[-1].new_zeros(len(query) - start, done[-1].shape[1]))
        whole = done[0] if len(done) == 1 else torch.cat(done)
        if self.wanted is None or layer < len(self._cache) - 1:
            return whole
        if self._mixer is not None and self._mixer.is_used:
            answers = [*range(speaking), *(piece.place for piece, _ in self._pieces)]
            self._mixer.use([(self.answers[place].loaded.adapter, 1) for place in answers], single=speaking)
        return whole[self.wanted]


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
