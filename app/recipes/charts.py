"""The learning rate over the run, as points and as an SVG path: drawn by the server, without scripts."""

import math

from app.contracts.recipe import RecipeSpec

WIDTH, HEIGHT = 600, 140


def rate_at(recipe: RecipeSpec, step: int, total_steps: int) -> float:
    """Learning rate at a step (from 0), as the engine computes it: warm-up, then the schedule."""
    warmup = min(recipe.warmup_steps, total_steps // 2)
    floor = recipe.learning_rate * recipe.final_learning_rate_ratio
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "linear":
        share = 1 - progress
    elif recipe.schedule == "cosine":
        share = (1 + math.cos(math.pi * progress)) / 2
    else:
        share = min(1.0, (total_steps - step) / max(1, round(total_steps * recipe.decay_share)))
    return floor + (recipe.learning_rate - floor) * share


def schedule_points(recipe: RecipeSpec, total_steps: int, points: int = 120) -> list[tuple[int, float]]:
    """(step, learning rate) pairs, the corners of the warm-up included."""
    steps = {round(i * max(0, total_steps - 1) / (points - 1)) for i in range(points)}
    steps |= {min(total_steps - 1, recipe.warmup_steps, total_steps // 2), 0}
    return [(step, rate_at(recipe, step, total_steps)) for step in sorted(steps)]


def schedule_path(recipe: RecipeSpec, total_steps: int) -> dict[str, str | float]:
    """SVG path data for line and area in a box of 600 × 140, and where the warm-up ends (x)."""
    pairs = schedule_points(recipe, max(1, total_steps))
    top = recipe.learning_rate * 1.08
    span = max(1, total_steps - 1)
    places = [(step / span * WIDTH, HEIGHT - rate / top * HEIGHT) for step, rate in pairs]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    area = f"{line}L{WIDTH} {HEIGHT}L0 {HEIGHT}Z"
    return {"line": line, "area": area, "warmup_x": round(min(recipe.warmup_steps, total_steps // 2) / span * WIDTH, 1)}
