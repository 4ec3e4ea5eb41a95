"""Answers from a loaded model, one step at a time, so that many can share one thread and stop at any step."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, PreTrainedModel

from app.contracts.generation import LEAST_LOGPROB, GenerationRequest, Likely, TokenEvent, TokenLogprob
from app.contracts.recipe import ModelFiles
from app.text.limited import limited
from app.text.template import ChatTemplate, load_template
from app.text.tokens import encode_prompt, encode_text
from worker.engine import adapters, loading
from worker.engine.adapters import Adapter, Mixer
from worker.engine.compiled import lay_out
from worker.engine.detokenise import TextOut
from worker.engine.errors import BadData
from worker.engine.formats import guide
from worker.engine.packing import is_packable
from worker.engine.precision import Precision, applied, join_norms
from worker.engine.products import join, own_small_weights, pack, packs, size_bytes
from worker.engine.sampling import Chosen, Sampler
from worker.engine.tokenizer_files import load_tokenizer
from worker.engine.vocabulary import vocabulary_of

COUNTED = 100_000  # characters of a conversation that are always read, so that its length can be told
PREFILL_CHUNK = 256  # tokens; other answers wait for at most one chunk


class Reads(Protocol):
    """What turns a question into ids: a loaded model, or all of one but its weights."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to answer. `context_length` counts prompt and answer together, in tokens.

    `note` says why `precision` is not what was asked for. With an `adapter` the weights are those of `base`, and
    `size_bytes` counts the adapter alone.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]
    context_length: int
    size_bytes: int
    precision: str = "fp32"
    note: str = ""
    mixer: Mixer | None = None
    adapter: Adapter | None = None
    base: "Loaded | None" = None

    @property
    def vocabulary_size(self) -> int:
        """How many ids the model knows."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def root(self) -> "Loaded":
        """Whose weights these are."""
        return self.base or self

    def use(self, rows: int) -> None:
        """Make the next pass, of so many rows, one of this model alone."""
        if self.mixer is not None:
            self.mixer.use([(self.adapter, rows)])


def load(files: ModelFiles, device: str = "cpu", precision: Precision = "fp32") -> Loaded:
    """Load base and overlays, merged; on a CPU in `precision` where that is worth it (see `precision.py`), on others
    in bf16. Raises BadData or TemplateFault with a sentence when they cannot be used."""
    model = loading.load_model(files, torch.float32 if device == "cpu" else torch.bfloat16)
    model.to(torch.device(device))  # type: ignore[arg-type]
    join_norms(model)
    if is_packable(model):
        join(model)
    folder = tokenizer_folder(files)
    tokenizer = load_tokenizer(folder)
    got, note = ("bf16", "")
    if device == "cpu":
        model, got, note = applied(model.eval(), tokenizer, precision)
        if is_packable(model):
            own_small_weights(model)
            if not lay_out(model) and packs():
                pack(model)
    template = limited(load_template(folder, tokenizer.get_vocab()))
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        template=template,
        end_ids=frozenset(loading.end_ids(model, tokenizer, folder)),
        context_length=getattr(model.config, "max_position_embeddings", None) or 2048,
        size_bytes=size_bytes(model),
        precision=got,
        note=note,
        mixer=Mixer(model),
    )


def lay(base: Loaded, files: ModelFiles, key: str) -> Loaded | None:
    """The model of `files` whose last overlay is a LoRA adapter and whose other files are loaded as `base`.

    None when the adapter cannot stand beside its base and has to be merged. `key` names its weights.
    """
    adapter = adapters.read(Path(files.overlays[-1].dir), base.model, key)
    if adapter is None:
        return None
    tokenizer, template = base.tokenizer, base.template
    folder, below = tokenizer_folder(files), tokenizer_folder(stem(files))
    if folder != below:
        name = "tokenizer.json"
        if (folder / name).read_bytes() != (below / name).read_bytes():
            tokenizer = load_tokenizer(folder)
        template = limited(load_template(folder, tokenizer.get_vocab()))
    end_ids = frozenset(loading.end_ids(base.model, tokenizer, folder))
    return replace(
        base,
        tokenizer=tokenizer,
        template=template,
        end_ids=end_ids,
        size_bytes=adapter.size_bytes,
        adapter=adapter,
        base=base.root,
    )


def stem(files: ModelFiles) -> ModelFiles:
    """What lies below a model's own adapter: the files themselves when the last overlay is none."""
    has_adapter = bool(files.overlays) and files.overlays[-1].kind == "lora"
    return files.model_copy(update={"overlays": files.overlays[:-1]}) if has_adapter else files


