"""While one piece of work waits for memory another is done in its place, and only then."""

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from app.contracts.generation import Waiting
from app.core.db import reading, transaction
from app.core.work import Cancelled, Lease, claim
from app.datasets.models import SourceFile
from app.drafting.models import Drafting
from app.inference.told import Told
from tests.conftest import wait_for
from tests.visitors import make_person, make_project
from worker import standing_in
from worker.celery_app import celery_app, draining
from worker.tasks import datasets, drafts  # noqa: F401  (registers what reads files and what asks models)


@pytest.fixture
def lease(app: object, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """Of a drafting that is being done."""
    monkeypatch.setattr(standing_in, "LOOK_S", 0.01)
    person = make_person()
    project_id = make_project(person.workspace_id)
    with transaction() as session:
        file = SourceFile(project_id=project_id, filename="a.csv", size_bytes=1, state="succeeded")
        session.add(file)
        session.flush()
        row = Drafting(project_id=project_id, workspace_id=person.workspace_id, file_id=file.id, target="model:x")
        session.add(row)
        session.flush()
        row_id = row.id
    found = claim(Drafting, row_id)
    assert found is not None
    return found


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done of a line of two: the first breaks down, the second takes its time."""
    line, done = ["broken", "slow"], list[str]()

    @celery_app.task(name="tests.stand_in")
    def work(name: str) -> bool:
        if name == "broken":
            raise RuntimeError(name)
        time.sleep(0.3)
        done.append(name)
        return True

    def next_turn(_: frozenset[str]) -> SimpleNamespace | None:
        return SimpleNamespace(task=work.name, id=line.pop(0)) if line else None

    monkeypatch.setattr(standing_in, "next_turn", next_turn)
    yield done
    celery_app.tasks.pop(work.name)


def test_nothing_stands_in_for_work_that_does_not_wait(lease: Lease, done: list[str]) -> None:
    with standing_in.standing_in(lease):
        time.sleep(0.5)
    assert done == []


def test_the_end_waits_for_what_stood_in_and_a_fault_of_it_is_not_the_end(lease: Lease, done: list[str]) -> None:
    began = time.monotonic()
    with standing_in.standing_in(lease):
        lease.is_waiting = True
        time.sleep(0.15)
    assert done == ["slow"]
    assert time.monotonic() - began < 5


def test_a_worker_that_is_told_to_stop_begins_nothing_more(lease: Lease, done: list[str]) -> None:
    draining.set()
    try:
        with standing_in.standing_in(lease):
            lease.is_waiting = True
            time.sleep(0.5)
    finally:
        draining.clear()
    assert done == []


def test_work_waits_for_memory_as_long_as_it_hears_so(lease: Lease) -> None:
    told = Told(lease)
    told(Waiting(why="memory", training_left_s=600))
    assert lease.is_waiting
    with reading() as session:
        assert session.get_one(Drafting, lease.row_id).phase.startswith("memory ")
    told(Waiting(why="loading"))
    assert not lease.is_waiting
    lease.is_cancelled = True
    with pytest.raises(Cancelled):
        told(Waiting(why="memory"))


def test_work_that_waits_sees_soon_that_it_was_cancelled(lease: Lease) -> None:
    """Its heartbeat, which sees it, too, comes every fifteen seconds."""
    with transaction() as session:
        session.get_one(Drafting, lease.row_id).want = "cancel"
    with pytest.raises(Cancelled):
        Told(lease)(Waiting(why="memory"))
    assert lease.is_cancelled


def test_somebody_elses_file_is_read_meanwhile_and_what_would_wait_too_is_not(lease: Lease) -> None:
    project_id = make_project(make_person().workspace_id)
    with transaction() as session:
        row = session.get_one(Drafting, lease.row_id)
        other = Drafting(
            project_id=row.project_id, workspace_id=row.workspace_id, file_id=row.file_id, target="model:x"
        )
        session.add(other)
        session.flush()
        file = SourceFile(project_id=project_id, filename="b.csv", size_bytes=1)
        session.add(file)
        session.flush()
        other_id, file_id = other.id, file.id

    def is_read() -> bool:
        with reading() as session:
            return session.get_one(SourceFile, file_id).work_ended_at is not None

    with standing_in.standing_in(lease):
        lease.is_waiting = True
        wait_for(is_read, "the file is read", 20)
        time.sleep(0.3)
    with reading() as session:
        assert session.get_one(Drafting, other_id).state == "queued"
