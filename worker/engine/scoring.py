"""How likely a model finds given answers: what evaluation asks for, read in pieces so that others go on answering."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache

from app.contracts.conversation import Example, Message
from app.text.template import TemplateFault
from app.text.tokens import encode_example, encode_prompt, encode_text
from worker.engine.generate import Loaded
from worker.engine.reading import PIECE


@dataclass(frozen=True)
class Score:
    """Summed log-probability in nats of an answer's `tokens`; `is_greedy`: each was the likeliest."""

    log_probability: float
    tokens: int
    is_greedy: bool


class Scoring:
    """Scores `answer` (with its end token in a conversation) after `messages`, or after the plain text `prompt`.

    `score` is whole once `step` has said so. Raises TemplateFault where the template does not let the answer be found.
    """

    def __init__(self, loaded: Loaded, messages: list[Message] | None, prompt: str, answer: str) -> None:
        self._loaded = loaded
        before, after = _ids(loaded, messages, prompt, answer)
        self._ids = (before + after)[-loaded.context_length :]
        self._count = min(len(after), len(self._ids) - 1)
        self._cache = DynamicCache(config=loaded.model.config)
        self._read = 0
        self.score = Score(0.0, max(self._count, 0), True)

    @torch.inference_mode()
    def step(self) -> bool:
        """Read one piece; True when nothing is left."""
        # The last token foretells nothing that is asked for.
        end = min(self._read + PIECE, len(self._ids) - 1)
        if self._count > 0 and self._read < end:
            model = self._loaded.model
            self._loaded.use(end - self._read)
            piece = torch.tensor([self._ids[self._read : end]], device=model.device)
            told = min(end - self._read, end - (len(self._ids) - 1 - self._count))
            out = model(input_ids=piece, past_key_values=self._cache, use_cache=True, logits_to_keep=max(told, 1))
            if told > 0:
                logits = out.logits[0, -told:].float().log_softmax(-1)
                targets = torch.tensor(self._ids[end - told + 1 : end + 1], device=logits.device)
                found = float(logits.gather(1, targets[:, None]).sum())
                is_greedy = self.score.is_greedy and bool((logits.argmax(-1) == targets).all())
                self.score = Score(self.score.log_probability + found, self._count, is_greedy)
            self._read = end
        return self._count < 1 or self._read >= len(self._ids) - 1


def _ids(loaded: Loaded, messages: list[Message] | None, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """What is given, and what is scored after it."""
    if messages is None:
        before = encode_text(loaded.tokenizer, prompt) or [min(loaded.end_ids, default=0)]
        return before, encode_text(loaded.tokenizer, answer)
    before = encode_prompt(loaded.tokenizer, loaded.template, messages)
    whole = [*messages, Message(role="assistant", content=answer)]
    ids, learn = encode_example(loaded.tokenizer, loaded.template, Example(rid=0, kind="chat", messages=whole))
    last = max((i for i, learned in enumerate(learn) if learned), default=-1)
    if ids[: len(before)] != before or last < len(before):
        raise TemplateFault("The chat template does not let this answer be scored.")
    return before, ids[len(before) : last + 1]


def score(loaded: Loaded, messages: list[Message] | None, prompt: str, answer: str) -> Score:
    """The score at once, where nobody waits; see `Scoring`."""
    scoring = Scoring(loaded, messages, prompt, answer)
    while not scoring.step():
        pass
    return scoring.score
