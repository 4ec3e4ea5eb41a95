"""Memory that really runs out: the kernel refuses more, and the run goes on in less with the same losses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.contracts.recipe import RecipeSpec, TrainOrder
from app.contracts.relief import ladder
from tests.worker.engine.engine_material import TINY, turns, write_version
from tests.worker.engine.test_engine_process import ENVIRONMENT, ROOT

MakeOrder = Callable[..., TrainOrder]
# The limit falls when the first step is about to begin, `share` of what the undisturbed steps need above that.
CHILD = """
import gc, json, resource, sys
from pathlib import Path
from app.contracts.recipe import TrainOrder
from worker.engine.control import NoCommands
from worker.engine.train import train

def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name + ":")).split()[1])

order, room = TrainOrder.model_validate_json(sys.stdin.readline()), float(sys.argv[1])
losses, rungs, start = {}, [], 0
for event in train(order, NoCommands()):
    if event.type == "started" and not start:
        gc.collect()
        start = held("VmSize")
        if room:
            resource.setrlimit(resource.RLIMIT_AS, (start + int(room), resource.RLIM_INFINITY))
    elif event.type == "step":
        losses[event.step] = event.loss
    elif event.type == "warned":
        rungs.append(event.rung)
print(json.dumps({"losses": losses, "rungs": rungs, "reason": event.reason, "grown": held("VmPeak") - start}))
"""

# What is freed leaves the address space, which is what the limit counts; without a limit that makes no difference.
GIVEN_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def trained(order: TrainOrder, room: float) -> dict[str, Any]:
    return child(CHILD, order, {**ENVIRONMENT, **GIVEN_BACK}, str(room))


def child(code: str, order: TrainOrder, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What a process that runs this code with this order says on its last line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=environment, input=order.model_dump_json() + "\n", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is one of Linux")
def test_a_run_whose_memory_is_refused_goes_on_in_less_with_the_same_losses(
    make_order: MakeOrder, tmp_path: Path
) -> None:
    rows = [{"messages": turns(f"Count {n}", "one two three " * 12)} for n in range(192)]
    data = write_version(tmp_path / "long", rows)
    changes = {
        "data": data, "batch_size": 96, "micro_batch_size": 96, "max_steps": 2, "checkpoint_every_steps": 1,
        "optimizer": "adamw", "scratch": {"layers": 6, "heads": 2, "width": 64, "context_length": 64,
        "vocabulary_size": 400}, "method": "scratch",
    }  # fmt: skip
    whole = trained(make_order(out="whole", **changes), 0)
    assert whole["rungs"] == []
    room = 0.6 * whole["grown"]
    tight = trained(make_order(out="tight", **changes), room)
    assert tight["rungs"], "the limit was never met"
    assert tight["reason"] == "completed"
    assert tight["losses"] == {step: pytest.approx(loss, rel=1e-4) for step, loss in whole["losses"].items()}


# What steps of a large model leave behind: much memory in many pieces, freed, and kept for the next step.
LEAVING = """
import json, sys
from app.contracts.recipe import TrainOrder
from worker.engine.control import NoCommands
from worker.engine.devices import memory_bytes
from worker.engine.train import train
import torch

order = TrainOrder.model_validate_json(sys.stdin.readline())
for event in train(order, NoCommands()):
    if event.type == "progress" and event.phase == "finishing":
        before = memory_bytes(torch.device("cpu"))
        pieces = [torch.ones(2**18) for _ in range(400)]
        del pieces
        left = memory_bytes(torch.device("cpu"))
print(json.dumps({"before": before, "left": left, "after": memory_bytes(torch.device("cpu")), "reason": event.reason}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is kept is the GNU C library's")
def test_what_the_steps_kept_goes_back_before_the_model_is_loaded_a_second_time(make_order: MakeOrder) -> None:
    told = child(LEAVING, make_order("lora", max_steps=2), ENVIRONMENT)
    assert told["reason"] == "completed"
    assert told["left"] - told["before"] > 300 * 2**20, "nothing was kept: there was nothing to give back"
    assert told["after"] - told["before"] < 100 * 2**20


def test_each_rung_keeps_what_the_ones_before_changed() -> None:
    recipe = RecipeSpec.model_validate({**TINY, "method": "lora", "batch_size": 12, "micro_batch_size": 12})
    found = [
        (one.micro_batch_size, one.recomputes, one.head_share, one.four_bit) for one in ladder(recipe, has_cuda=True)
    ]
    assert found == [(12, False, 1, False), (6, False, 1, False), (6, True, 1, False), (6, True, 4, False),
                     (6, True, 4, True)]  # fmt: skip
    assert ladder(recipe, has_cuda=False)[-1].micro_batch_size == 1
    for one in ladder(recipe, has_cuda=True):
        changed = one.applied(recipe)
        assert (changed.batch_size, changed.learning_rate) == (12, recipe.learning_rate)


def test_recomputed_layers_and_fewer_scores_at_once_leave_the_losses_alone(make_order: MakeOrder) -> None:
    """The rungs one by one, on one method each that reads them differently; rung 2 recomputes, rung 3 cuts the head."""
    from tests.worker.engine.engine_material import of, run

    for method in ("lora", "full"):
        whole = make_order(method, out=f"{method}-0", max_steps=3)
        plain = {event.step: event.loss for event in of(run(whole), "step")}
        for rung in (2, 3):
            order = make_order(method, out=f"{method}-{rung}", max_steps=3)
            order.memory_rung = rung
            found = {event.step: event.loss for event in of(run(order), "step")}
            assert found == {step: pytest.approx(loss, rel=2e-4) for step, loss in plain.items()}, (method, rung)
