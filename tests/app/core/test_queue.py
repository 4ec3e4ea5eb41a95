"""Wake-ups: sent after the commit, kept while Redis is away, never piled up."""

import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.core import config, events, queue, redis_server
from app.core.db import reading, transaction
from app.core.outbox import Outbox
from tests.conftest import wait_for


def unsent() -> int:
    with reading() as session:
        return session.scalar(select(func.count()).select_from(Outbox).where(Outbox.sent_at.is_(None))) or 0


def rung(broker: redis_server.RedisServer) -> int:
    with broker.client() as client:
        return int(client.llen("q:train"))  # type: ignore[arg-type]


def away(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("", "_WORKER", "_STREAM"):
        monkeypatch.setenv(f"GPT_BUILDER_REDIS_URL{name}", f"unix://{home}/nobody.sock")
    config.get_settings.cache_clear()
    queue._celery.cache_clear()
    events.forget_clients()


def test_a_ring_leaves_after_the_commit(database: Path, broker: redis_server.RedisServer) -> None:
    with transaction() as session:
        queue.ring(session, "runs.train", "abc")
        time.sleep(0.2)
        assert rung(broker) == 0
    wait_for(lambda: rung(broker) == 1, "the wake-up is in the queue")
    wait_for(lambda: unsent() == 0, "the wake-up is marked as sent")


def test_a_rollback_takes_the_ring_with_it(database: Path, broker: redis_server.RedisServer) -> None:
    with transaction() as session:
        queue.ring(session, "runs.train", "abc")
        session.rollback()
    assert unsent() == 0
    assert queue.deliver() == 0
    assert rung(broker) == 0


def test_a_savepoint_does_not_ring(database: Path, broker: redis_server.RedisServer) -> None:
    with transaction() as session:
        with session.begin_nested():
            queue.ring(session, "runs.train", "abc")
        time.sleep(0.2)
        assert rung(broker) == 0
    wait_for(lambda: rung(broker) == 1, "the wake-up is in the queue")


def test_nothing_is_lost_while_redis_is_away(
    database: Path, home: Path, broker: redis_server.RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:
        away(gone, home)
        began = time.monotonic()
        with transaction() as session:
            queue.ring(session, "runs.train", "abc")
        assert events.publish("run:abc", "state", {"state": "queued"}) is None
        assert events.last_id("run:abc") == "0-0"
        assert time.monotonic() - began < 3, "a person waits for Redis"
        assert queue.deliver() == 0
        assert unsent() == 1
    config.get_settings.cache_clear()
    queue._celery.cache_clear()
    assert queue.deliver() == 1
    assert unsent() == 0
    assert rung(broker) == 1


def test_nudges_do_not_pile_up(database: Path, broker: redis_server.RedisServer) -> None:
    for _ in range(20):
        assert queue.nudge("runs.train", "abc")
    assert rung(broker) == queue._ENOUGH_RINGS


def test_a_task_without_a_queue_is_refused(database: Path) -> None:
    with transaction() as session, pytest.raises(ValueError, match="no queue"):
        queue.ring(session, "nothing.known", "abc")
