"""From what the engine says to rows: fenced transactions at most once a second, published after the commit."""

import logging
import time
from collections import defaultdict
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.contracts.events import (
    Adjusted,
    CheckpointDamaged,
    CheckpointSaved,
    EngineEvent,
    Evaluated,
    Progress,
    Sample,
    Started,
    Step,
    Warned,
)
from app.core import events, storage
from app.core.db import utcnow
from app.core.numbers import counted, number, plain
from app.runs.claim import RunLease
from app.runs.models import Checkpoint, MetricPoint, Run, SampleAnswer
from app.runs.states import move, note

log = logging.getLogger(__name__)
FLUSH_EVERY_S = 1.0
_BROKEN_AT_ONCE = (Started, CheckpointSaved)
_ROWS_A_STATEMENT = 2000
_NAMES = {
    "learning_rate": "learning rate",
    "epochs": "passes over the rows",
    "evaluate_every_steps": "steps between looks at unseen rows",
    "max_hours": "hours of machine time at most",
}


class Recorder:
    """Buffers an attempt's events and writes them as the owner of the run."""

    def __init__(self, lease: RunLease) -> None:
        self.lease = lease
        self.run_id = lease.claimed.run_id
        self._waiting: list[EngineEvent] = []
        self._flushed_at = 0.0
        self.step_times: list[float] = []
        self.recorded_step: int | None = None
        """Of the newest checkpoint that has been written down."""
        self._computer: dict[str, Any] | None = None

    def observe(self, computer: dict[str, Any] | None) -> None:
        """Keep how busy the computer is for the next flush; None changes nothing."""
        self._computer = computer or self._computer

    def take(self, event: EngineEvent) -> None:
        """Keep an event for the next flush."""
        self._waiting.append(event)
        if isinstance(event, Step):
            self.step_times.append(event.step_s)

    @property
    def is_due(self) -> bool:
        """Whether a flush should be tried now."""
        if not self._waiting:
            return False
        waited = time.monotonic() - self._flushed_at
        return waited >= FLUSH_EVERY_S or (
            waited >= FLUSH_EVERY_S / 4 and any(isinstance(event, _BROKEN_AT_ONCE) for event in self._waiting)
        )

    def flush(self) -> None:
        """Write what waits in one transaction, then publish it.

        Raises LostLease; on a database error the events stay for the next flush.
        """
        batch = self._waiting
        self._flushed_at = time.monotonic()
        if not batch:
            return
        with self.lease.write() as session:
            run = session.get_one(Run, self.run_id)
            live = _Batch(session, run, self.lease)
            for event in batch:
                live.record(event)
            if self._computer is not None:
                run.plan = {**run.plan, "computer": self._computer}
            live.finish()
        self._waiting = self._waiting[len(batch) :]
        saved = [event.step for event in batch if isinstance(event, CheckpointSaved)]
        self.recorded_step = saved[-1] if saved else self.recorded_step
        for name, payload in live.messages:
            events.publish(f"run:{self.run_id}", name, payload)


