"""Quick, balanced and thorough: values computed from the material, the model and the machine, each with its reason."""

import math
from typing import Any, Literal

from pydantic import BaseModel

from app.contracts.recipe import Method, ScratchSpec, total_steps
from app.core.numbers import counted, plain
from app.recipes import defaults, estimate
from app.recipes.base_facts import BaseFacts, from_scratch
from app.recipes.machine import Machine
from app.recipes.material import Material

Preset = Literal["quick", "balanced", "thorough"]
PRESETS: tuple[Preset, ...] = ("quick", "balanced", "thorough")

# Shapes of new models: name → layers, heads, width, context. Sizes grow by about three.
SHAPES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (4, 4, 128, 128),
    "small": (4, 4, 256, 256),
    "medium": (8, 5, 320, 512),
    "large": (12, 9, 576, 512),
    "huge": (16, 12, 1152, 1024),
}
# What follows from the number of steps.
PACED = ("warmup_steps", "evaluate_every_steps")
_BUDGET_S = {"quick": 120.0, "balanced": 600.0, "thorough": 2400.0}
_PASSES = {"quick": 2.0, "balanced": 4.0, "thorough": 6.0}
_CHARACTERS_BELOW = 3_000_000


class Proposal(BaseModel):
    """Recipe values by field name and, for those worth a sentence, why. Scratch values under "scratch"."""

    preset: Preset
    method: Method
    values: dict[str, Any]
    reasons: dict[str, str]


def propose(preset: Preset, method: Method, base: BaseFacts, material: Material, machine: Machine) -> Proposal:
    """A recipe for tuning `base` on `material` here."""
    is_tiny = base.parameters < defaults.TINY_PARAMETERS
    reasons: dict[str, str] = {}
    values: dict[str, Any] = {}

    length = _length(base, material)
    values["max_length_tokens"] = length
    reasons["max_length_tokens"] = _length_reason(length, base, material)
    sequences = material.sequences(length)
    batch, reasons["batch_size"] = defaults.batch_size_for(sequences, min(material.mean_tokens, length), method)
    values["batch_size"] = batch

    epochs, reasons["epochs"] = defaults.epochs_for(sequences, is_tiny=is_tiny)
    if preset == "quick":
        epochs, reasons["epochs"] = 1.0, "One pass: enough to see whether it learns at all."
        if sequences < 33:
            epochs, reasons["epochs"] = 5.0, f"5 passes, because one pass over {sequences} rows is over in a blink."
    elif preset == "thorough":
        epochs = epochs * 2
        reasons["epochs"] = f"{epochs:g} passes, twice the usual number; it stops by itself when it no longer improves."
    values["epochs"] = float(epochs)

    values["lora"] = _lora(preset, is_tiny, reasons) if method == "lora" else {}
    if method == "last_layers":
        values["last_layers"] = max(1, min(base.layers, round(base.layers / (2 if is_tiny else 4))))
        count = values["last_layers"]
        learn = (
            f"The last {count} of {base.layers} layers learn"
            if count > 1
            else f"The last of {base.layers} layers learns"
        )
        reasons["last_layers"] = f"{learn}; the others stay as they are."
    kind = defaults.rate_kind(method, initialisation=values["lora"].get("initialisation", "default"))
    values["learning_rate"] = defaults.learning_rate(kind, base.parameters)
    reasons["learning_rate"] = (
        f"{plain(values['learning_rate'])}: {_size(base.parameters)} parameters take larger steps than billions."
        if is_tiny
        else f"{plain(values['learning_rate'])} suits {_size(base.parameters)} parameters with this method."
    )
    values["use_instruction"] = not is_tiny
    if is_tiny:
        reasons["use_instruction"] = (
            "Your objective is not read to the model: at this size it cannot follow instructions, "
            "and they would only take room from your rows."
        )
    values["weight_decay"] = 0.0 if method == "lora" else 0.01
    values["optimizer"] = "adamw"
    values["schedule"] = "cosine"
    reasons["schedule"] = "It warms up, then slows down along a cosine: the safe choice when the length is known."
    values["micro_batch_size"] = _micro_batch(batch, length, base, material, machine)
    _finish(values, reasons, preset, sequences, batch)
    return Proposal(preset=preset, method=method, values=values, reasons=reasons)


