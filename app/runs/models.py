"""Runs, their attempts, checkpoints, metric points and diary; the invariants live in the database."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, PlacedJSON, UTCDateTime, new_id, utcnow

LIVE_STATES = ("starting", "running", "finalizing", "pausing", "cancelling")
OPEN_STATES = ("queued", "waiting", "paused", *LIVE_STATES)
END_STATES = ("succeeded", "failed", "cancelled")


class Run(Base):
    """One training. The frozen order (recipe, version, base revision) never changes; the state moves forward only."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        UniqueConstraint("project_id", "client_request_id"),
        Index("ix_runs_state_priority", "state", "priority", "queued_at"),
    )

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(String(100))
    client_request_id: Mapped[str] = mapped_column(String(64), default=new_id)
    version_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id", ondelete="SET NULL"))
    base_model_id: Mapped[str | None] = mapped_column(ForeignKey("base_models.id", ondelete="SET NULL"))
    parent_model_id: Mapped[str | None] = mapped_column(String(20))
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    # What was used: dataset hash, base files and their hash, system prompt, library versions, spec hash.
    frozen: Mapped[dict[str, Any]] = mapped_column(PlacedJSON, default=dict)
    estimate: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    state: Mapped[str] = mapped_column(String(20), default="queued")
    reason: Mapped[str] = mapped_column(String(40), default="")
    sentence: Mapped[str] = mapped_column(Text, default="")
    want: Mapped[str] = mapped_column(String(20), default="run")
    adjustments: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    attempt_id: Mapped[str | None] = mapped_column(String(20))
    heartbeat: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    stalled_attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    priority: Mapped[int] = mapped_column(Integer, default=0)

    step: Mapped[int] = mapped_column(Integer, default=0)
    total_steps: Mapped[int] = mapped_column(Integer, default=0)
    phase: Mapped[str] = mapped_column(String(60), default="")
    plan: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    best_step: Mapped[int | None] = mapped_column(Integer)
    best_loss: Mapped[float | None] = mapped_column(Float)
    last_loss: Mapped[float | None] = mapped_column(Float)
    tokens_per_s: Mapped[float | None] = mapped_column(Float)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    trained_s: Mapped[float] = mapped_column(Float, default=0)
    tokens_seen: Mapped[int] = mapped_column(BigInteger, default=0)
    # Machine time of all attempts: what a recipe's hours are counted in. Pauses and a machine that is off do not count.
    spent_s: Mapped[float] = mapped_column(Float, default=0)
    coach: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)

    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    queued_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    @property
    def max_hours(self) -> float | None:
        """Machine time that it may take, as changed since its start; None: no limit."""
        hours = (self.adjustments or {}).get("max_hours") or (self.recipe or {}).get("max_hours")
        return float(hours) if hours else None


class Attempt(Base):
    """One claim of a run by one worker. At most one of a run, and of each of its devices, is open."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index(
            "uq_attempts_open_run",
            "run_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "uq_attempts_open_device",
            "node",
            "device",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    fence: Mapped[int] = mapped_column(Integer)
    node: Mapped[str] = mapped_column(String(100))
    # Of the worker that claimed it, and all that the run holds.
    device: Mapped[str] = mapped_column(String(60))
    devices: Mapped[list[str]] = mapped_column(JSON, default=list)
    pid: Mapped[int | None] = mapped_column(Integer)
    pid_started: Mapped[float | None] = mapped_column(Float)
    boot_id: Mapped[str] = mapped_column(String(40), default="")
    started_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    exit_kind: Mapped[str] = mapped_column(String(40), default="")


class Checkpoint(Base):
    """A registered checkpoint: on disk, verified, named here after it was whole."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("run_id", "step"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt_id: Mapped[str] = mapped_column(String(20))
    fence: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(Integer)
    dir: Mapped[str] = mapped_column(String(200))
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    validation_loss: Mapped[float | None] = mapped_column(Float)
    is_best: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(String(20), default="kept")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class MetricPoint(Base):
    """One value of one step. The key has no attempt: a step counts once, however often it was computed."""

    __tablename__ = "metric_points"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    value: Mapped[float] = mapped_column(Float)


class SampleAnswer(Base):
    """What the model answered to a sample prompt at a step."""

    __tablename__ = "sample_answers"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    prompt_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    prompt: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    has_ended: Mapped[bool] = mapped_column(default=False)


class RunEvent(Base):
    """The run's diary: sentences with a level, in order."""

    __tablename__ = "run_events"
    __table_args__ = (Index("ix_run_events_run", "run_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    level: Mapped[str] = mapped_column(String(10), default="info")
    kind: Mapped[str] = mapped_column(String(40), default="")
    step: Mapped[int | None] = mapped_column(Integer)
    sentence: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Notice(Base):
    """Whom to tell when the run ends. `target` is encrypted: a web address often holds a secret."""

    __tablename__ = "run_notices"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    channel: Mapped[str] = mapped_column(String(10))  # webhook or email
    target: Mapped[str] = mapped_column(Text)
    shown: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(10), default="waiting", index=True)
    tries: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[str] = mapped_column(Text, default="")
    next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Model(Base):
    """What a run leaves behind: adapter, last layers or whole weights. "Your model" on pages."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(10))
    # ModelFiles of contracts.recipe: base folder and overlays, all below our own roots.
    files: Mapped[dict[str, Any]] = mapped_column(PlacedJSON)
    base_model_id: Mapped[str | None] = mapped_column(ForeignKey("base_models.id", ondelete="SET NULL"))
    step: Mapped[int] = mapped_column(Integer)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    digest: Mapped[str] = mapped_column(String(64), default="")
    storage_url: Mapped[str] = mapped_column(Text, default="")
    stop_test: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    warning: Mapped[str] = mapped_column(Text, default="")
    # Why it is gone, where a source that it came from was forgotten; `deleted_at` is set with it.
    retired_because: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
