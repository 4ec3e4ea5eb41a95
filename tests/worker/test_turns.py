"""Turns in the queue `data`: many files of one project hold up nobody else, whatever order the messages came in."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from app.core.db import reading, transaction, utcnow
from app.core.work import claim
from app.datasets.models import RemoteSource, SourceFile
from app.drafting.models import Drafting
from app.projects.models import Project
from app.recipes.models import BaseModelEntry
from tests.conftest import wait_for
from tests.visitors import make_person, make_project
from worker import standing_in, turns
from worker.tasks import datasets as tasks
from worker.turns import Served, Waiting, next_of

START = datetime(2026, 11, 1, 9, tzinfo=UTC)


def _wait(name: str, workspace: str, project: str, minute: int) -> Waiting:
    return Waiting("datasets.import_file", name, workspace, project, START + timedelta(minutes=minute))


def _order(line: list[Waiting], slots: int) -> list[str]:
    """The queue played through with so many workers; each piece takes one round."""
    rest, had, found, now = list(line), list[Served](), list[str](), START + timedelta(hours=1)
    while rest:
        had = [Served(one.workspace_id, one.project_id, 0, one.last) for one in had]
        for _ in range(slots):
            if (taken := next_of(rest, had)) is not None:
                rest.remove(taken)
                now += timedelta(seconds=1)
                had.append(Served(taken.workspace_id, taken.project_id, 1, now))
                found.append(taken.id)
    return found


@pytest.mark.parametrize("slots", [1, 2])
def test_workspaces_take_turns_and_so_do_their_projects(slots: int) -> None:
    line = [_wait(f"a{n}", "first", "a", n) for n in range(6)]
    line += [_wait(f"b{n}", "first", "b", 20 + n) for n in range(2)]
    line += [_wait(f"c{n}", "second", "c", 40 + n) for n in range(2)]
    assert _order(line, slots) == ["a0", "c0", "b0", "c1", "a1", "b1", "a2", "a3", "a4", "a5"]


def test_who_has_something_going_on_waits_for_the_others() -> None:
    """Also after a restart, for all of it is in the rows: `a` was served long ago, but its work goes on."""
    line = [_wait("a1", "first", "a", 0), _wait("b1", "second", "b", 5)]
    had = [Served("first", "a", 1, START), Served("second", "b", 0, START + timedelta(minutes=9))]
    assert next_of(line, had) == line[1]
    assert next_of(line, [Served("first", "a", 0, START), had[1]]) == line[0]
    assert next_of([], had) is None


def test_a_flood_that_never_ends_starves_nobody() -> None:
    line, had = [_wait("b", "first", "b", 100)], list[Served]()
    for number in range(50):
        line.append(_wait(f"a{number}", "first", "a", number))
        taken = next_of(line, had)
        assert taken is not None
        if taken.id == "b":
            break
        line.remove(taken)
        had.append(Served("first", "a", 0, START + timedelta(minutes=number)))
    assert number == 1


@pytest.fixture
def two_projects(app) -> tuple[list[str], str]:
    """Four files of one project, then one of another person's; their bytes are missing, so reading ends at once."""
    many, other = make_person(), make_person()
    flood, calm = make_project(many.workspace_id), make_project(other.workspace_id)
    began = utcnow() - timedelta(hours=1)
    names = []
    with transaction() as session:
        for number, project in enumerate([flood] * 4 + [calm]):
            file = SourceFile(
                project_id=project, filename=f"{number}.csv", size_bytes=1, created_at=began + timedelta(minutes=number)
            )
            session.add(file)
            session.flush()
            names.append(file.id)
    return names[:4], names[4]


def _begun() -> list[str]:
    with reading() as session:
        query = select(SourceFile.id).where(SourceFile.work_started_at.is_not(None))
        return list(session.scalars(query.order_by(SourceFile.work_started_at)))


def test_messages_in_the_order_of_their_arrival_still_serve_in_turns(two_projects: tuple[list[str], str]) -> None:
    flood, calm = two_projects
    for message in flood[:2]:
        assert tasks.import_file.apply(args=[message]).get() is True
    assert _begun() == [flood[0], calm]
    # The other's own message comes to a row that is done: nobody's work is lost, the next one is taken.
    assert tasks.import_file.apply(args=[calm]).get() is True
    assert _begun() == [flood[0], calm, flood[1]]


def test_called_by_name_a_task_does_what_it_was_asked_for(two_projects: tuple[list[str], str]) -> None:
    flood, _calm = two_projects
    tasks.import_file(flood[3])
    assert _begun() == [flood[3]]


def test_every_kind_of_work_waits_in_the_same_line(two_projects: tuple[list[str], str]) -> None:
    """A fetch of the calm project is not behind the other's files, though another task does it."""
    flood, calm = two_projects
    person = make_person()
    with transaction() as session:
        file = session.get_one(SourceFile, calm)
        project_id, file.state = file.project_id, "succeeded"
        source = RemoteSource(project_id=project_id, kind="web", address="ftp://nowhere", details={})
        session.add_all([source, BaseModelEntry(workspace_id=person.workspace_id, source="hub", ref="a/b", name="b")])
        session.flush()
        source_id = source.id
    with reading() as session:
        line = turns.waiting(session)
        assert {(one.task, bool(one.project_id)) for one in line} == {
            ("datasets.import_file", True), ("datasets.bring", True), ("recipes.bring", False),
        }  # fmt: skip
        assert turns.served(session) == []
    with transaction() as session:
        session.get_one(SourceFile, flood[0]).state = "running"
        session.get_one(SourceFile, flood[0]).work_started_at = utcnow()
    turn = turns.next_turn()
    assert turn is not None
    assert turn.id == source_id
    assert Drafting in {model for model, _task in turns.LONG_WORK}


def test_what_waits_for_memory_holds_up_no_files(
    two_projects: tuple[list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flood, calm = two_projects
    with transaction() as session:
        for name in flood:
            session.get_one(SourceFile, name).state = "succeeded"
        file = session.get_one(SourceFile, calm)
        person = session.get_one(Project, file.project_id).workspace_id
        row = Drafting(
            project_id=file.project_id, workspace_id=person, file_id=calm, target="model:x",
            created_at=utcnow() - timedelta(days=1),
        )  # fmt: skip
        other = Drafting(project_id=file.project_id, workspace_id=person, file_id=calm, target="model:x")
        session.add_all([row, other])
        session.flush()
        drafting_id, other_id = row.id, other.id
    monkeypatch.setattr(standing_in, "LOOK_S", 0.01)
    lease = claim(Drafting, drafting_id)
    assert lease is not None
    with standing_in.standing_in(lease):
        lease.is_waiting = True
        wait_for(lambda: _begun() == [calm], "the file is read meanwhile")
    with reading() as session:
        assert session.get_one(Drafting, other_id).state == "queued", "it would wait, too"
