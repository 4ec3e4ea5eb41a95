"""Who asks at the API: the bearer key becomes a Caller, counted against its limit. Cookies count for nothing here."""

from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.core import limits
from app.core.db import reading
from app.core.errors import Unauthenticated
from app.deployments import keys
from app.deployments.keys import Caller


def caller(request: Request, response: Response) -> Caller:
    """The holder of the request's key. Raises Unauthenticated or TooMany."""
    with reading() as session:
        found = keys.caller_of(session, request.headers.get("authorization", ""))
    request.scope["state"]["actor"] = found.actor
    left = limits.count(f"key:{found.actor.key_id}", limit=found.requests_per_minute)
    request.scope["state"]["limit_headers"] = {
        "x-ratelimit-limit-requests": str(found.requests_per_minute),
        "x-ratelimit-remaining-requests": str(left),
    }
    response.headers.update(request.scope["state"]["limit_headers"])
    return found


CallerDep = Annotated[Caller, Depends(caller)]


async def rights(request: Request) -> Any:
    """What a stream of the API depends on: it ends when the key is revoked or expires."""
    authorization = request.headers.get("authorization", "")

    def look_up() -> Any:
        try:
            with reading() as session:
                return keys.caller_of(session, authorization).actor.key_id
        except Unauthenticated:
            return None

    return await run_in_threadpool(look_up)
