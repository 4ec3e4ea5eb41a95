"""API keys and what was asked with them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow


class ApiKey(Base):
    """`sk-<id>_<secret>`; only the SHA-256 of the whole is kept. `project_id` limits it to one project."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    last_four: Mapped[str] = mapped_column(String(4))
    scopes: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    requests_per_minute: Mapped[int] = mapped_column(Integer, default=120)
    # 0: no limit. The budget counts tokens read and written in a calendar month (UTC).
    tokens_per_minute: Mapped[int] = mapped_column(Integer, default=0)
    monthly_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    # Ids of the models that it may ask, checkpoints of their runs included; empty: all that it can see.
    models: Mapped[list[str]] = mapped_column(JSON, default=list)


class ApiName(Base):
    """A project's part of its models' ids at the API. Given once and kept, so that renaming breaks no client."""

    __tablename__ = "api_names"
    __table_args__ = (UniqueConstraint("workspace_id", "slug"),)

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    slug: Mapped[str] = mapped_column(String(60))


class ApiCall(Base):
    """One request to the API: counts and times, never texts."""

    __tablename__ = "api_calls"
    __table_args__ = (Index("ix_api_calls_workspace_at", "workspace_id", "at"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"), index=True)
    model_ref: Mapped[str] = mapped_column(String(120), default="")
    endpoint: Mapped[str] = mapped_column(String(40))
    status: Mapped[int] = mapped_column(Integer)
    finish_reason: Mapped[str] = mapped_column(String(20), default="")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    first_token_s: Mapped[float | None] = mapped_column(Float)
    total_s: Mapped[float | None] = mapped_column(Float)
    at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class IdempotentAnswer(Base):
    """The stored answer of a request that carried an Idempotency-Key."""

    __tablename__ = "idempotent_answers"

    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    maker: Mapped[str] = mapped_column(String(60), default="")  # the process that makes the answer
    status: Mapped[int | None] = mapped_column(Integer)
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
