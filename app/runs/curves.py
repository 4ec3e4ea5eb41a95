"""A run's numbers as series: read by step, thinned for the page, smoothed for the coach."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.core.drawing import thin
from app.runs.models import MetricPoint

Points = list[tuple[int, float]]
MOST_POINTS = 200_000
_FIRST_PAINT = 600


@dataclass(frozen=True)
class Curves:
    """Training and validation loss by step, in nats a token; other metrics on demand."""

    train: Points = field(default_factory=list)
    val: Points = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest validation loss."""
        return min(self.val, key=lambda point: (point[1], point[0])) if self.val else None

    def until(self, step: int) -> "Curves":
        """The same curves as they were right after `step`."""
        return Curves([p for p in self.train if p[0] <= step], [p for p in self.val if p[0] <= step])


_point = MetricPoint.__table__.c
# Built once: a page asks for five metrics at every visit.
_POINTS = (
    select(_point.step, _point.value)
    .where(_point.run_id == bindparam("run_id"), _point.name == bindparam("name"), _point.step > bindparam("after"))
    .where(_point.step % bindparam("every") == 0)
    .order_by(_point.step)
)


def points(session: Session, run_id: str, name: str, *, after: int = -1, every: int = 1) -> Points:
    """(step, value) of one metric, in order, finite values only."""
    values = {"run_id": run_id, "name": name, "after": after, "every": every}
    found = session.connection().execute(_POINTS, values)
    return [(step, value) for step, value in found if math.isfinite(value)]


def load(session: Session, run_id: str, last_step: int) -> Curves:
    """Curves for the page and the coach: at most about a thousand training points, whatever the run's length."""
    every = max(1, math.ceil(last_step / 800))
    return Curves(points(session, run_id, "loss", every=every), points(session, run_id, "validation_loss"))


def first_paint(curves: Curves) -> Curves:
    """What the server draws: a few hundred points keep the page small."""
    train = [(int(x), y) for x, y in thin(smoothed(curves.train), _FIRST_PAINT // 2)]
    return Curves(train, [(int(x), y) for x, y in thin(curves.val, 60)])


def smoothed(series: Sequence[tuple[int, float]], window: int | None = None) -> Points:
    """De-biased exponential mean; the window grows with the run, so that it does not lag on short ones."""
    if window is None:
        window = max(1, len(series) // 40)
    keep = 1 - 1 / max(1, window)
    total = weight = 0.0
    found: Points = []
    for step, value in series:
        total = total * keep + value * (1 - keep)
        weight = weight * keep + (1 - keep)
        found.append((step, total / weight))
    return found


# Column of the table → metric.
_COLUMNS = {
    "training loss": "loss",
    "validation loss": "validation_loss",
    "validation accuracy": "validation_accuracy",
    "validation margin": "validation_margin",
    "learning rate": "learning_rate",
    "gradient norm": "grad_norm",
    "tokens per second": "tokens_per_s",
    "seconds": "step_s",
}


def as_csv(session: Session, run_id: str) -> str:
    """All of a run's numbers, a step a line; a column for each metric that it has."""
    series = {label: dict(points(session, run_id, name)) for label, name in _COLUMNS.items()}
    labels = [label for label, values in series.items() if values]
    steps = sorted({step for label in labels for step in series[label]})
    rows = [",".join(["step", *labels])]
    rows += [",".join([str(step), *(_cell(series[label].get(step)) for label in labels)]) for step in steps]
    return "".join(f"{row}\r\n" for row in rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"


def history(
    session: Session, run_id: str, names: Sequence[str], *, first: int = 0, last: int = 2**31
) -> dict[str, Points]:
    """Whole series by name between two steps; past 200,000 points thinned to the extremes of each part."""
    query = (
        select(MetricPoint.name, MetricPoint.step, MetricPoint.value)
        .where(MetricPoint.run_id == run_id, MetricPoint.name.in_(names), MetricPoint.step.between(first, last))
        .order_by(MetricPoint.step)
    )
    found: dict[str, Points] = {name: [] for name in names}
    for name, step, value in session.execute(query):
        if math.isfinite(value):
            found[name].append((step, round(value, 6)))
    if sum(map(len, found.values())) > MOST_POINTS:
        share = MOST_POINTS // (2 * len(names))
        found = {name: [(int(x), y) for x, y in thin(series, share)] for name, series in found.items()}
    return found
