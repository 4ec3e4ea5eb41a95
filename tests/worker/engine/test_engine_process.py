"""The engine as a process: one order in, event lines out, the contract's exit codes, death with its parent."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from app.contracts import events as e
from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import SCRATCH, TINY

MakeOrder = Callable[..., TrainOrder]
ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "worker.engine", "train"]
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def start(*arguments: str, told: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **(told or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_an_order_on_stdin_gives_event_lines_and_sigterm_pauses(make_order: MakeOrder) -> None:
    child = start("--parent", str(os.getpid()))
    assert child.stdin
    assert child.stdout
    child.stdin.write(make_order("lora", epochs=1000).model_dump_json().encode() + b"\n")
    child.stdin.flush()
    seen = []
    for line in child.stdout:
        seen.append(e.engine_event.validate_json(line))
        if seen[-1].type == "step" and seen[-1].step == 2:
            child.send_signal(signal.SIGTERM)
    assert child.wait(60) == e.EXIT_PAUSED
    assert seen[-1].reason == "paused"
    assert seen[-2].type == "checkpoint"


def test_a_command_on_stdin_cancels(make_order: MakeOrder) -> None:
    child = start()
    order = make_order("lora", epochs=1000).model_dump_json()
    out, _ = child.communicate(f'{order}\nnot a command\n{{"verb":"cancel"}}\n'.encode(), timeout=60)
    assert child.returncode == e.EXIT_CANCELLED
    assert e.engine_event.validate_json(out.splitlines()[-1]).reason == "cancelled"


def test_bad_material_has_its_exit_code_and_its_sentence(make_order: MakeOrder, tmp_path: Path) -> None:
    order = make_order("lora")
    order.data_dir = str(tmp_path)
    child = start()
    out, _ = child.communicate(order.model_dump_json().encode() + b"\n", timeout=60)
    assert child.returncode == e.EXIT_BAD_DATA
    last = e.engine_event.validate_json(out.splitlines()[-1])
    assert last.reason == "failed"
    assert "Freeze the dataset first" in last.message


def test_a_recipe_file_trains_from_the_command_line(tmp_path: Path, version: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, **SCRATCH, "max_steps": 2}), encoding="utf-8")
    told = {"PYTHONPROFILEIMPORTTIME": "1"}
    child = start(str(recipe), "--data", str(version), "--out", str(tmp_path / "out"), told=told)
    _, log = child.communicate(timeout=60)
    assert child.returncode == e.EXIT_DONE
    # What takes as long to load as all the rest, and is of no use to one process.
    loaded = {line.rpartition(b"|")[2].strip() for line in log.splitlines() if line.startswith(b"import time:")}
    assert b"worker.engine.evaluate" in loaded
    assert not loaded & {b"torch._dynamo.convert_frame", b"torch.distributed.tensor", b"scipy.optimize"}
    assert (tmp_path / "out/model/model.safetensors").is_file()


def test_a_stranger_as_parent_is_refused() -> None:
    child = start("--parent", "1")
    _, error = child.communicate(timeout=30)
    assert child.returncode == 1
    assert b"the parent 1 is gone" in error


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent-death signal is Linux's")
def test_the_engine_dies_with_its_parent(make_order: MakeOrder, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(make_order("lora", epochs=1000).model_dump_json() + "\n", encoding="utf-8")
    between = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen({COMMAND!r} + ['--parent', str(os.getpid())], stdin=open({str(order)!r}),"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", between], cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    import select

    readable, _, _ = select.select([descriptor], [], [], 10)
    os.close(descriptor)
    assert readable, "the engine outlived its parent"


def can_mount() -> bool:
    """Whether a small file system can be mounted in a namespace of our own."""
    if not shutil.which("unshare"):
        return False
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a mount namespace to make a really full disk")
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_after(make_order: MakeOrder, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run, ballast = small / "run", f"head -c {64 * 1024 - 900}K /dev/zero > {small}/full"
    order = make_order("full")
    order.out_dir, order.cache_dir = str(run), str(tmp_path / "cache")
    (tmp_path / "order.json").write_text(order.model_dump_json() + "\n", encoding="utf-8")
    engine = f"{sys.executable} -m worker.engine train < {tmp_path}/order.json"
    script = (
        f"mount -t tmpfs -o size=64m none {small} && mkdir {run} && {ballast};"
        f"{engine} > {tmp_path}/first; echo $?; ls {run}/checkpoints; rm {small}/full;"
        f"{engine} > {tmp_path}/second; echo $?"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(e.EXIT_DISK_FULL), "step-00000004", str(e.EXIT_DONE)], done.stderr[-2000:]
    first = [e.engine_event.validate_json(line) for line in (tmp_path / "first").read_bytes().splitlines()]
    assert "The disk is full" in first[-1].message
    second = [e.engine_event.validate_json(line) for line in (tmp_path / "second").read_bytes().splitlines()]
    resumed = next(event for event in second if event.type == "started")
    assert resumed.resumed_from == "checkpoints/step-00000004"
