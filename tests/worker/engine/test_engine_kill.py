"""Kill -9 at any moment, in a save too: the resumed run has the same weights and every loss, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import Script
from worker.engine.train import train

MakeOrder = Callable[..., TrainOrder]
DROPOUT = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "initialisation": "pissa"}, "dropout": 0.1}
RECIPES = {
    "lora": DROPOUT,
    "last_layers": {"last_layers": 1, "dropout": 0.1},
    "full": {"dropout": 0.1, "neftune_alpha": 5.0},
    "scratch": {},
}


def attempt(order: TrainOrder, log: Path) -> None:
    """What the child does: train, and write each loss down before going on."""
    os.setsid()
    torch.set_num_threads(1)
    with log.open("a", buffering=1, encoding="utf-8") as file:
        for event in train(order, Script()):
            file.write(event.model_dump_json() + "\n")


def lines(log: Path) -> list[dict[str, object]]:
    """What was written; a kill may cut the last line."""
    texts = log.read_text(encoding="utf-8").split("\n") if log.exists() else []
    return [json.loads(text) for text in texts if text.endswith("}")]


def weights(order: TrainOrder) -> dict[str, torch.Tensor]:
    path = next(iter((Path(order.out_dir) / "model").glob("*.safetensors")))
    return load_file(path)


@pytest.mark.parametrize("method", RECIPES)
def test_killed_runs_end_bit_equal(method: str, make_order: MakeOrder, tmp_path: Path) -> None:
    # Always the newest model: with the best one, an early best step would hide what came after.
    settings = {**RECIPES[method], "epochs": 4, "evaluate_every_steps": 3, "checkpoint_every_steps": 2}
    settings |= {"early_stopping": False, "schedule": "linear"}
    context = multiprocessing.get_context("fork")
    reference = make_order(method, out="reference", **settings)
    whole = context.Process(target=attempt, args=(reference, tmp_path / "reference.log"))
    whole.start()
    whole.join(120)
    assert whole.exitcode == 0
    expected = {line["step"]: line["loss"] for line in lines(tmp_path / "reference.log") if line["type"] == "step"}
    assert len(expected) == 24

    order, log, chance, kills = (
        make_order(method, out="killed", **settings),
        tmp_path / "killed.log",
        random.Random(5),
        0,
    )
    folder = Path(order.out_dir) / "checkpoints"
    for number in range(60):
        child = context.Process(target=attempt, args=(order.model_copy(update={"attempt_id": f"a{number}"}), log))
        child.start()
        in_a_save, steps_before = number % 2 == 0, len(lines(log))
        more = chance.randint(3, 9)
        while child.is_alive() and kills < 5:
            saving = any(folder.glob(".tmp-*")) if folder.exists() else False
            grown = len(lines(log)) - steps_before >= more
            if (grown and not in_a_save) or (grown and saving):
                os.kill(child.pid or 0, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.0005)
        child.join(120)
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert kills >= 3
    found = [(line["step"], line["loss"]) for line in lines(log) if line["type"] == "step"]
    assert all(expected[step] == loss for step, loss in found)
    assert {step for step, _ in found} == set(expected)
    mine, theirs = weights(order), weights(reference)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not list(folder.glob(".tmp-*"))