def tokenizer_folder(files: ModelFiles) -> Path:
    """The newest folder with a tokenizer: what was trained on top may bring its own template."""
    folders = [Path(overlay.dir) for overlay in reversed(files.overlays)] + [Path(files.base_dir)]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), folders[-1])


class Generation:
    """One answer in the making. `step()` does a bounded piece of work and returns what can be told.

    Where several are made together (`slots.py`), `wanted` says what to read next and `take` is given what came of it.
    """

    def __init__(self, loaded: Loaded, request: GenerationRequest) -> None:
        self.loaded = loaded
        self.is_done = False
        self.asked_at = time.monotonic()
        self._first_token_s: float | None = None
        self.reuse_key = (request.workspace_id, loaded.adapter.key if loaded.adapter else "")
        """Answers of equal keys may go on from what another has read."""
        self._prompt, self.dropped_turns = fit_prompt(loaded, request)
        room = loaded.context_length - len(self._prompt)
        self._limit = min(request.sampling.max_tokens, room)
        self._sampler = Sampler(request.sampling, self._prompt)
        form = request.sampling.format
        self._guide = guide(loaded.tokenizer, loaded.end_ids, form) if form else None
        self._out = TextOut(loaded.tokenizer, request.sampling.stop)
        self._cache: DynamicCache | None = None
        self._said: list[int] = []
        self.read = 0
        """How many tokens of `ids` the model has read."""

    @property
    def ids(self) -> list[int]:
        """The prompt, and what was said so far."""
        return self._prompt + self._said

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self._prompt)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and of the longest answer that may come."""
        return len(self._prompt) + self._limit

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt has yet to be read."""
        return self.read < len(self._prompt)

    def wanted(self, most: int = PREFILL_CHUNK) -> list[int]:
        """The ids to read next: a chunk of the prompt, or the token that was said last."""
        return self._prompt[self.read : self.read + most] if self.is_reading else self._said[-1:]

    @torch.inference_mode()
    def step(self, most: int = PREFILL_CHUNK) -> TokenEvent | None:
        """Read at most so many tokens of the prompt, or say one. None while the prompt is being read."""
        ids = self.wanted(most)
        logits = self._forward(ids)
        self.read += len(ids)
        return None if self.is_reading else self.take(logits)

    def take(self, logits: torch.Tensor) -> TokenEvent:
        """Choose the next token from logits of shape (vocabulary,) and say what can be said of it."""
        allowed = self._guide.allowed(logits.numel()) if self._guide else None
        chosen = self._sampler.choose(logits, allowed)
        token = chosen.token
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self.asked_at
        if token in self.loaded.end_ids:
            return self._ended("stop", self._out.close())
        self._said.append(token)
        text = self._out.push(token)
        if self._out.is_stopped:
            return self._ended("stop", text)
        told = self._logprobs(chosen)
        if self._guide:
            self._guide.take(token)
        if self._guide and self._guide.is_over:
            return self._ended("stop", text + self._out.close(), told)
        if len(self._said) >= self._limit:
            return self._ended("length", text + self._out.close(), told)
        return TokenEvent(text=text, logprobs=told)

    def _logprobs(self, chosen: Chosen) -> list[TokenLogprob] | None:
        if chosen.logprob is None:
            return None
        top = [self._likely(*one) for one in chosen.top]
        return [TokenLogprob(**dict(self._likely(chosen.token, chosen.logprob)), top=top)]

    def _likely(self, token: int, logprob: float) -> Likely:
        found = vocabulary_of(self.loaded.tokenizer).bytes_of(token)
        # Minus infinity is no JSON number.
        return Likely(
            id=token, token=found.decode(errors="replace"), bytes=list(found), logprob=max(logprob, LEAST_LOGPROB)
        )

    def cancel(self) -> TokenEvent:
        """End now and say so."""
        event = self._ended("stop", self._out.close())
        return event.model_copy(update={"finish_reason": "cancelled"})

    def refuse(self, refusal: BadData) -> TokenEvent:
        """End now with a sentence why."""
        event = self._ended("error", "")
        return event.model_copy(update={"error": str(refusal), "error_kind": "refused"})

    def _forward(self, ids: list[int]) -> torch.Tensor:
        model = self.loaded.model
        tensor = torch.tensor([ids], device=model.device)
        self.loaded.use(len(ids))
        self._cache = self._cache or DynamicCache(config=model.config)
        out = model(input_ids=tensor, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1]

    def _ended(self, reason: str, text: str, logprobs: list[TokenLogprob] | None = None) -> TokenEvent:
        self.is_done = True
        return TokenEvent(
            text=text,
            logprobs=logprobs,
            finish_reason=reason,
            prompt_tokens=len(self._prompt),
            completion_tokens=len(self._said),
            first_token_s=self._first_token_s,
            total_s=time.monotonic() - self.asked_at,
        )


