"""Time and memory of a run by formula, before anything was measured; earlier runs on this machine correct the speed."""

from statistics import median

from pydantic import BaseModel

from app.contracts.recipe import RecipeSpec
from app.recipes.base_facts import BaseFacts
from app.recipes.calibration import Measured
from app.recipes.machine import Machine
from app.recipes.material import Material

_MIB = 2**20
_FLOOR_BYTES = {"cpu": 700 * _MIB, "cuda": 1200 * _MIB}
_START_S = 8.0
_UNCALIBRATED = 0.4
_HEAD_CHUNK_TOKENS = 1024
_FOUR_BIT_BYTES = 0.52  # a weight in 4 bit with its share of the scales


class Estimate(BaseModel):
    """Seconds (with a range), bytes, steps and tokens; `flops_per_token` lets the finished run correct the speed.

    `is_probed`: measured by a probe of this recipe; only then energy (Wh) and price may be told."""

    steps: int
    steps_per_epoch: int
    tokens: int
    seconds: float
    low_s: float
    high_s: float
    memory_bytes: int
    available_bytes: int
    trainable_parameters: int
    parameters: int
    flops_per_token: float
    look_work: float = 0.0
    model_bytes: int
    is_calibrated: bool = False
    error_share: float | None = None
    is_probed: bool = False
    energy_wh: float | None = None
    price: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.memory_bytes <= self.available_bytes


def trainable_parameters(recipe: RecipeSpec, base: BaseFacts) -> int:
    """Values that learn."""
    if recipe.method == "lora":
        rank = recipe.lora.rank
        if recipe.lora.target_modules is None:
            return base.layers * sum(rank * (a + b) for a, b in base.linear_shapes())
        return base.layers * len(recipe.lora.target_modules) * rank * 2 * base.width
    if recipe.method == "last_layers":
        head = base.head_parameters if recipe.train_head else 0
        return min(base.layers, recipe.last_layers) * base.layer_parameters + head
    return base.parameters


def flops_per_token(recipe: RecipeSpec, base: BaseFacts, material: Material) -> float:
    """Floating point operations for one trained token: 2 a weight forward, 2 for the way back, 2 for its gradient.

    The head counts where it is used: at every token of plain text, at about half of a conversation.
    """
    body = base.layers * base.layer_parameters
    head = base.head_parameters * (1.0 if material.kind == "text" else 0.5)
    attention = 2.0 * base.layers * base.width * min(material.mean_tokens, recipe.max_length_tokens)
    if recipe.method == "lora":
        return 4.0 * (body + head) + 2 * attention + 6.0 * trainable_parameters(recipe, base)
    if recipe.method == "last_layers":
        share = min(1.0, recipe.last_layers / base.layers)
        # What the frozen layers say of a row is computed once and kept, unless noise changes what they see.
        passes = 1.0 if recipe.neftune_alpha else max(1.0, recipe.epochs)
        frozen = (2.0 * body + attention) * (1 - share) / passes
        learning = 6.0 * body * share + 3 * attention * share
        return frozen + learning + 2.0 * head + 4.0 * (head if recipe.train_head else head / 2)
    return 6.0 * (body + head) + 3 * attention


def count_steps(recipe: RecipeSpec, material: Material) -> tuple[int, int]:
    """Optimiser steps of the run and of one pass, counted as the engine counts them."""
    sequences = material.sequences(recipe.max_length_tokens)
    return recipe.total_steps(sequences), recipe.steps_per_epoch(sequences)


