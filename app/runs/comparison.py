"""Two to six runs side by side: their curves in one drawing, and what differs in recipe, rows, machine and result."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.drawing import HEIGHT, LEFT, WIDTH, nice_ticks
from app.core.errors import NotFound
from app.core.numbers import compact, duration, number, size
from app.core.numbers import loss as shown_loss
from app.core.translations import gettext as _
from app.recipes import fields
from app.runs import curves, service, verdicts
from app.runs.models import Model, Run
from app.runs.view import badge_of

LEAST, MOST = 2, 6


@dataclass(frozen=True)
class Row:
    """One property, as text of each run. `best` marks the runs with the best value where more is not just different."""

    label: str
    values: list[str]
    best: frozenset[int] = frozenset()

    @property
    def differs(self) -> bool:
        """Whether the runs are not all alike in it."""
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Drawn:
    """One run's line: an SVG path and where its name stands."""

    run: Run
    path: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Runs, table, and lines of validation loss (of training loss where nobody looked at unseen rows)."""

    runs: list[Run]
    groups: dict[str, list[Row]]
    drawn: list[Drawn] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)

    def shown(self, everything: bool) -> dict[str, list[Row]]:
        """The groups with the rows that differ, or all of them."""
        kept = {name: [row for row in rows if everything or row.differs] for name, rows in self.groups.items()}
        return {name: rows for name, rows in kept.items() if rows}

    @property
    def differing(self) -> int:
        """In how many properties they differ, results left aside."""
        return sum(row.differs for name, rows in self.groups.items() if name != _("Result") for row in rows)


def compare(session: Session, actor: Actor, project_id: str, run_ids: Sequence[str]) -> Comparison:
    """The named runs in the order given, at most six. Raises NotFound for a run that is not of this project."""
    wanted = list(dict.fromkeys(run_ids))[:MOST]
    found = {run.id: run for run in service.listing(session, actor, project_id)}
    if any(one not in found for one in wanted):
        raise NotFound
    runs = [found[one] for one in wanted]
    series = [_line(session, run) for run in runs]
    drawn, x_ticks, y_ticks = _drawn(runs, series)
    groups = {
        _("Recipe"): recipe_rows([as_trained(run) for run in runs]),
        _("Rows and base"): _material_rows(runs),
        _("Machine"): _machine_rows(runs),
        _("Result"): _result_rows(session, runs),
    }
    return Comparison(runs, groups, drawn, x_ticks, y_ticks)


def _line(session: Session, run: Run) -> list[tuple[int, float]]:
    loaded = curves.load(session, run.id, run.step)
    return loaded.val if len(loaded.val) > 1 else curves.smoothed(loaded.train)


def _drawn(
    runs: list[Run], series: list[list[tuple[int, float]]]
) -> tuple[list[Drawn], list[tuple[float, str]], list[tuple[float, str]]]:
    """All lines on common axes: drawn by the server, so that they are there without scripts."""
    every = sorted(point for line in series for point in line)
    if len(every) < 2:
        return [], [], []
    steps = [x for x, _loss in every]
    # The first tenth of the steps would rule the range.
    start = min(steps) + 0.1 * (max(steps) - min(steps))
    losses = [y for x, y in every if x >= start]
    low, high = min(losses), max(losses)
    pad = (high - low) * 0.06 or 0.1
    span = max(1, max(steps) - min(steps))

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - min(steps)) / span * (WIDTH - LEFT - 110)
        down = max(0.0, (high + pad - y) / (high - low + 2 * pad))
        return round(across, 1), round(10 + down * (HEIGHT - 36), 1)

    x_ticks = [
        (at(value, low)[0], number(int(value)))
        for value in nice_ticks(min(steps), max(steps), 5)
        if value == int(value)
    ]
    y_ticks = [(at(steps[0], value)[1], f"{value:g}") for value in nice_ticks(low, high, 5)]
    found: list[Drawn] = []
    for run, line in zip(runs, series, strict=True):
        if line:
            points = [at(x, y) for x, y in line]
            path = "M" + "L".join(f"{x} {y}" for x, y in points)
            found.append(Drawn(run, path, _free(points[-1], [one.end for one in found])))
    return found, x_ticks, y_ticks


def _free(end: tuple[float, float], taken: list[tuple[float, float]]) -> tuple[float, float]:
    """Where a line's name can stand: lines that end at one place have their names under one another."""
    x, y = end
    while any(abs(x - other_x) < 100 and abs(y - other_y) < 13 for other_x, other_y in taken):
        y += 13
    return x, round(y, 1)


