"""Fine-tuning jobs under /v1: the project's runs, as OpenAI's clients ask for them."""

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.db import reading, transaction
from app.core.errors import BadRequest, Conflict, Invalid
from app.deployments import fine_tuning, wire
from app.deployments.access import CallerDep
from app.runs import service as runs
from app.runs.models import Run

router = APIRouter(prefix="/v1")
BODY_LIMIT_BYTES = 2**20
After = Annotated[str, Query(max_length=60)]
Limit = Annotated[int, Query(ge=1, le=100)]
Id = Annotated[str, Path(max_length=60)]


@router.post("/fine_tuning/jobs", max_body_size=BODY_LIMIT_BYTES)
async def create(request: Request, caller: CallerDep) -> dict[str, Any]:
    """Start a run. An Idempotency-Key makes it happen once."""
    caller.require("train")
    ask = wire.parsed(fine_tuning.JobRequest, await request.body())
    header = request.headers.get("idempotency-key", "")
    # Whole: keys of one program often differ only at their end.
    request_id = f"{caller.actor.key_id}:{hashlib.sha256(header.encode()).hexdigest()[:40]}" if header else ""

    def start() -> dict[str, Any]:
        actor = caller.as_editor()
        with transaction() as session:
            try:
                run = fine_tuning.start(session, actor, ask, request_id)
            except (Conflict, Invalid) as error:
                told = " ".join(error.fields.values()) if isinstance(error, Invalid) else ""
                raise BadRequest(told or error.sentence, code="invalid_value") from error
            return fine_tuning.job_object(session, run)

    return await run_in_threadpool(start)


@router.get("/fine_tuning/jobs")
def jobs(caller: CallerDep, after: After = "", limit: Limit = 20) -> dict[str, Any]:
    caller.require("read")
    with transaction() as session:
        found = fine_tuning.jobs(session, caller.actor)
        return fine_tuning.page([fine_tuning.job_object(session, run) for run in found], after, limit)


@router.get("/fine_tuning/jobs/{run_id}")
def job(run_id: Id, caller: CallerDep) -> dict[str, Any]:
    caller.require("read")
    with transaction() as session:
        return fine_tuning.job_object(session, fine_tuning.job_of(session, caller.actor, run_id))


@router.get("/fine_tuning/jobs/{run_id}/events")
def events(run_id: Id, caller: CallerDep, after: After = "", limit: Limit = 20) -> dict[str, Any]:
    caller.require("read")
    with reading() as session:
        run = fine_tuning.job_of(session, caller.actor, run_id)
        return fine_tuning.page(fine_tuning.events(session, run), after, limit)


@router.get("/fine_tuning/jobs/{run_id}/checkpoints")
def checkpoints(run_id: Id, caller: CallerDep, after: After = "", limit: Limit = 10) -> dict[str, Any]:
    caller.require("read")
    with transaction() as session:
        run = fine_tuning.job_of(session, caller.actor, run_id)
        return fine_tuning.page(fine_tuning.checkpoints(session, run), after, limit)


@router.post("/fine_tuning/jobs/{run_id}/cancel")
def cancel(run_id: Id, caller: CallerDep) -> dict[str, Any]:
    return _changed(caller, run_id, runs.request_cancel)


@router.post("/fine_tuning/jobs/{run_id}/pause")
def pause(run_id: Id, caller: CallerDep) -> dict[str, Any]:
    return _changed(caller, run_id, runs.request_pause)


@router.post("/fine_tuning/jobs/{run_id}/resume")
def resume(run_id: Id, caller: CallerDep) -> dict[str, Any]:
    return _changed(caller, run_id, runs.resume)


def _changed(caller: CallerDep, run_id: str, verb: Callable[[Session, Actor, str], Run]) -> dict[str, Any]:
    """Clients repeat what was answered by 409, so a run that cannot change any more is 400."""
    caller.require("train")
    actor = caller.as_editor()
    with transaction() as session:
        run = fine_tuning.job_of(session, actor, run_id)
        try:
            verb(session, actor, run.id)
        except Conflict as error:
            raise BadRequest(error.sentence, code="invalid_state") from error
        session.flush()
        session.refresh(run)
        return fine_tuning.job_object(session, run)