class _Batch:
    """One transaction's worth of events."""

    def __init__(self, session: Session, run: Run, lease: RunLease) -> None:
        self.session, self.run, self.lease = session, run, lease
        self.has_new_best = False  # or whatever else may move the mark of the best checkpoint
        self.points: dict[tuple[str, int], float] = {}
        self.series: dict[str, list[Any]] = defaultdict(list)
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def record(self, event: EngineEvent) -> None:
        match event:
            case Started():
                self._started(event)
            case Step():
                self._step(event)
            case Evaluated():
                self._evaluated(event)
            case Sample():
                self._sample(event)
            case CheckpointSaved():
                self._checkpoint(event)
            case CheckpointDamaged():
                self._damaged(event)
            case Adjusted():
                self._adjusted(event)
            case Warned():
                if event.rung is not None:
                    # A later attempt begins where this one had to go.
                    self.run.plan = {**self.run.plan, "memory_rung": event.rung}
                note(self.session, self.run.id, event.message, kind=event.kind, level="warning", step=event.step)
            case Progress():
                self.run.phase = event.phase[:60]
                self.messages.append(("progress", {"phase": event.phase, "done": event.done, "total": event.total}))
            case _:
                pass  # the end is recorded by the supervisor, together with the exit code

    def _adjusted(self, event: Adjusted) -> None:
        planned = self.run.total_steps
        self.run.total_steps = event.total_steps or planned
        told = f"{_NAMES.get(event.name, '')} {plain(event.value)}"
        if event.name == "max_steps":
            if self.run.total_steps == planned:
                return  # the other hours change nothing about its steps
            told = f"{counted(self.run.total_steps, 'step')} are planned instead of {number(planned)}"
        note(self.session, self.run.id, f"From step {event.step + 1} on: {told}.", kind="adjusted", step=event.step)

    def _started(self, event: Started) -> None:
        run, session = self.run, self.session
        forget_after(session, run, event.step)
        if event.step:
            sentence = f"Resumed at step {event.step} of {event.total_steps}. Nothing was lost."
        else:
            sentence = (
                f"Training started: {counted(event.train_rows, 'row')}, {counted(event.total_steps, 'step')}, "
                + (
                    f"{event.trainable_parameters:,} new weights learn beside the {event.parameters:,} of the base."
                    if run.recipe["method"] == "lora"
                    else f"{event.trainable_parameters:,} of {event.parameters:,} weights learn."
                )
            )
        run.plan = {**run.plan, **event.model_dump(exclude={"type"}), "pace": None}
        run.total_steps, run.phase = event.total_steps, "training"
        if run.state == "starting":
            session.flush()
            move(session, run.id, "running", claimed=self.lease.claimed, diary=sentence, kind="started")
        else:
            note(session, run.id, sentence, kind="started", step=event.step)
        self.points.clear()
        self.series.clear()
        self.has_new_best = True
        self.messages.append(("restart", {"step": event.step, "total_steps": event.total_steps}))

    def _step(self, event: Step) -> None:
        run, step = self.run, event.step
        tokens_per_s = event.tokens / max(event.step_s, 1e-9)
        for name, value in (
            ("loss", event.loss),
            ("learning_rate", event.learning_rate),
            ("grad_norm", event.grad_norm),
            ("tokens_per_s", tokens_per_s),
            ("step_s", event.step_s),
        ):
            self.points[name, step] = value
        if event.margin is not None and event.accuracy is not None:
            self.points["preference_margin", step] = event.margin
            self.points["preference_accuracy", step] = event.accuracy
        for name, value in (
            ("step", step),
            ("loss", event.loss),
            ("lr", event.learning_rate),
            ("grad", event.grad_norm),
            ("tps", tokens_per_s),
        ):
            self.series[name].append(value)
        run.step, run.last_loss = step, event.loss
        run.tokens_per_s, run.memory_bytes = tokens_per_s, event.memory_bytes
        run.trained_s = run.trained_s + event.step_s
        run.tokens_seen = run.tokens_seen + event.tokens

    def _evaluated(self, event: Evaluated) -> None:
        self.points["validation_loss", event.step] = event.loss
        self.points["validation_accuracy", event.step] = event.accuracy
        if event.margin is not None:
            self.points["validation_margin", event.step] = event.margin
        self.series["val"].append([event.step, event.loss])
        if event.is_best:
            self.has_new_best = True
            self.run.best_step, self.run.best_loss = event.step, event.loss

    def _sample(self, event: Sample) -> None:
        values = {"prompt": event.prompt, "text": event.text, "has_ended": event.ended}
        key = {"run_id": self.run.id, "step": event.step, "prompt_index": event.prompt_index}
        statement = _insert(self.session, SampleAnswer).values(**key, **values)
        self.session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))
        self.messages.append(("sample", event.model_dump(exclude={"type"})))

    def _checkpoint(self, event: CheckpointSaved) -> None:
        run, session, claimed = self.run, self.session, self.lease.claimed
        values: dict[str, Any] = {
            "attempt_id": claimed.attempt_id,
            "fence": claimed.fence,
            "dir": event.dir,
            "manifest_sha256": event.manifest_sha256,
            "size_bytes": event.size_bytes,
            "validation_loss": event.validation_loss,
            "state": "kept",
        }
        row = session.scalar(select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.step == event.step))
        if row is None:
            session.add(Checkpoint(run_id=run.id, step=event.step, **values))
        else:
            for name, value in values.items():
                setattr(row, name, value)
        run.stalled_attempts = 0
        self.has_new_best = True
        # The engine makes room when it saves: name only what is still there.
        folder = storage.run_dir(run.id)
        session.flush()
        for kept in session.scalars(select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.state == "kept")):
            if kept.step != event.step and not (folder / kept.dir).is_dir():
                kept.state = "removed"
        note(session, run.id, f"Checkpoint saved at step {event.step}.", kind="checkpoint", step=event.step)
        self.messages.append(("checkpoint", event.model_dump(exclude={"type"})))

    def _damaged(self, event: CheckpointDamaged) -> None:
        self.session.execute(
            update(Checkpoint)
            .where(Checkpoint.run_id == self.run.id, Checkpoint.dir == event.dir)
            .values(state="damaged")
        )
        name = event.dir.rpartition("-")[2].lstrip("0") or "0"
        note(
            self.session,
            self.run.id,
            f"Checkpoint {name} was damaged ({event.reason}) and was skipped; going on from the one before.",
            kind="checkpoint_damaged",
            level="warning",
        )

    def finish(self) -> None:
        """Write the collected points and put the live series last, in one message."""
        rows = [
            {"run_id": self.run.id, "name": name, "step": step, "value": value}
            for (name, step), value in self.points.items()
        ]
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            statement = _insert(self.session, MetricPoint)
            self.session.execute(
                statement.on_conflict_do_update(
                    index_elements=["run_id", "name", "step"], set_={"value": statement.excluded.value}
                ),
                rows[start : start + _ROWS_A_STATEMENT],
            )
        if self.has_new_best:
            self.session.flush()
            self.session.execute(
                update(Checkpoint)
                .where(Checkpoint.run_id == self.run.id)
                .values(is_best=Checkpoint.step == (-1 if self.run.best_step is None else self.run.best_step))
                .execution_options(synchronize_session=False)
            )
        if self.series:
            self.messages.append(("metrics", dict(self.series)))
            if not self.run.plan.get("pace"):
                # From here the clock tells the pace: loading and the slow first step lie before it.
                self.run.plan = {**self.run.plan, "pace": {"step": self.run.step, "at": utcnow().isoformat()}}


