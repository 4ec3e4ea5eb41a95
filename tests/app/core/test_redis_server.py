"""The embedded Redis refuses what its users do not need, and nobody else reaches it (matrix A63)."""

import stat
import subprocess
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy import select

from app.core import redis_server
from app.core.db import reading, transaction
from app.core.outbox import Outbox
from app.core.queue import deliver, ring
from tests.conftest import wait_for

REFUSED = [
    ("EVAL", "return 1", "0"),
    ("CONFIG", "GET", "dir"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SLAVEOF", "localhost", "6379"),
    ("MODULE", "LIST"),
    ("DEBUG", "SLEEP", "0"),
    ("ACL", "LIST"),
    ("KEYS", "*"),
    ("GET", "somebody-elses-key"),
]


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command[0])
@pytest.mark.parametrize("user", ["web", "queue", "stream"])
def test_dangerous_commands_are_refused(
    redis_process: redis_server.RedisServer, user: str, command: tuple[str, ...]
) -> None:
    with (
        redis.Redis.from_url(redis_process.url(user)) as client,
        pytest.raises(redis.RedisError, match=r"permission|not allowed"),
    ):
        client.execute_command(*command)


def test_only_celery_may_load_scripts(redis_process: redis_server.RedisServer) -> None:
    with redis.Redis.from_url(redis_process.url("queue")) as client:
        digest = client.script_load("return 7")
        assert client.evalsha(digest, 0) == 7
    with redis.Redis.from_url(redis_process.url("web")) as client, pytest.raises(redis.RedisError):
        client.evalsha(digest, 0)


def test_watchers_read_but_never_write(redis_process: redis_server.RedisServer) -> None:
    with redis.Redis.from_url(redis_process.url("web")) as web:
        web.xadd("s:run:abc", {"e": "step"})
    with redis.Redis.from_url(redis_process.url("stream")) as watcher:
        assert len(watcher.xrange("s:run:abc")) == 1
        with pytest.raises(redis.RedisError, match="permission"):
            watcher.xadd("s:run:abc", {"e": "forged"})


def test_a_stranger_without_a_password_is_refused(redis_process: redis_server.RedisServer) -> None:
    with (
        redis.Redis(unix_socket_path=str(redis_process.socket)) as client,
        pytest.raises(redis.RedisError, match=r"(?i)auth"),
    ):
        client.ping()


def test_no_port_and_a_private_socket(redis_process: redis_server.RedisServer) -> None:
    assert stat.S_IMODE(redis_process.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(redis_process.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((redis_process.folder / "passwords.json").stat().st_mode) == 0o600
    with redis_process.client() as client:
        process = psutil.Process(client.info("server")["process_id"])
        settings = client.config_get("maxmemory-policy")
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert settings == {"maxmemory-policy": "noeviction"}


def test_what_was_written_in_a_transaction_survives_a_restart(tmp_path: Path) -> None:
    server = redis_server.prepare(tmp_path / "h")
    for attempt in range(2):
        child = subprocess.Popen(server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(server.is_ready, "Redis answers")
            with redis.Redis.from_url(server.url("web")) as web, web.pipeline(transaction=True) as pipe:
                if not attempt:
                    pipe.rpush("q:train", "one").rpush("q:train", "two").execute()
                assert web.lrange("q:train", 0, -1) == [b"one", b"two"]
        finally:
            child.terminate()
            child.wait(10)


def test_passwords_and_long_paths_survive_a_restart(tmp_path: Path) -> None:
    first = redis_server.prepare(tmp_path / "h")
    assert redis_server.prepare(tmp_path / "h").passwords == first.passwords
    deep = redis_server.prepare(tmp_path / ("deep" * 25) / "h")
    assert len(str(deep.socket)) <= 104
    assert stat.S_IMODE(deep.socket.parent.stat().st_mode) == 0o700
    deep.socket.parent.rmdir()


def test_the_web_user_rings_a_worker(database: Path, broker: redis_server.RedisServer, monkeypatch) -> None:
    monkeypatch.delenv("GPT_BUILDER_REDIS_URL_WORKER")
    with transaction() as session:
        session.add(Outbox(task="runs.train", subject_id="r" * 20))
    assert deliver() == 1
    with broker.client() as client:
        assert client.llen("q:train") == 1
    with reading() as session:
        assert session.scalars(select(Outbox.sent_at)).one() is not None


def test_without_redis_the_wake_up_waits_in_the_outbox(database: Path) -> None:
    with transaction() as session:
        ring(session, "runs.train", "r" * 20)
    assert deliver() == 0
    with reading() as session:
        assert session.scalars(select(Outbox.sent_at)).one() is None


def test_a_link_that_somebody_laid_in_the_shared_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its target belongs to us today; whoever owns the link could turn it to a socket of their own tomorrow."""
    shared, ours = tmp_path / "shared", tmp_path / "ours"
    shared.mkdir()
    ours.mkdir()
    monkeypatch.setattr(redis_server.tempfile, "gettempdir", lambda: str(shared))
    home = tmp_path / ("deep" * 25) / "h"
    name = redis_server.sockets_dir(home).name
    (shared / name).rmdir()
    (shared / name).symlink_to(ours)
    with pytest.raises(PermissionError, match="link"):
        redis_server.sockets_dir(home)
