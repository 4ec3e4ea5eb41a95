"""Tiny real material for the engine: a dataset version, base models of 2 layers, orders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contracts.recipe import ModelFiles, RecipeSpec, ScratchSpec, TrainOrder
from app.text.template import CHATML
from tests.worker.engine.engine_material import COLOURS, SCRATCH, THINGS, TINY, turns, write_version
from worker.engine import scratch, tokenizer
from worker.engine.methods.whole import write_model


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions about the colour of a thing; 12 of them for validation."""
    rows = [
        {"messages": turns(f"What colour is the {thing}?", f"The {thing} is {colour}, as {thing}s are here.")}
        for thing, colour in ((THINGS[i % 10], COLOURS[i // 10]) for i in range(60))
    ]
    for i in [*range(0, 60, 7), 3, 10, 17]:
        rows[i]["split"] = "validation"
    return write_version(tmp_path_factory.mktemp("version"), rows)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`bases("llama", dropout=0.1)`: a folder with a random model of width 32 and its tokenizer."""
    made: dict[tuple[str, float], Path] = {}

    def make(architecture: str, dropout: float = 0.0) -> Path:
        if (architecture, dropout) not in made:
            folder = tmp_path_factory.mktemp(architecture)
            texts = [f"What colour is the {thing}? The {thing} is {c}, as here." for thing in THINGS for c in COLOURS]
            learned = tokenizer.train_bpe(texts, 400)
            tokenizer.save(learned, folder / "tokenizer", chat_template=CHATML, context_length=64)
            spec = ScratchSpec.model_validate({**SCRATCH["scratch"], "architecture": architecture, "dropout": dropout})
            torch.manual_seed(7)
            model = scratch.create(spec, vocabulary_size=learned.get_vocab_size(), end_ids=[2, 0], pad_id=3)
            write_model(model, dict(model.named_parameters()), folder, folder / "tokenizer")
            made[architecture, dropout] = folder
        return made[architecture, dropout]

    return make


@pytest.fixture
def make_order(tmp_path: Path, version: Path, bases: Callable[..., Path]) -> Callable[..., TrainOrder]:
    """An order for a tiny run; keywords change its recipe."""

    def make(
        method: str = "lora", *, out: str = "run", data: Path | None = None, dropout: float = 0.0, **recipe: Any
    ) -> TrainOrder:
        parts = SCRATCH if method == "scratch" else {"method": method}
        spec = RecipeSpec.model_validate({**TINY, **parts, **recipe})
        (tmp_path / out).mkdir(exist_ok=True)
        return TrainOrder(
            run_id="run1",
            attempt_id="a1",
            fence=1,
            recipe=spec,
            base=None if method == "scratch" else ModelFiles(base_dir=str(bases("llama", dropout))),
            data_dir=str(data or version),
            out_dir=str(tmp_path / out),
        )

    return make
