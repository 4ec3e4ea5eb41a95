"""Choosing the next token: biases, penalties, a format's tokens, temperature, top-k, top-p, min-p."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from app.contracts.generation import Sampling

COLD = 1e-5  # below this temperature the likeliest token is as good as certain, and a quotient may be infinite
HEAD = 256  # likeliest tokens that are sorted first; the rest only where these do not hold the wanted mass


@dataclass(frozen=True)
class Chosen:
    """A token, its log-probability by the model alone, and (id, log-probability) of the likeliest in its place."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the tokens of one answer, each with one number of its own generator.

    So the same seed and logits give the same tokens whatever else runs.
    """

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self.sampling = sampling
        self._seen: Counter[int] = Counter()
        self._prompt = set(prompt)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: Tensor, allowed: Tensor | None = None) -> Chosen:
        """The next token from logits of shape (vocabulary,), one of `allowed` (bool, same shape) where given."""
        raw = logits.float().cpu()
        logits = self._penalised(raw)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        settings = self.sampling
        token = int(logits.argmax()) if settings.temperature < COLD else self._drawn(logits / settings.temperature)
        self._seen[token] += 1
        if settings.top_logprobs is None:
            return Chosen(token)
        told = raw.log_softmax(-1)
        values, ids = told.topk(min(settings.top_logprobs, told.numel()))
        return Chosen(token, float(told[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _penalised(self, logits: Tensor) -> Tensor:
        settings = self.sampling
        known = list(self._prompt | self._seen.keys()) if settings.repetition_penalty != 1.0 else []
        counted = self._seen if settings.frequency_penalty or settings.presence_penalty else {}
        if not (known or counted or settings.logit_bias):
            return logits
        logits = logits.clone()
        if known:
            # Keskar et al. 2019 (CTRL): divide positive logits, multiply negative ones.
            values = logits[known]
            logits[known] = torch.where(
                values > 0, values / settings.repetition_penalty, values * settings.repetition_penalty
            )
        if counted:
            counts = torch.tensor(list(counted.values()), dtype=logits.dtype)
            logits[list(counted)] -= settings.frequency_penalty * counts + settings.presence_penalty
        if bias := {i: value for i, value in settings.logit_bias.items() if 0 <= i < logits.numel()}:
            logits[list(bias)] += torch.tensor(list(bias.values()))
        return logits

    def _drawn(self, logits: Tensor) -> int:
        settings = self.sampling
        at = torch.rand((), generator=self._generator, dtype=torch.float64)
        if not (0 < settings.top_k < logits.numel()) and settings.top_p == 1 and settings.min_p == 0:
            return _at(at, logits.double().softmax(-1))
        values, ids, total = self._head(logits)
        probabilities = (values.double() - total).exp()
        if settings.top_p < 1:
            # Nucleus (Holtzman et al. 2020): the shortest head whose mass reaches top_p, at least one token.
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= settings.top_p, 0)
        if settings.min_p > 0:
            # Nguyen et al. 2024: what has less than this share of the likeliest token's probability leaves.
            probabilities = probabilities.masked_fill(probabilities < settings.min_p * probabilities[0], 0)
        return int(ids[_at(at, probabilities)])

    def _head(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and ids of all that may be drawn and perhaps a few more, likeliest first, and the logarithm of the
        mass that they are shares of. Sorting the whole vocabulary takes long."""
        settings = self.sampling
        if 0 < settings.top_k < logits.numel():
            values, ids = logits.topk(settings.top_k)
            return values, ids, values.double().logsumexp(-1)
        total = logits.double().logsumexp(-1)
        if logits.numel() > HEAD:
            values, ids = logits.topk(HEAD)
            holds_mass = float((values.double() - total).exp().sum()) >= settings.top_p
            others_are_less = settings.min_p > 0 and float(values[-1] - values[0]) < math.log(settings.min_p)
            if holds_mass or others_are_less:
                return values, ids, total
        return *logits.sort(descending=True), total


def _at(at: Tensor, probabilities: Tensor) -> int:
    """The place of a number between 0 and 1 in the summed probabilities, which need not sum to one."""
    summed = probabilities.cumsum(-1)
    return min(int(torch.searchsorted(summed, at * summed[-1], right=True)), int(probabilities.nonzero()[-1]))
