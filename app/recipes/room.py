"""Whether a base or a recipe fits in this machine's memory, and the nearest that does where it does not."""

from dataclasses import dataclass

from app.contracts.recipe import RecipeSpec
from app.core.numbers import size
from app.core.translations import gettext as _
from app.recipes import compose, defaults, estimate, presets
from app.recipes.base_facts import BaseFacts
from app.recipes.compose import Composed, Version
from app.recipes.drafts import TUNING, Chosen
from app.recipes.machine import Machine

_ORDER = ("lora", "last_layers", "full")


@dataclass(frozen=True)
class Way:
    """A change that makes a recipe fit: a field of the page's form with its value, and the memory it then needs."""

    field: str
    value: str
    label: str
    memory_bytes: int


def need_of(base: BaseFacts, version: Version, machine: Machine) -> int:
    """Bytes that the method to recommend for a base takes: by formula and by characters, fast enough for every card."""
    rows = compose.measure(version, None)
    needs: dict[str, int] = {}
    for method in TUNING:
        values = presets.propose("balanced", method, base, rows, machine).values
        recipe = RecipeSpec.model_validate({**values, "method": method, "base_source": "starter"})
        needs[method] = estimate.memory_bytes(recipe, base, rows, machine)
    best, _reason = defaults.recommended_method(base.parameters, needs=needs, memory_bytes=machine.usable_memory_bytes)
    return needs[best]


def ways(composed: Composed, chosen: Chosen, machine: Machine) -> list[Way]:
    """What would make a recipe fit that does not, the least change first; nothing where only a smaller model helps."""
    if composed.estimate.fits:
        return []
    found: list[Way] = []
    recipe = composed.recipe
    for rows in range(recipe.micro_batch_size - 1, 0, -1):
        if recipe.batch_size % rows:
            continue
        need = _need(composed, machine, rows)
        if need <= machine.usable_memory_bytes:
            label = _("Read one row at once") if rows == 1 else _("Read %(count)s rows at once", count=rows)
            found.append(Way("micro_batch_size", str(rows), label, need))
            break
    labels = {"lora": _("Use LoRA"), "last_layers": _("Train the last layers"), "full": _("Train everything")}
    found += [
        Way("method", method, labels[method], chosen.needs[method])
        for method in _ORDER
        if method != chosen.method
        and chosen.needs.get(method, machine.usable_memory_bytes + 1) <= machine.usable_memory_bytes
    ]
    return found


def refusal(composed: Composed, machine: Machine) -> str:
    """Why a recipe cannot run here at all, in a sentence: more memory than there is, one row at a time. Else empty."""
    have = machine.gpu_memory_bytes or machine.memory_bytes
    need = _need(composed, machine, 1)
    if composed.estimate.is_probed or need <= have:
        return ""
    return _(
        "This cannot be trained here: even one row at a time it needs about %(need)s of memory, and this machine has "
        "%(have)s. Choose another method or a smaller model on the recipe page.",
        need=size(need),
        have=size(have),
    )


def _need(composed: Composed, machine: Machine, micro_batch_size: int) -> int:
    recipe = composed.recipe.model_copy(update={"micro_batch_size": micro_batch_size})
    return estimate.memory_bytes(recipe, composed.facts, composed.material, machine)
