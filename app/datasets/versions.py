"""Frozen versions: begun from the plan, built by the worker, listed, opened and downloaded."""

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.db import new_id
from app.core.errors import Conflict, NotFound, Unavailable
from app.core.queue import ring
from app.datasets import plans, service
from app.datasets.freezing import is_intact, manifest_id
from app.datasets.models import DatasetVersion
from app.datasets.tables import iterate, parts
from app.projects import service as projects


def freeze(session: Session, actor: Actor, project_id: str) -> DatasetVersion:
    """Begin a version of what the plan says now; the same plan again gives the version that is there.

    Raises Conflict while files or the working set are still being read, or when there is no row to freeze.
    """
    projects.get(session, actor, project_id, need="editor")
    current = plans.get(session, actor, project_id)
    if current is None or not current.report:
        raise Conflict("There are no rows to freeze yet. Bring a file and confirm its mapping first.")
    if current.state != "succeeded" or current.prepared_revision != current.revision:
        raise Conflict("The rows are still being prepared. Freeze when they are ready.")
    if any(file.state in ("queued", "running") for file in service.list_files(session, actor, project_id)):
        raise Conflict("A file is still being read. Freeze when it is ready.")
    if not current.report.get("rows"):
        raise Conflict("No row is left after cleaning. Undo a step, then freeze.")
    plan = plans.planned(session, project_id).model_dump(mode="json")
    newest = latest(session, project_id, is_finished=False)
    if newest is not None and newest.plan == plan and newest.state in ("queued", "running", "succeeded"):
        return newest
    number = session.scalar(select(func.max(DatasetVersion.number)).where(DatasetVersion.project_id == project_id))
    version = DatasetVersion(
        id=new_id(),
        project_id=project_id,
        number=(number or 0) + 1,
        parent_id=newest.id if newest else None,
        plan=plan,
        created_by=actor.user_id,
    )
    session.add(version)
    session.flush()
    ring(session, "datasets.freeze", version.id)
    return version


def latest(session: Session, project_id: str, *, is_finished: bool = True) -> DatasetVersion | None:
    """The newest (finished) version of a project. No gate: for callers that passed it."""
    query = select(DatasetVersion).where(DatasetVersion.project_id == project_id)
    if is_finished:
        query = query.where(DatasetVersion.state == "succeeded")
    return session.scalar(query.order_by(DatasetVersion.number.desc()).limit(1))


def list_versions(session: Session, actor: Actor, project_id: str) -> list[DatasetVersion]:
    """All versions, newest first."""
    projects.get(session, actor, project_id)
    query = select(DatasetVersion).where(DatasetVersion.project_id == project_id)
    return list(session.scalars(query.order_by(DatasetVersion.number.desc()).limit(200)))


def get(session: Session, actor: Actor, version_id: str, *, need: str = "viewer") -> DatasetVersion:
    """A version, by the gate of its project."""
    version = session.get(DatasetVersion, version_id)
    if version is None:
        raise NotFound
    projects.get(session, actor, version.project_id, need=need)
    return version


def record(session: Session, version: DatasetVersion, manifest: dict[str, Any]) -> None:
    """Write down what was built (called by the worker, inside its lease)."""
    splits = manifest["counts"]["splits"]
    version.manifest_sha256, version.content_hash = manifest_id(manifest), manifest["content_hash"]
    version.statistics, version.kind = manifest["statistics"], manifest["kind"]
    version.train_rows, version.validation_rows, version.test_rows = (
        splits["train"],
        splits["validation"],
        splits["test"],
    )
    session.flush()


def folder(version: DatasetVersion) -> Path:
    """The frozen files, fetched from the storage when they are not here. Raises NotFound before they are built."""
    if version.state != "succeeded":
        raise NotFound("This version is not finished.")
    local = storage.version_dir(version.id)
    if not local.exists():
        try:
            storage.fetch_artefact(f"versions/{version.id}", local)
        except OSError as error:
            raise Unavailable(
                "The files of this version cannot be reached. Check the storage, then try again."
            ) from error
        if not is_intact(local):
            shutil.rmtree(local)
            raise Unavailable("The stored files of this version are damaged. Freeze the same plan again.")
    return local


def manifest_of(version: DatasetVersion) -> dict[str, Any]:
    """The manifest as it was written."""
    found: dict[str, Any] = orjson.loads((folder(version) / "manifest.json").read_bytes())
    return found


def jsonl(version: DatasetVersion) -> Iterator[bytes]:
    """Every row as a line of JSON: split, then messages or text, then the other columns."""
    for batch in iterate(parts(folder(version), "data-")):
        lines = []
        for row in batch:
            body = (
                {"messages": [_plain(m) for m in row["messages"]]} if row["kind"] == "chat" else {"text": row["text"]}
            )
            for key in ("chosen", "rejected"):
                if row.get(key):
                    body[key] = [_plain(m) for m in row[key]]
            lines.append(orjson.dumps({"split": row["split"], **body, "meta": orjson.loads(row["meta"])}))
        yield b"\n".join(lines) + b"\n"


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A turn as OpenAI writes it; `train` only where it is not learned."""
    turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    for key in ("name", "tool_call_id"):
        if message.get(key):
            turn[key] = message[key]
    if message.get("weight") is not None:
        turn["weight"] = message["weight"]
    if message.get("tool_calls"):
        turn["tool_calls"] = orjson.loads(message["tool_calls"])
        if turn["content"] == message["tool_calls"]:
            turn["content"] = None
    return turn if message["train"] else {**turn, "train": False}


def csv_rows(version: DatasetVersion, *, is_spreadsheet: bool = False) -> Iterator[bytes]:
    """Every row as CSV: split, system, question, answer, text. `is_spreadsheet`: no cell starts a formula."""
    yield _csv([("split", "system", "question", "answer", "text", "source", "row")], False)
    for batch in iterate(parts(folder(version), "data-")):
        rows = []
        for row in batch:
            meta = orjson.loads(row["meta"])
            rows.append((row["split"], *_turns(row["messages"]), row["text"], meta["source"], meta["row"]))
        yield _csv(rows, is_spreadsheet)


def _turns(messages: list[dict[str, Any]]) -> tuple[str, str, str]:
    """(system, everything before the last answer, the last answer)."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [m for m in messages if m["role"] != "system"]
    last = max((i for i, m in enumerate(turns) if m["role"] == "assistant"), default=len(turns))
    before = turns[:last]
    question = before[0]["content"] if len(before) == 1 else "\n".join(f"{m['role']}: {m['content']}" for m in before)
    return system, question, turns[last]["content"] if last < len(turns) else ""


def _csv(rows: list[tuple[Any, ...]], is_spreadsheet: bool) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    for row in rows:
        writer.writerow([_safe(cell) for cell in row] if is_spreadsheet else row)
    return out.getvalue().encode("utf-8")


def _safe(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
