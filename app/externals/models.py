"""External models of a workspace: where they answer, and the sealed key."""

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow


class ExternalModel(Base):
    """A model behind an OpenAI-compatible address. `url` ends before /chat/completions; the key is encrypted with the
    installation's own; `problem` is what the last trial said, empty when it answered."""

    __tablename__ = "external_models"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(80))
    url: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(String(200))
    sealed_key: Mapped[str] = mapped_column(Text, default="")
    problem: Mapped[str] = mapped_column(Text, default="")
    tried_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
