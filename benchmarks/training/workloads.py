"""The workloads of `training_throughput.py`: each measures ours and its peer in turn and tells rows of a table."""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.training import material
from benchmarks.training.from_scratch import corpus_8m, shakespeare
from benchmarks.training.running import Found, Row, Setting, first_step, median, ours, recipe_of, trl

BESIDE = 8  # steps between the coming and the going of the busy process


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


def busy(setting: Setting) -> Iterator[Row]:
    """While one other process counts: how much speed is left. By the clock only, both within each run: from one run to
    the next this machine's own speed changes by more than what is asked."""
    if setting.unit == "cpu":
        print("busy: not run, it needs the clock and two idle cores")
        return
    base, version, _ = inputs(setting, "6M")
    steps = BESIDE * (3 + 2 * max(1, setting.steps // 4))
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for _ in range(setting.rounds):
        recipe = recipe_of("lora", steps, setting.threads)
        told = ours(setting, recipe, base, version, steps, beside=BESIDE).steps
        for number, step in enumerate(told):
            if number >= BESIDE and number % BESIDE:  # warm-up, and the steps in which the other comes or goes
                found[bool(number // BESIDE % 2)].append(step)
    alone, beside = (
        sum(step["tokens"] for step in some) / sum(step["s"] for step in some) for some in (found[False], found[True])
    )
    about = (
        f"{beside:.0f} of {alone:.0f} tokens/s, {len(found[True])} and {len(found[False])} steps in turns of {BESIDE}"
    )
    yield Row("LoRA 6 M beside one busy process, share of its speed", beside / alone, 0.75, about)


def start(setting: Setting) -> Iterator[Row]:
    """10,000 rows, never tokenised before: from the start of a trainer to the end of its first step. By the clock."""
    if setting.unit == "cpu":
        print("start: not run, it needs the clock and an idle machine")
        return
    base = material.base_model(setting.home / "15M", "15M")
    version = material.version_of(setting.home / "many", 10_000)
    recipe = recipe_of("lora", 1, setting.threads)
    found = [first_step(setting, recipe, base, version) for _ in range(max(3, setting.rounds))]
    about = f"until its first word {median([said for said, _ in found]):.1f} s of it; {len(found)} starts"
    yield Row("start to first step, 10,000 rows, s", median([done for _, done in found]), 5.0, about, most=True)


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
