"""What was exported of a model, and what was sent to a hub."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class Export(Base, LeasedWork):
    """A model (or checkpoint) as files; its work is writing and checking them. `hub_repository`: also sent there."""

    __tablename__ = "exports"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    model_ref: Mapped[str] = mapped_column(String(60))
    model_name: Mapped[str] = mapped_column(String(120))
    kind: Mapped[str] = mapped_column(String(20))
    # ExportReport of contracts.export, and the files: [{"name", "size_bytes", "sha256"}].
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    hub_repository: Mapped[str] = mapped_column(String(200), default="")
    # Encrypted with the installation's key; forgotten as soon as everything was sent.
    sealed_token: Mapped[str] = mapped_column(Text, default="")
    hub_url: Mapped[str] = mapped_column(Text, default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
