"""Documents become rows: cut into chunks of plain text, or into questions and answers that a person has approved."""

from collections.abc import Iterator

import httpx
import orjson
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import addresses, security, storage
from app.core.db import new_id
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets import service as datasets
from app.datasets.models import SourceFile
from app.datasets.tables import iterate, parts
from app.drafting.chunking import Chunk, chunks, sections
from app.drafting.models import Draft, DraftEndpoint, Drafting
from app.externals.asking import Endpoint
from app.inference import targets
from app.inference.targets import Target
from app.projects import service as projects

TASK = "drafts.draft"
PER_PAGE = 20
ENDPOINT = "endpoint"
STATES = ("open", "unusable", "approved", "rejected")


def text_column(file: SourceFile) -> str:
    """The column that holds the text. Raises Conflict for a file that is not read, Invalid for one without text."""
    if file.state != "succeeded" or not file.rows_key:
        raise Conflict("This file is not read yet. Wait for it, then cut it.")
    columns = list(file.detected.get("columns", {}))
    named = [name for name in ("text", "content", "body") if name in columns]
    if not named and len(columns) != 1:
        raise Invalid("This file is a table and no document: map its columns instead.")
    return named[0] if named else columns[0]


def chunks_of(file: SourceFile, size: int, overlap: int) -> Iterator[Chunk]:
    """The chunks of a file that was read, in order."""
    column = text_column(file)
    rows = (row for batch in iterate(parts(datasets.rows_dir(file))) for row in batch)
    return chunks(sections(rows, column, file.filename), size, overlap)


def get_endpoint(session: Session, workspace_id: str) -> DraftEndpoint | None:
    """The endpoint of a workspace. No gate: for callers that passed it."""
    return session.get(DraftEndpoint, workspace_id)


def set_endpoint(session: Session, actor: Actor, project_id: str, *, url: str, model: str, key: str) -> DraftEndpoint:
    """Keep the endpoint of the project's workspace; an empty `key` keeps the one that is there for the same address."""
    project = projects.get(session, actor, project_id, need="owner")
    if not addresses.is_whole(url.strip()) or httpx.URL(url.strip()).userinfo:
        raise Invalid(fields={"url": "Write a whole address, such as https://api.example.org/v1, without a password."})
    if not model.strip():
        raise Invalid(fields={"model": "Name the model that should write the drafts."})
    found = session.get(DraftEndpoint, project.workspace_id)
    if found is None:
        found = DraftEndpoint(workspace_id=project.workspace_id, url="", model="")
        session.add(found)
    # A key is never sent to another address than the one it was given for.
    if key.strip() or found.url != url.strip():
        found.sealed_key = security.encrypt(key.strip()) if key.strip() else ""
    found.url, found.model = url.strip(), model.strip()
    session.flush()
    return found


def start(
    session: Session, actor: Actor, file_id: str, *, target: str, size: int, overlap: int, pairs: int
) -> Drafting:
    """Begin to draft. Raises Invalid when there is nothing to ask or nothing to read."""
    file = datasets.get_file(session, actor, file_id, need="editor")
    project = projects.get(session, actor, file.project_id)
    text_column(file)
    if overlap >= size:
        raise Invalid(fields={"overlap": "The overlap must be smaller than the chunk."})
    if target == ENDPOINT:
        if session.get(DraftEndpoint, project.workspace_id) is None:
            raise Invalid(fields={"target": "Say first which endpoint should be asked."})
    else:
        targets.resolve(session, actor, project.id, target)
    drafting = Drafting(
        id=new_id(), project_id=project.id, workspace_id=project.workspace_id, file_id=file.id, target=target,
        size_tokens=size, overlap_tokens=overlap, pairs=pairs, created_by=actor.user_id,
    )  # fmt: skip
    session.add(drafting)
    session.flush()
    ring(session, TASK, drafting.id)
    return drafting


def get(session: Session, actor: Actor, drafting_id: str, *, need: str = "viewer") -> Drafting:
    """A drafting, by the gate of its project."""
    found = session.get(Drafting, drafting_id)
    if found is None:
        raise NotFound
    projects.get(session, actor, found.project_id, need=need)
    return found


def of_file(session: Session, file: SourceFile) -> list[Drafting]:
    """The draftings of a file, newest first."""
    query = select(Drafting).where(Drafting.file_id == file.id)
    return list(session.scalars(query.order_by(Drafting.created_at.desc())))


def cancel(session: Session, actor: Actor, drafting_id: str) -> Drafting:
    """Stop asking; the drafts that are there stay. Raises Conflict when nothing is being asked."""
    drafting = get(session, actor, drafting_id, need="editor")
    if drafting.state == "queued":
        drafting.state = "cancelled"
    elif drafting.state == "running":
        drafting.want = "cancel"
    else:
        raise Conflict("Nothing is being asked just now.")
    return drafting


def resume(session: Session, actor: Actor, drafting_id: str) -> Drafting:
    """Go on after the last chunk that was asked about. Raises Conflict while it goes on or when all was asked."""
    drafting = get(session, actor, drafting_id, need="editor")
    if drafting.state not in ("failed", "cancelled"):
        raise Conflict("There is nothing to go on with.")
    drafting.state, drafting.want, drafting.attempts, drafting.error = "queued", "run", 0, ""
    session.flush()
    ring(session, TASK, drafting.id)
    return drafting


