"""Ringing the workers: an outbox row in the caller's transaction, a Celery message (an id, nothing else) after it."""

import logging
from datetime import timedelta
from functools import lru_cache

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.core.after_commit import after_commit
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.outbox import Outbox
from app.core.redis_server import celery_url

log = logging.getLogger(__name__)
_PREFIX = "q:"
_ENOUGH_RINGS = 5

# Which queue a task goes to: the part of its name before the dot.
QUEUES = {
    "runs": "train",
    "probes": "train",
    "datasets": "data",
    "recipes": "data",
    "evaluations": "data",
    "exports": "data",
    "sources": "data",
    "drafts": "data",
}


def celery_settings() -> dict[str, object]:
    """The settings that web and workers share; each line answers a fault seen with the defaults (docs/decisions)."""
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "task_time_limit": None,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "ack_emulation": False,
            "socket_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "global_keyprefix": _PREFIX,
        },
        "task_default_queue": "data",
        "worker_max_tasks_per_child": 200,
        "worker_hijack_root_logger": False,
    }


@lru_cache
def _celery() -> Celery:
    settings = get_settings()
    app = Celery(
        "gpt-builder",
        broker=celery_url(settings.redis_url_worker or settings.redis_url) or "memory://",
        set_as_current=False,
    )
    app.conf.update(celery_settings())
    return app


def _send(task: str, subject_id: str, expires_s: float | None = None) -> bool:
    """Send one wake-up within two seconds; False when the broker cannot be reached (the housekeeper repeats)."""
    if not (get_settings().redis_url_worker or get_settings().redis_url):
        return False
    queue = QUEUES[task.split(".", 1)[0]]
    policy = {"max_retries": 1, "interval_start": 0.1, "interval_max": 0.5}
    try:
        _celery().send_task(task, args=[subject_id], queue=queue, retry=True, retry_policy=policy, expires=expires_s)
    except (OperationalError, OSError) as error:
        log.warning("wake-up not sent, the housekeeper will repeat it", extra={"task": task, "error": str(error)})
        return False
    return True


def ring(session: Session, task: str, subject_id: str) -> None:
    """Wake `task` for `subject_id` once the caller's transaction is committed.

    Raises ValueError for a task whose queue is unknown. A rollback takes the wake-up with it.
    """
    if task.split(".", 1)[0] not in QUEUES:
        raise ValueError(f"no queue for task {task!r}")
    row = Outbox(task=task, subject_id=subject_id)
    session.add(row)
    session.flush()
    row_id = row.id
    after_commit(session, lambda: deliver([row_id]))


def nudge(task: str, subject_id: str, expires_s: float = 30) -> bool:
    """Send a wake-up that nobody needs to keep: workers drop it when it is older than `expires_s`.

    The housekeeper repeats these for work that waits, so a busy worker's queue must not fill with them: a few that
    wait are enough.
    """
    return _backlog(QUEUES[task.split(".", 1)[0]]) >= _ENOUGH_RINGS or _send(task, subject_id, expires_s)


def _backlog(queue: str) -> int:
    """Messages that no worker has taken yet; 0 when Redis does not answer."""
    url = get_settings().redis_url_worker or get_settings().redis_url
    if not url:
        return 0
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            return int(client.llen(f"{_PREFIX}{queue}"))
    except redis.RedisError:
        return 0


def deliver(ids: list[int] | None = None, limit: int = 200) -> int:
    """Send unsent wake-ups (those of `ids`, or the oldest) and mark them. Returns how many went out.

    At least once: a crash between sending and marking sends again, and every receiver claims before it works.
    """
    with reading() as session:
        query = select(Outbox.id, Outbox.task, Outbox.subject_id).where(Outbox.sent_at.is_(None)).order_by(Outbox.id)
        query = query.where(Outbox.id.in_(ids)) if ids is not None else query.limit(limit)
        rows = session.execute(query).all()
    sent: list[int] = []
    for row in rows:
        if not _send(row.task, row.subject_id):
            break
        sent.append(row.id)
    if sent:
        with transaction() as session:
            session.execute(update(Outbox).where(Outbox.id.in_(sent)).values(sent_at=utcnow()))
    return len(sent)


def forget_sent(older_than_s: float = 3600) -> None:
    """Delete wake-ups that went out long ago."""
    with transaction() as session:
        limit = utcnow() - timedelta(seconds=older_than_s)
        session.execute(delete(Outbox).where(Outbox.sent_at < limit))
