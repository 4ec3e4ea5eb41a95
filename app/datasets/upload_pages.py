"""tus 1.0: resumable uploads with strict offsets (https://tus.io/protocols/resumable-upload), and the plain form.

The routes that move bytes are async and hold no session: what they need of the database they do in a thread.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.types import Message

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.errors import AppError, BadRequest, Conflict, Invalid, TooLarge
from app.core.flash import flash
from app.core.templates import gettext as _
from app.core.web import SessionDep
from app.datasets import spool, uploads
from app.datasets.models import SourceFile
from app.projects import service as projects

router = APIRouter()
VERSION = "1.0.0"
# One request may carry a whole file; the announced length and the setting are the real limits.
BODY_LIMIT_BYTES = 1 << 40
# Names and boundaries around the files of a form.
FORM_OVERHEAD_BYTES = 1 << 20
FINGERPRINT = "upload-fingerprint"
BODY_TYPE = "application/offset+octet-stream"


class WrongVersion(AppError):
    status, code, default = 412, "tus_version", "This server speaks tus 1.0.0."


class WrongType(AppError):
    status, code, default = 415, "content_type", f"The body must be {BODY_TYPE}."


def tus(request: Request) -> None:
    """The protocol's version, on every request but OPTIONS. Raises WrongVersion."""
    if request.headers.get("tus-resumable") != VERSION:
        raise WrongVersion


Tus = Annotated[None, Depends(tus)]


def _number(request: Request, name: str) -> int:
    text = request.headers.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise BadRequest(f"The {name} header must be a whole number.")
    return int(text)


def _headers(offset: int | None = None, more: dict[str, str] | None = None) -> dict[str, str]:
    found = {"Tus-Resumable": VERSION, "Cache-Control": "no-store", **(more or {})}
    return found if offset is None else {**found, "Upload-Offset": str(offset)}


@router.options("/uploads")
def abilities() -> Response:
    limit = str(get_settings().upload_limit_bytes)
    more = {"Tus-Version": VERSION, "Tus-Extension": "creation,termination", "Tus-Max-Size": limit}
    return Response(status_code=204, headers=_headers(more=more))


@router.post("/uploads")
def create(request: Request, session: SessionDep, actor: ActorDep, _version: Tus, project_id: str = "") -> Response:
    """Announce a file; the project is in the query or in the metadata."""
    metadata = uploads.metadata_of(request.headers.get("upload-metadata", ""))
    upload = uploads.create(
        session,
        actor,
        project_id=project_id or metadata.get("project_id", ""),
        filename=metadata.get("filename", ""),
        fingerprint=metadata.get("fingerprint", ""),
        size_bytes=_number(request, "upload-length"),
    )
    if upload.size_bytes == 0:
        uploads.complete(session, actor, upload.id, sha256=spool.sha256_of(upload.id, 0))
    return Response(status_code=201, headers=_headers(0, {"Location": f"/uploads/{upload.id}"}))


@router.head("/uploads/{upload_id}")
def offset(request: Request, actor: ActorDep, upload_id: str, _version: Tus) -> Response:
    with reading() as session:
        upload = uploads.get(session, actor, upload_id)
    # A client that is told so here begins anew (tus 1.0: an upload that cannot be resumed).
    uploads.require_same(upload, request.headers.get(FINGERPRINT, ""))
    if upload.state == "receiving" and upload.offset_bytes == upload.size_bytes:
        # The last byte was saved and the server died before it said so: the client will not send anything more.
        _complete(actor, upload_id, upload.size_bytes)
    length = {"Upload-Length": str(upload.size_bytes)}
    return Response(status_code=200, headers=_headers(upload.offset_bytes, length))


@router.patch("/uploads/{upload_id}", max_body_size=BODY_LIMIT_BYTES)
async def append(request: Request, actor: ActorDep, upload_id: str, _version: Tus) -> Response:
    if request.headers.get("content-type") != BODY_TYPE:
        raise WrongType
    at, size_bytes = await run_in_threadpool(_place, actor, upload_id, request.headers.get(FINGERPRINT, ""))
    if _number(request, "upload-offset") != at:
        raise Conflict("The upload goes on from another place. Ask for the offset again.", code="offset")
    reached = await spool.receive(upload_id, at, size_bytes, request.stream(), lambda n: _save(upload_id, n))
    if reached == size_bytes:
        await run_in_threadpool(_complete, actor, upload_id, size_bytes)
    return Response(status_code=204, headers=_headers(reached))


