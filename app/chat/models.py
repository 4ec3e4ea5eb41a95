"""Saved conversations with models, and what people thought of the answers."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow

# What people say about an answer beside the thumb: thumb → tag → its words.
TAGS_BY_THUMB = {
    1: {"true": "True", "clear": "Clear", "tone": "Right tone"},
    -1: {
        "untrue": "Not true",
        "missed": "Missed the question",
        "long": "Too long",
        "short": "Too short",
        "repeats": "Repeats itself",
        "style": "Wrong tone",
        "unsafe": "Should never be said",
    },
}
TAGS = TAGS_BY_THUMB[1] | TAGS_BY_THUMB[-1]


class Chat(Base):
    """A saved conversation. `model_refs` names one model, or up to four to compare; `is_blind`: their names are told
    once a person has said which answer is better."""

    __tablename__ = "chats"
    __table_args__ = (Index("ix_chats_project", "project_id", "updated_at"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200), default="")
    model_refs: Mapped[list[str]] = mapped_column(JSON, default=list)
    system_prompt: Mapped[str] = mapped_column(Text, default="")
    sampling: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    is_blind: Mapped[bool] = mapped_column(default=False)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class ChatMessage(Base):
    """One turn of a tree. An answer's `parent_id` is its question; a question's is the answer that it follows.

    Versions of a question share the parent, versions of an answer the model, too; `is_active` marks the chosen one, so
    what hangs on the others is not shown. `state` is streaming, done, stopped or failed. `vote` of a question: the
    answer that a person found better, or “tie”.
    """

    __tablename__ = "chat_messages"
    __table_args__ = (Index("ix_chat_messages_chat", "chat_id", "position"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    chat_id: Mapped[str] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    parent_id: Mapped[str | None] = mapped_column(String(20))
    position: Mapped[int] = mapped_column(Integer)
    role: Mapped[str] = mapped_column(String(10))
    content: Mapped[str] = mapped_column(Text, default="")
    model_ref: Mapped[str] = mapped_column(String(60), default="")
    state: Mapped[str] = mapped_column(String(10), default="done")
    is_active: Mapped[bool] = mapped_column(default=True)
    vote: Mapped[str] = mapped_column(String(20), default="")
    error: Mapped[str] = mapped_column(Text, default="")
    statistics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    # While an answer is being made: by which process, and when its text was last saved, so that an abandoned one is
    # noticed.
    maker: Mapped[str] = mapped_column(String(60), default="")
    saved_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Feedback(Base):
    """A thumb, tags and a note on one answer, one a person; `correction` is what a bad answer should have said."""

    __tablename__ = "feedback"

    message_id: Mapped[str] = mapped_column(ForeignKey("chat_messages.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    thumb: Mapped[int] = mapped_column(Integer, default=0)
    note: Mapped[str] = mapped_column(Text, default="")
    tags: Mapped[list[str]] = mapped_column(JSON, default=list)
    correction: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
