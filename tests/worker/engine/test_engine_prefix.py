"""Last layers: what the frozen layers say is computed once, and nobody can tell from the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.contracts.events import Control
from app.contracts.recipe import ModelFiles, TrainOrder
from tests.worker.engine import families
from tests.worker.engine.engine_material import COLOURS, THINGS, of, run
from worker.engine import learning, prefix

MakeOrder = Callable[..., TrainOrder]
TEXTS = [f"What colour is the {thing}? The {thing} is {colour}, as here." for thing in THINGS for colour in COLOURS]


@pytest.fixture
def last(make_order: MakeOrder, tmp_path: Path) -> Callable[..., TrainOrder]:
    """An order that trains the last of three layers of a family's model for three passes."""

    def make(family: str, out: str, dropout: float = 0.0, **recipe: Any) -> TrainOrder:
        order = make_order("last_layers", out=out, **{"last_layers": 1, "epochs": 3, **recipe})
        folder = tmp_path / family
        if not folder.exists():
            rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout} if family == "gpt2" else {}
            families.make(family, folder, TEXTS, **rates)
        order.base = ModelFiles(base_dir=str(folder))
        return order

    return make


def nothing_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "MEMORY_SHARE", 0)
    monkeypatch.setattr(prefix, "DISK_SHARE", 0)


def losses(events: list[Any]) -> list[float]:
    return [event.loss for event in events if event.type in ("step", "evaluated")]


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_losses_are_those_of_layers_that_run_every_time(
    family: str, last: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run(last(family, "kept"))
    assert not of(kept, "warned")
    nothing_free(monkeypatch)
    plain = run(last(family, "plain"))
    assert [event.kind for event in of(plain, "warned")] == ["frozen_layers"]
    assert "GB of memory" in of(plain, "warned")[0].message
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-5)
    assert losses(kept)[0] > losses(kept)[-1]


def test_frozen_layers_run_once_a_row_and_no_more(last: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = learning.Block.forward

    def counting(self: learning.Block, states: Any, *rest: Any) -> Any:
        if not self.asking.is_learning:
            seen.append(len(states))
        return plain(self, states, *rest)

    monkeypatch.setattr(learning.Block, "forward", counting)
    counts = []
    for passes in (2, 3):
        seen.clear()
        # Sample answers run the whole model; of no row is one asked here.
        run(last("llama", f"p{passes}", epochs=passes, sample_prompts=["why " * 200], evaluate_every_steps=6))
        counts.append(sum(seen))
    assert counts[0] == counts[1] > 0


def test_kept_in_a_file_it_is_the_same_to_the_bit_and_the_file_is_gone(
    last: MakeOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = run(last("llama", "memory"))
    monkeypatch.setattr(prefix, "MEMORY_SHARE", 0)
    order = last("llama", "disk")
    disk = run(order)
    assert not of(disk, "warned")
    assert losses(disk) == losses(memory)
    assert not list(Path(order.out_dir).glob(".frozen*"))


def test_a_run_goes_on_to_the_bit_without_what_was_kept(last: MakeOrder) -> None:
    whole = losses(run(last("llama", "whole", precision="bf16")))
    order = last("llama", "paused", precision="bf16")
    first = run(order, {9: Control(verb="pause")})
    assert losses(first) + losses(run(order)) == whole


def test_frozen_layers_have_no_dropout_and_that_is_said(last: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run(last("gpt2", "kept", dropout=0.3))
    assert [event.kind for event in of(kept, "warned")] == ["dropout"]
    nothing_free(monkeypatch)
    plain = run(last("gpt2", "plain", dropout=0.3))
    # The layer that learns still drops: the same numbers are drawn in both.
    assert losses(kept) == pytest.approx(losses(plain), rel=1e-5)


def test_noise_on_the_input_keeps_the_frozen_layers_running(last: MakeOrder) -> None:
    events = run(last("llama", "noisy", neftune_alpha=5.0))
    assert "noise on the input" in of(events, "warned")[0].message
