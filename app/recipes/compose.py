"""From choices to a whole recipe: the preset's proposal, what the person changed, checked and explained."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app.contracts.recipe import Method, RecipeSpec
from app.core.errors import Invalid
from app.recipes import defaults, fields, material, presets, several
from app.recipes.base_facts import BaseFacts, from_scratch
from app.recipes.bases import BaseModel
from app.recipes.calibration import Measured
from app.recipes.estimate import Estimate, estimate
from app.recipes.machine import Machine
from app.recipes.material import Material
from app.recipes.presets import Preset, Proposal


@dataclass(frozen=True)
class Version:
    """A frozen dataset version, as recipes need it."""

    id: str
    number: int
    kind: str
    train_rows: int
    validation_rows: int
    test_rows: int
    instruction_characters: int = 0


@dataclass(frozen=True)
class Composed:
    """A recipe with its reasons and its estimate. `values` are all fields by dotted path groups, as nested dicts.

    `in_time`: with a limit in hours, how many steps fit in it, as a sentence.
    """

    proposal: Proposal
    recipe: RecipeSpec
    facts: BaseFacts
    material: Material
    estimate: Estimate
    overrides: dict[str, Any] = field(default_factory=dict)
    in_time: str = ""

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises: at most half of the run, whatever the recipe says."""
        return min(self.recipe.warmup_steps, self.estimate.steps // 2)

    @property
    def values(self) -> dict[str, Any]:
        """The recipe's values, nested."""
        return self.recipe.model_dump(mode="json")

    def recommended(self, name: str) -> Any:
        """What the preset proposes for a field; the contract's default where it says nothing."""
        proposed = fields.get(self.proposal.values, name)
        return proposed if proposed is not None else default_value(name)


def default_value(name: str) -> Any:
    """The contract's own default of a field."""
    owner, leaf = fields._owner(name)
    return owner.model_fields[leaf].get_default(call_default_factory=True)


def measure(
    version: Version, base: BaseModel | None, recipe_tokenizer: str = "bpe", *, with_instruction: bool = False
) -> Material:
    """The version's rows in tokens of the base's tokenizer (or of one that is still to be made)."""
    counts: dict[str, Any] = {
        "kind": version.kind,
        "train_rows": version.train_rows,
        "validation_rows": version.validation_rows,
        "test_rows": version.test_rows,
        "prefix_characters": version.instruction_characters if with_instruction else 0,
    }
    if base is not None:
        return material.measure(version.id, **counts, tokenizer_file=base.tokenizer_file)
    per_token = 1.0 if recipe_tokenizer == "characters" else material.CHARACTERS_PER_TOKEN
    return material.measure(version.id, **counts, per_token=per_token)


def propose(preset: Preset, method: Method, base: BaseModel | None, version: Version, machine: Machine) -> Proposal:
    """The preset's proposal for these choices."""
    if base is None:
        letters = material.character_count(version.id) if version.kind == "text" else 0
        return presets.propose_scratch(preset, measure(version, None), machine, letters)
    is_read = base.facts.parameters >= defaults.TINY_PARAMETERS
    return presets.propose(preset, method, base.facts, measure(version, base, with_instruction=is_read), machine)


def compose(
    proposal: Proposal,
    base: BaseModel | None,
    version: Version,
    machine: Machine,
    *,
    overrides: dict[str, Any],
    sample_prompts: list[str],
    measured: Measured | None = None,
) -> Composed:
    """Lay what the person changed over the proposal. Raises Invalid naming the fields that do not fit."""
    if overrides.get("learn_from") == "preferences":
        proposal = presets.for_preferences(proposal)
    values = json.loads(json.dumps(proposal.values))
    values.setdefault("sample_prompts", sample_prompts)
    values["lora"] = {**default_value("lora").model_dump(), **values.get("lora", {})}
    for name, value in overrides.items():
        if name in fields.BY_NAME and fields.BY_NAME[name].is_for(proposal.method):
            fields.put(values, name, value)
    if values["batch_size"] % max(1, values["micro_batch_size"]) and "micro_batch_size" not in overrides:
        values["micro_batch_size"] = 1 if values["batch_size"] % 2 else 2
    if (overrides.get("lora.dora") or overrides.get("lora.four_bit")) and "lora.initialisation" not in overrides:
        values["lora"]["initialisation"] = "default"
    if "scratch.context_length" in overrides and "max_length_tokens" not in overrides:
        values["max_length_tokens"] = values["scratch"]["context_length"]
    context = base.facts.context_length if base else values["scratch"]["context_length"]
    wrong: dict[str, str] = {}
    if values["max_length_tokens"] > context:
        wrong["max_length_tokens"] = f"This model can read at most {context:,} tokens. Choose a smaller number."
    if values["lora"]["four_bit"] and machine.device != "cuda":
        wrong["lora.four_bit"] = (
            "QLoRA needs an NVIDIA graphics card, and this machine has none. Switch “Hold the base in 4 bit” off; "
            "where memory is short, choose a smaller base model."
        )
    if values.get("optimizer") == "adamw_8bit" and machine.device != "cuda":
        wrong["optimizer"] = (
            "AdamW in 8 bit needs an NVIDIA graphics card, and this machine has none. Choose AdamW; where memory is "
            "short, Adafactor."
        )
    wrong |= several.refusals(values, proposal.method, machine)
    try:
        recipe = build(proposal.method, base, values)
    except Invalid as error:
        raise Invalid(fields=error.fields | wrong) from None
    if wrong:
        raise Invalid(fields=wrong)
    facts = base.facts if base else _new_facts(recipe, version)
    tokenizer = recipe.scratch.tokenizer if recipe.scratch else "bpe"
    rows = measure(version, base, tokenizer, with_instruction=recipe.use_instruction)
    if recipe.learn_from == "preferences":
        rows = material.of_preferences(version.id, rows)
        if not rows.train_rows:
            raise Invalid(
                fields={
                    "learn_from": "No row of this version has a preferred and a rejected answer. Choose “The answers”, "
                    "or map both columns of answers on the data page and freeze again."
                }
            )
    numbers = estimate(recipe, facts, rows, machine, measured=measured)
    proposal, paced = _in_pace(proposal, numbers.steps, overrides)
    if any(getattr(recipe, name) != value for name, value in paced.items()):
        recipe = recipe.model_copy(update=paced)
        numbers = estimate(recipe, facts, rows, machine, measured=measured)
    return Composed(proposal, recipe, facts, rows, numbers, dict(overrides))


def _in_pace(proposal: Proposal, steps: int, overrides: dict[str, Any]) -> tuple[Proposal, dict[str, Any]]:
    """The proposal with warm-up and looks for the steps that the recipe really has, and those nobody changed."""
    values, reasons = dict(proposal.values), dict(proposal.reasons)
    presets.pace(values, reasons, steps)
    paced = {name: values[name] for name in presets.PACED if name not in overrides}
    return proposal.model_copy(update={"values": values, "reasons": reasons}), paced


def _new_facts(recipe: RecipeSpec, version: Version) -> BaseFacts:
    assert recipe.scratch is not None
    letters = recipe.scratch.tokenizer == "characters"
    return from_scratch(recipe.scratch, material.character_count(version.id) + 8 if letters else None)


def build(method: Method, base: BaseModel | None, values: dict[str, Any]) -> RecipeSpec:
    """A checked recipe. Raises Invalid with one sentence a field."""
    source = (
        {"base_source": base.source, "base_ref": base.ref} if base else {"base_source": "scratch", "base_ref": None}
    )
    try:
        return RecipeSpec.model_validate({**values, "method": method, **source})
    except ValidationError as error:
        raise Invalid(fields=sentences(error)) from None


def sentences(error: ValidationError) -> dict[str, str]:
    """Field → what is wrong with it and what fits, in words."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
        known = fields.BY_NAME.get(name)
        if known is not None:
            allowed = fields.bounds_sentence(known)
            most = (item.get("ctx") or {}).get("max_length") if item["type"] == "too_long" else None
            what = f"{known.label}: at most {most} of them." if most else f"{known.label}: {item['msg']}."
            found[name] = f"{known.label} must be {allowed}." if allowed else what
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            name = "lora.initialisation" if name == "lora" else name
            for part in (
                "devices",
                "processes",
                "shards",
                "micro_batch_size",
                "label_smoothing",
                "learn_from",
                "heads",
                "kv_heads",
                "positions",
                "norm",
            ):
                if f"{part} " in message:
                    name = f"scratch.{part}" if f"scratch.{part}" in fields.BY_NAME else part
            found[name] = _named(message)
    return found


# Parts of a recipe that its own rules name together, as their names stand in them.
_PAIRED = re.compile(
    r"\b(micro_batch_size|batch_size|label_smoothing|learn_from|kv_heads|heads|width|positions|norm)\b"
)


def _named(message: str) -> str:
    """A rule's sentence with the labels of the page in place of the names of the file."""

    def label(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"“{(fields.BY_NAME.get(name) or fields.BY_NAME[f'scratch.{name}']).label}”"

    said = _PAIRED.sub(label, message)
    return f"{said[:1].upper()}{said[1:]}."


def fit_of(base: BaseModel, version: Version, machine: Machine) -> tuple[Method, str, dict[str, int]]:
    """The method to recommend for a base, why, and the memory each method would take, in bytes."""
    needs: dict[str, int] = {}
    for method in ("lora", "last_layers", "full"):
        proposal = presets.propose("balanced", method, base.facts, measure(version, base), machine)
        composed = compose(proposal, base, version, machine, overrides={}, sample_prompts=[])
        needs[method] = composed.estimate.memory_bytes
    method, reason = defaults.recommended_method(
        base.facts.parameters, needs=needs, memory_bytes=machine.usable_memory_bytes
    )
    return method, reason, needs
