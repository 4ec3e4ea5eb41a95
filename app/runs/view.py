"""One run as the page and the live stream show it: read once, rendered once, whoever watches."""

from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.contracts.recipe import RecipeSpec
from app.core.config import get_settings
from app.projects.models import Project
from app.runs import charts, coach, curves, turns, verdicts
from app.runs.charts import SideChart
from app.runs.coach import Verdict
from app.runs.curves import Curves
from app.runs.health import HealthRow, health
from app.runs.models import (
    END_STATES,
    OPEN_STATES,
    Attempt,
    Checkpoint,
    MetricPoint,
    Model,
    Run,
    RunEvent,
    SampleAnswer,
)
from app.runs.pace import left_s
from app.runs.turns import Turn

_LOG_LINES = 200

BADGES: dict[str, tuple[str, str]] = {
    "queued": ("Queued", ""),
    "waiting": ("Waiting", "warn"),
    "starting": ("Starting", "live"),
    "running": ("Training", "live"),
    "finalizing": ("Finishing", "live"),
    "pausing": ("Pausing", "live"),
    "paused": ("Paused", ""),
    "cancelling": ("Cancelling", "live"),
    "succeeded": ("Ready", "good"),
    "failed": ("Failed", "bad"),
    "cancelled": ("Cancelled", ""),
}