def asked_of(session: Session, drafting: Drafting) -> Endpoint | Target:
    """Whom to ask, for the worker. Raises NotFound for a model that is gone, Invalid without an endpoint."""
    if drafting.target != ENDPOINT:
        roles = {drafting.workspace_id: "editor"}
        somebody = Actor(user_id=drafting.created_by or "", email="", name="", roles=roles)
        return targets.resolve(session, somebody, drafting.project_id, drafting.target)
    found = session.get(DraftEndpoint, drafting.workspace_id)
    if found is None:
        raise Invalid("There is no endpoint any more. Say which one should be asked, then go on.")
    return Endpoint(found.url.rstrip("/"), found.model, security.decrypt(found.sealed_key) if found.sealed_key else "")


def record(
    session: Session, drafting_id: str, number: int, chunk: Chunk, pairs: list[tuple[str, str]], said: str
) -> None:
    """Write down what was answered about chunk `number` (called by the worker, inside its lease)."""
    common = {
        "drafting_id": drafting_id, "chunk": number, "document": chunk.document[:255], "place": chunk.place[:200],
        "heading": chunk.heading, "passage": chunk.text,
    }  # fmt: skip
    if not pairs:
        session.add(Draft(**common, answer=said[:20_000], state="unusable"))
    for question, answer in pairs:
        session.add(Draft(**common, question=question, answer=answer))
    session.execute(update(Drafting).where(Drafting.id == drafting_id).values(asked=number + 1))


def counts(session: Session, drafting: Drafting) -> dict[str, int]:
    """How many drafts there are of each state."""
    query = select(Draft.state, func.count()).where(Draft.drafting_id == drafting.id).group_by(Draft.state)
    found = {state: number for state, number in session.execute(query)}
    return {state: found.get(state, 0) for state in STATES}


def drafts(session: Session, drafting: Drafting, state: str, page: int) -> list[Draft]:
    """A page of the drafts of one state, in the order of the document."""
    query = select(Draft).where(Draft.drafting_id == drafting.id, Draft.state == state).order_by(Draft.chunk, Draft.id)
    return list(session.scalars(query.limit(PER_PAGE).offset((page - 1) * PER_PAGE)))


def review(
    session: Session, actor: Actor, drafting_id: str, *, draft_id: int, state: str, question: str | None = None,
    answer: str | None = None,
) -> Draft:  # fmt: skip
    """Approve, edit or reject one draft. Raises Invalid for an approved draft without question or answer."""
    get(session, actor, drafting_id, need="annotator")
    draft = session.get(Draft, draft_id)
    if draft is None or draft.drafting_id != drafting_id:
        raise NotFound
    if question is not None and answer is not None and (question, answer) != (draft.question, draft.answer):
        draft.question, draft.answer, draft.is_edited = question.strip(), answer.strip(), True
    if state == "approved" and not (draft.question and draft.answer):
        raise Invalid("A draft needs a question and an answer before it can be approved. Write what is missing.")
    draft.state = state
    session.flush()
    return draft


def approve_document(session: Session, actor: Actor, drafting_id: str, document: str) -> int:
    """Approve all open drafts of one document; how many there were."""
    get(session, actor, drafting_id, need="annotator")
    query = select(Draft).where(Draft.drafting_id == drafting_id, Draft.state == "open", Draft.document == document)
    found = list(session.scalars(query))
    for draft in found:
        draft.state = "approved"
    session.flush()
    return len(found)


def finish(session: Session, actor: Actor, drafting_id: str) -> SourceFile:
    """The approved drafts become a source file of the project. Raises Conflict when none is approved."""
    drafting = get(session, actor, drafting_id, need="editor")
    source = datasets.get_file(session, actor, drafting.file_id)
    query = select(Draft).where(Draft.drafting_id == drafting.id, Draft.state == "approved")
    rows = [
        {"question": d.question, "answer": d.answer, "document": d.document, "place": d.place, "heading": d.heading,
         "drafted_from": d.passage}
        for d in session.scalars(query.order_by(Draft.chunk, Draft.id))
    ]  # fmt: skip
    if not rows:
        raise Conflict("No draft is approved yet. Approve those that are right, then take them over.")
    file = _brought(session, actor, source, rows, f"Drafted from {source.filename}.jsonl", "drafted")
    drafting.made_file_id = file.id
    return file


def as_text(session: Session, actor: Actor, file_id: str, *, size: int, overlap: int) -> SourceFile:
    """The chunks of a file become a source file of plain text, for continued pretraining."""
    source = datasets.get_file(session, actor, file_id, need="editor")
    if overlap >= size:
        raise Invalid(fields={"overlap": "The overlap must be smaller than the chunk."})
    rows = [
        {"document": c.document, "place": c.place, "heading": c.heading, "text": c.text}
        for c in chunks_of(source, size, overlap)
    ]
    if not rows:
        raise Conflict("There is no text in this file.")
    return _brought(session, actor, source, rows, f"Chunks of {source.filename}.jsonl", "chunked")


def _brought(
    session: Session, actor: Actor, source: SourceFile, rows: list[dict[str, str]], name: str, origin: str
) -> SourceFile:
    path = storage.uploads_dir() / new_id()
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in rows) + b"\n")
    file = datasets.receive(
        session, actor, project_id=source.project_id, filename=name[:255], path=path,
        sha256=storage.file_sha256(path), origin=origin, licence=source.licence, origin_url=source.origin_url,
        consent=source.consent,
    )  # fmt: skip
    file.derived_from = source.id
    session.flush()
    return file


def forget(session: Session, file_ids: list[str]) -> None:
    """Delete the draftings of forgotten files, and with them the passages that their drafts quote."""
    session.execute(delete(Drafting).where(Drafting.file_id.in_(file_ids)))
