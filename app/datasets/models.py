"""Uploads, source files, what was found in them, and frozen versions."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Date, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base, UTCDateTime, new_id, utcnow
from app.core.work import LeasedWork


class Upload(Base):
    """A resumable upload (tus 1.0) into a spool file. `offset_bytes` is what is safely on disk."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    # What the sender said of the file's content and age: only the same file goes on where it stopped.
    fingerprint: Mapped[str] = mapped_column(String(100), default="")
    offset_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(20), default="receiving")
    file_id: Mapped[str | None] = mapped_column(ForeignKey("source_files.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)


class SourceFile(Base, LeasedWork):
    """A received file; its work is the import: detect, parse, count findings."""

    __tablename__ = "source_files"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    origin: Mapped[str] = mapped_column(String(40), default="upload")
    # The source ledger: where it was taken from, under which licence, with whose consent, and when.
    origin_url: Mapped[str] = mapped_column(Text, default="")
    licence: Mapped[str] = mapped_column(String(200), default="")
    consent: Mapped[str] = mapped_column(String(500), default="")
    obtained_on: Mapped[date | None] = mapped_column(Date)
    # The file whose text it was drafted from, and the sentence for what was forgotten with its source.
    derived_from: Mapped[str | None] = mapped_column(String(20))
    forgotten_because: Mapped[str] = mapped_column(Text, default="")
    # What was detected: format, encoding, delimiter, row shape with its share and the alternatives.
    detected: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Reading options that a person chose (app.datasets.options) and the folder of the rows that were read with them.
    options: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    rows_key: Mapped[str] = mapped_column(String(40), default="")
    # Of a locked document, encrypted with the installation's key.
    sealed_password: Mapped[str] = mapped_column(Text, default="")
    mapping: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    is_mapping_confirmed: Mapped[bool] = mapped_column(default=False)
    rows: Mapped[int] = mapped_column(BigInteger, default=0)
    quarantined_rows: Mapped[int] = mapped_column(BigInteger, default=0)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class RemoteSource(Base, LeasedWork):
    """Material that is fetched from elsewhere; its work is the fetching, and what arrives becomes source files.

    States beside those of all long work: found (a dataset of the hub that waits for a person's choice), removed.
    """

    __tablename__ = "remote_sources"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(10))
    # An https address, the name of a dataset on the hub, or s3://bucket/path.
    address: Mapped[str] = mapped_column(Text)
    # By kind: page limit; revision and files of the hub; endpoint of the storage; afterwards what was left out and why.
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Keys of the storage, encrypted with the installation's key.
    sealed_keys: Mapped[str] = mapped_column(Text, default="")
    licence: Mapped[str] = mapped_column(String(200), default="")
    consent: Mapped[str] = mapped_column(String(500), default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class Finding(Base):
    """Something a person should look at: file, place, reason code, and what was decided about it."""

    __tablename__ = "findings"
    __table_args__ = (Index("ix_findings_file_code", "file_id", "code"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("source_files.id", ondelete="CASCADE"))
    code: Mapped[str] = mapped_column(String(40))
    line: Mapped[int | None] = mapped_column(BigInteger)
    sentence: Mapped[str] = mapped_column(Text)
    excerpt: Mapped[str] = mapped_column(Text, default="")
    place: Mapped[str] = mapped_column(String(300), default="")
    # Of the first record: which field, which rule.
    note: Mapped[str] = mapped_column(Text, default="")
    count: Mapped[int] = mapped_column(Integer, default=1)
    out_count: Mapped[int] = mapped_column(Integer, default=0)
    decision: Mapped[str] = mapped_column(String(20), default="")


class CleaningPlan(Base, LeasedWork):
    """The steps chosen for a project's next version, and the split; its work is to map and clean all rows.

    `revision` counts the changes, `prepared_revision` is the one that the working set on disk (`set_key`) shows.
    """

    __tablename__ = "cleaning_plans"

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), unique=True)
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    split: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Rows and reasons that a person told a step to leave alone (app.datasets.plan.Override).
    overrides: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    # Earlier states of `steps`, newest last, so that every change can be undone.
    history: Mapped[list[Any]] = mapped_column(JSON, default=list)
    revision: Mapped[int] = mapped_column(Integer, default=0)
    prepared_revision: Mapped[int] = mapped_column(Integer, default=0)
    set_key: Mapped[str] = mapped_column(String(40), default="")
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Counts changes of rows by hand; the prepared rows hold those up to `prepared_edits`.
    edits_revision: Mapped[int] = mapped_column(Integer, default=0)
    prepared_edits: Mapped[int] = mapped_column(Integer, default=0)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow, onupdate=utcnow)


class RowChange(Base):
    """Something changed by hand in one row (`key`, see app.datasets.edits) or in many (`key` None: keys in a file)."""

    __tablename__ = "row_changes"
    __table_args__ = (Index("ix_row_changes_project_key", "project_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(10))
    key: Mapped[int | None] = mapped_column(BigInteger)
    # Where the row stands in its source, for the history.
    file_id: Mapped[str] = mapped_column(String(20), default="")
    row: Mapped[int] = mapped_column(BigInteger, default=0)
    rows: Mapped[int] = mapped_column(BigInteger, default=1)
    value: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    question: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
    undone_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    undone_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))


class DatasetVersion(Base, LeasedWork):
    """An immutable, hashed set of rows; its work is the freezing."""

    __tablename__ = "dataset_versions"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    number: Mapped[int] = mapped_column(Integer)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("dataset_versions.id", ondelete="SET NULL"))
    # Where it holds one uploaded file alone: that file.
    file_id: Mapped[str | None] = mapped_column(ForeignKey("source_files.id", ondelete="SET NULL"), index=True)
    manifest_sha256: Mapped[str] = mapped_column(String(64), default="")
    content_hash: Mapped[str] = mapped_column(String(64), default="")
    # Files, mappings, steps, split, seed: everything that makes it again.
    plan: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Where it was made of other versions: app.datasets.combining.contract.Combination. Else empty.
    combination: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    statistics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    kind: Mapped[str] = mapped_column(String(10), default="chat")
    train_rows: Mapped[int] = mapped_column(BigInteger, default=0)
    validation_rows: Mapped[int] = mapped_column(BigInteger, default=0)
    test_rows: Mapped[int] = mapped_column(BigInteger, default=0)
    created_by: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)


class VersionComparison(Base, LeasedWork):
    """Two versions compared row by row; its work is to find which rows were added, removed, changed or moved."""

    __tablename__ = "version_comparisons"
    __table_args__ = (UniqueConstraint("old_id", "new_id"),)

    id: Mapped[str] = mapped_column(String(20), primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), index=True)
    old_id: Mapped[str] = mapped_column(ForeignKey("dataset_versions.id", ondelete="CASCADE"))
    new_id: Mapped[str] = mapped_column(ForeignKey("dataset_versions.id", ondelete="CASCADE"))
    # app.datasets.combining.comparing.Comparison once it is done.
    report: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=utcnow)
