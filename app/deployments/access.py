"""Who asks at the API: the bearer key becomes a Caller, counted against its limit. Cookies count for nothing here."""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from app.core import limits
from app.core.db import reading
from app.core.errors import TooMany, Unauthenticated
from app.core.security import token_sha256
from app.deployments import calls, keys
from app.deployments.keys import Caller

SEEN_S = 0.9  # a little less than what streams wait between two looks
SEEN_KEYS = 10_000


def caller(request: Request, response: Response) -> Caller:
    """The holder of the request's key. Raises Unauthenticated or TooMany."""
    with reading() as session:
        found = keys.caller_of(session, request.headers.get("authorization", ""))
    request.scope["state"]["actor"] = found.actor
    left = limits.count(f"key:{found.actor.key_id}", limit=found.requests_per_minute)
    headers = {
        "x-ratelimit-limit-requests": str(found.requests_per_minute),
        "x-ratelimit-remaining-requests": str(left),
    }
    used, opens_s = limits.used(f"tokens:{found.actor.key_id}")
    headers["x-ratelimit-reset-requests"] = f"{opens_s:.0f}s"
    if found.tokens_per_minute:
        headers |= {
            "x-ratelimit-limit-tokens": str(found.tokens_per_minute),
            "x-ratelimit-remaining-tokens": str(max(0, found.tokens_per_minute - used)),
            "x-ratelimit-reset-tokens": f"{opens_s:.0f}s",
        }
    request.scope["state"]["limit_headers"] = headers
    response.headers.update(request.scope["state"]["limit_headers"])
    return found


def require_tokens(found: Caller) -> None:
    """Raise TooMany when the key has used up its tokens of this minute, or of this month."""
    if found.tokens_per_minute:
        used, opens_s = limits.used(f"tokens:{found.actor.key_id}")
        if used >= found.tokens_per_minute:
            raise TooMany(
                f"More than {found.tokens_per_minute:,} tokens in 60 s. The next window opens in {opens_s:.0f} s.",
                retry_after_s=opens_s,
                code="rate_limit_exceeded",
            )
    if found.monthly_tokens:
        with reading() as session:
            spent = calls.tokens_this_month(session, str(found.actor.key_id))
        if spent >= found.monthly_tokens:
            raise TooMany(
                f"This key has used its {found.monthly_tokens:,} tokens of this month. Its owner can make another one.",
                retry_after_s=calls.until_next_month_s(),
                code="insufficient_quota",
            )


CallerDep = Annotated[Caller, Depends(caller)]


# When the holder of a key was last looked up for a running answer, and who it was.
_seen: dict[bytes, tuple[float, Any]] = {}


async def rights(request: Request) -> Any:
    """What a running answer of the API depends on: it ends when the key is revoked or expires.

    Answers of one key share a look-up a second.
    """
    authorization = request.headers.get("authorization", "")
    digest, now = token_sha256(authorization), time.monotonic()
    at, known = _seen.get(digest, (-SEEN_S, None))
    if now - at < SEEN_S:
        return known

    def look_up() -> Any:
        try:
            with reading() as session:
                return keys.caller_of(session, authorization).actor.key_id
        except Unauthenticated:
            return None

    try:
        found = await run_in_threadpool(look_up)
    except SQLAlchemyError:
        if known is None:
            raise
        # The database is away for a moment: nobody lost a right by that.
        return known
    if len(_seen) >= SEEN_KEYS:
        _seen.clear()
    _seen[digest] = (now, found)
    return found


async def until_revoked(request: Request) -> None:
    """Returns when the key that a request came with is no longer good."""
    while True:
        with suppress(SQLAlchemyError):
            if await rights(request) is None:
                return
        await asyncio.sleep(SEEN_S)