@router.delete("/uploads/{upload_id}")
def remove(session: SessionDep, actor: ActorDep, upload_id: str, _version: Tus) -> Response:
    uploads.remove(session, actor, upload_id)
    return Response(status_code=204, headers=_headers())


@router.post("/uploads/{upload_id}/discard")
def discard(session: SessionDep, actor: ActorDep, upload_id: str) -> Response:
    """Give an upload up that stopped half-way; a form of the Data page."""
    project_id = uploads.get(session, actor, upload_id).project_id
    uploads.remove(session, actor, upload_id)
    response = RedirectResponse(f"/projects/{project_id}/data", 303)
    flash(response, _("Discarded. What had arrived of it is deleted."))
    return response


@router.post("/projects/{project_id}/files", max_body_size=BODY_LIMIT_BYTES)
async def plain_form(request: Request, actor: ActorDep, project_id: str) -> Response:
    """The dropzone without scripts: one or several files in a multipart form."""
    await run_in_threadpool(_may_bring, actor, project_id)
    # The whole form lands in temporary files before its parts are counted.
    announced = request.headers.get("content-length", "0")
    room = await run_in_threadpool(_room, int(announced) if announced.isascii() and announced.isdigit() else 0)
    request = _bounded(request, room)
    async with request.form(max_files=50, max_fields=20) as form:
        files = [item for item in form.getlist("file") if isinstance(item, UploadFile) and item.filename]
        if not files:
            raise Invalid(_("Choose a file first."))
        for file in files:
            await _receive_whole(actor, project_id, file)
    response = RedirectResponse(f"/projects/{project_id}/data", 303)
    flash(response, _("Arrived. It is being read now."))
    return response


def _room(announced: int) -> int:
    """How many bytes a form may have beside its temporary copy. Raises TooLarge or DiskFull for the announced ones."""
    limit = get_settings().upload_limit_bytes + FORM_OVERHEAD_BYTES
    if announced > limit:
        raise TooLarge
    storage.require_space(2 * announced)
    return min(limit, max(0, storage.free_bytes() - get_settings().disk_reserve_bytes) // 2)


def _bounded(request: Request, room: int) -> Request:
    """The same request, whose body may not go on for ever. Reading more than `room` bytes of it raises TooLarge."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > room:
            raise TooLarge
        return message

    return Request(request.scope, receive)


async def _receive_whole(actor: Actor, project_id: str, file: UploadFile) -> SourceFile:
    size_bytes = file.size or 0
    if size_bytes > get_settings().upload_limit_bytes:
        raise TooLarge
    upload_id = await run_in_threadpool(_create, actor, project_id, file.filename or "", size_bytes)
    await spool.receive(upload_id, 0, size_bytes, _chunks(file), lambda n: _save(upload_id, n))
    return await run_in_threadpool(_complete, actor, upload_id, size_bytes)


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 20):
        yield chunk


def _may_bring(actor: Actor, project_id: str) -> None:
    with reading() as session:
        projects.get(session, actor, project_id, need="editor")


def _create(actor: Actor, project_id: str, filename: str, size_bytes: int) -> str:
    with transaction() as session:
        return uploads.create(session, actor, project_id=project_id, filename=filename, size_bytes=size_bytes).id


def _place(actor: Actor, upload_id: str, fingerprint: str) -> tuple[int, int]:
    with reading() as session:
        upload = uploads.get(session, actor, upload_id)
        uploads.require_same(upload, fingerprint)
        if upload.state != "receiving":
            raise Conflict("This upload is complete already.", code="complete")
        return upload.offset_bytes, upload.size_bytes


def _save(upload_id: str, offset: int) -> None:
    with transaction() as session:
        uploads.advance(session, upload_id, offset)


def _complete(actor: Actor, upload_id: str, size_bytes: int) -> SourceFile:
    sha256 = spool.sha256_of(upload_id, size_bytes)
    with transaction() as session:
        return uploads.complete(session, actor, upload_id, sha256=sha256)
