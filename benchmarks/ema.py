"""Does a moving average of the weights (EMA) pay from scratch? Held-out loss with and without it at equal steps.

The averages are taken beside one training of the starter's size, so steps, rows and seed are the same for all of them:
`python -m benchmarks.ema CORPUS [--steps 300] [--schedule wsd]`, CORPUS a .jsonl or .jsonl.gz file with rows of "text".
Fails when an average is better at the end by more than 1 %: then the engine should have one.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from app.contracts.recipe import RecipeSpec, ScratchSpec, TrainOrder
from worker.engine import devices, evaluate, optim
from worker.engine.data import order as row_order
from worker.engine.loss import summed_loss
from worker.engine.packing import pack
from worker.engine.position import Position
from worker.engine.prepare import Material, prepare

DECAYS = (0.8, 0.9, 0.95, 0.98)
PAYS = 0.01
MOST_CHARACTERS = 20_000  # of one text


def rows_of(corpus: Path, count: int) -> Iterator[str]:
    """The first `count` texts."""
    with gzip.open(corpus, "rt") if corpus.suffix == ".gz" else corpus.open() as file:
        for line in islice(file, count):
            yield str(json.loads(line)["text"])[:MOST_CHARACTERS]


def write_version(texts: Iterator[str], folder: Path) -> None:
    """Texts as a frozen version; every twentieth is held out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from app.datasets.freezing import FROZEN

    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = [
        {"_rid": i, "split": "train" if i % 20 else "validation", "kind": "text", "messages": [], "text": text,
         "meta": "{}"}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=FROZEN), folder / "data-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({"rows": len(rows)}))


def recipe_of(steps: int, schedule: str) -> RecipeSpec:
    """The starter model's shape and schedule (see starter/recipe.yaml), shortened to `steps`."""
    shape = ScratchSpec(layers=8, heads=5, width=320, context_length=512, vocabulary_size=4096)
    return RecipeSpec.model_validate(
        {
            "method": "scratch", "base_source": "scratch", "scratch": shape, "max_steps": steps, "epochs": 100,
            "batch_size": 4, "micro_batch_size": 4, "max_length_tokens": 512, "optimizer": "muon",
            "learning_rate": 7e-3, "adamw_learning_rate": 4e-3, "weight_decay": 0.1, "schedule": schedule,
            "decay_share": 0.4, "final_learning_rate_ratio": 0.0 if schedule == "wsd" else 1.0,
            "warmup_steps": max(5, steps // 30), "validation_rows": 16,
        }
    )  # fmt: skip


def looked(material: Material, device: devices.Device, recipe: RecipeSpec) -> float:
    """Loss in nats a token on the held-out rows."""
    material.model.eval()
    position = Position(4, 1.0, 1.0, 1)
    loss = evaluate.evaluate(material, device, recipe, position).loss
    material.model.train()
    return loss


def main() -> int:
    """Train once, print held-out losses of the weights and of each average."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--schedule", choices=("wsd", "constant"), default="wsd")
    options = parser.parse_args()
    recipe = recipe_of(options.steps, options.schedule)
    with tempfile.TemporaryDirectory() as folder:
        write_version(rows_of(options.corpus, options.rows), Path(folder) / "version")
        gain = compare(recipe, Path(folder))
    print(f"ema: best average {gain:+.2%} against the weights at the end (worth having above {PAYS:+.0%})")
    return int(gain > PAYS)


def compare(recipe: RecipeSpec, folder: Path) -> float:
    """How much lower the best average's loss is at the end, as a share."""
    device = devices.choose(recipe)
    devices.set_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    order = TrainOrder(
        run_id="ema", attempt_id="a", fence=1, recipe=recipe, data_dir=str(folder / "version"), out_dir=str(folder)
    )
    steps = prepare(order, device, recipe.micro_batch_size)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            material = end.value
            break
    rows, named = material.train_rows, optim.learning_parameters(material.model)
    optimizers = optim.build(named, recipe, material.embedding_ids)
    averages = {decay: [p.detach().clone() for _, p in named] for decay in DECAYS}
    total, per_pass = recipe.max_steps or 0, recipe.steps_per_epoch(len(rows))
    print(f"{sum(p.numel() for _, p in named) / 1e6:.1f} M parameters, {rows.offsets[-1]} tokens, {recipe.schedule}")
    print(f"{'step':>6} {'weights':>9}" + "".join(f" {f'ema {decay}':>10}" for decay in DECAYS) + "   CPU s")
    gain = 0.0
    material.model.train()
    for step in range(total):
        epoch, offset = divmod(step, per_pass)
        chosen = row_order(rows, recipe.seed, epoch)[offset * recipe.batch_size : (offset + 1) * recipe.batch_size]
        optim.set_rate(optimizers, optim.rate_factor(step, total, recipe))
        batch = pack([rows.row(i) for i in rows.of(chosen)], device.device)
        with device.autocast():
            loss, _ = summed_loss(material.model, batch)
        (loss / batch.supervised).backward()
        optim.clip(named, recipe.clip_norm)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for decay, kept in averages.items():
            # At first the mean of all so far: an average that begins at random weights would lag for ever.
            share = max(1 - decay, 1 / (1 + step))
            torch._foreach_lerp_(kept, [p.detach() for _, p in named], share)
        if (step + 1) % max(1, total // 3) == 0 or step + 1 == total:
            plain = looked(material, device, recipe)
            found = [with_weights(material, device, recipe, named, kept) for kept in averages.values()]
            gain = 1 - min(found) / plain
            words = "".join(f" {value:10.4f}" for value in found)
            print(f"{step + 1:6d} {plain:9.4f}{words} {time.process_time():7.0f}", flush=True)
    return gain


def with_weights(
    material: Material, device: devices.Device, recipe: RecipeSpec, named: optim.Named, kept: list[torch.Tensor]
) -> float:
    """The loss with other weights, which are taken out again."""
    own = [p.detach().clone() for _, p in named]
    try:
        with torch.no_grad():
            torch._foreach_copy_([p for _, p in named], kept)
        return looked(material, device, recipe)
    finally:
        with torch.no_grad():
            torch._foreach_copy_([p for _, p in named], own)


if __name__ == "__main__":
    sys.exit(main())
