"""Every method on every family of base models: do they train, does the loss fall, do the files serve?

    python benchmarks/method_matrix.py [--steps 40] [--resume]

Tiny random models in the shapes of GPT-2, Llama, Qwen, Gemma, Phi, Mistral. A cell is a whole run: load, train, save,
load again from the files, check that the weights change the answers, answer. It shows the loss of the first step and on
unseen rows at the end; a run that fails or does not learn makes the exit code 1.

With `--resume` instead: every method, and a new GPT, once in one go and once paused after a third of its steps and gone
on with from the files; every loss, every gradient norm and every weight of the model must be the same to the bit.
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

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from app.contracts.events import Control  # noqa: E402
from app.contracts.recipe import ModelFiles, RecipeSpec, TrainOrder  # noqa: E402
from tests.worker.engine import families  # noqa: E402
from tests.worker.engine.engine_material import COLOURS, SCRATCH, THINGS, TINY, write_version  # noqa: E402
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
# Paused and gone on with: each with the dropout that it may have, so that random numbers count too.
RESUMED: dict[str, dict[str, Any]] = {
    "LoRA, dropout": {"method": "lora", "lora": {**SMALL, "dropout": 0.1}},
    "PiSSA": {"method": "lora", "lora": {**SMALL, "initialisation": "pissa"}},
    "LoRA+": {"method": "lora", "lora": {**SMALL, "b_rate_ratio": 4}},
    "rsLoRA": {"method": "lora", "lora": {**SMALL, "rank_stabilised": True}},
    "DoRA": {"method": "lora", "lora": {**SMALL, "dora": True}},
    "last layers": {"method": "last_layers", "last_layers": 1},
    "full": {"method": "full"},
    "full, Adafactor": {"method": "full", "optimizer": "adafactor"},
    "full, noise and smoothing": {"method": "full", "neftune_alpha": 5, "label_smoothing": 0.1},
    "plain text, full": {"method": "full", "text": True},
    "preferences (DPO), LoRA": {"method": "lora", "lora": SMALL, "learn_from": "preferences"},
    "preferences (DPO), full": {"method": "full", "learn_from": "preferences", "learning_rate": 1e-3},
    "new GPT, Muon, dropout": {**SCRATCH},
    "new GPT, AdamW, text": {**SCRATCH, "optimizer": "adamw", "text": True},
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


class PauseAfter:
    """Says pause before the step after `steps`."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def next(self) -> Control | None:
        self.left -= 1
        return Control(verb="pause") if self.left == -1 else None


def order_of(base: Path | None, data: Path, out: Path, steps: int, asked: dict[str, Any]) -> TrainOrder:
    """An order for a tiny run in a folder of its own."""
    values = {**TINY, "learning_rate": 1e-2, "epochs": 100, "max_steps": steps, "evaluate_every_steps": steps, **asked}
    out.mkdir(exist_ok=True)
    return TrainOrder(
        run_id="r",
        attempt_id="a",
        fence=0,
        recipe=RecipeSpec.model_validate({**values, "sample_max_tokens": 2}),
        base=ModelFiles(base_dir=str(base)) if base else None,
        data_dir=str(data),
        out_dir=str(out),
    )


def cell(base: Path, data: Path, out: Path, steps: int, asked: dict[str, Any]) -> tuple[float, float]:
    """Loss of the first step and of the last look, of a run that left a model behind."""
    first, last, reason = None, None, ""
    for event in train(order_of(base, data, out, steps, asked), NoCommands()):
        if event.type == "step" and first is None:
            first = event.loss
        elif event.type == "evaluated":
            last = event.loss
        elif event.type == "ended":
            reason = event.reason
    if reason != "completed" or first is None or last is None or not any((out / "model").glob("*.safetensors")):
        raise RuntimeError(f"the run ended as {reason}")
    return first, last


def resumed(base: Path | None, data: Path, out: Path, steps: int, asked: dict[str, Any]) -> list[str]:
    """What differs between a run in one go and one that was paused; empty: nothing."""
    whole = list(train(order_of(base, data, out.with_name(f"{out.name}-whole"), steps, asked), NoCommands()))
    order = order_of(base, data, out, steps, asked)
    halves = [*train(order, PauseAfter(steps // 3)), *train(order, NoCommands())]
    differing = []
    if not any(event.type == "started" and event.resumed_from for event in halves):
        differing.append("it was not resumed")
    for kind, names in (("step", ("loss", "grad_norm", "learning_rate")), ("evaluated", ("loss", "accuracy"))):
        one, two = (
            [tuple(getattr(event, name) for name in ("step", *names)) for event in events if event.type == kind]
            for events in (whole, halves)
        )
        if one != two or not one:
            differing.append(kind)
    models = [sorted((folder / "model").glob("*.safetensors")) for folder in (out.with_name(f"{out.name}-whole"), out)]
    if [path.name for path in models[0]] != [path.name for path in models[1]] or not models[0]:
        differing.append("files of the model")
    for one_file, two_file in zip(*models, strict=False):
        before, after = load_file(one_file), load_file(two_file)
        if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
            differing.append(one_file.name)
    return differing


def compare_resumed(home: Path, steps: int) -> list[str]:
    """The table of `--resume`; the names of what differs."""
    texts = [f"What colour is the {thing}? It is {colour}, as here." for thing in THINGS for colour in COLOURS]
    base = families.make("llama", home / "llama", texts)
    versions = {is_text: rows(home / f"rows-{is_text}", is_text) for is_text in (False, True)}
    failed = []
    for method, asked in RESUMED.items():
        own = {key: value for key, value in asked.items() if key != "text"}
        is_scratch = own["method"] == "scratch"
        place = home / "".join(letter if letter.isalnum() else "-" for letter in method)
        try:
            differing = resumed(None if is_scratch else base, versions[bool(asked.get("text"))], place, steps, own)
        except Exception as error:
            traceback.print_exc()
            differing = [repr(error)]
        print(
            f"{method:28}{'the same to the bit' if not differing else 'DIFFERS: ' + ', '.join(differing)}", flush=True
        )
        failed += [method] if differing else []
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resume", action="store_true", help="pause every method and go on")
    options = parser.parse_args()
    steps = options.steps
    started, failed = time.process_time(), []
    if options.resume:
        with tempfile.TemporaryDirectory() as name:
            failed = compare_resumed(Path(name), steps)
        same, seconds = len(RESUMED) - len(failed), time.process_time() - started
        print(f"{same} of {len(RESUMED)} methods go on to the bit, in {seconds:.0f} processor seconds")
        return 1 if failed else 0
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
