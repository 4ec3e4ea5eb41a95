"""Answers from a loaded model, one step at a time, so that many can share one thread and stop at any step."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, PreTrainedModel

from app.contracts.conversation import Example, Message
from app.contracts.generation import GenerationRequest, TokenEvent
from app.contracts.recipe import ModelFiles
from app.text.limited import limited
from app.text.template import ChatTemplate, TemplateFault, load_template
from app.text.tokens import encode_example, encode_prompt, encode_text
from worker.engine import loading
from worker.engine.detokenise import TextOut
from worker.engine.errors import BadData
from worker.engine.sampling import Sampler

PREFILL_CHUNK = 256  # tokens; other answers wait for at most one chunk


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to answer. `context_length` counts prompt and answer together, in tokens."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]
    context_length: int
    size_bytes: int


def load(files: ModelFiles, device: str = "cpu") -> Loaded:
    """Load base and overlays, merged. Raises BadData or TemplateFault with a sentence when they cannot be used."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = loading.load_model(files, dtype)
    model.to(torch.device(device))  # type: ignore[arg-type]
    folder = _tokenizer_folder(files)
    tokenizer = loading.load_tokenizer(folder)
    template = limited(load_template(folder, tokenizer.get_vocab()))
    end_ids = loading.end_ids(model, tokenizer, folder)
    context = getattr(model.config, "max_position_embeddings", None) or 2048
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Loaded(model.eval(), tokenizer, template, frozenset(end_ids), context, size)


def _tokenizer_folder(files: ModelFiles) -> Path:
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
        self._asked_at = time.monotonic()
        self._first_token_s: float | None = None
        self.workspace_id = request.workspace_id
        self._prompt, self.dropped_turns = fit_prompt(loaded, request)
        room = loaded.context_length - len(self._prompt)
        self._limit = min(request.sampling.max_tokens, room)
        self._sampler = Sampler(request.sampling, self._prompt)
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
    def is_reading(self) -> bool:
        """Whether a part of the prompt has yet to be read."""
        return self.read < len(self._prompt)

    def wanted(self, most: int = PREFILL_CHUNK) -> list[int]:
        """The ids to read next: a chunk of the prompt, or the token that was said last."""
        return self._prompt[self.read : self.read + most] if self.is_reading else self._said[-1:]

    @torch.inference_mode()
    def step(self) -> TokenEvent | None:
        """Read one chunk of the prompt, or say one token. None while the prompt is being read."""
        ids = self.wanted()
        logits = self._forward(ids)
        self.read += len(ids)
        return None if self.is_reading else self.take(logits)

    def take(self, logits: torch.Tensor) -> TokenEvent:
        """Choose the next token from logits of shape (vocabulary,) and say what can be said of it."""
        token = self._sampler.choose(logits)
        if self._first_token_s is None:
            self._first_token_s = time.monotonic() - self._asked_at
        if token in self.loaded.end_ids:
            return self._ended("stop", self._out.close())
        self._said.append(token)
        text = self._out.push(token)
        if self._out.is_stopped:
            return self._ended("stop", text)
        if len(self._said) >= self._limit:
            return self._ended("length", text + self._out.close())
        return TokenEvent(text=text)

    def cancel(self) -> TokenEvent:
        """End now and say so."""
        event = self._ended("stop", self._out.close())
        return event.model_copy(update={"finish_reason": "cancelled"})

    def _forward(self, ids: list[int]) -> torch.Tensor:
        model = self.loaded.model
        tensor = torch.tensor([ids], device=model.device)
        self._cache = self._cache or DynamicCache(config=model.config)
        out = model(input_ids=tensor, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1]

    def _ended(self, reason: str, text: str) -> TokenEvent:
        self.is_done = True
        return TokenEvent(
            text=text,
            finish_reason=reason,
            prompt_tokens=len(self._prompt),
            completion_tokens=len(self._said),
            first_token_s=self._first_token_s,
            total_s=time.monotonic() - self._asked_at,
        )


def fit_prompt(loaded: Loaded, request: GenerationRequest) -> tuple[list[int], int]:
    """Prompt ids that leave room for an answer, and how many turns were left out of the front to make it so.

    Whole turns go, never the system prompt nor the last one. Raises BadData when the last turn alone is too long.
    """
    room = loaded.context_length - min(request.sampling.max_tokens, max(16, loaded.context_length // 4))
    if request.messages is None:
        ids = encode_text(loaded.tokenizer, request.prompt or "")
        return (ids[-room:] or [min(loaded.end_ids, default=0)]), 0
    messages = list(request.messages)
    dropped = 0
    while True:
        ids = encode_prompt(loaded.tokenizer, loaded.template, messages)
        if len(ids) <= room:
            return ids, dropped
        first = 1 if messages and messages[0].role == "system" else 0
        if len(messages) - first <= 1:
            raise BadData(
                f"The message is too long: {len(ids)} tokens, and this model reads {loaded.context_length} in all. "
                "Shorten it."
            )
        # A question goes together with its answer, so that the rest still alternates.
        following = next((i for i in range(first + 1, len(messages)) if messages[i].role == "user"), len(messages) - 1)
        dropped += following - first
        messages = messages[:first] + messages[following:]


@dataclass(frozen=True)
class Score:
    """Summed log-probability in nats of an answer's `tokens`; `is_greedy`: each was the likeliest."""

    log_probability: float
    tokens: int
    is_greedy: bool


@torch.inference_mode()
def score(loaded: Loaded, messages: list[Message] | None, prompt: str, answer: str) -> Score:
    """Score `answer` (with its end token in a conversation) after `messages`, or after the plain text `prompt`."""
    if messages is None:
        before = encode_text(loaded.tokenizer, prompt) or [min(loaded.end_ids, default=0)]
        after = encode_text(loaded.tokenizer, answer)
    else:
        before = encode_prompt(loaded.tokenizer, loaded.template, messages)
        whole = [*messages, Message(role="assistant", content=answer)]
        ids, learn = encode_example(loaded.tokenizer, loaded.template, Example(rid=0, kind="chat", messages=whole))
        last = max((i for i, learned in enumerate(learn) if learned), default=-1)
        if ids[: len(before)] != before or last < len(before):
            raise TemplateFault("The chat template does not let this answer be scored.")
        after = ids[len(before) : last + 1]
    ids_in = (before + after)[-loaded.context_length :]
    count = min(len(after), len(ids_in) - 1)
    if count < 1:
        return Score(0.0, 0, True)
    model = loaded.model
    out = model(input_ids=torch.tensor([ids_in], device=model.device), logits_to_keep=count + 1)
    logits = out.logits[0, -count - 1 : -1].float().log_softmax(-1)
    targets = torch.tensor(ids_in[-count:], device=logits.device)
    chosen = logits.gather(1, targets[:, None])
    return Score(float(chosen.sum()), count, bool((logits.argmax(-1) == targets).all()))
