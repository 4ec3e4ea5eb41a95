"""Rows typed by hand: a file of questions and answers that can be opened and changed again."""

from collections.abc import Sequence

import orjson
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.db import new_id
from app.core.errors import Conflict, Invalid
from app.datasets import service
from app.datasets.models import SourceFile

ORIGIN = "typed"
ROW_LIMIT = 500
CELL_LIMIT_CHARACTERS = 20_000
Pair = tuple[str, str]


def pairs_of(questions: Sequence[str], answers: Sequence[str]) -> list[Pair]:
    """The rows that hold something. Raises Invalid for none, too many, too long, or a question without an answer."""
    found = [(q.strip(), a.strip()) for q, a in zip(questions, answers, strict=False)]
    found = [pair for pair in found if any(pair)]
    if not found:
        raise Invalid(fields={"rows": "Write at least one question and its answer."})
    if len(found) > ROW_LIMIT:
        raise Invalid(fields={"rows": f"Over {ROW_LIMIT} rows are easier in a spreadsheet: bring that as a file."})
    for number, (question, answer) in enumerate(found, 1):
        if max(len(question), len(answer)) > CELL_LIMIT_CHARACTERS:
            raise Invalid(fields={"rows": f"Row {number} is over {CELL_LIMIT_CHARACTERS:,} characters. Shorten it."})
        if not answer:
            raise Invalid(fields={"rows": f"Row {number} has no answer. Write one, or clear its question."})
    return found


def _bytes(pairs: Sequence[Pair]) -> bytes:
    return b"".join(orjson.dumps({"question": q, "answer": a}) + b"\n" for q, a in pairs)


def add(
    session: Session, actor: Actor, *, project_id: str, pairs: Sequence[Pair], name: str = "", origin: str = ORIGIN
) -> SourceFile:
    """Typed rows become a source file. Rows of another `origin` are not changed on the page of typed rows."""
    path = storage.uploads_dir() / new_id()
    path.write_bytes(_bytes(pairs))
    filename = f"{name.strip()[:100] or 'Typed rows'}.jsonl"
    return service.receive(
        session, actor, project_id=project_id, filename=filename, path=path, sha256=storage.file_sha256(path),
        origin=origin,
    )  # fmt: skip


def rows_of(file: SourceFile) -> list[Pair]:
    """The rows as they were typed. Raises Conflict for a file that was not typed here."""
    if file.origin != ORIGIN:
        raise Conflict("Only rows that were typed here can be changed here.")
    lines = service.original_path(file).read_bytes().splitlines()
    rows = [orjson.loads(line) for line in lines]
    return [(row["question"], row["answer"]) for row in rows]


def change(session: Session, actor: Actor, file_id: str, pairs: Sequence[Pair]) -> SourceFile:
    """Replace the rows of a typed file; it is read again. Raises Conflict for a file that was not typed here."""
    file = service.get_file(session, actor, file_id, need="editor")
    rows_of(file)
    path = service.original_path(file)
    fresh = path.with_name(f".{new_id()}")
    fresh.write_bytes(_bytes(pairs))
    file.size_bytes, file.sha256 = fresh.stat().st_size, storage.file_sha256(fresh)
    fresh.replace(path)
    return service.set_reading(session, actor, file_id, {})
