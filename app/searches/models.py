"""Searches and their trials. A trial is a run of the queue with some values of the recipe replaced."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow

OPEN_STATES = ("running", "stopping")


class Search(Base):
    """One search: what may vary, the budget, and the best run so far. Everything it needs to go on is in the rows."""

    __tablename__ = "searches"
    __table_args__ = (UniqueConstraint("project_id", "number"), UniqueConstraint("project_id", "client_request_id"))

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    client_request_id: Mapped[str] = mapped_column(String(64), default=new_id)
    way: Mapped[str] = mapped_column(String(10))  # grid or bayesian
    state: Mapped[str] = mapped_column(String(12), default="running", index=True)
    sentence: Mapped[str] = mapped_column(Text, default="")
    space: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    points: Mapped[int] = mapped_column(Integer, default=3)
    budget_runs: Mapped[int | None] = mapped_column(Integer)
    budget_s: Mapped[float | None] = mapped_column(Float)
    version_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id", ondelete="SET NULL"))
    base_model_id: Mapped[str | None] = mapped_column(ForeignKey("base_models.id", ondelete="SET NULL"))
    parent_model_id: Mapped[str | None] = mapped_column(String(20))
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    estimate: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Else only the best run keeps its weights.
    keeps_all: Mapped[bool] = mapped_column(default=False)
    best_run_id: Mapped[str | None] = mapped_column(String(20))
    best_sentence: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Trial(Base):
    """One run of a search, with the values that it tries by field name."""

    __tablename__ = "trials"

    search_id: Mapped[str] = mapped_column(ForeignKey("searches.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), unique=True)
    values: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Set when the search ended it early; the sentence says against what.
    pruned_at_step: Mapped[int | None] = mapped_column(Integer)
    pruned_because: Mapped[str] = mapped_column(Text, default="")
    # Bytes of the weights that its run has given up; None: it keeps what it has. `is_erased`: they are gone from disk.
    freed_bytes: Mapped[int | None] = mapped_column(BigInteger)
    is_erased: Mapped[bool] = mapped_column(default=False)
