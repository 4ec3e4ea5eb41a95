"""The steps that the recipe page promises are the steps that the engine does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.contracts.recipe import TrainOrder
from app.recipes import base_facts, estimate, material
from tests.worker.engine.engine_material import Script, write_version
from worker.engine.train import train

MakeOrder = Callable[..., TrainOrder]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 texts, from one window of 63 tokens to many."""
    said = "What colour is the river? The river is blue, as here. "
    rows = [{"kind": "text", "text": (said * (1 + i * i // 8)).strip()} for i in range(23)]
    rows[5]["split"] = rows[9]["split"] = "validation"
    return write_version(tmp_path_factory.mktemp("texts"), rows)


def promised(order: TrainOrder, kind: str, rows: int) -> int:
    """The steps on the page, from nothing but the version's files and the base's tokenizer."""
    file = Path(order.base.base_dir) / "tokenizer.json" if order.base else None
    counts = {"kind": kind, "train_rows": rows, "validation_rows": 2, "test_rows": 0}
    measured = material.measure(order.data_dir, **counts, tokenizer_file=file, per_token=1.0)
    return estimate.count_steps(order.recipe, measured)[0]


def done(order: TrainOrder) -> tuple[int, int]:
    """(steps, training rows as tokens) as the engine counts them."""
    started = next(event for event in train(order, Script()) if event.type == "started")
    return started.total_steps, started.train_rows


@pytest.mark.parametrize("epochs", [1.0, 10.0, 0.4, 2.5])
def test_of_conversations(make_order: MakeOrder, epochs: float) -> None:
    order = make_order("lora", epochs=epochs, batch_size=7, micro_batch_size=7)
    steps, rows = done(order)
    assert rows % order.recipe.batch_size  # the last step of a pass is smaller
    assert promised(order, "chat", rows) == steps


@pytest.mark.parametrize("method", ["lora", "scratch"])
def test_of_plain_texts_in_windows(make_order: MakeOrder, texts: Path, method: str) -> None:
    letters = {"scratch": {"layers": 1, "heads": 2, "width": 16, "context_length": 64, "tokenizer": "characters"}}
    order = make_order(method, data=texts, epochs=3, **(letters if method == "scratch" else {}))
    steps, windows = done(order)
    assert windows > 50
    assert promised(order, "text", 21) == steps


def test_a_new_model_learns_conversations_in_as_many_steps(make_order: MakeOrder) -> None:
    order = make_order("scratch", epochs=7, batch_size=5, micro_batch_size=5)
    steps, rows = done(order)
    assert promised(order, "chat", rows) == steps


def test_the_base_is_as_large_in_the_run_as_before_it(make_order: MakeOrder) -> None:
    order = make_order("lora")
    started = next(event for event in train(order, Script()) if event.type == "started")
    assert order.base
    assert started.parameters == base_facts.from_folder(Path(order.base.base_dir)).parameters
    assert 0 < started.trainable_parameters < started.parameters