def memory_bytes(recipe: RecipeSpec, base: BaseFacts, material: Material, machine: Machine) -> int:
    """Peak memory: weights, what the optimiser keeps, activations of a micro-batch, a chunk of the head, a floor.

    Of several devices: of each.
    """
    learned = trainable_parameters(recipe, base)
    width = 2 if recipe.precision != "fp32" and (machine.has_bf16 or machine.gpu_name) else 4
    frozen = 0.0 if recipe.method in ("full", "scratch") else float(base.parameters * width)
    if recipe.method == "lora" and recipe.lora.four_bit:
        frozen -= base.layers * base.layer_parameters * (width - _FOUR_BIT_BYTES)
    length = min(recipe.max_length_tokens, material.longest_tokens if material.kind == "chat" else 10**9)
    tokens = recipe.micro_batch_size * min(length, max(1, int(material.p95_tokens * 1.2)))
    per_layer = (10 * base.width + 3 * base.inner) * width
    share = 1.0 if recipe.method != "last_layers" else min(1.0, recipe.last_layers / base.layers) + 0.1
    activations = tokens * base.layers * per_layer * share
    head = min(tokens, _HEAD_CHUNK_TOKENS) * base.vocabulary * 8
    # Weight and gradient in fp32, beside them two moments in fp32 or in 8 bit.
    kept = 10 if recipe.optimizer == "adamw_8bit" else 16
    together = recipe.replicas
    each = frozen + kept * learned / (together if recipe.shards else 1) + activations + head
    each += _FLOOR_BYTES[machine.device]
    # Processes on one processor share its memory; each card has its own.
    return int(each * (1 if recipe.devices else together))


def model_bytes(recipe: RecipeSpec, base: BaseFacts) -> int:
    """The file that a run leaves behind: whole models in the format of their base, what learned beside one in fp32."""
    if recipe.method == "full" and base.size_bytes:
        return base.size_bytes
    if recipe.method in ("full", "scratch"):
        return base.parameters * (4 if recipe.precision == "fp32" else 2)
    # PiSSA's own start is laid into the adapter, too, which makes it twice as wide.
    is_doubled = recipe.method == "lora" and recipe.lora.initialisation == "pissa"
    return trainable_parameters(recipe, base) * 4 * (2 if is_doubled else 1)


def estimate(
    recipe: RecipeSpec,
    base: BaseFacts,
    material: Material,
    machine: Machine,
    *,
    measured: Measured | None = None,
) -> Estimate:
    """The run in numbers: start, steps, and looks with their answers, each by what earlier runs took where known."""
    measured = measured or Measured()
    steps, per_epoch = count_steps(recipe, material)
    sequences = material.sequences(recipe.max_length_tokens)
    length = min(material.mean_tokens, recipe.max_length_tokens)
    if material.kind == "text":
        length = min(recipe.max_length_tokens, max(1, material.tokens // sequences))
    tokens = round(sequences * length * steps / per_epoch)
    per_token = flops_per_token(recipe, base, material)
    speed = median(measured.speeds) if measured.speeds else expected_flops(base, machine)
    start_s = median(measured.starts_s) if measured.starts_s else _START_S
    evaluations = max(1, steps // recipe.evaluate_every_steps)
    checked = evaluations * min(recipe.validation_rows, material.validation_rows) * length
    answers = evaluations * max(1, len(recipe.sample_prompts) or 3) * recipe.sample_max_tokens
    # Answers come one token at a time, which a small model does about 8 times slower than training.
    look_work = checked * per_token / 3 + answers * per_token / 3 * 8
    look_speed = median(measured.look_speeds) if measured.look_speeds else speed
    speed *= max(1, len(recipe.devices))  # processes on one processor share its cores; looks are the first one's
    seconds = start_s + tokens * per_token / speed + look_work / look_speed
    errors = measured.errors
    spread = max(0.08, 1.5 * sum(errors) / len(errors)) if errors else _UNCALIBRATED
    learned = trainable_parameters(recipe, base)
    return Estimate(
        steps=steps,
        steps_per_epoch=per_epoch,
        tokens=tokens,
        seconds=seconds,
        low_s=seconds * (1 - min(0.6, spread)),
        high_s=seconds * (1 + spread),
        memory_bytes=memory_bytes(recipe, base, material, machine),
        available_bytes=machine.usable_memory_bytes,
        trainable_parameters=learned,
        parameters=base.parameters,
        flops_per_token=per_token,
        look_work=look_work,
        model_bytes=model_bytes(recipe, base),
        is_calibrated=bool(measured.speeds),
        error_share=sum(errors) / len(errors) if errors else None,
    )


def expected_flops(base: BaseFacts, machine: Machine) -> float:
    """Speed before anything was measured here. Small models spend their time between the multiplications."""
    overhead = 1e6 if machine.device == "cpu" else 1e8
    return machine.flops * base.parameters / (base.parameters + overhead)
