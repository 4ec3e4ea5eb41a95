"""Evaluations: what was asked, what each system answered, and the verdict."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, PlacedJSON, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class Evaluation(Base, LeasedWork):
    """One scoring of a model against its base, and an external model where one was chosen, on the test split."""

    __tablename__ = "evaluations"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    version_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id", ondelete="SET NULL"))
    row_limit: Mapped[int] = mapped_column(Integer, default=200)
    kind: Mapped[str] = mapped_column(String(20), default="")
    # Whom to ask and what else, frozen at the start: {"tuned": Target, "base": Target or null, "own": test cases,
    # "external": {"ref", "name", "host"} or null}.
    plan: Mapped[dict[str, Any]] = mapped_column(PlacedJSON, default=dict)
    # Metric → {base, tuned, baselines, interval, n}, and the verdict in words.
    summary: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class TestCase(Base):
    """A question that people chose to test models with, often from a chat, and its ideal answer (empty: not written
    yet, so nobody is asked). `source_id`: the answer that it was made from."""

    __test__ = False  # not one of pytest's
    __tablename__ = "test_cases"
    __table_args__ = (UniqueConstraint("project_id", "source_id"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    source_id: Mapped[str | None] = mapped_column(String(20))
    messages: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list)
    ideal: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class CaseResult(Base):
    """One test row: question, ideal answer, what base and tuned said, and their scores. `rid` is the row's number;
    below 0 it is a test of the project's own. `error`: a refusal of our own model server, which leaves the row out of
    every number; `external_error`: why the external model did not answer, which leaves the others' numbers alone."""

    __tablename__ = "case_results"
    __table_args__ = (Index("ix_case_results_evaluation", "evaluation_id", "position"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    evaluation_id: Mapped[str] = mapped_column(ForeignKey("evaluations.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    rid: Mapped[int] = mapped_column(BigInteger)
    prompt: Mapped[str] = mapped_column(Text)
    ideal: Mapped[str] = mapped_column(Text)
    base_answer: Mapped[str] = mapped_column(Text, default="")
    tuned_answer: Mapped[str] = mapped_column(Text, default="")
    external_answer: Mapped[str] = mapped_column(Text, default="")
    scores: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    error: Mapped[str] = mapped_column(Text, default="")
    external_error: Mapped[str] = mapped_column(Text, default="")
