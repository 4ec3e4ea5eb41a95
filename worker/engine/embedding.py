"""A text as one vector: the mean of the model's last hidden states, scaled to length one."""

import torch
from transformers import DynamicCache

from app.text.tokens import encode_text
from worker.engine.errors import BadData
from worker.engine.generate import Loaded

PIECE = 64  # tokens; answers of others wait for at most one piece


class Embedding:
    """Reads one text piece by piece. `vector` holds float32 numbers, as many as the model is wide, once `step` has said
    that nothing is left.

    Raises BadData for a text without a token, and for one longer than the model reads.
    """

    def __init__(self, loaded: Loaded, text: str) -> None:
        self._loaded = loaded
        self._ids = encode_text(loaded.tokenizer, text)
        if not self._ids:
            raise BadData("The text is empty, so there is nothing to make a vector of.")
        if len(self._ids) > loaded.context_length:
            raise BadData(
                f"The text is too long: {len(self._ids)} tokens, and this model reads {loaded.context_length} in all. "
                "Shorten it."
            )
        self._cache = DynamicCache(config=loaded.model.config)
        self._read = 0
        self._sum: torch.Tensor | None = None
        self.vector: list[float] = []

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return len(self._ids)

    @torch.inference_mode()
    def step(self) -> bool:
        """Read one piece; True when nothing is left."""
        piece = self._ids[self._read : self._read + PIECE]
        self._loaded.use(len(piece))
        model = self._loaded.model
        ids = torch.tensor([piece], device=model.device)
        states = model.base_model(input_ids=ids, past_key_values=self._cache, use_cache=True).last_hidden_state[0]
        added = states.double().sum(0).cpu()
        self._sum = added if self._sum is None else self._sum + added
        self._read += len(piece)
        if self._read < len(self._ids):
            return False
        mean = self._sum / len(self._ids)
        self.vector = (mean / mean.norm().clamp_min(1e-12)).float().tolist()
        return True
