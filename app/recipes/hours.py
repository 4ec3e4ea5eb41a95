"""A recipe that must end in so many hours: the most steps that are expected to fit, with a schedule made for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.contracts.recipe import RecipeSpec
from app.core.numbers import counted, duration, number
from app.recipes import presets
from app.recipes.compose import Composed
from app.recipes.estimate import Estimate

_FINE = 100


def fitted(composed: Composed, estimated: Callable[[RecipeSpec], Estimate]) -> Composed:
    """The recipe, shortened where its limit in hours asks for it; `estimated` is what another recipe would take.

    Warm-up and looks follow the new number of steps unless a person set them. The engine keeps the limit as well:
    here the learning rate is given time to come down.
    """
    hours = composed.recipe.max_hours
    if hours is None:
        return composed
    limit_s, planned = 3600 * hours, composed.estimate.steps
    if _needs_s(composed.estimate) <= limit_s:
        return replace(composed, in_time=f"All {counted(planned, 'step')} fit in {duration(limit_s)}.")
    least, most = 1, planned
    while most - least > max(1, most // _FINE):
        middle = (least + most) // 2
        if _needs_s(estimated(_shortened(composed, middle).recipe)) <= limit_s:
            least = middle
        else:
            most = middle
    found = _shortened(composed, least)
    known = estimated(found.recipe)
    how = "by what was measured here" if known.is_probed or known.is_calibrated else "by formula, not yet measured"
    sentence = (
        f"{number(least)} of {counted(planned, 'step')} fit in {duration(limit_s)}, {how}. Warm-up and schedule are "
        "made for them."
    )
    if _needs_s(known) > limit_s:
        sentence = (
            f"{duration(limit_s)} is hardly enough to load the model and look at its answers. Give it more time, or "
            "choose a smaller model."
        )
    return replace(found, estimate=known, in_time=sentence)


def _needs_s(known: Estimate) -> float:
    """Half of the doubt is kept free: a run cut off by the clock has not come down with its learning rate."""
    return (known.seconds + known.high_s) / 2


def _shortened(composed: Composed, steps: int) -> Composed:
    """The same recipe for so many steps."""
    values: dict[str, Any] = {**composed.proposal.values, "max_steps": steps}
    reasons = dict(composed.proposal.reasons)
    presets.pace(values, reasons, steps)
    paced = {name: values[name] for name in presets.PACED if name not in composed.overrides}
    return replace(
        composed,
        proposal=composed.proposal.model_copy(update={"values": values, "reasons": reasons}),
        recipe=composed.recipe.model_copy(update={**paced, "max_steps": steps}),
    )
