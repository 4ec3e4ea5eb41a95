"""Leased work: one claimant, stale writers refused, the dead given back, forgotten wake-ups repeated."""

import threading

import pytest
from sqlalchemy import select

from app.core import work
from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.outbox import Outbox
from app.core.redis_server import RedisServer
from app.core.work import LostLease, Watcher, claim, working
from app.datasets.models import SourceFile
from tests.factories import a_world


def a_file() -> str:
    """A received file that waits for its import."""
    with transaction() as session:
        world = a_world(session)
        file = SourceFile(project_id=world.project_id, filename="questions.csv", size_bytes=10)
        session.add(file)
        session.flush()
        return file.id


def state_of(file_id: str) -> tuple[str, int, str]:
    with reading() as session:
        row = session.get(SourceFile, file_id)
        assert row is not None
        return row.state, row.attempts, row.error


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that die at once when nobody beats."""
    monkeypatch.setenv("GPT_BUILDER_LEASE_TTL_S", "0")
    get_settings.cache_clear()


def test_twenty_claimers_make_one_claim(any_database: str) -> None:
    file_id = a_file()
    leases, gate = [], threading.Barrier(20)

    def run() -> None:
        gate.wait()
        leases.append(claim(SourceFile, file_id))

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases) == 20
    assert sum(lease is not None for lease in leases) == 1


def test_who_lost_the_lease_writes_nothing(any_database: str, quick_leases: None) -> None:
    file_id = a_file()
    slow = claim(SourceFile, file_id)
    assert slow is not None
    watcher = Watcher((SourceFile, "datasets.import_file"))
    assert watcher.sweep() == 1
    fresh = claim(SourceFile, file_id)
    assert fresh is not None
    with pytest.raises(LostLease), slow.write(rows=999):
        pytest.fail("a lost lease must not open a transaction")
    with working(slow):
        pass
    assert state_of(file_id)[0] == "running"
    with working(fresh), fresh.write(rows=7):
        pass
    with reading() as session:
        assert session.scalar(select(SourceFile.rows)) == 7
    assert state_of(file_id)[0] == "succeeded"


def test_given_up_after_three_deaths_with_a_sentence(any_database: str, quick_leases: None) -> None:
    file_id, watcher = a_file(), Watcher((SourceFile, "datasets.import_file"))
    for _ in range(3):
        assert claim(SourceFile, file_id) is not None
        assert watcher.sweep() == 1
    state, attempts, error = state_of(file_id)
    assert (state, attempts) == ("failed", 3)
    assert "three times" in error
    assert claim(SourceFile, file_id) is None


def test_a_beating_worker_is_never_declared_dead(any_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_LEASE_TTL_S", "2")
    monkeypatch.setenv("GPT_BUILDER_LEASE_HEARTBEAT_S", "0.05")
    get_settings.cache_clear()
    file_id, watcher = a_file(), Watcher((SourceFile, "datasets.import_file"))
    lease = claim(SourceFile, file_id)
    assert lease is not None
    pause = threading.Event()
    with working(lease):
        for _ in range(26):
            assert watcher.sweep() == 0
            pause.wait(0.1)
    assert state_of(file_id)[0] == "succeeded"


def test_a_wake_up_lost_with_redis_is_repeated(
    any_database: str, broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_file()
    watcher = Watcher((SourceFile, "datasets.import_file"))
    with broker.client() as client:
        watcher.sweep()
        assert client.llen("q:data") == 0
        monkeypatch.setattr(work, "FORGOTTEN_AFTER_S", 0)
        watcher.sweep()
        assert client.llen("q:data") == 1
        assert b"datasets.import_file" in client.lindex("q:data", 0)


def test_the_wake_up_of_released_work_is_in_the_same_transaction(any_database: str, quick_leases: None) -> None:
    file_id, watcher = a_file(), Watcher((SourceFile, "datasets.import_file"))
    assert claim(SourceFile, file_id) is not None
    watcher.sweep()
    with reading() as session:
        assert session.scalars(select(Outbox.subject_id)).all() == [file_id]
