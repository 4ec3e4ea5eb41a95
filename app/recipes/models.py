"""Drafted recipes and the base models that were brought in."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, HomePath, PlacedJSON, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class BaseModelEntry(Base, LeasedWork):
    """A base model of the catalogue: shipped, from a folder or from the hub. Its work is the download and check."""

    __tablename__ = "base_models"
    __table_args__ = (UniqueConstraint("workspace_id", "source", "ref", "revision"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(10))
    ref: Mapped[str] = mapped_column(String(500))
    revision: Mapped[str] = mapped_column(String(64), default="")
    name: Mapped[str] = mapped_column(String(200))
    licence: Mapped[str] = mapped_column(String(200), default="")
    parameters: Mapped[int] = mapped_column(BigInteger, default=0)
    context_length: Mapped[int] = mapped_column(default=0)
    architecture: Mapped[str] = mapped_column(String(60), default="")
    folder: Mapped[str] = mapped_column(HomePath, default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class RecipeDraft(Base):
    """What the recipe page shows: the chosen preset, base and changed values, before a run freezes them."""

    __tablename__ = "recipe_drafts"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    version_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id", ondelete="SET NULL"))
    preset: Mapped[str] = mapped_column(String(20), default="balanced")
    choices: Mapped[dict[str, Any]] = mapped_column(PlacedJSON, default=dict)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)


class SavedRecipe(Base):
    """A recipe kept under a name, for every project of its workspace. `base` as a draft keeps it; `deleted_at`: undone
    by a click."""

    __tablename__ = "saved_recipes"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="SET NULL"))
    name: Mapped[str] = mapped_column(String(100))
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    base: Mapped[dict[str, Any]] = mapped_column(PlacedJSON, default=dict)
    base_name: Mapped[str] = mapped_column(String(200), default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Probe(Base, LeasedWork):
    """A short probe of a recipe on this machine. `key` names what it holds for, `order` is what the engine was told."""

    __tablename__ = "probes"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(10))
    key: Mapped[str] = mapped_column(String(64), index=True)
    order: Mapped[dict[str, Any]] = mapped_column(PlacedJSON)
    result: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class SpeedRecord(Base):
    """What a finished run reached on a device, and how long its estimate had said: corrects later estimates."""

    __tablename__ = "speed_records"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    device: Mapped[str] = mapped_column(String(60), index=True)
    method: Mapped[str] = mapped_column(String(20))
    parameters: Mapped[int] = mapped_column(BigInteger)
    flops: Mapped[float] = mapped_column(Float)
    # Seconds from the claim to the first step, and the speed of looks and sample answers; None: not known.
    start_s: Mapped[float | None] = mapped_column(Float)
    look_flops: Mapped[float | None] = mapped_column(Float)
    estimated_s: Mapped[float] = mapped_column(Float)
    actual_s: Mapped[float] = mapped_column(Float)
    # Whether the estimate came from a probe, and the memory that it told and that was held; None: not known.
    is_probed: Mapped[bool] = mapped_column(default=False)
    estimated_bytes: Mapped[int | None] = mapped_column(BigInteger)
    actual_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
