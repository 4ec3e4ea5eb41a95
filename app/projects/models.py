"""Projects and their objective."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow


class Project(Base):
    """One model's way from idea to service. `deleted_at` set: gone, restorable for a while."""

    __tablename__ = "projects"
    __table_args__ = (Index("ix_projects_workspace", "workspace_id", "deleted_at"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    template: Mapped[str] = mapped_column(String(40), default="free")
    demo: Mapped[str] = mapped_column(String(40), default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Objective(Base):
    """What the model is for, in the person's own words."""

    __tablename__ = "objectives"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    task: Mapped[str] = mapped_column(Text, default="")
    audience: Mapped[str] = mapped_column(Text, default="")
    tone: Mapped[str] = mapped_column(Text, default="")
    must_never: Mapped[list[str]] = mapped_column(JSON, default=list)
    # [{"question": str, "answer": str}, …]
    samples: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    system_prompt: Mapped[str] = mapped_column(Text, default="")
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)