def as_trained(run: Run) -> dict[str, Any]:
    """The run's recipe with what was adjusted while it ran."""
    values = deepcopy(run.recipe)
    for name, value in run.adjustments.items():
        fields.put(values, name, value)
    return values


def recipe_rows(recipes: Sequence[dict[str, Any]]) -> list[Row]:
    """Every field of the recipe page that one of the methods reads. Recipes as nested values."""
    rows = [Row(_("What learns"), [_METHODS.get(recipe["method"], recipe["method"]) for recipe in recipes])]
    for known in fields.FIELDS:
        if not any(known.is_for(recipe["method"]) for recipe in recipes):
            continue
        values = []
        for recipe in recipes:
            value = fields.get(recipe, known.name)
            text = fields.shown(known, value) if known.is_for(recipe["method"]) else ""
            values.append(dict(known.options).get(text, text).partition(":")[0] if known.kind == "choice" else text)
            if known.kind == "flag":
                values[-1] = _yes(value)
        unit = f" ({known.unit})" if known.unit in ("tokens", "seconds") else ""
        rows.append(Row(known.label + unit, [text or "–" for text in values]))
    return rows


_METHODS = {"lora": _("LoRA"), "last_layers": _("The last layers"), "full": _("Everything"), "scratch": _("A new GPT")}


def _yes(value: object) -> str:
    return _("yes") if value else _("no")


def _material_rows(runs: list[Run]) -> list[Row]:
    def of(run: Run, part: str, name: str) -> Any:
        return (run.frozen.get(part) or {}).get(name)

    return [
        Row(_("Dataset version"), [_text(of(run, "dataset", "version")) for run in runs]),
        Row(_("Rows to learn from"), [number(of(run, "dataset", "train_rows")) for run in runs]),
        Row(_("Fingerprint of the rows"), [_text(of(run, "dataset", "content_hash"))[:12] for run in runs]),
        Row(_("Base model"), [_text(of(run, "base_about", "name")) for run in runs]),
        Row(_("Revision of the base"), [_text(of(run, "base_about", "revision"))[:12] or "–" for run in runs]),
        Row(_("Instruction before each conversation"), [run.frozen.get("system_prompt") or "–" for run in runs]),
    ]


def _machine_rows(runs: list[Run]) -> list[Row]:
    return [
        Row(_("Device"), [_text(run.plan.get("device")) for run in runs]),
        Row(_("Precision"), [_text(run.plan.get("precision")) for run in runs]),
        *(
            Row(name, [_text((run.frozen.get("libraries") or {}).get(name)) for run in runs])
            for name in ("torch", "transformers", "peft", "tokenizers")
        ),
    ]


def _result_rows(session: Session, runs: list[Run]) -> list[Row]:
    ids = [run.id for run in runs]
    kept = select(Model).where(Model.run_id.in_(ids), Model.deleted_at.is_(None))
    models = {model.run_id: model for model in session.scalars(kept)}
    losses = [run.best_loss for run in runs]
    known = [value for value in losses if value is not None]
    best = frozenset(i for i, value in enumerate(losses) if known and value == min(known))
    return [
        Row(_("State"), [_state(run, has_model=run.id in models) for run in runs]),
        Row(_("Lowest validation loss"), [shown_loss(value) for value in losses], best),
        Row(_("Best at step"), [number(run.best_step) for run in runs]),
        Row(_("Last training loss"), [shown_loss(run.last_loss) for run in runs]),
        Row(_("Steps"), [number(run.step) for run in runs]),
        Row(_("Time of the steps"), [duration(run.trained_s) if run.trained_s else "–" for run in runs]),
        Row(_("Tokens read"), [compact(run.tokens_seen) for run in runs]),
        Row(_("Tokens a second"), [_speed(run) for run in runs]),
        Row(_("Memory"), [size(run.memory_bytes) for run in runs]),
        Row(_("Size of the result"), [size(models[one].size_bytes) if one in models else "–" for one in ids]),
    ]


_ENDED = {
    "completed": _("all steps"),
    "early_stopped": _("stopped by itself"),
    "time_is_up": _("hours used up"),
    "stopped": _("stopped by hand"),
}


def _state(run: Run, *, has_model: bool) -> str:
    word = badge_of(run, has_model=has_model)[0]
    if run.state == "failed":
        return f"{word}: {verdicts.short(run, curves.Curves())[0].lower()}"
    return f"{word}: {_ENDED[run.reason]}" if run.state == "succeeded" and run.reason in _ENDED else word


def _speed(run: Run) -> str:
    return number(round(run.tokens_seen / run.trained_s)) if run.trained_s else "–"


def _text(value: object) -> str:
    return "–" if value in (None, "") else str(value)