def forget_after(session: Session, run: Run, step: int) -> None:
    """Delete what an earlier attempt recorded after `step`: it will be computed again, and must count once."""
    for table in (MetricPoint, SampleAnswer):
        session.execute(delete(table).where(table.run_id == run.id, table.step > step))
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.run_id == run.id, Checkpoint.step > step, Checkpoint.state == "kept")
        .values(state="removed", is_best=False)
    )
    points = select(MetricPoint.step, MetricPoint.name, MetricPoint.value).where(MetricPoint.run_id == run.id)
    best = session.execute(
        points.where(MetricPoint.name == "validation_loss").order_by(MetricPoint.value, MetricPoint.step).limit(1)
    ).first()
    run.best_step, run.best_loss = (best.step, best.value) if best else (None, None)
    last = session.execute(points.where(MetricPoint.name == "loss").order_by(MetricPoint.step.desc()).limit(1)).first()
    run.step, run.last_loss = step, last.value if last else None
    speeds = {row.step: row.value for row in session.execute(points.where(MetricPoint.name == "tokens_per_s"))}
    times = {row.step: row.value for row in session.execute(points.where(MetricPoint.name == "step_s"))}
    run.trained_s = sum(times.values())
    run.tokens_seen = round(sum(speeds.get(at, 0.0) * value for at, value in times.items()))


def _insert(session: Session, table: Any) -> Any:
    """INSERT with ON CONFLICT in the database's own dialect; both read the same."""
    return (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(table)