def for_preferences(proposal: Proposal) -> Proposal:
    """The proposal for learning from preferences: a tenth of the learning rate and at most two passes."""
    rate, epochs = proposal.values["learning_rate"] / 10, min(2.0, proposal.values["epochs"])
    reasons = {
        "learning_rate": f"{plain(rate)}: a tenth of what learning answers takes; larger steps unlearn how to answer.",
        "epochs": f"{counted(epochs, 'pass', 'passes')}: preferences are soon learned by heart.",
    }
    return proposal.model_copy(
        update={
            "values": {**proposal.values, "learning_rate": float(f"{rate:.1e}"), "epochs": epochs},
            "reasons": {**proposal.reasons, **reasons},
        }
    )


def propose_scratch(preset: Preset, material: Material, machine: Machine, characters: int = 0) -> Proposal:
    """A recipe for a new GPT. `characters` is the number of distinct characters, for a character tokenizer."""
    reasons: dict[str, str] = {}
    use_characters = material.kind == "text" and material.characters < _CHARACTERS_BELOW and 0 < characters <= 300
    per_token = 1.0 if use_characters else 3.5
    vocabulary = characters + 8 if use_characters else _vocabulary(material.characters)
    tokens = max(1.0, material.characters / per_token)
    name = _shape(preset, tokens, vocabulary, machine)
    layers, heads, width, context = SHAPES[name]
    scratch = ScratchSpec(
        layers=layers,
        heads=heads,
        width=width,
        context_length=context,
        tokenizer="characters" if use_characters else "bpe",
        vocabulary_size=max(300, vocabulary),
        dropout=0.1 if tokens < 3e6 and preset == "thorough" else 0.0,
    )
    facts = from_scratch(scratch, vocabulary)
    length = f"{material.characters / 1e6:,.1f} million" if material.characters >= 1e6 else f"{material.characters:,}"
    reasons["scratch.tokenizer"] = (
        f"Letter by letter, because {length} characters are too few to learn good word pieces."
        if use_characters
        else f"{scratch.vocabulary_size:,} word pieces, learned from your {length} characters."
    )
    reasons["scratch.layers"] = (
        f"{_size(facts.parameters)} parameters: as large as this machine can teach in about "
        f"{_BUDGET_S[preset] / 60:.0f} minutes from this much text."
    )
    batch = defaults.windows_a_step(context)
    lengths = [length * tokens / material.tokens for length in material.sampled_tokens or (material.mean_tokens,)]
    sequences = material.model_copy(update={"sampled_tokens": tuple(lengths)}).sequences(context)
    batch = min(batch, 2 ** max(0, math.floor(math.log2(max(1, sequences / 8)))))
    values: dict[str, Any] = {"scratch": scratch.model_dump(), "lora": {}, "max_length_tokens": context}
    reasons["max_length_tokens"] = f"It reads {context} tokens at a time, the whole memory of this model."
    speed = estimate.expected_flops(facts, machine) / (6.0 * facts.parameters)
    affordable = _BUDGET_S[preset] * speed / tokens
    epochs = max(0.05, min(_PASSES[preset], affordable))
    values["epochs"] = float(f"{epochs:.2g}")
    passes = counted(values["epochs"], "pass", "passes")
    reasons["epochs"] = (
        f"{passes}: all that fits in about {_BUDGET_S[preset] / 60:.0f} minutes here."
        if affordable < _PASSES[preset]
        else f"{passes}: up to about four, repeated text is worth nearly as much as new text."
    )
    values["batch_size"] = values["micro_batch_size"] = batch
    reasons["batch_size"] = f"{counted(batch, 'window')} of {context} tokens a step."
    values["use_instruction"] = False
    values |= defaults.from_scratch(facts.parameters)
    reasons["optimizer"] = "Muon learned clearly more than AdamW in the same time in our measurements from scratch."
    reasons["learning_rate"] = f"{plain(values['learning_rate'])} for the matrices, measured for models of this size."
    reasons["schedule"] = "Warm up, stay, then fall to zero in the last 40 %: the text can be prolonged later."
    _finish(values, reasons, preset, sequences, batch)
    return Proposal(preset=preset, method="scratch", values=values, reasons=reasons)


