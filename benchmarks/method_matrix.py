"""Every method on every family of base models: do they train, does the loss fall, do the files serve?

    python benchmarks/method_matrix.py [--steps 40]

Tiny random models in the shapes of GPT-2, Llama, Qwen, Gemma, Phi, Mistral. A cell is a whole run: load, train, save,
load again from the files, check that the weights change the answers, answer. It shows the loss of the first step and on
unseen rows at the end; a run that fails or does not learn makes the exit code 1.
"""

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
warnings.filterwarnings("ignore")

from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder  # noqa: E402
from tests.worker.engine import families  # noqa: E402
from tests.worker.engine.engine_material import COLOURS, THINGS, TINY, write_version  # noqa: E402
from worker.engine.control import NoCommands  # noqa: E402
from worker.engine.train import train  # noqa: E402

SMALL = {"rank": 4, "alpha": 8}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "lora", "lora": SMALL, "learning_rate": 2e-2},
    "PiSSA, LoRA+": {"method": "lora", "lora": {**SMALL, "initialisation": "pissa", "b_rate_ratio": 4}},
    "rsLoRA": {"method": "lora", "lora": {**SMALL, "rank_stabilised": True}, "learning_rate": 2e-2},
    "DoRA": {"method": "lora", "lora": {**SMALL, "dora": True}, "learning_rate": 2e-2},
    "last layers": {"method": "last_layers", "last_layers": 1},
    "full": {"method": "full"},
    "full, Adafactor": {"method": "full", "optimizer": "adafactor"},
    "plain text, full": {"method": "full", "text": True},
    "preferences": {"method": "lora", "lora": SMALL, "learn_from": "preferences"},
}


def rows(folder: Path, is_text: bool) -> Path:
    """40 questions with a preferred and a rejected answer, or as plain texts; 8 for validation."""
    made: list[dict[str, Any]] = []
    for i in range(40):
        said = f"The {THINGS[i % 10]} is {COLOURS[i % 6]}, as {THINGS[i % 10]}s are here."
        asked = {"role": "user", "content": f"What colour is the {THINGS[i % 10]}?", "train": True}
        good, bad = ({"role": "assistant", "content": text, "train": True} for text in (said, "Who knows."))
        row = {"kind": "text", "text": said} if is_text else {"messages": [asked, good], "chosen": [good]}
        made.append({**row, "rejected": [] if is_text else [bad], "split": "validation" if i % 5 == 0 else "train"})
    return write_version(folder, made)


def cell(base: Path, data: Path, out: Path, steps: int, asked: dict[str, Any]) -> tuple[float, float]:
    """Loss of the first step and of the last look, of a run that left a model behind."""
    values = {**TINY, "learning_rate": 1e-2, "epochs": 100, "max_steps": steps, "evaluate_every_steps": steps, **asked}
    out.mkdir()
    order = TrainOrder(
        run_id="r",
        attempt_id="a",
        fence=0,
        recipe=RecipeSpec.model_validate({**values, "sample_max_tokens": 2}),
        base=ModelFiles(base_dir=str(base)),
        data_dir=str(data),
        out_dir=str(out),
    )
    first, last, reason = None, None, ""
    for event in train(order, NoCommands()):
        if event.type == "step" and first is None:
            first = event.loss
        elif event.type == "evaluated":
            last = event.loss
        elif event.type == "ended":
            reason = event.reason
    if reason != "completed" or first is None or last is None or not any((out / "model").glob("*.safetensors")):
        raise RuntimeError(f"the run ended as {reason}")
    return first, last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    started, failed = time.process_time(), []
    print(f"{'':18}" + "".join(f"{family:>14}" for family in families.FAMILIES))
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        texts = [f"What colour is the {thing}? It is {colour}, as here." for thing in THINGS for colour in COLOURS]
        bases = {family: families.make(family, home / family, texts) for family in families.FAMILIES}
        versions = {is_text: rows(home / f"rows-{is_text}", is_text) for is_text in (False, True)}
        for method, asked in METHODS.items():
            shown = []
            own = {key: value for key, value in asked.items() if key != "text"}
            for family, base in bases.items():
                try:
                    place = home / f"{method}-{family}"
                    first, last = cell(base, versions[bool(asked.get("text"))], place, steps, own)
                except Exception:
                    traceback.print_exc()
                    first, last = 0.0, 0.0
                shown.append(f"{first:6.2f} →{last:5.2f}" + (" " if last < 0.97 * first else "✗"))
                failed += [] if last < 0.97 * first else [f"{method} on {family}"]
            print(f"{method:18}" + "".join(f"{text:>14}" for text in shown), flush=True)
    cells = len(METHODS) * len(families.FAMILIES)
    print(
        f"{cells - len(failed)} of {cells} learned and serve, in {time.process_time() - started:.0f} processor seconds"
    )
    print("failed: " + ", ".join(failed) if failed else "all well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
