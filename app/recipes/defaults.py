"""Starting values by model size and method, measured on small models and read off for large ones.

Sources: our own measurements at 4 to 12 million parameters (docs/benchmarks), "LoRA without regret" (Schulman et al.
2025) for the factor of ten between LoRA and full tuning at a billion, OpenAI's rule for the number of passes.
"""

import math
from itertools import pairwise
from typing import Any

from app.contracts.recipe import Method, steps_per_epoch
from app.core.numbers import counted

# Below this many parameters tuning everything costs the same a step as LoRA and learns far more.
TINY_PARAMETERS = 30_000_000

# (parameters, learning rate); between two points by interpolation on the logarithms of both.
_RATES: dict[str, tuple[tuple[float, float], ...]] = {
    "full": ((4e6, 2e-3), (1.2e7, 1.5e-3), (1e8, 2e-4), (1e9, 5e-5), (7e9, 1e-5)),
    "last_layers": ((4e6, 3e-3), (1e8, 4e-4), (1e9, 1e-4), (7e9, 3e-5)),
    "lora": ((4e6, 1e-2), (6e6, 5e-3), (1e8, 1e-3), (1e9, 2e-4), (7e9, 2e-4)),
    "lora_pissa": ((4e6, 3e-3), (6e6, 2e-3), (1e8, 6e-4), (1e9, 2e-4), (7e9, 1e-4)),
    "scratch_muon": ((1e6, 1e-2), (4e6, 7e-3), (2e7, 5e-3), (1e8, 3e-3), (1e9, 1e-3)),
    "scratch_adamw": ((1e6, 2e-3), (4e6, 1.5e-3), (1e8, 6e-4), (1e9, 3e-4)),
}


def learning_rate(kind: str, parameters: int) -> float:
    """The starting rate for a kind of training ("full", "lora_pissa", …) at a model size, to two digits."""
    points = _RATES[kind]
    size = min(max(float(parameters), points[0][0]), points[-1][0])
    for (small, high), (large, low) in pairwise(points):
        if size <= large:
            share = math.log(size / small) / math.log(large / small)
            return float(f"{math.exp(math.log(high) + share * math.log(low / high)):.1e}")
    return points[-1][1]


def rate_kind(method: Method, *, initialisation: str = "default", optimizer: str = "adamw") -> str:
    """Which row of the measurements applies."""
    if method == "lora":
        return "lora_pissa" if initialisation == "pissa" else "lora"
    return f"scratch_{optimizer}" if method == "scratch" else method


def from_scratch(parameters: int) -> dict[str, Any]:
    """Optimiser, rates and schedule of a new model, by recipe field."""
    return {
        "optimizer": "muon",
        "learning_rate": learning_rate("scratch_muon", parameters),
        "adamw_learning_rate": 4e-3,
        "weight_decay": 0.1,
        "schedule": "wsd",
        "decay_share": 0.4,
        "final_learning_rate_ratio": 0.0,
    }


def windows_a_step(context_length: int) -> int:
    """Rows a step of a new model: windows of its whole context."""
    return 16 if context_length <= 256 else 8


def warmup_for(steps: int) -> int:
    """Steps of linear rise: 6 % of all, ten at least where there are enough."""
    return min(max(10, round(steps * 0.06)), max(1, steps // 4))


def recommended_method(parameters: int, *, needs: dict[str, int], memory_bytes: int) -> tuple[Method, str]:
    """The method to begin with and its reason. `needs` maps methods to the memory they take, in bytes."""
    millions = f"{parameters / 1e6:,.0f} million"
    fits = {method for method, need in needs.items() if need <= memory_bytes}
    if parameters < TINY_PARAMETERS and "full" in fits:
        return "full", (
            f"At {millions} parameters training everything takes as long as LoRA and learns far more: 82 % "
            "against 66 % right in our measurements with 77 kinds of message."
        )
    if "lora" in fits or "last_layers" not in fits:
        return "lora", (
            f"At {millions} parameters LoRA learns almost as well as training everything, needs a fraction of the "
            "memory and leaves a small file."
        )
    return "last_layers", "Only the last layers fit in this machine's memory."


def epochs_for(rows: int, *, is_tiny: bool) -> tuple[float, str]:
    """Passes over the rows and why. OpenAI's rule (3, more for few rows, fewer for many), 5 for tiny models."""
    usual = 5 if is_tiny else 3
    if rows < 33:
        passes = min(25, math.ceil(100 / max(1, rows)))
        few = f"there {'is' if rows == 1 else 'are'} only {counted(rows, 'row')}"
        return passes, f"{passes} passes, because {few}: it needs to see each more often."
    if rows * usual > 25_000:
        passes = max(1, 25_000 // rows)
        word = "pass" if passes == 1 else "passes"
        return passes, f"{passes} {word}, because {rows:,} rows are many: each is seen often enough."
    size = " and the model is small, which learns slower from each" if is_tiny else ""
    return usual, f"{usual} passes, because you have {rows:,} rows{size}."


def batch_size_for(rows: int, mean_tokens: float, method: Method) -> tuple[int, str]:
    """Rows a step and why: enough steps to learn in, no more than about 16,000 tokens at once."""
    by_rows = 2 ** round(math.log2(min(32, max(4, rows / 40))))
    by_length = 2 ** math.floor(math.log2(max(1, 16_384 / max(1.0, mean_tokens))))
    size = max(1, min(by_rows, by_length))
    if size < by_rows:
        return (
            size,
            f"{counted(size, 'row')} a step, because your rows are long ({mean_tokens:,.0f} tokens on average).",
        )
    if method == "lora" and size == 32:
        return size, "32 rows a step: LoRA learns worse from larger batches."
    steps = counted(steps_per_epoch(rows, size), "step")
    return size, f"{counted(size, 'row')} a step, which gives {steps} a pass over {counted(rows, 'row')}."
