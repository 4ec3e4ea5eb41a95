"""The trial of a recipe: what it counts is what a run then does, and its times add up to a run's."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.contracts.events import engine_event
from app.contracts.probe import Costs, Probed
from app.contracts.recipe import RecipeSpec, TrainOrder
from tests.worker.engine.engine_material import of, run, turns, write_version
from tests.worker.engine.test_engine_process import ENVIRONMENT, ROOT
from worker.engine.devices import peak_memory_bytes
from worker.engine.probe import fitted, heaviest, probe

MakeOrder = Callable[..., TrainOrder]
# The command, and then what its process still holds of a large tensor that was let go.
COMMAND = """
import sys, torch
from worker.engine.__main__ import main
from worker.engine.devices import memory_bytes
if code := main():
    sys.exit(code)
before = memory_bytes(torch.device("cpu"))
large = torch.ones(2**26)
del large
print("kept:", memory_bytes(torch.device("cpu")) - before, file=sys.stderr)
"""


def probed(order: TrainOrder) -> Probed:
    found = list(probe(order, 0.0))[-1]
    assert isinstance(found, Probed)
    return found


@pytest.mark.parametrize("method", ["lora", "last_layers", "full", "scratch"])
def test_the_counts_of_a_trial_are_those_of_the_run(make_order: MakeOrder, method: str) -> None:
    changes: dict[str, Any] = {"last_layers": 1} if method == "last_layers" else {}
    found = probed(make_order(method, out="trial", **changes))
    held = peak_memory_bytes(torch.device("cpu"))
    events = run(make_order(method, out="run", **changes))
    started = of(events, "started")[0]
    assert (found.train_rows, found.validation_rows) == (started.train_rows, started.validation_rows)
    assert (found.parameters, found.trainable_parameters) == (started.parameters, started.trainable_parameters)
    one_pass = [event.tokens for event in of(events, "step") if event.epoch <= 1]
    assert found.tokens_per_epoch == sum(one_pass)
    saved = of(events, "checkpoint")[-1].size_bytes
    assert found.checkpoint_bytes == pytest.approx(saved, rel=0.05)
    assert 1.02 < found.peak_memory_bytes / held < 1.2, "a run takes somewhat more than its trial held"
    for costs in (found.wall, found.processor):
        answers = min(costs.answer_token_s, costs.test_token_s)
        assert min(costs.start_s, costs.later_step_s + costs.later_token_s, answers, costs.save_s, costs.finish_s) > 0


def test_a_preference_run_can_be_tried(make_order: MakeOrder, tmp_path: Path) -> None:
    pairs = [
        {
            "messages": turns(f"Say {n}", f"It is {n}."),
            "chosen": turns("", f"It is {n}.")[1:],
            "rejected": turns("", "No.")[1:],
            "split": "train" if n % 4 else "validation",
        }
        for n in range(24)
    ]
    data = write_version(tmp_path / "pairs", pairs)
    found = probed(make_order("lora", data=data, learn_from="preferences"))
    assert (found.train_rows, found.validation_rows) == (18, 6)
    # Preferences do not teach where to stop: a model that never did says twice the longest known answer, each time.
    tested = of(run(make_order("lora", data=data, learn_from="preferences", out="run")), "ended")[0].stop_test
    assert tested["ended"] == 0
    assert found.test_tokens == tested["tokens"]


def test_the_heaviest_step_is_the_one_with_most_tokens_at_once(make_order: MakeOrder) -> None:
    """Of all passes, found again by going through every step of the run."""
    order = make_order("full", out="look", epochs=3)
    from worker.engine.data import order as row_order
    from worker.engine.devices import choose
    from worker.engine.prepare import prepare

    steps = prepare(order, choose(order.recipe), 4)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            rows = end.value.train_rows
            break
    lengths = rows.lengths - 1
    most = max(
        int(lengths[chosen[start : start + 4]].sum())
        for epoch in range(3)
        for chosen in [row_order(rows, 1, epoch)]
        for start in range(0, len(chosen), 4)
    )
    found = heaviest(rows, order.recipe, 4)
    assert max(int(lengths[found[start : start + 4]].sum()) for start in range(0, len(found), 4)) == most


def test_seconds_a_step_and_a_token_are_told_apart() -> None:
    assert fitted([(100, 1.2), (200, 1.4), (400, 1.8)]) == (pytest.approx(1.0), pytest.approx(0.002))
    assert fitted([(100, 1.0), (100, 2.0)]) == (pytest.approx(1.5), 0.0)
    assert fitted([(100, 0.5), (200, 2.0)])[0] == 0.0


def test_a_run_is_the_sum_of_its_parts() -> None:
    """4 steps of 10 rows in 2 passes, a look after every second, 20 validation tokens a look: counted by hand."""
    costs = Costs(
        start_s=5, first_s=1, step_s=0.5, token_s=0.01, later_step_s=0.25, later_token_s=0.01, look_token_s=0.02,
        later_look_token_s=0.01, answer_token_s=0.1, test_token_s=0.03, save_s=2, finish_s=3,
    )  # fmt: skip
    found = Probed(
        device="cpu", precision="fp32", peak_memory_bytes=1, parameters=1, trainable_parameters=1, train_rows=20,
        tokens_per_epoch=400, look_tokens_each=10, validation_rows=2, sample_prompts=3, answer_tokens=5,
        test_tokens=40, checkpoint_bytes=1, steps_measured=7, wall=costs, processor=costs,
    )  # fmt: skip
    recipe = RecipeSpec(
        method="full", base_source="starter", epochs=2, batch_size=10, micro_batch_size=5, evaluate_every_steps=2,
        sample_max_tokens=50,
    )  # fmt: skip
    steps = 2 * (0.5 + 2.0) + 2 * (0.25 + 2.0)
    looks = 20 * 0.02 + 20 * 0.01
    answers = 2 * 3 * 5 * 0.1
    assert found.seconds(recipe, costs) == pytest.approx(5 + 1 + steps + looks + answers + 2 * 2 + 3 + 40 * 0.03)


def test_the_command_measures_and_says_so_on_its_last_line(make_order: MakeOrder) -> None:
    child = subprocess.run(
        [sys.executable, "-c", COMMAND, "probe", "--seconds", "0"],
        cwd=ROOT, env=ENVIRONMENT, input=make_order("lora").model_dump_json() + "\n", capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    found = engine_event.validate_json(lines[-1])
    assert isinstance(found, Probed)
    assert {json.loads(line)["type"] for line in lines[:-1]} == {"progress"}
    # Loading the libraries is part of the start; the steps are repeated until there is something to go by.
    assert found.wall.start_s > 0.5
    assert found.steps_measured == 6  # the heaviest and five around the middle
    assert np.isfinite(found.wall.step_s)
    # Memory is foretold for a run, and a run keeps what is freed: without that its peak is another.
    kept = int(child.stderr.rpartition("kept:")[2])
    assert kept > 2**27, f"{kept} bytes of 256 MiB are still held"
