"""Models from scratch beside nanoGPT's `train.py`: the same text as the same tokens, until the loss that it reaches.

Ours is the recipe that the product proposes for a new model of the shape; only its length is chosen here.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.contracts.recipe import RecipeSpec, ScratchSpec
from app.recipes import base_facts, defaults
from benchmarks.training import corpora, material
from benchmarks.training.running import Found, Row, Setting, nanogpt, ours, recipe_of

GOAL = 1.88
SHAKESPEARE_STEPS = 370
QUICK_RATE = 1e-3  # what nanoGPT's own settings for small models say; the full form tries three
RATES = (5e-4, 1e-3, 2e-3)
TRIED_STEPS = 12
QUICK_S, WHOLE_S = 240.0, 600.0  # of nanoGPT's training
SHARE = 0.45  # of the peer's time: how long our run on the corpus is planned to be


def shakespeare(setting: Setting) -> Iterator[Row]:
    """Characters of Shakespeare in nanoGPT's setting for a CPU, until the validation loss is 1.88."""
    folder, text = os.environ.get("NANOGPT"), os.environ.get("SHAKESPEARE")
    if not folder or not text:
        print("shakespeare: not run, NANOGPT and SHAKESPEARE name its folder and the text")
        return
    data, version, tokenizer = corpora.characters(setting.home / "characters", Path(text))
    shape = {"block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0}
    steps = {"max_iters": 2000, "lr_decay_iters": 2000, "eval_iters": 20, "compile": False}
    peer = nanogpt(setting, Path(folder), data, {**shape, **steps}, told_as="shakespeare")[-1]
    scratch = ScratchSpec(layers=4, heads=4, width=128, context_length=64, tokenizer="characters")
    recipe = recipe_from_scratch(setting, scratch, SHAKESPEARE_STEPS, looks=5, rows=240)
    found = ours(setting, recipe, None, version, 10**9, until=GOAL, tokenizer=str(tokenizer))
    yield _sooner("Shakespeare by characters to 1.88, share of nanoGPT's time", found, peer, GOAL, 0.25, setting)


def corpus_8m(setting: Setting) -> Iterator[Row]:
    """About 8 million weights on the starter corpus: until the loss that nanoGPT has after its time, compiled where
    there is a compiler. `--quick`: four minutes at one rate."""
    folder, corpus = os.environ.get("NANOGPT"), os.environ.get("STARTER_CORPUS")
    if not folder or not corpus:
        print("corpus_8m: not run, NANOGPT and STARTER_CORPUS name its folder and the corpus")
        return
    place = Path(folder)
    _say(setting, "the corpus becomes tokens")
    data, version, tokenizer = corpora.corpus(setting.home / "corpus", Path(corpus))
    seconds = QUICK_S if setting.quick else WHOLE_S
    shape: dict[str, Any] = {"block_size": 256, "batch_size": 16, "n_layer": 6, "n_head": 5, "n_embd": 320}
    shape |= {"dropout": 0.0, "warmup_iters": 50, "compile": shutil.which("g++") is not None}
    _say(setting, f"nanoGPT's speed, {'compiled' if shape['compile'] else 'not compiled: there is no g++'}")
    few = {"eval_iters": 1, "max_iters": TRIED_STEPS, "lr_decay_iters": TRIED_STEPS, "eval_interval": TRIED_STEPS}
    step_s = nanogpt(setting, place, data, {**shape, **few}, told_as="speed")[-1][setting.unit] / (TRIED_STEPS - 1)
    rate = QUICK_RATE if setting.quick else _best_rate(setting, place, data, shape, int(60 / step_s))
    count = int(seconds / step_s)
    _say(setting, f"nanoGPT trains for about {seconds:.0f} s: {count} steps at {rate:g}")
    last = {"max_iters": count, "lr_decay_iters": count, "learning_rate": rate, "min_lr": rate / 10}
    last |= {"eval_interval": count, "eval_iters": 10}
    best = nanogpt(setting, place, data, {**shape, **last}, told_as="nanoGPT")[-1]
    more = {"tokenizer": str(tokenizer), "cache": str(setting.home / "corpus" / "tokens")}
    scratch = ScratchSpec(layers=6, heads=5, width=320, context_length=256, vocabulary_size=4096)
    few_recipe = recipe_from_scratch(setting, scratch, TRIED_STEPS, looks=1, rows=0)
    _say(setting, "our speed")
    tried = ours(setting, few_recipe, None, version, TRIED_STEPS, **more).steps[2:]
    mine_s = sum(step[setting.unit] for step in tried) / len(tried)
    steps = int(SHARE * best[setting.unit] / mine_s)
    _say(
        setting, f"ours trains until {best['loss']:.3f}, for {SHARE * best[setting.unit]:.0f} s at most: {steps} steps"
    )
    recipe = recipe_from_scratch(setting, scratch, steps, looks=10, rows=100)
    found = ours(setting, recipe, None, version, 10**9, until=best["loss"], **more)
    yield _sooner("8 M from scratch, share of nanoGPT's time", found, best, best["loss"], 0.5, setting)


def characters_128(setting: Setting, steps: int, **more: Any) -> Found:
    """A new model of 4 layers 128 wide on the characters of seeded conversations, by the product's recipe."""
    text = setting.home / "talk.txt"
    text.write_text("\n".join(str(turn) for turns in material.conversations(400) for turn in turns), encoding="utf-8")
    _, version, tokenizer = corpora.characters(setting.home / "talk", text)
    scratch = ScratchSpec(layers=4, heads=4, width=128, context_length=64, tokenizer="characters")
    recipe = recipe_from_scratch(setting, scratch, steps + 1, looks=1, rows=0)
    return ours(setting, recipe, None, version, steps, tokenizer=str(tokenizer), **more)


def _best_rate(setting: Setting, place: Path, data: Path, shape: dict[str, Any], steps: int) -> float:
    """Of three learning rates the one with the least loss after a minute each, without decay."""
    losses = {}
    for rate in RATES:
        trial = {**shape, "learning_rate": rate, "decay_lr": False, "max_iters": steps, "eval_interval": steps}
        losses[rate] = nanogpt(setting, place, data, {**trial, "eval_iters": 10}, told_as=f"rate {rate:g}")[-1]["loss"]
        _say(setting, f"nanoGPT at {rate:g}: {losses[rate]:.3f} after a minute")
    return min(losses, key=lambda rate: losses[rate])


def recipe_from_scratch(setting: Setting, scratch: ScratchSpec, steps: int, *, looks: int, rows: int) -> RecipeSpec:
    """The product's recipe for a new model of this shape, of so many steps, with so many looks at validation rows."""
    facts = base_facts.from_scratch(scratch, scratch.vocabulary_size if scratch.tokenizer == "bpe" else 70)
    values = defaults.from_scratch(facts.parameters) | {"warmup_steps": defaults.warmup_for(steps)}
    batch = defaults.windows_a_step(scratch.context_length)
    return recipe_of(
        "scratch", steps - 1, setting.threads, base_source="scratch", base_ref=None, scratch=scratch,
        max_length_tokens=scratch.context_length + 1, evaluate_every_steps=max(1, -(-steps // looks)),
        validation_rows=rows, sample_max_tokens=1, batch_size=batch, micro_batch_size=batch, **values,
    )  # fmt: skip


def _sooner(name: str, found: Found, peer: dict[str, float], goal: float, bar: float, setting: Setting) -> Row:
    last = found.evaluated[-1]
    value = last[setting.unit] / peer[setting.unit] if last["loss"] <= goal else float("inf")
    about = f"{last['loss']:.3f} after {last[setting.unit]:.0f} s, nanoGPT {peer['loss']:.3f} after "
    return Row(name, value, bar, f"{about}{peer[setting.unit]:.0f} s", most=True)


def _say(setting: Setting, what: str) -> None:
    print(f"  {time.monotonic() - setting.began:6.0f} s  {what}", flush=True)
