"""Checkpoints: damage is found, named and put aside; the run goes on from the one before; room is kept."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from app.contracts.events import Control
from app.contracts.recipe import TrainOrder
from tests.worker.engine.engine_material import of, run
from worker.engine import checkpoints
from worker.engine.errors import is_disk_full, is_out_of_memory

MakeOrder = Callable[..., TrainOrder]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit": (lambda c: flip_a_bit(c / "weights/adapter_model.safetensors"), "has changed since it was written"),
    "optimizer gone": (lambda c: (c / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "state gone": (lambda c: (c / "state.json").unlink(), "state.json is missing"),
    "cut": (lambda c: (c / "optimizer.safetensors").write_bytes(b"x" * 10), "has 10 bytes instead of"),
    "manifest gone": (lambda c: (c / "MANIFEST.json").unlink(), "manifest is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_and_nothing_else_is_lost(damage: str, make_order: MakeOrder) -> None:
    order = make_order("lora", evaluate_every_steps=2)
    whole = {step.step: step.loss for step in of(run(make_order("lora", out="whole", evaluate_every_steps=2)), "step")}
    run(order, {6: Control(verb="pause")})
    hurt, says = DAMAGES[damage]
    hurt(Path(order.out_dir) / "checkpoints/step-00000006")
    events = run(order)
    told = of(events, "checkpoint_damaged")
    assert [one.dir for one in told] == ["checkpoints/step-00000006"]
    assert says in told[0].reason
    assert of(events, "started")[0].resumed_from == "checkpoints/step-00000004"
    assert {step.step: step.loss for step in of(events, "step")} == {n: whole[n] for n in range(5, 13)}
    assert (Path(order.out_dir) / "checkpoints/corrupt-step-00000006-a1").is_dir()


def test_another_recipe_never_takes_over_the_checkpoint(make_order: MakeOrder) -> None:
    run(make_order("lora"), {4: Control(verb="pause")})
    events = run(make_order("lora", learning_rate=1e-3))
    assert "another recipe" in of(events, "checkpoint_damaged")[0].reason
    assert of(events, "started")[0].step == 0


def test_the_newest_the_best_and_the_one_that_is_recorded_are_kept(make_order: MakeOrder) -> None:
    order = make_order(
        "full", epochs=4, evaluate_every_steps=2, keep_checkpoints=2, learning_rate=5e-2, early_stopping=False
    )
    # The supervisor stands still after step 4, while four more are saved, and then again to the end.
    events = run(order, {4: Control(verb="recorded", value=4), 12: Control(verb="recorded", value=10)})
    best = of(events, "ended")[0].best_step
    kept = {path.name for path in (Path(order.out_dir) / "checkpoints").iterdir()}
    assert kept == {"step-00000022", "step-00000024", f"step-{best:08d}", "step-00000010"}
    assert not any("checkpoints/step-00000004" in saved.removed for saved in of(events, "checkpoint")[:6])
    removed = [name for saved in of(events, "checkpoint") for name in saved.removed]
    assert len(removed) == 12 - len(kept)


def test_a_checkpoint_holds_no_pickle_and_is_readable_by_others(make_order: MakeOrder) -> None:
    order = make_order("full", max_steps=2)
    saved = of(run(order), "checkpoint")[0]
    folder = Path(order.out_dir) / saved.dir
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
    listed = json.loads((folder / "MANIFEST.json").read_text())["files"]
    assert set(listed) == {path.relative_to(folder).as_posix() for path in files} - {"MANIFEST.json"}
    assert checkpoints.damage_of(folder) is None


def test_a_full_disk_is_known_by_what_each_library_says() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.ENOENT, "No such file"))


def test_want_of_memory_is_known_by_what_torch_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
