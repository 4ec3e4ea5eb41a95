"""Sources that were forgotten: who asked, why, what went with them. The row is also the work of deleting the files."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class Forgetting(Base, LeasedWork):
    """A source that is forgotten with everything that came from it. `report`: ids of files, versions, runs, models."""

    __tablename__ = "forgettings"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    file_id: Mapped[str] = mapped_column(String(20), unique=True)
    filename: Mapped[str] = mapped_column(String(255))
    because: Mapped[str] = mapped_column(Text, default="")
    last_set: Mapped[int] = mapped_column(default=0)
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
