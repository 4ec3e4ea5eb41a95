"""Two processes that train one model: the losses and the weights of one process, and one voice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from app.contracts.events import EXIT_LOST_COMPANION, Control
from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import of, run

ROOT = Path(__file__).parents[3]


def test_two_processes_come_to_what_one_comes_to(make_order: Callable[..., TrainOrder], tmp_path: Path) -> None:
    # 7 rows a step: the shares are unequal, and the last step of a pass has an odd rest.
    order = make_order("full", out="one", batch_size=7, micro_batch_size=1, epochs=1, packing=False)
    alone = run(order)
    assert order.base
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(order.recipe.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "worker.engine", "train", str(tmp_path / "recipe.yaml"), "--data", order.data_dir]
    command += ["--out", str(tmp_path / "two"), "--base", order.base.base_dir]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == [event.step for event in of(alone, "step")]
    for mine, one in zip(steps, of(alone, "step"), strict=True):
        assert mine["loss"] == pytest.approx(one.loss, rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(one.grad_norm, rel=1e-3)
        assert (mine["tokens"], mine["supervised_tokens"]) == (one.tokens, one.supervised_tokens)
    assert sum(event["type"] == "ended" for event in events) == 1
    weights = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for one, two in zip(*(list(tensors.values()) for tensors in weights), strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3)


@pytest.mark.timeout(600)
def test_a_split_model_learns_the_same_and_goes_on_after_a_kill(
    make_order: Callable[..., TrainOrder], tmp_path: Path
) -> None:
    # 7 rows by 1: one process has four parts of a step, the other three.
    asked = {"batch_size": 7, "micro_batch_size": 1, "epochs": 50, "keep_checkpoints": 9}
    alone = run(make_order("full", out="one", **asked), {12: Control(verb="cancel")})
    order = make_order("full", out="two", **asked, processes=2, shards=True)
    for path in (tmp_path / "one").iterdir():
        shutil.copytree(path, tmp_path / "two" / path.name)
    for name in ("step-00000008", "step-00000012"):
        shutil.rmtree(tmp_path / "two/checkpoints" / name)
    events = until_killed(order, after="step-00000012")
    assert of_type(events, "started")[0]["resumed_from"] == "checkpoints/step-00000004"
    losses = {event.step: event.loss for event in of(alone, "step")}
    seen = {event["step"]: event["loss"] for event in of_type(events, "step") if event["step"] in losses}
    assert seen == pytest.approx({step: loss for step, loss in losses.items() if step > 4}, rel=1e-4)
    validation = {event.step: event.loss for event in of(alone, "evaluated")}
    assert [event["loss"] for event in of_type(events, "evaluated")][:2] == pytest.approx(
        [validation[8], validation[12]], rel=1e-4
    )
    for name in ("weights/model.safetensors", "optimizer.safetensors"):
        one, two = (load_file(tmp_path / run_dir / "checkpoints/step-00000012" / name) for run_dir in ("one", "two"))
        assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in two.items()}
        for key in one:
            if not key.startswith("random"):
                torch.testing.assert_close(
                    one[key], two[key], atol=2e-4, rtol=1e-3, msg=lambda text, key=key: key + text
                )
    # One process alone goes on from what two have saved.
    shutil.rmtree(tmp_path / "one/checkpoints/step-00000012")
    rest, same = (run(make_order("full", out=out, **asked), {6: Control(verb="cancel")}) for out in ("two", "one"))
    assert of(rest, "started")[0].resumed_from == "checkpoints/step-00000012"
    expected = {event.step: event.loss for event in of(same, "step") if event.step > 12}
    found = {event.step: event.loss for event in of(rest, "step")}
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-4)
    assert expected


def until_killed(order: TrainOrder, after: str) -> list[dict[str, object]]:
    """The events of a training whose second process is killed once checkpoint `after` is saved."""
    command = [sys.executable, "-m", "worker.engine", "train"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **pipes) as engine:
        assert engine.stdin
        assert engine.stdout
        engine.stdin.write(order.model_dump_json() + "\n")
        engine.stdin.flush()
        events = []
        for line in engine.stdout:
            events.append(json.loads(line))
            if events[-1]["type"] == "checkpoint" and events[-1]["dir"].endswith(after):
                (other,) = psutil.Process(engine.pid).children()
                other.send_signal(signal.SIGKILL)
        assert engine.wait(60) == EXIT_LOST_COMPANION
        assert not other.is_running()
    assert events[-1]["type"] == "ended"
    assert "Process 2 of the 2 that train together ended unexpectedly (by signal 9)" in events[-1]["message"]
    return events


def of_type(events: list[dict[str, object]], kind: str) -> list[dict[str, object]]:
    return [event for event in events if event["type"] == kind]
