"""A text as one vector: the mean of the model's last hidden states, scaled to length one."""

import torch

from app.text.tokens import encode_text
from worker.engine.errors import BadData
from worker.engine.generate import Loaded
from worker.engine.reading import Reading


class Embedding:
    """Reads one text piece by piece. `vector` holds float32 numbers, as many as the model is wide, once `step` has said
    that nothing is left.

    Raises BadData for a text without a token, and for one longer than the model reads.
    """

    def __init__(self, loaded: Loaded, text: str) -> None:
        self._loaded = loaded
        ids = encode_text(loaded.tokenizer, text)
        if not ids:
            raise BadData("The text is empty, so there is nothing to make a vector of.")
        self._reading = Reading(loaded, ids)
        self._sum: torch.Tensor | None = None
        self.vector: list[float] = []

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return len(self._reading.ids)

    @torch.inference_mode()
    def step(self) -> bool:
        """Read one piece; True when nothing is left."""
        ids, cache = self._reading.take(), self._reading.cache
        body = self._loaded.model.base_model
        states = body(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]
        added = states.double().sum(0).cpu()
        self._sum = added if self._sum is None else self._sum + added
        if not self._reading.is_over:
            return False
        mean = self._sum / self.tokens
        self.vector = (mean / mean.norm().clamp_min(1e-12)).float().tolist()
        return True
