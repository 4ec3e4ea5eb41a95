"""A text that a model reads piece by piece, so that answers of others wait for at most one piece."""

import torch
from transformers import DynamicCache

from worker.engine.errors import BadData
from worker.engine.generate import Loaded

PIECE = 64  # tokens


class Reading:
    """What is read of one text. Raises BadData for a text longer than the model reads."""

    def __init__(self, loaded: Loaded, ids: list[int]) -> None:
        if len(ids) > loaded.context_length:
            raise BadData(
                f"The text is too long: {len(ids)} tokens, and this model reads {loaded.context_length} in all. "
                "Shorten it."
            )
        self.ids, self.read = ids, 0
        self.cache = DynamicCache(config=loaded.model.config)
        self._loaded = loaded

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to read."""
        return self.read >= len(self.ids)

    def take(self) -> torch.Tensor:
        """The next piece, (1, tokens), which counts as read; the pass over it has to use `cache`."""
        piece = self.ids[self.read : self.read + PIECE]
        self.read += len(piece)
        self._loaded.use(len(piece))
        return torch.tensor([piece], device=self._loaded.model.device)
