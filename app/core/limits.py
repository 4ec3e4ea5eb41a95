"""Rate limits: so many per minute, counted in Redis for all processes together, in this process while Redis is away."""

import logging
import threading
import time
from functools import lru_cache

import redis
from redis.exceptions import RedisError

from app.core.config import get_settings
from app.core.errors import TooMany

log = logging.getLogger(__name__)
_counts: dict[str, int] = {}
_counts_lock = threading.Lock()


@lru_cache
def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)


def count(subject: str, *, limit: int, window_s: int = 60) -> int:
    """Count one request of `subject`; how many the window still allows. Raises TooMany with the time until it opens.

    Fixed windows (INCR, EXPIRE): at a border at most twice the limit passes.
    """
    now = time.time()
    window = int(now // window_s)
    used = _counted(f"r:{subject}:{window_s}:{window}", window_s)
    if used > limit:
        wait_s = (window + 1) * window_s - now
        raise TooMany(
            f"More than {limit} requests in {window_s} s. The next window opens in {wait_s:.0f} s.",
            retry_after_s=wait_s,
            code="rate_limit_exceeded",
        )
    return limit - used


def used(subject: str, *, window_s: int = 60) -> tuple[int, float]:
    """How much of `subject` was added in this window, and in how many seconds the next one opens."""
    now = time.time()
    window = int(now // window_s)
    return _counted(f"r:{subject}:{window_s}:{window}", window_s, 0), (window + 1) * window_s - now


def add(subject: str, amount: int, *, window_s: int = 60) -> None:
    """Count what was used beside requests, such as tokens, once it is known."""
    _counted(f"r:{subject}:{window_s}:{int(time.time() // window_s)}", window_s, amount)


def _counted(key: str, window_s: int, amount: int = 1) -> int:
    url = get_settings().redis_url
    if url:
        try:
            with _client(url).pipeline(transaction=False) as pipe:
                pipe.incrby(key, amount)
                pipe.expire(key, 2 * window_s)
                used, _ = pipe.execute()
            return int(used)
        except RedisError as error:
            log.warning("rate limit counted in this process only: %s", type(error).__name__)
    with _counts_lock:
        if len(_counts) > 10_000:
            _counts.clear()
        _counts[key] = _counts.get(key, 0) + amount
        return _counts[key]
