"""The small charts of a run (learning rate, gradient norm, speed) as SVG paths with their range in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.core.drawing import spark_path
from app.core.numbers import number, percent, plain
from app.runs import curves

# metric → label, unit, digits
SIDE = {
    "learning_rate": ("Learning rate", "", "learning_rate"),
    "grad_norm": ("Gradient norm", "", "gradient_norm"),
    "tokens_per_s": ("Speed", "tokens/s", "token"),
}
# Measured at each look instead of at each step: what people can imagine better than a loss.
AT_LOOKS = {"validation_accuracy": ("Right guesses", "", "validation_accuracy")}
# A run that learns from preferences: what counts there comes first.
OF_PREFERENCES = {
    "preference_accuracy": ("Pairs told rightly apart", "", "preference_accuracy"),
    "preference_margin": ("Margin", "", "preference_margin"),
}
KNOWN = SIDE | AT_LOOKS | OF_PREFERENCES
WIDTH, HEIGHT = 720, 150


@dataclass(frozen=True)
class SideChart:
    """One small chart: path and area in a 720 × 150 box, with first, least, greatest and last value."""

    name: str
    label: str
    unit: str
    term: str
    path: str
    area: str
    least: str
    greatest: str
    last: str
    last_step: int

    @property
    def is_at_looks(self) -> bool:
        """Whether it has a value only where unseen rows were looked at."""
        return self.name in AT_LOOKS


def side_chart(session: Session, run_id: str, name: str, last_step: int) -> SideChart:
    """The chart of one metric, from a few hundred points: as many as its pixels."""
    label, unit, term = KNOWN[name]
    series = _points(session, run_id, name, last_step)
    values = [value for _, value in series]
    shown = _words(name)
    return SideChart(
        name=name,
        label=label,
        unit=unit,
        term=term,
        path=spark_path(values, WIDTH, HEIGHT),
        area=spark_path(values, WIDTH, HEIGHT, fill=True),
        least=shown(min(values, default=None)),
        greatest=shown(max(values, default=None)),
        last=shown(values[-1] if values else None),
        last_step=series[-1][0] if series else 0,
    )


def side_values(session: Session, run_id: str, name: str, last_step: int) -> dict[str, list[Any]]:
    """What the small chart of one metric shows, point by point: steps, and the values as words."""
    series = _points(session, run_id, name, last_step)
    shown, unit = _words(name), KNOWN[name][1]
    return {"step": [step for step, _ in series], "text": [f"{shown(value)} {unit}".rstrip() for _, value in series]}


def _words(name: str) -> Callable[[float | None], str]:
    """How a value of this metric is written: shares in per cent."""
    return percent if name.endswith("_accuracy") else _figure


def _points(session: Session, run_id: str, name: str, last_step: int) -> curves.Points:
    return curves.points(session, run_id, name, every=1 if name in AT_LOOKS else max(1, math.ceil(last_step / 240)))


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return number(value) if abs(value) >= 100 else plain(value, 3)
