"""How likely a model finds each token of a text that it is given: what evaluation programs ask for."""

import torch

from app.contracts.generation import LEAST_LOGPROB, Likely, ReadToken
from worker.engine.generate import Loaded, plain_ids
from worker.engine.reading import Reading
from worker.engine.vocabulary import vocabulary_of


class Foretelling:
    """Reads one text (or its token ids) piece by piece. `tokens` is whole once `step` has said so; the first token has
    no probability.

    Raises BadData for a text longer than the model reads, and for ids that it does not have.
    """

    def __init__(self, loaded: Loaded, text: str, top: int, ids: list[int] | None = None) -> None:
        self._loaded, self._top = loaded, top
        self._ids = plain_ids(loaded, text, ids)
        self._reading = Reading(loaded, self._ids)
        self.tokens = [ReadToken(**self._named(number)) for number in self._ids[:1]]

    @torch.inference_mode()
    def step(self) -> bool:
        """Read one piece; True when nothing is left."""
        if len(self.tokens) < len(self._ids):
            first, ids = self._reading.read + 1, self._reading.take()
            logits = self._loaded.model(input_ids=ids, past_key_values=self._reading.cache, use_cache=True).logits[0]
            told = logits.float().log_softmax(-1).cpu()
            for row, number in zip(told, self._ids[first : self._reading.read + 1], strict=False):
                values, places = row.topk(min(self._top, row.numel()))
                top = [
                    Likely(**self._named(place), logprob=max(value, LEAST_LOGPROB))
                    for place, value in zip(places.tolist(), values.tolist(), strict=True)
                ]
                self.tokens.append(
                    ReadToken(**self._named(number), logprob=max(float(row[number]), LEAST_LOGPROB), top=top)
                )
        return len(self.tokens) == len(self._ids)

    def _named(self, number: int) -> dict[str, object]:
        found = vocabulary_of(self._loaded.tokenizer).bytes_of(number)
        return {"id": number, "token": found.decode(errors="replace"), "bytes": list(found)}
