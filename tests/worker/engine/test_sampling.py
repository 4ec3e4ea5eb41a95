"""The settings of sampling, one by one, on logits that are known."""

import math

import pytest
import torch

from app.contracts.generation import Sampling
from worker.engine.sampling import Sampler

LOGITS = torch.tensor([math.log(p) for p in (0.5, 0.25, 0.15, 0.07, 0.03)])


def drawn(
    logits: torch.Tensor = LOGITS, prompt: tuple[int, ...] = (), count: int = 400, **sampling: object
) -> set[int]:
    """Which tokens come in many draws, each of a new answer."""
    return {
        Sampler(Sampling(**{"temperature": 1.0, "seed": seed, **sampling}), list(prompt)).choose(logits).token
        for seed in range(count)
    }


def test_what_each_setting_leaves_to_draw() -> None:
    assert drawn() == {0, 1, 2, 3, 4}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.8) == {0, 1, 2}
    assert drawn(min_p=0.2) == {0, 1, 2}
    assert drawn(min_p=0.2, top_k=2) == {0, 1}
    assert drawn(temperature=0) == {0}
    assert drawn(temperature=1e-300) == drawn(temperature=1e-40, top_p=0.5) == {0}
    assert drawn(logit_bias={0: -100, 4: 8, 99: 5}) <= {1, 2, 3, 4}


def test_draws_follow_the_probabilities() -> None:
    found = [Sampler(Sampling(temperature=1, seed=seed), []).choose(LOGITS).token for seed in range(2000)]
    assert found.count(0) / 2000 == pytest.approx(0.5, abs=0.04)
    assert found.count(2) / 2000 == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize(
    "sampling", [{"top_p": 0.6}, {"min_p": 0.05}, {"top_p": 0.97, "min_p": 0.01}, {"top_p": 0.999}]
)
def test_a_large_vocabulary_is_drawn_from_as_if_all_of_it_were_sorted(sampling: dict[str, float]) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3
    order = logits.sort(descending=True)
    shares = order.values.double().softmax(-1)
    before = shares.cumsum(-1) - shares
    kept = (before < sampling.get("top_p", 2)) & (shares >= sampling.get("min_p", 0) * shares[0])
    weights = torch.where(kept, shares, 0.0).cumsum(-1)
    for seed in range(50):
        at = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * weights[-1]
        expected = int(order.indices[int((weights <= at).sum())])
        assert Sampler(Sampling(temperature=1, seed=seed, **sampling), []).choose(logits).token == expected


def test_penalties_press_down_what_was_said() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert Sampler(Sampling(temperature=0, repetition_penalty=2), [0]).choose(logits).token == 1
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1.5), [0])
    assert [sampler.choose(logits).token for _ in range(3)] == [0, 1, 0], "prompts do not count, presence counts once"
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.06), [])
    assert [sampler.choose(logits).token for _ in range(4)] == [0, 0, 1, 0]


def test_log_probabilities_are_the_models_own_whatever_the_settings() -> None:
    sampler = Sampler(Sampling(temperature=0.3, top_k=1, logit_bias={1: 100}, top_logprobs=2), [])
    chosen = sampler.choose(LOGITS)
    assert chosen.token == 1
    assert chosen.logprob == pytest.approx(math.log(0.25), abs=1e-6)
    assert [token for token, _ in chosen.top] == [0, 1]
    assert chosen.top[0][1] == pytest.approx(math.log(0.5), abs=1e-6)


def test_only_allowed_tokens_are_chosen() -> None:
    allowed = torch.tensor([False, False, True, False, True])
    found = {Sampler(Sampling(temperature=1, seed=s), []).choose(LOGITS, allowed).token for s in range(100)}
    assert found == {2, 4}
    assert Sampler(Sampling(temperature=0), []).choose(LOGITS, allowed).token == 2
