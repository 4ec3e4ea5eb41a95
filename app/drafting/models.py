"""Drafts of questions and answers from documents: the endpoint of a workspace, a drafting as long work, its drafts."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class DraftEndpoint(Base):
    """An OpenAI-compatible endpoint that a workspace drafts with. The key is sealed with the installation's own."""

    __tablename__ = "draft_endpoints"

    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(String(200))
    sealed_key: Mapped[str] = mapped_column(Text, default="")


class Drafting(Base, LeasedWork):
    """Questions and answers are asked of `target` ("endpoint" or "model:<id>") for each chunk of a file."""

    __tablename__ = "draftings"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    file_id: Mapped[str] = mapped_column(ForeignKey("source_files.id", ondelete="CASCADE"), index=True)
    target: Mapped[str] = mapped_column(String(60))
    size_tokens: Mapped[int] = mapped_column(Integer, default=512)
    overlap_tokens: Mapped[int] = mapped_column(Integer, default=64)
    pairs: Mapped[int] = mapped_column(Integer, default=3)
    # Chunks that were asked about; a new attempt goes on after them.
    asked: Mapped[int] = mapped_column(Integer, default=0)
    made_file_id: Mapped[str | None] = mapped_column(String(20))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Draft(Base):
    """One question with its answer. States: open, approved, rejected; unusable where no pair could be read."""

    __tablename__ = "drafts"
    __table_args__ = (Index("ix_drafts_drafting_state", "drafting_id", "state", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    drafting_id: Mapped[str] = mapped_column(ForeignKey("draftings.id", ondelete="CASCADE"))
    chunk: Mapped[int] = mapped_column(Integer)
    document: Mapped[str] = mapped_column(String(255), default="")
    place: Mapped[str] = mapped_column(String(200), default="")
    heading: Mapped[str] = mapped_column(Text, default="")
    passage: Mapped[str] = mapped_column(Text)
    question: Mapped[str] = mapped_column(Text, default="")
    answer: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[str] = mapped_column(String(10), default="open")
    is_edited: Mapped[bool] = mapped_column(default=False)
