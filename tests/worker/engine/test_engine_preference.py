"""Preferences: the loss of the paper, what the model thought before kept once, and a model that comes to prefer."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from app.contracts.conversation import Example
from app.contracts.events import Control
from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder
from tests.worker.engine import families
from tests.worker.engine.engine_material import COLOURS, THINGS, of, run, turns, write_version
from worker.engine import data, loading, preference
from worker.engine import loss as loss_module
from worker.engine.errors import BadData
from worker.engine.packing import pack

MakeOrder = Callable[..., TrainOrder]
CPU = torch.device("cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """30 questions with the preferred and the rejected answer, 6 of them for validation, and one row without."""
    rows: list[dict[str, Any]] = []
    for i in range(30):
        thing, colour = THINGS[i % 10], COLOURS[i // 10]
        asked = {"role": "user", "content": f"What colour is the {thing}?", "train": True}
        good = {"role": "assistant", "content": f"It is {colour}.", "train": True}
        bad = {"role": "assistant", "content": "Who knows what it is, as things are here.", "train": True}
        split = "validation" if i % 5 == 0 else "train"
        rows.append({"messages": [asked, good], "chosen": [good], "rejected": [bad], "split": split})
    rows.append({"messages": turns("And this?", "No.")})
    return write_version(tmp_path / "pairs", rows)


@pytest.fixture
def prefer(make_order: MakeOrder, pairs: Path) -> MakeOrder:
    def make(method: str = "lora", **recipe: Any) -> TrainOrder:
        return make_order(method, data=pairs, **{"learn_from": "preferences", "learning_rate": 1e-3, **recipe})

    return make


def plainly(
    policy: Any, base: Any, rows: list[tuple[np.ndarray, np.ndarray]], beta: float, doubt: float
) -> torch.Tensor:
    """DPO as its paper writes it, from all logits of one row at a time, summed over pairs."""

    def said(model: Any, ids: np.ndarray, learn: np.ndarray) -> torch.Tensor:
        tokens = torch.from_numpy(ids.astype(np.int64))
        probabilities = model(input_ids=tokens[None]).logits[0, :-1].softmax(-1)
        chosen = probabilities[torch.arange(len(tokens) - 1), tokens[1:]]
        return chosen.log()[torch.from_numpy(learn[1:])].sum()

    total = torch.zeros(())
    for k in range(0, len(rows), 2):
        (w, l) = rows[k], rows[k + 1]  # noqa: E741
        gain = said(policy, *w) - said(policy, *l) - (said(base, *w) - said(base, *l)).detach()
        total = total - (1 - doubt) * torch.log(1 / (1 + torch.exp(-beta * gain)))
        total = total - doubt * torch.log(1 / (1 + torch.exp(beta * gain)))
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("doubt", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_the_paper(
    family: str, doubt: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 400 * 16)  # several chunks, the last one short
    folder = families.make(family, tmp_path / family, ["what colour is it"] * 9, initializer_range=0.2)
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = loading.load_model(ModelFiles(base_dir=str(folder)), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for mine, other in zip(model.parameters(), theirs.parameters(), strict=True):
            other.add_(torch.randn_like(other) * 0.02)
            mine.copy_(other)
    generator = np.random.default_rng(0)
    size = model.config.vocab_size
    rows = [(generator.integers(4, size, n).astype(np.uint32), generator.random(n) < 0.6) for n in (9, 20, 31, 14)]
    recipe = RecipeSpec(
        method="full", base_source="starter", learn_from="preferences", preference_strength=0.3, label_smoothing=doubt
    )
    kept = torch.stack([_sum(base, *row) for row in rows]).detach().numpy()
    numbers = np.array([2, 1, 3, 0])  # by length, as the loop lays them
    judged = preference.judge(model, pack([rows[i] for i in numbers], CPU), numbers, kept, recipe)
    wanted = plainly(theirs, base, rows, 0.3, doubt)
    assert float(judged.loss) == pytest.approx(float(wanted), rel=1e-4)
    judged.loss.backward()
    wanted.backward()
    for (name, mine), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


def _sum(model: Any, ids: np.ndarray, learn: np.ndarray) -> torch.Tensor:
    tokens = torch.from_numpy(ids.astype(np.int64))
    log_p = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return log_p[torch.from_numpy(learn[1:])].sum()


@pytest.mark.parametrize("method", ["lora", "last_layers", "full"])
def test_a_model_comes_to_prefer_what_was_preferred(method: str, prefer: MakeOrder) -> None:
    own = {"last_layers": 1} if method == "last_layers" else {}
    events = run(
        prefer(
            method, epochs=8, learning_rate=5e-3, evaluate_every_steps=12, sample_prompts=["So?"], dropout=0.3, **own
        )
    )
    steps, looks = of(events, "step"), of(events, "evaluated")
    assert of(events, "started")[0].train_rows == 24
    assert steps[0].loss == pytest.approx(math.log(2), rel=1e-4)  # before the first correction nothing is preferred
    assert looks[-1].loss < 0.5
    assert looks[-1].accuracy == 1.0
    assert looks[-1].margin > 0.3
    assert steps[-1].accuracy == 1.0
    assert steps[-1].margin > steps[1].margin
    assert events[-1].reason == "completed"


def test_what_the_model_thought_is_asked_once(prefer: MakeOrder) -> None:
    order = prefer(epochs=2)
    first = run(order, {2: Control(verb="pause")})
    assert [event.phase for event in of(first, "progress")].count("reference") == 2  # training and validation
    assert "reference" not in [event.phase for event in of(run(order), "progress")]


def test_a_version_without_preferences_is_refused(make_order: MakeOrder) -> None:
    with pytest.raises(BadData, match="No row of this version has a preferred and a rejected answer"):
        run(make_order("lora", learn_from="preferences"))


def test_only_the_compared_answers_are_learned_and_both_lose_the_same_turns() -> None:
    def letters(example: Example) -> tuple[list[int], list[bool]]:
        said = [(ord(c), m.train and m.role == "assistant") for m in example.messages for c in m.content]
        return [i for i, _ in said], [learned for _, learned in said]

    def side(answer: str) -> Example:
        before = [{**turn, "train": False} for turn in turns("a" * 10, "b" * 10, "c" * 5)]
        return Example(rid=0, kind="chat", messages=[*before, {"role": "assistant", "content": answer}])

    (better, worse), was_cut = data.fit_pair((side("yes"), side("n" * 20)), letters, 30)
    assert was_cut
    assert "".join(map(chr, better[0])) == "cccccyes"
    assert "".join(map(chr, worse[0])) == "ccccc" + "n" * 20
    assert (sum(better[1]), sum(worse[1])) == (3, 20)
    assert data.fit_pair((side("yes"), side("n" * 40)), letters, 30) == ([], True)
