"""Live events over Redis streams. Hints only: whatever matters is in the database, and pages work without them."""

import logging
import time
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

import orjson
import redis
import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy.orm import Session

from app.core.after_commit import after_commit
from app.core.config import get_settings

log = logging.getLogger(__name__)
_MAX_LENGTH = 10_000
_KEEP_S = 24 * 3600
# After a failure nobody waits for Redis again for this long: a frozen server must not slow the work.
_SILENCE_S = 2.0
_silent_until = 0.0


@lru_cache
def _client() -> redis.Redis | None:
    settings = get_settings()
    url = settings.redis_url_worker or settings.redis_url
    if not url:
        return None
    return redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)


@lru_cache
def async_client() -> redis.asyncio.Redis | None:
    """The process's asynchronous client with reading rights, or None without Redis."""
    settings = get_settings()
    url = settings.redis_url_stream or settings.redis_url
    return redis.asyncio.Redis.from_url(url, socket_connect_timeout=2) if url else None


def forget_clients() -> None:
    """Drop the clients: after a fork, and between tests."""
    global _silent_until
    _silent_until = 0.0
    _client.cache_clear()
    async_client.cache_clear()


def publish(stream: str, event: str, payload: dict[str, Any]) -> str | None:
    """Append an event to `stream` ("run:<id>", "chat:<id>"); None when Redis is out of reach, which is no error."""
    global _silent_until
    client = _client()
    if client is None or time.monotonic() < _silent_until:
        return None
    try:
        entry = client.xadd(
            f"s:{stream}", {"e": event, "p": orjson.dumps(payload)}, maxlen=_MAX_LENGTH, approximate=True
        )
        client.expire(f"s:{stream}", _KEEP_S)
    except RedisError as error:
        log.debug("event not published: %s", error)
        _silent_until = time.monotonic() + _SILENCE_S
        return None
    return entry.decode() if isinstance(entry, bytes) else str(entry)


def announce(session: Session, stream: str, event: str, payload: dict[str, Any]) -> None:
    """Publish once the caller's transaction is committed; a rollback takes the event with it."""
    after_commit(session, lambda: publish(stream, event, payload))


def last_id(stream: str) -> str:
    """The id of the newest event, from which a page that was just rendered goes on; "0-0" when there is none."""
    client = _client()
    if client is None:
        return "0-0"
    try:
        entries: Any = client.xrevrange(f"s:{stream}", count=1)
    except RedisError:
        return "0-0"
    return entries[0][0].decode() if entries else "0-0"


async def follow(
    stream: str, after: str = "0-0", block_ms: int = 15_000
) -> AsyncIterator[tuple[str, str, dict[str, Any]] | None]:
    """Yield (id, event, payload) after the id `after`, in order; None after each quiet `block_ms` (a heartbeat).

    Raises RedisError when Redis goes away: the caller tells the page to poll.
    """
    client = async_client()
    if client is None:
        raise RedisError("no Redis is configured")
    position = after or "0-0"
    while True:
        answer: Any = await client.xread({f"s:{stream}": position}, count=200, block=block_ms)
        if not answer:
            yield None
            continue
        for entry_id, fields in answer[0][1]:
            position = entry_id.decode()
            yield position, fields[b"e"].decode(), orjson.loads(fields[b"p"])
