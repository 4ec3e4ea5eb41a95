"""What keeping the frozen layers' states gains: the last 4 of 30 layers learn, first pass against later ones.

    python benchmarks/frozen_layers.py [--quick] [--passes 3] [--rows 48] [--rounds 2]

One random model in the 135 M shape (576 wide, 30 layers, 9 heads, 3 kv heads, inner 1,536, vocabulary 49,152, tied),
rows of 60 to 240 tokens, 8 a step, bf16 where the processor has it. Rounds with and without what is kept alternate.
Processor seconds are counted, not the clock: other programs may run. Bars: later passes take at most half of the first,
and the losses agree with those without within 1e-2 (bf16) or 1e-4 (fp32). Exit 1 when one is missed.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder
from benchmarks.training import material
from worker.engine import prefix
from worker.engine.control import NoCommands
from worker.engine.train import train

BATCH = 8


def rows(folder: Path, count: int) -> Path:
    """Questions and answers of digits and letters, so that a token is about a character."""
    generator = np.random.default_rng(0)
    texts = ["".join(chr(c) for c in generator.integers(97, 122, n)) for n in generator.integers(30, 110, 2 * count)]
    some = [{"messages": material.turns(*texts[2 * i : 2 * i + 2])} for i in range(count)]
    return material.write_version(folder, some)


def passes(base: Path, data: Path, out: Path, count: int, is_kept: bool) -> tuple[list[float], list[float], int]:
    """Processor seconds of each pass, the losses, and the tokens of a pass."""
    recipe = RecipeSpec(
        method="last_layers",
        base_source="folder",
        base_ref="base",
        last_layers=4,
        epochs=count,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        evaluate_every_steps=1_000_000,
        checkpoint_every_s=86_400,
        learning_rate=4e-4,
    )
    order = TrainOrder(
        run_id="r",
        attempt_id="a",
        fence=0,
        recipe=recipe,
        base=ModelFiles(base_dir=str(base)),
        data_dir=str(data),
        out_dir=str(out),
        resume=False,
    )
    shares = prefix.MEMORY_SHARE, prefix.DISK_SHARE
    if not is_kept:
        prefix.MEMORY_SHARE = prefix.DISK_SHARE = 0.0
    seconds, losses, tokens, steps, before = [0.0] * count, [], 0, 0, 0.0
    try:
        for event in train(order, NoCommands()):
            now = time.process_time()
            if event.type == "started":
                steps = event.total_steps // count
            elif event.type == "step":
                place = (event.step - 1) // steps
                seconds[place] += now - before
                tokens += event.tokens if place == 0 else 0
                losses.append(event.loss)
                if event.step == steps * count:
                    break
            before = now
    finally:
        prefix.MEMORY_SHARE, prefix.DISK_SHARE = shares
        shutil.rmtree(out, ignore_errors=True)
    return seconds, losses, tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        base = material.base_model(home / "base", "deep" if asked.quick else "135M")
        data = rows(home / "data", asked.rows)
        found: dict[bool, list[list[float]]] = {True: [], False: []}
        losses: dict[bool, list[float]] = {}
        for number in range(asked.rounds):
            for is_kept in (True, False):
                out = home / f"{number}-{is_kept}"
                out.mkdir()
                seconds, losses[is_kept], tokens = passes(base, data, out, asked.passes, is_kept)
                found[is_kept].append(seconds)
                shown = "  ".join(f"{tokens / s:7.0f}" for s in seconds)
                print(f"{'kept' if is_kept else 'run every time':>15}: tokens a processor second by pass {shown}")
    first = statistics.median(row[0] for row in found[True])
    later = statistics.median(s for row in found[True] for s in row[1:])
    plain = statistics.median(s for row in found[False] for s in row[1:])
    apart = max(abs(a - b) / b for a, b in zip(losses[True], losses[False], strict=True))
    is_good = first / later >= 2 and apart <= 1e-2
    print(
        f"first pass / later passes {first / later:.2f} (bar 2.0); later passes without / with {plain / later:.2f}; "
        f"first pass with / without {first / statistics.median(r[0] for r in found[False]):.2f}; "
        f"largest difference of a step's loss {apart:.1e} (bar 1e-2) {'ok' if is_good else 'MISSED'}"
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
