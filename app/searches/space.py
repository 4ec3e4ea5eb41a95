"""What a search may vary: parameters with their ranges, as chosen on the page and as kept in the search."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from app.contracts.base import Contract
from app.contracts.recipe import RecipeSpec
from app.core.errors import Invalid
from app.recipes import compose, fields

Scale = Literal["log", "linear", "integer", "doubling", "choice"]
# Field → how its values are spread. Only what leaves the validation loss comparable: no lengths, no label smoothing.
SCALES: dict[str, Scale] = {
    "learning_rate": "log",
    "lora.rank": "doubling",
    "last_layers": "integer",
    "epochs": "integer",
    "batch_size": "doubling",
    "weight_decay": "linear",
    "lora.dropout": "linear",
    "scratch.dropout": "linear",
    "neftune_alpha": "linear",
    "lora.initialisation": "choice",
    "schedule": "choice",
    "optimizer": "choice",
}
_SUGGESTED: dict[str, tuple[float, float]] = {
    "weight_decay": (0.0, 0.1),
    "lora.dropout": (0.0, 0.2),
    "scratch.dropout": (0.0, 0.2),
    "neftune_alpha": (0.0, 10.0),
}


class Dimension(Contract):
    """One parameter: from `low` to `high` on its scale, or one of `choices`."""

    name: str
    scale: Scale
    low: float = 0.0
    high: float = 0.0
    choices: list[str] = []

    def values(self, points: int) -> list[Any]:
        """The values that a grid tries: `points` of them where the range is continuous."""
        if self.scale == "choice":
            return list(self.choices)
        if self.scale == "doubling":
            count = int(math.log2(self.high / self.low) + 1e-9) + 1
            return [round(self.low * 2**i) for i in range(count)]
        shares = [i / max(1, points - 1) for i in range(points)]
        if self.scale == "log":
            found = [rounded(self.low * (self.high / self.low) ** share) for share in shares]
        else:
            found = [self.low + (self.high - self.low) * share for share in shares]
            found = [round(v) if self.scale == "integer" else rounded(v) for v in found]
        return list(dict.fromkeys(found))

    def shown(self, value: Any) -> str:
        """A value as the recipe page writes it."""
        known = fields.BY_NAME[self.name]
        text = fields.shown(known, float(value) if self.scale in ("log", "linear") else value)
        return dict(known.options).get(text, text).partition(":")[0]


def rounded(value: float) -> float:
    """Two significant digits: more say nothing."""
    return float(f"{value:.2g}")


def offered(recipe: RecipeSpec, device: str = "cpu") -> list[Dimension]:
    """Every parameter that can be searched for this method on this kind of device, with a range around its value."""
    values = recipe.model_dump(mode="json")
    found = []
    for name, scale in SCALES.items():
        known = fields.BY_NAME.get(name)
        if known is None or not known.is_for(recipe.method):
            continue
        if scale == "choice":
            found.append(Dimension(name=name, scale=scale, choices=[key for key, _ in fields.offered(known, device)]))
            continue
        now = float(fields.get(values, name) or 0)
        low, high = _SUGGESTED.get(name, (now, now))
        if scale == "log":
            low, high = rounded(now / 5), rounded(now * 5)
        elif scale == "doubling":
            low, high = max(1.0, now // 2), now * 4
        elif scale == "integer":
            low, high = max(1.0, now // 2), max(2.0, now * 2)
        found.append(Dimension(name=name, scale=scale, low=low, high=high))
    return found


def read(recipe: RecipeSpec, form: Mapping[str, Any], device: str = "cpu") -> list[Dimension]:
    """The ticked parameters of the page's form. Raises Invalid with one sentence a field.

    Fields: `vary` (names), `low.NAME`, `high.NAME`, `choices.NAME`.
    """
    ticked = _texts(form.get("vary"))
    possible = {one.name: one for one in offered(recipe, device)}
    found: list[Dimension] = []
    wrong: dict[str, str] = {}
    for name in (one for one in possible if one in ticked):
        known, field = possible[name], fields.BY_NAME[name]
        if known.scale == "choice":
            choices = [one for one in _texts(form.get(f"choices.{name}")) if one in known.choices]
            if len(choices) < 2:
                wrong[f"choices.{name}"] = f"{field.label}: tick at least two, or leave it out of the search."
            found.append(known.model_copy(update={"choices": choices}))
            continue
        ends: dict[str, float] = {}
        for side in ("low", "high"):
            try:
                ends[side] = float(fields.parse(field, str(form.get(f"{side}.{name}", ""))))
            except (ValueError, TypeError) as error:
                wrong[f"{side}.{name}"] = str(error)
        if len(ends) == 2:
            if sentence := _unfit(known, ends["low"], ends["high"]):
                wrong[f"high.{name}"] = f"{field.label}: {sentence}"
            found.append(known.model_copy(update=ends))
    if not ticked or not found:
        wrong["vary"] = "Tick at least one parameter to vary."
    if wrong:
        raise Invalid(fields=wrong)
    for one in found:
        for value in [one.low, one.high] if one.scale != "choice" else one.choices:
            try:
                applied(recipe, {one.name: int(value) if one.scale in ("integer", "doubling") else value})
            except Invalid as error:
                raise Invalid(fields={f"high.{one.name}": next(iter(error.fields.values()))}) from None
    return found


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _unfit(known: Dimension, low: float, high: float) -> str:
    if not low < high:
        return "the second value must be larger than the first."
    if known.scale in ("log", "doubling") and low <= 0:
        return "the first value must be larger than 0."
    if known.scale == "doubling" and high < 2 * low:
        return "values double at each step, so the second must be at least twice the first."
    return ""


def applied(recipe: RecipeSpec, values: Mapping[str, Any]) -> RecipeSpec:
    """The recipe with these values; looks at unseen rows stay as far apart in rows. Raises Invalid."""
    changed = recipe.model_dump(mode="json")
    for name, value in values.items():
        fields.put(changed, name, value)
    if "batch_size" in values:
        changed["micro_batch_size"] = math.gcd(int(values["batch_size"]), recipe.micro_batch_size)
        share = recipe.batch_size / int(values["batch_size"])
        changed["evaluate_every_steps"] = max(1, round(recipe.evaluate_every_steps * share))
    try:
        return RecipeSpec.model_validate(changed)
    except ValidationError as error:
        raise Invalid(fields=compose.sentences(error)) from None


def own_values(recipe: RecipeSpec, space: list[Dimension]) -> dict[str, Any]:
    """The recipe's own values, moved into the ranges: what a search tries first, so that it never ends worse."""
    values = recipe.model_dump(mode="json")
    found: dict[str, Any] = {}
    for one in space:
        value = fields.get(values, one.name)
        if one.scale == "choice":
            found[one.name] = value if value in one.choices else one.choices[0]
            continue
        inside = min(one.high, max(one.low, float(value or 0)))
        if one.scale == "doubling":
            inside = min(one.values(0), key=lambda step: abs(step - inside))
        found[one.name] = inside if one.scale in ("log", "linear") else round(inside)
    return found
