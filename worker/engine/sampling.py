"""Choosing the next token: penalties, temperature, top-k, top-p; each request draws from its own generator."""

from collections import Counter

import torch
from torch import Tensor

from app.contracts.generation import Sampling


class Sampler:
    """Draws the tokens of one answer. The same seed and logits give the same tokens whatever else runs."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self.sampling = sampling
        self._seen: Counter[int] = Counter()
        self._prompt = set(prompt)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token id from logits of shape (vocabulary,)."""
        logits = self._penalised(logits.float().cpu())
        settings = self.sampling
        token = int(logits.argmax()) if settings.temperature == 0 else self._drawn(logits / settings.temperature)
        self._seen[token] += 1
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        settings = self.sampling
        if settings.repetition_penalty != 1.0 and (known := list(self._prompt | self._seen.keys())):
            # Keskar et al. 2019 (CTRL): divide positive logits, multiply negative ones.
            logits = logits.clone()
            values = logits[known]
            logits[known] = torch.where(
                values > 0, values / settings.repetition_penalty, values * settings.repetition_penalty
            )
        if (settings.frequency_penalty or settings.presence_penalty) and self._seen:
            logits = logits.clone()
            ids = torch.tensor(list(self._seen))
            counts = torch.tensor([self._seen[i] for i in self._seen], dtype=logits.dtype)
            logits[ids] -= settings.frequency_penalty * counts + settings.presence_penalty
        return logits

    def _drawn(self, logits: Tensor) -> int:
        settings = self.sampling
        if 0 < settings.top_k < logits.numel():
            values, ids = logits.topk(settings.top_k)
        else:
            values, ids = logits.sort(descending=True)
        probabilities = values.softmax(-1)
        if settings.top_p < 1:
            # Nucleus (Holtzman et al. 2020): the shortest head whose mass reaches top_p, at least one token.
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= settings.top_p, 0)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])