def _finish(values: dict[str, Any], reasons: dict[str, str], preset: Preset, sequences: int, batch: int) -> None:
    """What follows from the number of steps: warm-up, evaluations, patience."""
    pace(values, reasons, total_steps(sequences, batch, values["epochs"]))
    values["early_stopping"] = True
    values["patience_evaluations"] = 6
    reasons["early_stopping"] = "It stops when six looks in a row bring nothing better, and keeps the best."
    values["validation_rows"] = 100 if preset == "quick" else 200


def pace(values: dict[str, Any], reasons: dict[str, str], steps: int) -> None:
    """Warm-up and looks for a run of so many steps."""
    warmup = values["warmup_steps"] = defaults.warmup_for(steps)
    reasons["warmup_steps"] = f"{warmup} of {counted(steps, 'step')}, so that the first steps do no harm."
    # A look costs as much as a few steps and writes a checkpoint: short runs take ten of them.
    looks = 10 if steps < 100 else 20
    every = max(1, math.ceil(steps / looks))
    values["evaluate_every_steps"] = every
    words = "ten" if looks == 10 else "twenty"
    reasons["evaluate_every_steps"] = (
        f"Every {'step' if every == 1 else counted(every, 'step')}: about {words} looks at rows it does not learn from."
    )


def _lora(preset: Preset, is_tiny: bool, reasons: dict[str, str]) -> dict[str, Any]:
    if is_tiny:
        rank = {"quick": 32, "balanced": 64, "thorough": 64}[preset]
        reasons["lora.rank"] = f"Rank {rank}: small models need more of it (rank 64 learned twice as much as 16)."
        reasons["lora.initialisation"] = (
            "PiSSA starts from the model's own main directions; it learned most in the same time."
        )
        reasons["lora.b_rate_ratio"] = "LoRA+ lets the second matrix learn faster, which helps at this size."
        return {"rank": rank, "alpha": float(rank), "initialisation": "pissa", "b_rate_ratio": 4.0, "dropout": 0.0}
    rank = {"quick": 16, "balanced": 16, "thorough": 32}[preset]
    reasons["lora.rank"] = f"Rank {rank} on every linear layer holds what a few thousand rows teach."
    return {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.05 if preset == "thorough" else 0.0}


def _length(base: BaseFacts, material: Material) -> int:
    if material.kind == "text":
        return max(16, min(base.context_length, 512))
    wanted = math.ceil(material.longest_tokens * 1.1 / 64) * 64
    return max(16, min(base.context_length, max(64, wanted), 2048))


def _length_reason(length: int, base: BaseFacts, material: Material) -> str:
    if material.kind == "text":
        return f"Your text is read in windows of {length:,} tokens."
    if length >= material.longest_tokens:
        return f"Your longest row has about {material.longest_tokens:,} tokens: nothing is cut."
    if length == base.context_length:
        return f"{length:,} tokens is all this model can read; longer rows lose their first turns."
    return f"{length:,} tokens hold all but the longest rows, which lose their first turns."


def _micro_batch(batch: int, length: int, base: BaseFacts, material: Material, machine: Machine) -> int:
    """The largest power-of-two part of the batch whose activations stay below a quarter of the memory."""
    tokens = min(length, max(1, int(material.p95_tokens * 1.2)))
    per_row = tokens * base.layers * (10 * base.width + 3 * base.inner) * 2
    micro = batch
    while micro > 1 and micro * per_row > machine.usable_memory_bytes / 4:
        micro //= 2
    return micro


def _shape(preset: Preset, tokens: float, vocabulary: int, machine: Machine) -> str:
    """The largest shape that sees half a pass of the text (at least 400,000 tokens) within the preset's time."""
    best = "tiny"
    for name, (layers, heads, width, context) in SHAPES.items():
        spec = ScratchSpec(layers=layers, heads=heads, width=width, context_length=context)
        facts = from_scratch(spec, vocabulary)
        speed = estimate.expected_flops(facts, machine) / (6.0 * facts.parameters)
        wanted = max(400_000.0, 20.0 * facts.parameters / 10)
        if speed * _BUDGET_S[preset] >= wanted and facts.parameters < 4 * tokens:
            best = name
    return best


def _vocabulary(characters: int) -> int:
    """Word pieces: a power of two, one for about every 500 characters, 512 to 8,192."""
    return 2 ** round(math.log2(min(8192, max(512, characters / 500))))


def _size(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} billion"
    return f"{parameters / 1e6:,.1f} million" if parameters < 1e8 else f"{parameters / 1e6:,.0f} million"
