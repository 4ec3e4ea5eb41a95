"""Files under /v1: uploaded, listed, read back and deleted, as OpenAI's clients ask for them."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path as FilePath
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from app.core import storage
from app.core.db import new_id, reading, transaction
from app.core.errors import BadRequest, NotFound
from app.datasets import service as datasets
from app.datasets import uploads, versions
from app.datasets.combining import downloads
from app.deployments import files, fine_tuning
from app.deployments.access import CallerDep
from app.deployments.keys import Caller

router = APIRouter(prefix="/v1")
FILE_LIMIT_BYTES = 512 * 2**20  # OpenAI's own limit
CHUNK_BYTES = 1 << 20
After = Annotated[str, Query(max_length=60)]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Id = Annotated[str, Path(max_length=60)]
PURPOSE = "fine-tune"


@router.post("/files", max_body_size=FILE_LIMIT_BYTES)
async def upload(request: Request, caller: CallerDep) -> dict[str, Any]:
    """Bring a file into a project. It is read and frozen at once; `status` tells when it can be trained on."""
    caller.require("train")
    announced = request.headers.get("content-length", "0")
    # The form lands in a temporary file first.
    await run_in_threadpool(storage.require_space, 2 * int(announced) if announced.isdecimal() else 0)
    async with _form(request) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadRequest("Send the file in the field “file” of a multipart form.", code="missing", param="file")
        if form.get("purpose") != PURPOSE:
            sentence = "Files are taken for the purpose “fine-tune”."
            raise BadRequest(sentence, code="unsupported_parameter", param="purpose")
        if any(name.startswith("expires_after") for name in form):
            sentence = "Files do not expire by themselves here. Delete the file when it is no longer needed."
            raise BadRequest(sentence, code="unsupported_parameter", param="expires_after")
        wanted = str(form.get("project_id") or "")[:40]
        return await run_in_threadpool(_receive, caller, file.file, uploads.clean_filename(file.filename or ""), wanted)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    try:
        form = await request.form(max_files=1, max_fields=20)
    except HTTPException as error:
        sentence = (
            "Send one multipart form with one file in the field “file”; this one is cut off, damaged or too large."
        )
        raise BadRequest(sentence, code="invalid_form", param="file") from error
    try:
        yield form
    finally:
        await form.close()


def _receive(caller: Caller, stream: IO[bytes], filename: str, wanted: str) -> dict[str, Any]:
    actor = caller.as_editor()
    with reading() as session:
        files.project_for(session, actor, wanted)
    with _copied(stream) as (path, sha256), transaction() as session:
        project = files.project_for(session, actor, wanted)
        found = files.receive(session, actor, project, filename=filename, path=path, sha256=sha256)
        return files.file_object(found)


@contextmanager
def _copied(stream: IO[bytes]) -> Iterator[tuple[FilePath, str]]:
    """The bytes in a file of ours and their SHA-256. What nobody took over is deleted."""
    path, digest = storage.uploads_dir() / new_id(), hashlib.sha256()
    try:
        with path.open("xb") as copy:
            path.chmod(0o600)
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
        if not path.stat().st_size:
            raise BadRequest("This file is empty.", code="empty_file", param="file")
        yield path, digest.hexdigest()
    finally:
        path.unlink(missing_ok=True)


@router.get("/files")
def listing(
    caller: CallerDep,
    after: After = "",
    limit: Limit = 10_000,
    purpose: After = PURPOSE,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    caller.require("read")
    with reading() as session:
        found = files.listing(session, caller.actor) if purpose == PURPOSE else []
        if order == "asc":
            found.reverse()
        return fine_tuning.page([files.file_object(one) for one in found], after, limit)


@router.get("/files/{version_id}")
def file(version_id: Id, caller: CallerDep) -> dict[str, Any]:
    caller.require("read")
    with reading() as session:
        return files.file_object(files.get(session, caller.actor, version_id))


@router.get("/files/{version_id}/content")
def content(version_id: Id, caller: CallerDep) -> Response:
    """The bytes as they were uploaded; of a version every row as a line of JSON. Both are immutable, so nothing of the
    session is needed while they stream."""
    caller.require("train")
    with reading() as session:
        found = files.get(session, caller.actor, version_id)
        if found.uploaded is not None:
            path = datasets.original_path(found.uploaded)
            if not path.is_file():
                raise NotFound
            return FileResponse(path, media_type="application/octet-stream", filename=found.uploaded.filename)
        assert found.version is not None
        versions.folder(found.version)
    return StreamingResponse(downloads.jsonl(found.version), media_type="application/x-ndjson")


@router.delete("/files/{version_id}")
def delete(version_id: Id, caller: CallerDep) -> dict[str, Any]:
    """Leave an uploaded file out. In the browser it can be taken in again."""
    caller.require("train")
    with transaction() as session:
        files.delete(session, caller.as_editor(), version_id)
    return {"id": files.FILE + version_id.removeprefix(files.FILE), "object": "file", "deleted": True}
