"""Who asks: the session cookie becomes an Actor. Routes take `ActorDep`; streams may, too: it holds no session."""

import logging
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from app.accounts import audit, service
from app.accounts.service import Actor
from app.core.config import get_settings
from app.core.csrf import session_cookie
from app.core.db import reading, transaction
from app.core.errors import AppError, Forbidden, Unauthenticated
from app.core.web import SAFE_METHODS

log = logging.getLogger(__name__)


def visitor(request: Request) -> Actor | None:
    """Whoever is signed in, or None; looked up once a request, in a read transaction of its own."""
    state = request.scope["state"]
    if "actor" not in state:
        cookie = request.cookies.get(session_cookie())
        # Only while reading: in a POST the route's own write transaction may be open already.
        state["actor"] = _look_up(cookie, may_write=request.method in SAFE_METHODS) if cookie else None
    found: Actor | None = state["actor"]
    return found


def _look_up(cookie: str, *, may_write: bool) -> Actor | None:
    with reading() as session:
        actor = service.actor_of_cookie(session, cookie)
        is_due = may_write and actor is not None and service.is_due_to_be_seen(session, actor)
    if actor is not None and is_due:
        try:
            with transaction() as session:
                service.note_seen(session, actor)
        except SQLAlchemyError:
            log.warning("last-seen time not written", exc_info=True)
    return actor


def signed_in(request: Request) -> Actor:
    """Whoever is signed in. Raises Unauthenticated."""
    actor = visitor(request)
    if actor is None:
        raise Unauthenticated
    return actor


VisitorDep = Annotated[Actor | None, Depends(visitor)]
ActorDep = Annotated[Actor, Depends(signed_in)]


async def rights(request: Request) -> Any:
    """What a page's stream depends on: it ends when this changes (sign-out, removal, another role)."""
    cookie = request.cookies.get(session_cookie())
    if not cookie:
        return None

    def look_up() -> Any:
        with reading() as session:
            actor = service.actor_of_cookie(session, cookie)
        return None if actor is None else sorted(actor.roles.items())

    return await run_in_threadpool(look_up)


def record_refusal(request: Request, error: AppError) -> None:
    """An audit entry for whoever tried what their role does not allow."""
    actor: Actor | None = request.scope["state"].get("actor")
    if actor is None or not isinstance(error, Forbidden) or error.error_code != "forbidden":
        return
    try:
        with transaction() as session:
            details = {"method": request.method, "path": request.url.path[:200]}
            audit.record(session, actor, "access.refused", workspace_id=error.workspace_id, details=details)
    except SQLAlchemyError:
        log.warning("refusal not recorded", exc_info=True)


def set_session_cookie(response: Response, cookie: str) -> None:
    """The session cookie: host-bound and Secure on https, invisible to scripts, not sent by other sites' forms."""
    settings = get_settings()
    response.set_cookie(
        session_cookie(),
        cookie,
        max_age=settings.session_absolute_s,
        path="/",
        httponly=True,
        secure=settings.is_https,
        samesite="lax",
    )


def clear_session_cookie(response: Response) -> None:
    """Take the cookie back at sign-out."""
    response.delete_cookie(session_cookie(), path="/", httponly=True, secure=get_settings().is_https, samesite="lax")
