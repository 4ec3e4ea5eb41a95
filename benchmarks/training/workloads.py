"""The workloads of `training_throughput.py`: each measures ours and its peer in turn and tells rows of a table."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.contracts.recipe import RecipeSpec, ScratchSpec
from benchmarks.training import corpora, material
from benchmarks.training.running import Found, Setting, median, nanogpt, ours, recipe_of, trl


@dataclass(frozen=True)
class Row:
    """One line: what was found against what was asked. `bar` None: told, not judged; `most`: the bar is a ceiling."""

    name: str
    value: float
    bar: float | None
    about: str = ""
    most: bool = False

    @property
    def is_good(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.most else self.value >= self.bar)


def inputs(setting: Setting, shape: str) -> tuple[Path, Path, Path]:
    """(base, version, rows for the peers)."""
    base = material.base_model(setting.home / shape, shape)
    version = material.version_of(setting.home / "rows", 400)
    rows = material.peer_rows(setting.home / "rows.jsonl", base, version, setting.home / "tokens", seed=1)
    return base, version, rows


def _against_trl(setting: Setting, method: str, shape: str, bars: dict[str, float]) -> Iterator[Row]:
    """Ours, TRL at its best, and once TRL as it comes; in turn."""
    base, version, rows = inputs(setting, shape)
    steps = setting.warm + setting.steps
    found: dict[str, list[Found]] = {}
    for number in range(setting.rounds):
        recipe = recipe_of(method, steps, setting.threads)
        found.setdefault("ours", []).append(ours(setting, recipe, base, version, steps))
        found.setdefault("best", []).append(trl(setting, method, "best", base, rows, steps))
        if not number and "default" in bars:
            few = setting.warm + max(3, setting.steps // 3)
            found["default"] = [trl(setting, method, "default", base, rows, few)]
    rates = {name: median([one.rate(setting) for one in some]) for name, some in found.items()}
    peaks = {name: median([one.peak_bytes for one in some]) / 1e9 for name, some in found.items()}
    name = f"{method} {shape}"
    for peer in [peer for peer in ("best", "default") if peer in bars]:
        about = f"{rates['ours']:.0f} against {rates[peer]:.0f} tokens/{setting.unit}"
        yield Row(f"{name}, times TRL {peer}", rates["ours"] / rates[peer], bars[peer], about)
    about = f"{peaks['ours']:.2f} against {peaks['best']:.2f} GB"
    yield Row(f"{name}, memory of TRL best's", peaks["ours"] / peaks["best"], bars.get("memory"), about, most=True)


def lora_15m(setting: Setting) -> Iterator[Row]:
    """LoRA on every linear layer, small shape."""
    yield from _against_trl(setting, "lora", "15M", {"best": 2.5, "default": 5.0, "memory": 0.65})


def lora_135m(setting: Setting) -> Iterator[Row]:
    """LoRA on every linear layer, larger shape."""
    yield from _against_trl(setting, "lora", "135M", {"best": 2.5, "default": 5.0, "memory": 0.65})


def full_135m(setting: Setting) -> Iterator[Row]:
    """Everything learns."""
    yield from _against_trl(setting, "full", "135M", {"best": 1.6})


def last_layers(setting: Setting) -> Iterator[Row]:
    """The last 4 of 30 layers: the first pass, later ones, and TRL with the same layers frozen."""
    base, _, rows = inputs(setting, "135M")
    epoch = 4 if setting.quick else 10
    few = material.write_version(
        setting.home / "few", [{"messages": turns} for turns in material.conversations(8 * epoch)]
    )
    first, later, best = [], [], []
    for _ in range(setting.rounds):
        found = ours(setting, recipe_of("last_layers", 3 * epoch, setting.threads), base, few, 3 * epoch)
        first.append(found.rate(setting, 1, epoch))
        later.append(found.rate(setting, epoch))
        steps = setting.warm + setting.steps
        best.append(trl(setting, "last_layers", "best", base, rows, steps).rate(setting))
    about = f"{median(later):.0f} against {median(best):.0f} tokens/{setting.unit}"
    yield Row("last 4 of 30 layers, later passes, times TRL best", median(later) / median(best), 4.5, about)
    about = f"{median(first):.0f} in the first"
    yield Row("last 4 of 30 layers, later passes, times the first", median(later) / median(first), 2.0, about)


def equal_losses(setting: Setting) -> Iterator[Row]:
    """Loss of each step against TRL with the same rows a step."""
    base, version, rows = inputs(setting, "15M")
    for precision, settings, bar in (("bf16", "same steps", 1e-2), ("fp32", "same steps, fp32", 1e-4)):
        steps = 8 if setting.quick else 40
        recipe = recipe_of("lora", steps, setting.threads, precision=precision)
        mine = ours(setting, recipe, base, version, steps).losses
        theirs = trl(setting, "lora", settings, base, rows, steps).losses
        apart = max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))
        about = f"{steps} steps, last {mine[-1]:.4f} against {theirs[-1]:.4f}"
        yield Row(f"loss a step, {precision}, largest difference", apart, bar, about, most=True)


def shakespeare(setting: Setting) -> Iterator[Row]:
    """Characters of Shakespeare in nanoGPT's setting for a CPU, until the validation loss is 1.88."""
    folder, text = os.environ.get("NANOGPT"), os.environ.get("SHAKESPEARE")
    if not folder or not text:
        print("shakespeare: not run, NANOGPT and SHAKESPEARE name its folder and the text")
        return
    data, version, tokenizer = corpora.characters(setting.home / "characters", Path(text))
    shape = {"block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0}
    steps = {"max_iters": 2000, "lr_decay_iters": 2000, "eval_iters": 20, "compile": False}
    peer = nanogpt(setting, Path(folder), data, {**shape, **steps})[-1]
    scratch = ScratchSpec(layers=4, heads=4, width=128, context_length=64, tokenizer="characters")
    recipe = _from_scratch(setting, scratch, batch=12, length=65, rate=1.5e-2, steps=700, every=50, rows=240)
    found = ours(setting, recipe, None, version, 10**9, until=1.88, tokenizer=str(tokenizer))
    yield _sooner("Shakespeare by characters to 1.88, share of nanoGPT's time", found, peer, 1.88, 0.25, setting)


def corpus_8m(setting: Setting) -> Iterator[Row]:
    """About 8 million weights on the starter corpus: until the loss that nanoGPT has after its time."""
    folder, corpus = os.environ.get("NANOGPT"), os.environ.get("STARTER_CORPUS")
    if not folder or not corpus:
        print("corpus_8m: not run, NANOGPT and STARTER_CORPUS name its folder and the corpus")
        return
    data, version, tokenizer = corpora.corpus(setting.home / "corpus", Path(corpus))
    seconds = 40.0 if setting.quick else 600.0
    shape = {"block_size": 256, "batch_size": 16, "n_layer": 6, "n_head": 5, "n_embd": 320, "dropout": 0.0}
    shape |= {"eval_iters": 10, "compile": not setting.quick, "warmup_iters": 50}
    # Each rate for a short while without decay; the best one with a decay that ends when its time does.
    tried = {}
    for rate in (1e-3,) if setting.quick else (5e-4, 1e-3, 2e-3):
        trial = {**shape, "learning_rate": rate, "decay_lr": False, "eval_interval": 20, "compile": False}
        tried[rate] = nanogpt(setting, Path(folder), data, trial, 0.1 * seconds)[-1]
    rate = min(tried, key=lambda r: tried[r]["loss"])
    count = int(tried[rate]["step"] / tried[rate][setting.unit] * seconds)
    last = {"max_iters": count, "lr_decay_iters": count, "learning_rate": rate, "min_lr": rate / 10}
    best = nanogpt(setting, Path(folder), data, {**shape, **last, "eval_interval": count})[-1]
    scratch = ScratchSpec(layers=6, heads=5, width=320, context_length=256, vocabulary_size=4096)
    steps = 30 if setting.quick else 400
    recipe = _from_scratch(setting, scratch, batch=8, length=257, rate=7e-3, steps=steps, every=5, rows=60)
    more = {"until": best["loss"], "tokenizer": str(tokenizer), "seconds": seconds}
    found_ours = ours(setting, recipe, None, version, 10**9, **more)
    yield _sooner("8 M from scratch, share of nanoGPT's time", found_ours, best, best["loss"], 0.5, setting)


def _from_scratch(
    setting: Setting, scratch: ScratchSpec, *, batch: int, length: int, rate: float, steps: int, every: int, rows: int
) -> RecipeSpec:
    return recipe_of(
        "scratch", steps, setting.threads, base_source="scratch", base_ref=None, scratch=scratch, optimizer="muon",
        adamw_learning_rate=rate / 2, learning_rate=rate, batch_size=batch, micro_batch_size=batch,
        max_length_tokens=length, schedule="linear", warmup_steps=20, weight_decay=0.0, evaluate_every_steps=every,
        validation_rows=rows, sample_max_tokens=1,
    )  # fmt: skip


def _sooner(name: str, found: Found, peer: dict[str, float], goal: float, bar: float, setting: Setting) -> Row:
    last = found.evaluated[-1]
    value = last[setting.unit] / peer[setting.unit] if last["loss"] <= goal else float("inf")
    about = f"{last['loss']:.3f} after {last[setting.unit]:.0f} s, nanoGPT {peer['loss']:.3f} after "
    return Row(name, value, bar, f"{about}{peer[setting.unit]:.0f} s", most=True)


def busy(setting: Setting) -> Iterator[Row]:
    """Two threads while one other process counts: how much speed is left. By the clock only."""
    if setting.unit == "cpu":
        print("busy: not run, it needs the clock and two idle cores")
        return
    base, version, _ = inputs(setting, "6M")
    recipe, steps = recipe_of("lora", 60, setting.threads), setting.warm + setting.steps
    rates: dict[bool, list[float]] = {True: [], False: []}
    for is_busy in (False, True) * setting.rounds:
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if is_busy else None
        try:
            rates[is_busy].append(ours(setting, recipe, base, version, steps).rate(setting))
        finally:
            if other:
                other.kill()
                other.wait()
    about = f"{median(rates[True]):.0f} of {median(rates[False]):.0f} tokens/s"
    yield Row(
        "LoRA 6 M beside one busy process, share of its speed", median(rates[True]) / median(rates[False]), 0.75, about
    )


def start(setting: Setting) -> Iterator[Row]:
    """10,000 rows, never tokenised before: until the first step is done. By the clock only."""
    if setting.unit == "cpu":
        print("start: not run, it needs the clock and an idle machine")
        return
    base = material.base_model(setting.home / "15M", "15M")
    version = material.version_of(setting.home / "many", 10_000)
    found = [ours(setting, recipe_of("lora", 1, setting.threads), base, version, 1) for _ in range(setting.rounds)]
    seconds = median([one.start_s + one.import_s for one in found])
    about = f"libraries {median([one.import_s for one in found]):.1f} s of it"
    yield Row("start to first step, 10,000 rows, s", seconds, 5.0, about, most=True)


WORKLOADS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "lora_15m": lora_15m,
    "lora_135m": lora_135m,
    "last_layers": last_layers,
    "full_135m": full_135m,
    "equal_losses": equal_losses,
    "shakespeare": shakespeare,
    "corpus_8m": corpus_8m,
    "busy": busy,
    "start": start,
}
