"""A search as its page shows it: its runs with what they tried, one small drawing a parameter, the budget used."""

import math
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.numbers import loss as shown_loss
from app.projects.models import Project
from app.recipes.fields import BY_NAME
from app.runs.view import Listed, listed
from app.searches import progress, service
from app.searches.models import OPEN_STATES, Search, Trial
from app.searches.space import Dimension

WIDTH, HEIGHT = 300, 120


@dataclass(frozen=True)
class Dot:
    """One run in a drawing."""

    x: float
    y: float
    text: str
    is_best: bool


@dataclass(frozen=True)
class Scatter:
    """Lowest validation loss over the values of one parameter, in a 300 × 120 box; its ends in words."""

    label: str
    dots: list[Dot]
    ticks: list[tuple[float, str]]
    low: str
    high: str


@dataclass(frozen=True)
class Row:
    """One run of the search."""

    trial: Trial
    listed: Listed
    values: dict[str, str]
    is_best: bool


@dataclass(frozen=True)
class SearchView:
    """Everything that the page of a search needs."""

    search: Search
    project: Project
    labels: dict[str, str]
    rows: list[Row]
    scatters: list[Scatter]
    spent_s: float
    best: Row | None

    @property
    def is_open(self) -> bool:
        """Whether something still happens by itself."""
        return self.search.state in OPEN_STATES

    @property
    def share(self) -> float | None:
        """How much of the budget is used: of the runs or the hours, whichever is further."""
        search = self.search
        shares = []
        if search.budget_runs:
            ended = sum(row.listed.run.ended_at is not None for row in self.rows)
            shares.append(ended / search.budget_runs)
        if search.budget_s:
            shares.append(self.spent_s / search.budget_s)
        return min(1.0, max(shares)) if shares else None

    @property
    def freed(self) -> tuple[int, int]:
        """How many runs have given up their weights, and the bytes of them."""
        sizes = [row.trial.freed_bytes for row in self.rows if row.trial.freed_bytes]
        return len(sizes), sum(sizes)

    @property
    def best_query(self) -> str:
        """The address part that compares the best six runs."""
        runs = [row.listed.run for row in self.rows if row.listed.run.best_loss is not None]
        runs.sort(key=lambda run: run.best_loss or 0.0)
        return "&".join(f"run={run.id}" for run in runs[:6])

    @property
    def ended_early(self) -> int:
        """How many runs the search ended before their last step."""
        return sum(row.trial.pruned_at_step is not None for row in self.rows)


def view(session: Session, search: Search) -> SearchView:
    """Read a search whole."""
    known = service.trials(session, search)
    rows = [
        Row(trial, shown, service.shown(search, trial.values), shown.run.id == search.best_run_id)
        for (trial, _), shown in zip(known, listed(session, [run for _, run in known]), strict=True)
    ]
    dimensions = service.space_of(search)
    return SearchView(
        search=search,
        project=session.get_one(Project, search.project_id),
        labels={one.name: BY_NAME[one.name].label for one in dimensions},
        rows=rows,
        scatters=[found for one in dimensions if (found := _scatter(one, rows)) is not None],
        spent_s=progress.spent_s(session, [run.id for _, run in known]),
        best=next((row for row in rows if row.is_best), None),
    )


def _scatter(one: Dimension, rows: list[Row]) -> Scatter | None:
    points = [(row, row.listed.run.best_loss) for row in rows if row.listed.run.best_loss is not None]
    if len(points) < 2:
        return None
    least, most = min(loss for _, loss in points), max(loss for _, loss in points)
    span = (most - least) or 1.0
    dots = [
        Dot(
            round(12 + _place(one, row.trial.values[one.name]) * (WIDTH - 24), 1),
            round(12 + (most - loss) / span * (HEIGHT - 24), 1),
            f"{one.shown(row.trial.values[one.name])}: {shown_loss(loss)}",
            row.is_best,
        )
        for row, loss in points
    ]
    values = one.choices if one.scale == "choice" else [one.low, one.high]
    ticks = [(round(12 + _place(one, value) * (WIDTH - 24), 1), one.shown(_typed(one, value))) for value in values]
    return Scatter(BY_NAME[one.name].label, dots, ticks, shown_loss(least), shown_loss(most))


def _typed(one: Dimension, value: object) -> object:
    return int(value) if one.scale in ("integer", "doubling") and isinstance(value, float) else value


def _place(one: Dimension, value: object) -> float:
    """0 at the low end, 1 at the high end, on the parameter's own scale."""
    if one.scale == "choice":
        return one.choices.index(str(value)) / max(1, len(one.choices) - 1) if value in one.choices else 0.5
    at = float(str(value))
    if one.scale in ("log", "doubling"):
        return math.log(max(at, 1e-12) / one.low) / math.log(one.high / one.low)
    return (at - one.low) / (one.high - one.low)
