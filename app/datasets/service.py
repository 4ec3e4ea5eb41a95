"""Source files of a project: received, imported, mapped, left out again. Plans and versions lie beside this module."""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import security, storage
from app.core.after_commit import after_commit
from app.core.db import new_id, utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets import plans
from app.datasets.detect import ASK_BELOW_SHARE
from app.datasets.findings import REASONS
from app.datasets.fitting import Fit, fit
from app.datasets.importing import ImportReport
from app.datasets.mapping import REPAIRS, Mapped, Mapping, Repair, apply, columns_of
from app.datasets.models import CleaningPlan, DatasetVersion, Finding, RemoteSource, SourceFile, VersionComparison
from app.datasets.options import ReadOptions
from app.datasets.tables import page, parts
from app.projects import service as projects

SAMPLES_DIR = Path(__file__).parent / "samples"
PASTE_LIMIT_CHARACTERS = 2_000_000
PREVIEW_ROWS = 5
# Long work of this slice: the table and the task that wakes it, for the housekeeper's watch.
WATCHED = (
    (SourceFile, "datasets.import_file"),
    (RemoteSource, "datasets.bring"),
    (CleaningPlan, "datasets.prepare"),
    (DatasetVersion, "datasets.freeze"),
    (VersionComparison, "datasets.compare"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A set that ships with the product."""

    key: str
    filename: str
    title: str
    text: str
    licence: str


SAMPLES = {
    sample.key: sample
    for sample in (
        Sample(
            "support", "support-messages.csv", "Support messages",
            "1,608 questions of bank customers and what they are about", "CC BY 4.0",
        ),
        Sample(
            "orders", "coffee-orders.jsonl", "Coffee orders",
            "600 conversations between a guest and an ordering assistant", "CC BY 4.0",
        ),
        Sample(
            "shakespeare", "shakespeare.txt", "Shakespeare", "Plays, one million characters of plain text",
            "Public domain",
        ),
    )
}  # fmt: skip


def original_path(file: SourceFile) -> Path:
    """The bytes as they were received."""
    return storage.sources_dir(file.id) / "original"


def rows_dir(file: SourceFile) -> Path:
    """The rows that were read last."""
    return storage.sources_dir(file.id) / file.rows_key


def receive(
    session: Session, actor: Actor, *, project_id: str, filename: str, path: Path, sha256: str, origin: str,
    licence: str = "", origin_url: str = "", consent: str = "",
) -> SourceFile:  # fmt: skip
    """Take over the bytes at `path` as a source file, obtained today, and ring its import.

    `path` goes when the caller's transaction is committed, and stays when it is not.

    The same bytes in the same project are one file: the one that is there is given back.
    """
    projects.get(session, actor, project_id, need="editor")
    return adopt(
        session, user_id=actor.user_id, project_id=project_id, filename=filename, path=path, sha256=sha256,
        origin=origin, licence=licence, origin_url=origin_url, consent=consent,
    )  # fmt: skip


def adopt(
    session: Session, *, user_id: str | None, project_id: str, filename: str, path: Path, sha256: str, origin: str,
    licence: str = "", origin_url: str = "", consent: str = "",
) -> SourceFile:  # fmt: skip
    """`receive` for work that a person was allowed to begin: no gate is asked again."""
    same = select(SourceFile).where(
        SourceFile.project_id == project_id,
        SourceFile.sha256 == sha256,
        SourceFile.deleted_at.is_(None),
        SourceFile.state != "failed",
    )
    if (known := session.scalar(same.limit(1))) is not None:
        after_commit(session, partial(path.unlink, missing_ok=True), at_once=True)
        return known
    file = SourceFile(
        id=new_id(),
        project_id=project_id,
        filename=filename,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        origin=origin,
        licence=licence[:200],
        origin_url=origin_url[:2000],
        consent=consent[:500],
        obtained_on=utcnow().date(),
        created_by=user_id,
    )
    session.add(file)
    session.flush()
    # Two names until the row is committed: whenever this is cut off, one of the two is right.
    storage.link(path, original_path(file))
    after_commit(session, partial(path.unlink, missing_ok=True), at_once=True)
    ring(session, "datasets.import_file", file.id)
    return file


def add_text(session: Session, actor: Actor, *, project_id: str, text: str, name: str = "") -> SourceFile:
    """Pasted text becomes a source file. Raises Invalid when there is none or too much."""
    if not text.strip():
        raise Invalid(fields={"text": "Paste some text first."})
    if len(text) > PASTE_LIMIT_CHARACTERS:
        raise Invalid(fields={"text": "This is over two million characters. Save it as a file, then bring that."})
    projects.get(session, actor, project_id, need="editor")
    path = storage.uploads_dir() / new_id()
    path.write_bytes(text.encode("utf-8"))
    return receive(
        session, actor, project_id=project_id, filename=name or "Pasted text", path=path,
        sha256=storage.file_sha256(path), origin="paste",
    )  # fmt: skip


def add_sample(session: Session, actor: Actor, *, project_id: str, key: str) -> SourceFile:
    """One of the sets that ship with the product. Raises NotFound for an unknown key."""
    projects.get(session, actor, project_id, need="editor")
    sample = SAMPLES.get(key)
    if sample is None:
        raise NotFound("There is no sample set of this name.")
    path = storage.uploads_dir() / new_id()
    shutil.copyfile(SAMPLES_DIR / sample.filename, path)
    return receive(
        session, actor, project_id=project_id, filename=sample.filename, path=path,
        sha256=storage.file_sha256(path), origin="sample", licence=sample.licence,
    )  # fmt: skip


def list_files(session: Session, actor: Actor, project_id: str) -> list[SourceFile]:
    """The project's files, oldest first."""
    projects.get(session, actor, project_id)
    query = select(SourceFile).where(SourceFile.project_id == project_id, SourceFile.deleted_at.is_(None))
    return list(session.scalars(query.order_by(SourceFile.created_at, SourceFile.id)))


def names_of_files(session: Session, project_id: str) -> dict[str, str]:
    """File id to name. No gate: for callers that passed it."""
    query = select(SourceFile.id, SourceFile.filename)
    query = query.where(SourceFile.project_id == project_id, SourceFile.deleted_at.is_(None))
    return {file_id: name for file_id, name in session.execute(query.order_by(SourceFile.created_at, SourceFile.id))}


def get_file(session: Session, actor: Actor, file_id: str, *, need: str = "viewer") -> SourceFile:
    """A file, by the gate of its project."""
    file = session.get(SourceFile, file_id)
    if file is None:
        raise NotFound
    projects.get(session, actor, file.project_id, need=need)
    if file.deleted_at is not None:
        raise NotFound(file.forgotten_because)
    return file


def findings_of(session: Session, file: SourceFile) -> list[Finding]:
    """What was found in the file, one for each reason code, what was set aside first."""
    query = select(Finding).where(Finding.file_id == file.id)
    return list(session.scalars(query.order_by(Finding.out_count.desc(), Finding.count.desc(), Finding.id)))


def record_import(session: Session, file: SourceFile, report: ImportReport, rows_key: str) -> None:
    """Write down what the import found (called by the worker, inside its lease)."""
    file.rows, file.quarantined_rows, file.rows_key = report.rows, report.quarantined, rows_key
    file.detected = report.model_dump(mode="json", exclude={"problems"})
    session.execute(delete(Finding).where(Finding.file_id == file.id))
    for problem in report.problems:
        reason = REASONS[problem.code]
        session.add(
            Finding(
                file_id=file.id,
                code=problem.code,
                line=problem.first_row,
                sentence=reason.title,
                excerpt=problem.excerpt,
                place=problem.place[:300],
                note=problem.note[:500],
                count=problem.count,
                out_count=problem.out,
            )
        )
    known = set(report.columns)
    if not file.mapping or not columns_of(Mapping.model_validate(file.mapping)) <= known:
        best = report.detections[0] if report.detections else None
        file.mapping = best.mapping.model_dump(mode="json") if best else {}
        file.is_mapping_confirmed = best is not None and best.share * best.rank >= ASK_BELOW_SHARE
    session.flush()
    plans.change(session, file.project_id)


def retry_import(session: Session, actor: Actor, file_id: str) -> SourceFile:
    """Read the file again. Raises Conflict while it is being read."""
    file = get_file(session, actor, file_id, need="editor")
    if file.state in ("queued", "running"):
        raise Conflict("This file is being read already.")
    _read_again(session, file)
    return file


def cancel_import(session: Session, actor: Actor, file_id: str) -> SourceFile:
    """Stop reading. Rows that were read before stay as they were. Raises Conflict when nothing is being read."""
    file = get_file(session, actor, file_id, need="editor")
    if file.state == "queued":
        file.state = "cancelled"
    elif file.state == "running":
        file.want = "cancel"
    else:
        raise Conflict("This file is not being read.")
    return file


def _read_again(session: Session, file: SourceFile) -> None:
    # A new fence makes whoever reads it now stop without writing.
    file.state, file.want, file.attempts, file.error = "queued", "run", 0, ""
    file.fence, file.attempt_id = file.fence + 1, None
    session.flush()
    ring(session, "datasets.import_file", file.id)


def set_reading(
    session: Session, actor: Actor, file_id: str, changes: dict[str, Any], password: str = ""
) -> SourceFile:
    """Change reading options (a fix, an encoding, a delimiter) or give the password, and read the file again."""
    file = get_file(session, actor, file_id, need="editor")
    if password:
        file.sealed_password = security.encrypt(password)
    options = ReadOptions.model_validate({**file.options, **changes})
    if options.mistyped_columns == "map":
        options = options.model_copy(update={"renamed": file.detected.get("suggested_renames", {}) | options.renamed})
    file.options = options.model_dump(mode="json", exclude_defaults=True)
    _read_again(session, file)
    return file


def set_mapping(session: Session, actor: Actor, file_id: str, mapping: Mapping) -> SourceFile:
    """Confirm what the columns mean; the working set is made again. Raises Invalid when no row would fit."""
    file = get_file(session, actor, file_id, need="editor")
    if unknown := columns_of(mapping) - set(file.detected.get("columns", {})):
        names = ", ".join(f"“{name}”" for name in sorted(unknown)[:3])
        raise Invalid(fields={"": f"This file has no column {names}. Choose one of its columns."})
    if file.rows and not fit_of(file, mapping).usable:
        raise Invalid(fields={"": "No row fits this mapping, so nothing could be learned. Choose other columns."})
    file.mapping = mapping.model_dump(mode="json")
    file.is_mapping_confirmed = True
    session.flush()
    plans.change(session, file.project_id)
    return file


def set_repair(session: Session, actor: Actor, file_id: str, code: str, repair: Repair) -> SourceFile:
    """What is done about the rows of one check. Raises Invalid for a choice that the check does not have."""
    file = get_file(session, actor, file_id, need="editor")
    if repair not in REPAIRS.get(code, ()):
        raise Invalid("This cannot be done about these rows. Choose one of the fixes shown.")
    mapping = Mapping.model_validate(file.mapping)
    return set_mapping(
        session, actor, file_id, mapping.model_copy(update={"repairs": {**mapping.repairs, code: repair}})
    )


def fit_of(file: SourceFile, mapping: Mapping) -> Fit:
    """How well the mapping fits the rows that were read."""
    return fit(parts(rows_dir(file)), mapping) if file.rows_key else Fit()


def preview(file: SourceFile, mapping: Mapping, count: int = PREVIEW_ROWS) -> list[tuple[int, dict[str, Any], Mapped]]:
    """(row number, cells, what becomes of it) of the first rows."""
    rows = page(parts(rows_dir(file)), 0, count) if file.rows_key else []
    return [(values.pop("_row"), values, apply(values, mapping)) for values in rows]


def delete_file(session: Session, actor: Actor, file_id: str) -> SourceFile:
    """Leave a file out. Its bytes stay until the project goes, so this can be undone."""
    file = get_file(session, actor, file_id, need="editor")
    file.deleted_at = utcnow()
    if file.state in ("queued", "running"):
        file.want = "cancel"
    session.flush()
    plans.change(session, file.project_id)
    return file


def restore_file(session: Session, actor: Actor, file_id: str) -> SourceFile:
    """Take a file that was left out in again."""
    file = session.get(SourceFile, file_id)
    if file is None:
        raise NotFound
    projects.get(session, actor, file.project_id, need="editor")
    if file.forgotten_because:
        raise NotFound(file.forgotten_because)
    file.deleted_at = None
    if file.state == "succeeded":
        session.flush()
        plans.change(session, file.project_id)
    else:
        _read_again(session, file)
    return file
