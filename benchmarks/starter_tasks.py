"""What three minutes of tuning make of the starter model: all 77 intents of Banking77, by LoRA and by full tuning.

    python benchmarks/starter_tasks.py [--methods lora full] [--cpu] [--rows 1000] [--base DIR]

The model writes the name of the intent; an answer counts when it is that name, letter for letter. The share of right
answers on test rows, with Wilson's interval, stands beside the nearest training row (words, TF-IDF), the most frequent
intent and the model before tuning. Bars: LoRA 70 %, full 85 %, each trained within 180 s on two cores. `--cpu` counts
the seconds of one thread instead, twice as many, for a machine that is busy.
"""

import argparse
import csv
import gzip
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, Sampling
from app.contracts.recipe import ModelFiles, Overlay, RecipeSpec, TrainOrder
from app.evaluations.baselines import Nearest, majority
from app.evaluations.statistics import wilson
from starter.build import SCHEMA
from worker.engine.control import NoCommands
from worker.engine.generate import Generation, Loaded, load
from worker.engine.slots import Slots
from worker.engine.train import train

HERE = Path(__file__).parent
LIMIT_S = 180.0
BARS = {"lora": 70.0, "full": 85.0}
AT_ONCE = 16
COMMON: dict[str, Any] = {
    "base_source": "starter",
    "batch_size": 32,
    "micro_batch_size": 32,
    "max_length_tokens": 128,
    "warmup_steps": 20,
    "validation_rows": 100,
    "evaluate_every_steps": 1000,
    "checkpoint_every_s": 3600,
    "early_stopping": False,
    "use_instruction": False,
    "sample_prompts": ["I am still waiting on my card?"],
    "sample_max_tokens": 12,
}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {
        "method": "lora",
        "lora": {"rank": 64, "alpha": 64, "initialisation": "pissa"},
        "learning_rate": 2e-3,
        "epochs": 3.3,
    },
    "full": {"method": "full", "learning_rate": 2e-3, "epochs": 3.3, "weight_decay": 0.01},
}


def read(name: str) -> list[tuple[str, str]]:
    """Questions and the names of their intents, in words."""
    text = gzip.decompress((HERE / "data" / "banking77" / f"{name}.csv.gz").read_bytes()).decode()
    rows = csv.DictReader(io.StringIO(text))
    return [(" ".join(row["text"].split()), row["category"].replace("_", " ")) for row in rows]


def version(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A frozen version: one row in fifty for validation."""
    folder.mkdir()
    made = []
    for place, (question, intent) in enumerate(random.Random(1).sample(rows, len(rows))):
        turns = [("user", question, False), ("assistant", intent, True)]
        messages = [{"role": role, "content": content, "train": train} for role, content, train in turns]
        split = "validation" if place % 50 == 0 else "train"
        made.append({"_rid": place, "split": split, "kind": "chat", "messages": messages, "text": "", "meta": "{}"})
    pq.write_table(pa.Table.from_pylist(made, SCHEMA), folder / "data-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({"rows": len(made)}), encoding="utf-8")
    return folder


def tune(spec: RecipeSpec, base: Path, data: Path, out: Path) -> tuple[ModelFiles, float, float, int]:
    """The tuned model, wall and processor seconds from loading to its last file, steps."""
    order = TrainOrder(
        run_id="r", attempt_id="a", fence=0, recipe=spec, base=ModelFiles(base_dir=str(base)),
        data_dir=str(data), out_dir=str(out),
    )  # fmt: skip
    out.mkdir()
    wall, cpu, steps, kind = time.monotonic(), time.process_time(), 0, None
    for event in train(order, NoCommands()):
        if event.type == "step":
            steps = event.step
        elif event.type == "ended":
            kind = event.model_kind
            if kind is None:
                raise SystemExit(f"the run ended as {event.reason}: {event.message}")
    spent = time.monotonic() - wall, time.process_time() - cpu
    if kind == "whole":
        return ModelFiles(base_dir=str(out / "model")), *spent, steps
    return ModelFiles(base_dir=str(base), overlays=[Overlay(kind="lora", dir=str(out / "model"))]), *spent, steps


def answers(files: ModelFiles, questions: list[str], loaded: Loaded | None = None) -> list[str]:
    """Greedy answers, made together; `loaded`: the model, where it is in memory."""
    loaded = loaded or load(files)
    slots, waiting, said = Slots(loaded), list(enumerate(questions)), [""] * len(questions)
    places: dict[int, int] = {}
    while waiting or slots.answers:
        while waiting and len(slots.answers) < AT_ONCE:
            place, question = waiting.pop()
            asked = GenerationRequest(
                model_ref="m", workspace_id="w", files=files, messages=[Message(role="user", content=question)],
                sampling=Sampling(temperature=0.0, max_tokens=24),
            )  # fmt: skip
            answer = Generation(loaded, asked)
            places[id(answer)] = place
            slots.add(answer)
        for answer, event in slots.step():
            said[places[id(answer)]] += event.text
    return [text.strip() for text in said]


def line(name: str, said: list[str], wanted: list[str]) -> float:
    """Print a system's share of right answers with its interval; the share, in percent."""
    score = wilson(sum(a == b for a, b in zip(said, wanted, strict=True)), len(wanted))
    print(f"{name:34}{100 * score.value:6.1f} %   {100 * score.low:.1f} to {100 * score.high:.1f} %", flush=True)
    return 100 * score.value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--base", type=Path, default=HERE.parent / "starter" / "model")
    parser.add_argument("--rows", type=int, default=3080, help="test rows, drawn with a seed")
    parser.add_argument("--cpu", action="store_true", help="one thread, and its processor seconds")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="change the recipes (to search)")
    options = parser.parse_args()
    changed = {name: json.loads(value) for name, value in (item.split("=", 1) for item in options.set)}
    threads = 1 if options.cpu else None
    rows, tests = read("train"), read("test")
    tests = random.Random(1).sample(tests, min(options.rows, len(tests)))
    questions, wanted = [q for q, _ in tests], [a for _, a in tests]
    nearest = Nearest([q for q, _ in rows], [a for _, a in rows])
    line("nearest training row", nearest.answers_for(questions), wanted)
    line("most frequent intent", [majority([a for _, a in rows])] * len(tests), wanted)
    line("before tuning", answers(ModelFiles(base_dir=str(options.base)), questions), wanted)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        data = version(Path(name) / "version", rows)
        for method in options.methods:
            spec = RecipeSpec.model_validate({**COMMON, **RECIPES[method], **changed, "threads": threads})
            files, wall, cpu, steps = tune(spec, options.base, data, Path(name) / method)
            torch.set_num_threads(1 if options.cpu else torch.get_num_threads())
            right = line(method, answers(files, questions), wanted)
            print(f"    {steps} steps, {wall:.0f} s, {cpu:.0f} processor seconds", flush=True)
            spent, limit = (cpu, 2 * LIMIT_S) if options.cpu else (wall, LIMIT_S)
            failed += [method] if right < BARS[method] or spent > limit else []
    print("missed: " + ", ".join(failed) if failed else "all bars met")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
