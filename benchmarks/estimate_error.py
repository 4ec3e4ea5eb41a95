"""How far the estimate before the start is from the real run: new GPTs of several sizes, each trained twice.

The first run of a size is estimated by formula, the second by what the first one took, as on the recipe page. Run it on
an otherwise idle machine: `python -m benchmarks.estimate_error [--quick]`. Fails when a second estimate is off by more
than 15 %; with --quick (seconds instead of minutes, one tiny size) it only prints.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from app.contracts.events import Ended, Step, engine_event
from app.contracts.recipe import RecipeSpec, ScratchSpec

BAR = 0.15
# name → layers, heads, width, rows, passes
SIZES = {
    "1 M": (4, 4, 128, 3000, 4.0),
    "6 M": (6, 4, 256, 3000, 3.0),
    "15 M": (6, 6, 288, 2000, 2.0),
}


def recipe_of(layers: int, heads: int, width: int, epochs: float) -> RecipeSpec:
    """A new GPT on plain text, with looks, answers and checkpoints as the page proposes them."""
    shape = ScratchSpec(layers=layers, heads=heads, width=width, context_length=256, vocabulary_size=2048)
    return RecipeSpec(
        method="scratch", base_source="scratch", scratch=shape, epochs=epochs, batch_size=16, micro_batch_size=16,
        max_length_tokens=256, learning_rate=5e-3, optimizer="muon", evaluate_every_steps=40, validation_rows=50,
        early_stopping=False, sample_prompts=["the cat", "a dog"],
    )  # fmt: skip


def trained(recipe: RecipeSpec, version: Path, out: Path) -> tuple[float, float, float, int, str]:
    """(seconds from start to end, seconds before the first step, seconds of the steps, tokens, device)."""
    from app.supervisor import training
    from worker.trainer import environment

    order = training.order_of(recipe, version_dir=version, base=None, out_dir=out, instruction="", resume=False)
    out.mkdir(parents=True)
    began, first, steps_s, tokens, device, reason = time.monotonic(), None, 0.0, 0, "cpu", ""
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.engine", "train"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(), text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(order.model_dump_json() + "\n")
    child.stdin.flush()
    for line in child.stdout:
        event = engine_event.validate_json(line)
        if isinstance(event, Step):
            first = first if first is not None else time.monotonic() - began - event.step_s
            steps_s, tokens = steps_s + event.step_s, tokens + event.tokens
        elif isinstance(event, Ended):
            reason = event.reason
        device = getattr(event, "device", device)
    child.wait()
    if reason != "completed" or first is None:
        raise SystemExit(f"the run ended as {reason or 'nothing'}, code {child.returncode}")
    return time.monotonic() - began, first, steps_s, tokens, device


def main() -> int:
    """Print estimate and real figure of every size, side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    sizes = {"0.1 M": (2, 2, 64, 200, 3.0)} if quick else SIZES
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPT_BUILDER_HOME"] = folder
        worst = compare(sizes, Path(folder))
    print(f"worst second estimate: {worst:.1%} off (bar {BAR:.0%}{', not judged' if quick else ''})")
    return int(worst > BAR and not quick)


def compare(sizes: dict[str, tuple[int, int, int, int, float]], home: Path) -> float:
    """Train every size twice; the largest error of the second estimates."""
    from app.core import db
    from app.core.db import transaction
    from app.datasets.models import DatasetVersion
    from app.models import Base
    from app.recipes import calibration, material
    from app.recipes.base_facts import from_scratch
    from app.recipes.estimate import estimate
    from app.recipes.machine import this_machine
    from tests.factories import a_world

    Base.metadata.create_all(db.get_engine())
    machine, worst = this_machine(), 0.0
    print(f"{'size':>6} {'estimate':>9} {'real':>8} {'error':>7}  {'loading':>8} {'steps':>8} {'memory':>9}")
    for number, (name, (layers, heads, width, rows, epochs)) in enumerate(sizes.items()):
        with transaction() as session:
            version_id = a_world(session, rows=rows).version_id
            version = session.get_one(DatasetVersion, version_id)
            counts = version.train_rows, version.validation_rows
        recipe = recipe_of(layers, heads, width, epochs)
        assert recipe.scratch is not None
        facts = from_scratch(recipe.scratch)
        seen = material.measure(version_id, kind="text", train_rows=counts[0], validation_rows=counts[1], test_rows=0)
        for turn in ("formula", "measured"):
            with transaction() as session:
                known = calibration.measured(session, machine, facts.parameters)
            said = estimate(recipe, facts, seen, machine, measured=known)
            place = home / "versions" / version_id
            took, start_s, steps_s, tokens, device = trained(recipe, place, home / f"out-{number}-{turn}")
            with transaction() as session:
                calibration.record(
                    session, estimate=said.model_dump(), method="scratch", device=device, tokens=tokens,
                    trained_s=steps_s, elapsed_s=took, start_s=start_s,
                )  # fmt: skip
            error = abs(said.seconds - took) / took
            worst = max(worst, error) if turn == "measured" else worst
            print(
                f"{name:>6} {said.seconds:8.1f}s {took:7.1f}s {error:6.1%}  {start_s:7.1f}s {steps_s:7.1f}s "
                f"{said.memory_bytes / 1e6:7.0f}MB  ({turn})",
                flush=True,
            )
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
