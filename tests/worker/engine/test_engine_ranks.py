"""Two processes that train one model: the losses and the weights of one process, and one voice."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

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
