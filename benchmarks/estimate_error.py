"""How near the estimate before the start is to the real run: each recipe is measured, then trained as a whole.

    python -m benchmarks.estimate_error [--quick] [--large] [--processor] [--only NAME]

LoRA, last layers, full and DPO on the starter model, a new GPT; with --large also LoRA on a model in the 135 M shape,
few steps. Both are processes of their own, as on the recipe page. Run it on an otherwise idle machine; on a shared one
--processor judges seconds of the processor instead of the clock. Fails when time or memory is off by more than 15 %;
with --quick (one tiny recipe) it only prints.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.contracts.events import Ended, EngineEvent, engine_event
from app.contracts.probe import Probed
from app.contracts.recipe import ModelFiles, RecipeSpec, ScratchSpec, TrainOrder
from app.core.config import ROOT

BAR = 0.15
STARTER = ROOT / "starter" / "model"
CHAT: dict[str, Any] = {
    "base_source": "folder", "base_ref": "bench", "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3,
    "max_length_tokens": 512, "evaluate_every_steps": 40, "validation_rows": 40, "early_stopping": False,
    "sample_max_tokens": 32, "warmup_steps": 5,
}  # fmt: skip
NEW: dict[str, Any] = {
    **CHAT, "base_source": "scratch", "base_ref": None, "method": "scratch", "optimizer": "muon", "batch_size": 16,
    "micro_batch_size": 16, "max_length_tokens": 256, "sample_prompts": ["The", "When"],
    "scratch": ScratchSpec(layers=6, heads=4, width=256, context_length=256, vocabulary_size=2048),
}  # fmt: skip
# name → recipe, rows
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "LoRA": ({**CHAT, "method": "lora", "epochs": 2}, 800),
    "last layers": ({**CHAT, "method": "last_layers", "last_layers": 2, "epochs": 3}, 800),
    "full": ({**CHAT, "method": "full", "epochs": 2}, 800),
    "DPO": ({**CHAT, "method": "lora", "learn_from": "preferences", "epochs": 2}, 300),
    "from scratch": ({**NEW, "epochs": 3}, 600),
}
LARGE: dict[str, tuple[dict[str, Any], int]] = {
    "LoRA, 135 M": ({**CHAT, "method": "lora", "max_steps": 30, "evaluate_every_steps": 15, "validation_rows": 16,
                     "sample_max_tokens": 16}, 300),
}  # fmt: skip
QUICK: dict[str, tuple[dict[str, Any], int]] = {"LoRA": ({**CHAT, "method": "lora", "epochs": 1}, 80)}


def write_rows(folder: Path, count: int, *, is_text: bool) -> Path:
    """Made-up rows of uneven lengths as a frozen version; every tenth for validation, each with a worse answer."""
    from benchmarks.make_rows import rows
    from tests.worker.engine.engine_material import write_version

    draw, made = random.Random(3), []
    for number, (question, answer, _) in enumerate(rows(count, 3)):
        answer = answer[: draw.randint(60, 900)]
        said = [{"role": role, "content": text, "train": True} for role, text in
                (("user", question), ("assistant", answer))]  # fmt: skip
        worse = [{"role": "assistant", "content": answer[: len(answer) // 2] + " I do not know.", "train": True}]
        row = {"kind": "text", "text": f"{question} {answer}"} if is_text else {
            "messages": said, "chosen": said[1:], "rejected": worse,
        }  # fmt: skip
        made.append({**row, "split": "train" if number % 10 else "validation"})
    return write_version(folder, made)


def large_base(folder: Path) -> Path:
    """Random weights in the 135 M shape with a small tokenizer."""
    from benchmarks.training.material import base_model

    return base_model(folder, "135M")


def told(verb: str, order: TrainOrder) -> tuple[list[EngineEvent], float, float]:
    """What the engine's process says to an order, its seconds from start to end, and those of the processor."""
    from worker.trainer import environment

    Path(order.out_dir).mkdir(parents=True)
    began, before = time.monotonic(), os.times()
    child = subprocess.run(
        [sys.executable, "-m", "worker.engine", verb], input=order.model_dump_json() + "\n", stdout=subprocess.PIPE,
        env=environment(), text=True, cwd=ROOT,
    )  # fmt: skip
    wall, after = time.monotonic() - began, os.times()
    if child.returncode:
        raise SystemExit(f"{verb} ended with code {child.returncode}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return [engine_event.validate_json(line) for line in child.stdout.splitlines()], wall, processor


def compare(name: str, values: dict[str, Any], rows: int, home: Path, *, by_processor: bool) -> float:
    """Measure, train, print both; the larger error of time and memory."""
    recipe = RecipeSpec.model_validate(values)
    is_new = recipe.method == "scratch"
    base = None if is_new else ModelFiles(base_dir=str(large_base(home / "large") if "135" in name else STARTER))
    version = write_rows(home / f"rows-{name}", rows, is_text=is_new)
    order = TrainOrder(
        run_id="bench", attempt_id="a", fence=1, recipe=recipe, base=base, data_dir=str(version),
        out_dir=str(home / f"probe-{name}"),
    )  # fmt: skip
    probed = told("probe", order)[0][-1]
    assert isinstance(probed, Probed)
    events, wall, processor = told("train", order.model_copy(update={"out_dir": str(home / f"run-{name}")}))
    ended = events[-1]
    assert isinstance(ended, Ended)
    said = {clock: probed.seconds(recipe, costs) for clock, costs in
            (("wall", probed.wall), ("processor", probed.processor))}  # fmt: skip
    errors = {"wall": said["wall"] / wall - 1, "processor": said["processor"] / processor - 1}
    memory = probed.peak_memory_bytes / ended.peak_memory_bytes - 1
    print(
        f"{name:>13} {ended.step:>5} steps  {said['wall']:7.1f} s {wall:7.1f} s {errors['wall']:+7.1%}   "
        f"{said['processor']:7.1f} s {processor:7.1f} s {errors['processor']:+7.1%}   "
        f"{probed.peak_memory_bytes / 2**20:6.0f} MB {ended.peak_memory_bytes / 2**20:6.0f} MB {memory:+7.1%}",
        flush=True,
    )
    return max(abs(errors["processor" if by_processor else "wall"]), abs(memory))


def main() -> int:
    """Print estimate, real figure and error of every recipe, side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--large", action="store_true", help="also the 135 M shape")
    parser.add_argument("--processor", action="store_true", help="judge processor seconds, not the clock")
    parser.add_argument("--only", default="", help="only recipes whose name holds this")
    options = parser.parse_args()
    cases = QUICK if options.quick else {**CASES, **(LARGE if options.large else {})}
    print(f"{'':>13} {'':>11}  {'estimate':>9} {'real':>9} {'error':>7}   {'processor':>9} {'real':>9} {'error':>7}   "
          f"{'memory':>9} {'real':>9} {'error':>7}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        worst = max(
            compare(name, *case, Path(folder), by_processor=options.processor)
            for name, case in cases.items()
            if options.only in name
        )
    print(f"estimate_error: worst {worst:.1%} off (bar {BAR:.0%}{', not judged' if options.quick else ''})")
    return int(worst > BAR and not options.quick)


if __name__ == "__main__":
    raise SystemExit(main())