def fit_prompt(loaded: Reads, request: GenerationRequest) -> tuple[list[int], int]:
    """Prompt ids that leave room for an answer, and how many turns were left out of the front to make it so.

    Whole turns go, never the system prompt nor the last one. Raises BadData when the last turn alone is too long.
    """
    room = loaded.context_length - min(request.sampling.max_tokens, max(16, loaded.context_length // 4))
    if request.messages is None:
        ids = plain_ids(loaded, request.prompt or "", request.prompt_ids)
        return (ids[-room:] or [min(loaded.end_ids, default=0)]), 0
    messages = list(request.messages)
    first = 1 if messages and messages[0].role == "system" else 0
    # A question goes together with its answer, so that the rest still alternates; the last turn always stays.
    later = {place for place in range(first + 1, len(messages)) if messages[place].role == "user"}
    starts = sorted({first, *later, max(first, len(messages) - 1)})
    longest = max(COUNTED, room * vocabulary_of(loaded.tokenizer).longest)
    told = ""

    def ids_from(start: int) -> list[int] | None:
        nonlocal told
        kept = messages[:first] + messages[start:]
        if sum(len(message.content) for message in kept) > longest:
            told = f"more than {room:,} tokens"  # they are not counted: that may take minutes
            return None
        ids = encode_prompt(loaded.tokenizer, loaded.template, kept)
        told = f"{len(ids)} tokens"
        return ids if len(ids) <= room else None

    start, fitting = starts[0], ids_from(starts[0])
    low, high = 1, len(starts) - 1 if fitting is None else 0
    while low <= high:
        middle = (low + high) // 2
        if (shorter := ids_from(starts[middle])) is None:
            low = middle + 1
        else:
            start, fitting, high = starts[middle], shorter, middle - 1
    if fitting is None:
        raise BadData(
            f"The message is too long: {told}, and this model reads {loaded.context_length} in all. Shorten it."
        )
    return fitting, start - first


def plain_ids(loaded: Reads, text: str, ids: list[int] | None) -> list[int]:
    """The ids of a plain text, or `ids` themselves. Raises BadData for an id that the model does not have."""
    if ids is None:
        return encode_text(loaded.tokenizer, text)
    last = loaded.vocabulary_size - 1
    if max(ids) > last:
        raise BadData(f"The prompt has the token id {max(ids)}, and this model knows ids up to {last}.")
    return ids