@dataclass(frozen=True)
class Samples:
    """Answers to the sample prompts at one checkpoint, and the steps that have some."""

    steps: list[int]
    shown_step: int | None
    best_step: int | None
    answers: list[SampleAnswer]
    by_prompt: dict[str, list[SampleAnswer]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Of a run that learns from preferences, the newest look at unseen pairs: share told rightly apart, margin."""

    accuracy: float | None
    margin: float | None


@dataclass(frozen=True)
class RunView:
    """Everything that the fragments of a run need."""

    run: Run
    project: Project
    curves: Curves
    verdict: Verdict
    health: list[HealthRow]
    samples: Samples
    checkpoints: list[Checkpoint]
    log: list[RunEvent]
    side: list[SideChart]
    model: Model | None
    attempt: Attempt | None
    place: int | None = None
    starts_in_s: float | None = None
    left_s: float | None = None
    zone_from: int | None = None
    pairs: Pairs | None = None
    newest_number: int = 0

    @property
    def again_id(self) -> str:
        """What a form for another run like this one is sent with: the same until a run was started in the project."""
        return f"{self.run.id}-{self.newest_number}"

    @property
    def recipe(self) -> RecipeSpec:
        """The frozen recipe, whole."""
        return RecipeSpec.model_construct(**self.run.recipe)

    @property
    def is_live(self) -> bool:
        """Whether something will still happen by itself."""
        return self.run.state in OPEN_STATES and self.run.state != "paused"

    @property
    def is_finishing(self) -> bool:
        """Whether the last step is done and the model is being put together."""
        return verdicts.is_finishing(self.run)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.run.state in END_STATES

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        return min(1.0, self.run.step / self.run.total_steps) if self.run.total_steps else 0.0

    @property
    def passes(self) -> float:
        """Passes over the training rows: those that its steps come to, once it is over those that were made."""
        steps, rows = self.run.step if self.is_over else self.run.total_steps, self.run.plan.get("train_rows")
        if not steps or not rows:
            return float(self.run.adjustments.get("epochs") or self.recipe.epochs)
        return steps / self.recipe.steps_per_epoch(rows)

    @property
    def speed(self) -> float | None:
        """Tokens a second over the whole training, whole numbers."""
        return round(self.run.tokens_seen / self.run.trained_s) if self.run.trained_s > 0 else None

    @property
    def last_val(self) -> float | None:
        """The newest validation loss."""
        return self.curves.val[-1][1] if self.curves.val else None

    @property
    def hesitates(self) -> float | None:
        """e to the power of the newest validation loss."""
        return coach.hesitates(self.last_val)

    @property
    def hesitated_first(self) -> float | None:
        """e to the power of the first loss that was measured."""
        first = self.curves.train[0][1] if self.curves.train else None
        return coach.hesitates(first)

    @property
    def kept_bytes(self) -> int:
        """What its model and checkpoints take on the disk, bytes."""
        of_model = self.model.size_bytes if self.model else 0
        return of_model + sum(checkpoint.size_bytes for checkpoint in self.checkpoints)

    @property
    def badge(self) -> tuple[str, str]:
        """Word and tone of the state."""
        return badge_of(self.run, has_model=self.model is not None)


def badge_of(run: Run, *, has_model: bool = True) -> tuple[str, str]:
    """Word and tone of a run's state; after the last step it finishes, whatever the trainer still writes."""
    if run.state == "succeeded" and not has_model:
        return "Finished", ""
    return BADGES.get("finalizing" if verdicts.is_finishing(run) else run.state, (run.state, ""))


def view(
    session: Session, run: Run, *, sample_step: int | None = None, all_looks: bool = False, level: str = ""
) -> RunView:
    """Read a run whole. A constant number of queries, whatever its length. `all_looks`: every look's sample answers."""
    shown = curves.load(session, run.id, run.step)
    checkpoints = list(
        session.scalars(
            select(Checkpoint)
            .where(Checkpoint.run_id == run.id, Checkpoint.state == "kept")
            .order_by(Checkpoint.step.desc())
        )
    )
    model = session.scalar(select(Model).where(Model.run_id == run.id, Model.deleted_at.is_(None)))
    attempt = session.scalar(select(Attempt).where(Attempt.run_id == run.id).order_by(Attempt.fence.desc()).limit(1))
    turn = queue_turns(session).get(run.id) if run.state == "queued" else None
    place, starts_in = (turn.place, turn.starts_in_s) if turn else (None, None)
    log = _log(session, run.id, level)
    # The verdict reads the whole diary: warnings alone would make a healthy run look as if it stood still.
    told = _log(session, run.id, "") if level else log
    verdict = verdicts.of(run, shown, checkpoints, model, told, place=place, starts_in_s=starts_in)
    side, pairs = [*charts.AT_LOOKS, *charts.SIDE], None
    if run.recipe.get("learn_from") == "preferences":
        side = [*charts.OF_PREFERENCES, *charts.SIDE]
        pairs = _pairs(session, run)
        if run.state in ("running", "succeeded"):
            verdict = coach.of_preferences(verdict, pairs.accuracy, pairs.margin)
    return RunView(
        run=run,
        project=session.get_one(Project, run.project_id),
        curves=shown,
        verdict=verdict,
        health=health(shown, is_over=run.state in END_STATES, is_broken=run.reason == "diverged"),
        samples=_samples(session, run, sample_step, all_looks),
        checkpoints=checkpoints,
        log=log,
        side=[charts.side_chart(session, run.id, name, run.step) for name in side],
        model=model,
        attempt=attempt,
        place=place,
        starts_in_s=starts_in,
        left_s=left_s(run),
        zone_from=verdicts.zone(run, shown),
        pairs=pairs,
        newest_number=session.scalar(select(func.max(Run.number)).where(Run.project_id == run.project_id)) or 0,
    )


def queue_turns(session: Session) -> dict[str, Turn]:
    """Place and expected start of every queued run of this machine, by id."""
    return turns.places(session, left_s, get_settings().runs_per_workspace)


def _pairs(session: Session, run: Run) -> Pairs:
    newest = [curves.points(session, run.id, name)[-1:] for name in ("validation_accuracy", "validation_margin")]
    return Pairs(*(found[0][1] if found else None for found in newest))


def _samples(session: Session, run: Run, wanted: int | None, all_looks: bool = False) -> Samples:
    steps = list(
        session.scalars(
            select(SampleAnswer.step).where(SampleAnswer.run_id == run.id).distinct().order_by(SampleAnswer.step)
        )
    )
    # A look without time for answers may have become the model: none of the others is called best then.
    best = run.best_step if run.best_step in steps else None
    nearest = max((step for step in steps if run.best_step is not None and step <= run.best_step), default=None)
    # Of a finished run the look that became the model, or the last with answers before it; while it trains the newest.
    newest = steps[-1] if steps else None
    shown = wanted if wanted in steps else (nearest or newest) if run.state == "succeeded" else newest
    stops = _stops(steps, {shown, best})
    query = select(SampleAnswer).where(SampleAnswer.run_id == run.id)
    query = query.where(SampleAnswer.step.in_(stops) if all_looks else SampleAnswer.step == shown)
    answers = list(session.scalars(query.order_by(SampleAnswer.prompt_index, SampleAnswer.step)))
    if not all_looks:
        return Samples(stops, shown, best, answers)
    by_prompt: dict[str, list[SampleAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    return Samples(stops, None, best, answers, by_prompt)


def _stops(steps: list[int], keep: set[int | None], most: int = 12) -> list[int]:
    """At most about a dozen steps for the scale: evenly spread, with first, last and those to `keep`."""
    if len(steps) <= most:
        return steps
    spread = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)}
    return sorted(spread | {step for step in keep if step is not None})


def _log(session: Session, run_id: str, level: str) -> list[RunEvent]:
    query = select(RunEvent).where(RunEvent.run_id == run_id)
    if level == "warning":
        query = query.where(RunEvent.level.in_(("warning", "error")))
    newest = session.scalars(query.order_by(RunEvent.id.desc()).limit(_LOG_LINES)).all()
    return list(reversed(newest))


def log_text(session: Session, run: Run) -> str:
    """The whole diary as text, for the download."""
    rows = session.scalars(select(RunEvent).where(RunEvent.run_id == run.id).order_by(RunEvent.id))
    return "".join(f"{row.at:%Y-%m-%d %H:%M:%S}Z  {row.level:<8}{row.sentence}\n" for row in rows)


@dataclass(frozen=True)
class Listed:
    """A run in the list, with its small curve."""

    run: Run
    spark: list[float]
    verdict: str
    kind: str
    left_s: float | None
    model_id: str | None
    turn: Turn | None = None

    @property
    def badge(self) -> tuple[str, str]:
        """Word and tone of the state."""
        return badge_of(self.run, has_model=self.model_id is not None)

    @property
    def share(self) -> float:
        """How much of the training is done, 0 to 1."""
        return min(1.0, self.run.step / self.run.total_steps) if self.run.total_steps else 0.0


def listed(session: Session, runs: list[Run]) -> list[Listed]:
    """Rows of the runs page: a constant number of queries for any number of runs."""
    ids = [run.id for run in runs]
    series: dict[str, list[tuple[int, float]]] = {}
    query = select(MetricPoint.run_id, MetricPoint.step, MetricPoint.value).where(
        MetricPoint.run_id.in_(ids), MetricPoint.name == "validation_loss"
    )
    for run_id, step, value in session.execute(query.order_by(MetricPoint.step)):
        series.setdefault(run_id, []).append((step, value))
    models: dict[str, str] = {
        row.run_id: row.id
        for row in session.execute(
            select(Model.id, Model.run_id).where(Model.run_id.in_(ids), Model.deleted_at.is_(None))
        )
    }
    places = queue_turns(session) if any(run.state == "queued" for run in runs) else {}
    found = []
    for run in runs:
        val = series.get(run.id, [])
        title, kind = verdicts.short(run, Curves([], val))
        if run.state == "succeeded" and run.id not in models:
            title, kind = "Weights not kept", "idle"
        spark = [value for _, value in val]
        found.append(Listed(run, spark, title, kind, left_s(run), models.get(run.id), places.get(run.id)))
    return found


def count_by_state(session: Session, project_id: str) -> dict[str, int]:
    """How many runs of the project are in each state."""
    rows = session.execute(select(Run.state, func.count()).where(Run.project_id == project_id).group_by(Run.state))
    return {state: count for state, count in rows}
