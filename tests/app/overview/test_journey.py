"""The journey and the next step: what each state of a project says, in a constant number of queries."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.chat.models import Chat, ChatMessage, Feedback
from app.core.db import get_engine, utcnow
from app.datasets.models import DatasetVersion, SourceFile
from app.deployments.models import ApiKey
from app.evaluations.models import Evaluation
from app.overview import facts as project_facts
from app.overview import journey
from app.overview import service as overview
from app.overview.next_step import next_step
from app.projects import service
from app.projects.models import Project
from app.runs.models import Model, Run
from app.runs.states import note
from tests.factories import World, a_world


@pytest.fixture
def world(session: Session) -> World:
    return a_world(session)


@pytest.fixture
def project(session: Session, world: World) -> Project:
    """A project without anything but its objective."""
    return service.create(session, world.actor, name="Inbox", template_key="support")


def states(session: Session, project: Project) -> dict[str, str]:
    facts = project_facts.of_projects(session, [project.id])[project.id]
    return {stage.name: stage.state for stage in journey.stages(project, facts)}


def step(session: Session, project: Project) -> Any:
    session.flush()
    return next_step(project_facts.of_projects(session, [project.id])[project.id])


def a_run(session: Session, project: Project, number: int = 1, **values: Any) -> Run:
    run = Run(
        project_id=project.id, workspace_id=project.workspace_id, number=number, name="First", recipe={}, **values
    )
    session.add(run)
    session.flush()
    return run


@contextmanager
def counted() -> Iterator[list[str]]:
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    event.listen(get_engine(), "before_cursor_execute", note)
    yield said
    event.remove(get_engine(), "before_cursor_execute", note)


def test_a_fresh_project_asks_for_its_first_file(session: Session, project: Project) -> None:
    found = states(session, project)
    assert found.pop("objective") == "done"
    assert set(found.values()) == {"todo"}
    assert step(session, project).first.path == "data"


def test_an_empty_objective_comes_first(session: Session, world: World) -> None:
    project = service.create(session, world.actor, name="Own", template_key="free")
    assert states(session, project)["objective"] == "todo"
    assert step(session, project).first.path == "objective"


def test_each_stage_says_what_is_there(session: Session, project: Project) -> None:
    session.add(SourceFile(project_id=project.id, filename="a.csv", size_bytes=9, rows=1200, state="succeeded",
                           is_mapping_confirmed=True))  # fmt: skip
    assert step(session, project).first.path == "clean"
    session.add(DatasetVersion(project_id=project.id, number=1, state="succeeded", train_rows=1000, test_rows=100))
    assert step(session, project).first.path == "recipe"
    file = SourceFile(project_id=project.id, filename="sums.jsonl", size_bytes=9)
    session.add(file)
    session.flush()
    session.add(
        DatasetVersion(project_id=project.id, number=2, state="succeeded", train_rows=144, file_id=file.id)
    )  # one file that a program sent: not what was cleaned here
    file.deleted_at = utcnow()
    assert step(session, project).first.path == "recipe"
    run = a_run(session, project, state="running", step=188, total_steps=400)
    assert step(session, project).first.path == f"/runs/{run.id}"
    facts = project_facts.of_projects(session, [project.id])[project.id]
    told = {stage.name: (stage.state, stage.fact) for stage in journey.stages(project, facts)}
    assert told["data"] == ("done", "1,200 rows")
    assert told["clean"] == ("done", "1,100 left")
    assert told["train"] == ("working", "47 %")
    waiting = a_run(session, project, number=2, state="queued")
    facts = project_facts.of_projects(session, [project.id])[project.id]
    told = {stage.name: (stage.state, stage.fact) for stage in journey.stages(project, facts)}
    assert told["train"] == ("working", "47 %"), "what was queued behind it does not hide it"
    session.delete(waiting)
    run.state = "succeeded"
    model = Model(project_id=project.id, run_id=run.id, name="First", kind="lora", files={}, step=400)
    session.add(model)
    assert step(session, project).first.path == "chat"
    chat = Chat(project_id=project.id)
    session.add(chat)
    session.flush()
    answer = ChatMessage(chat_id=chat.id, position=1, role="assistant", content="In 30 days.")
    session.add(answer)
    assert step(session, project).first.path == "evaluate"
    session.add(Evaluation(project_id=project.id, model_id=model.id, state="succeeded"))
    assert step(session, project).first.path == "deploy"
    key = ApiKey(workspace_id=project.workspace_id, project_id=project.id, name="k", secret_sha256=b"1", last_four="1")
    session.add(key)
    assert step(session, project).first.path == "monitor"
    session.add(Feedback(message_id=answer.id, user_id=project.created_by, thumb=-1))
    assert step(session, project).first.path == "refine"
    assert states(session, project)["evaluate"] == "done"


def test_what_broke_comes_before_everything_else(session: Session, project: Project) -> None:
    a_run(session, project, 1, state="succeeded")
    run = a_run(session, project, 2, state="failed", step=212, sentence="It ran out of memory at step 212.")
    found = step(session, project)
    assert found.first.path == f"/runs/{run.id}"
    assert found.reason == "It ran out of memory at step 212."
    assert states(session, project)["train"] == "look"


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"state": "failed"}, "look"),
        ({"state": "running"}, "working"),
        ({"state": "succeeded", "is_mapping_confirmed": False}, "look"),
        ({"state": "succeeded", "is_mapping_confirmed": True}, "done"),
    ],
)
def test_a_file_colours_the_data_stage(session: Session, project: Project, values: dict[str, Any], state: str) -> None:
    session.add(SourceFile(project_id=project.id, filename="a.csv", size_bytes=9, rows=3, **values))
    session.flush()
    assert states(session, project)["data"] == state


def test_a_warning_of_the_coach_shows_in_the_rail(session: Session, project: Project) -> None:
    coach = {"kind": "warn", "verdict": "Memorising since step 100"}
    a_run(session, project, state="running", step=150, total_steps=300, coach=coach)
    facts = project_facts.of_projects(session, [project.id])[project.id]
    train = journey.stages(project, facts)[4]
    assert (train.state, train.fact, train.why) == ("look", "Look", "Memorising since step 100")


def test_the_number_of_queries_does_not_grow_with_projects_nor_rows(session: Session, world: World) -> None:
    def ask(ids: list[str]) -> int:
        session.flush()
        session.expire_all()
        with counted() as said:
            project_facts.of_projects(session, ids)
        return len(said)

    ids = [service.create(session, world.actor, name="P0", template_key="tutor").id]
    few = ask(ids)
    for number in range(1, 12):
        project = service.create(session, world.actor, name=f"P{number}", template_key="tutor")
        ids.append(project.id)
        for run_number in range(1, 6):
            a_run(session, project, run_number, state="succeeded")
            session.add(SourceFile(project_id=project.id, filename="a.csv", size_bytes=1, state="succeeded"))
    assert ask(ids) == few
    assert few <= 10


def test_the_rail_names_the_projects_of_the_reader_only(session: Session, world: World, project: Project) -> None:
    other = a_world(session, "Zoe")
    rail = journey.in_session(session, world.actor, project, "data")
    assert {entry.id for entry in rail.projects} == {project.id, world.project_id}
    assert other.project_id not in {entry.id for entry in rail.projects}
    assert [stage.name for stage in rail.stages][:3] == ["objective", "data", "clean"]
    assert isinstance(world.actor, Actor)


def test_a_rated_answer_stands_below_its_own_question(session, world, project):
    chat = Chat(project_id=project.id)
    session.add(chat)
    session.flush()
    for number, (asked, said) in enumerate([("First?", "One."), ("Second?", "Two."), ("Third?", "Three.")]):
        question = ChatMessage(chat_id=chat.id, position=2 * number, role="user", content=asked)
        session.add(question)
        session.flush()
        answer = ChatMessage(
            chat_id=chat.id, position=2 * number + 1, role="assistant", content=said, parent_id=question.id
        )
        session.add(answer)
        session.flush()
        session.add(Feedback(message_id=answer.id, user_id=world.actor.user_id, thumb=-1))
    session.flush()
    found = overview.rated_answers(session, world.actor, project.id)
    assert {(row.question, row.content) for row in found} == {
        ("First?", "One."), ("Second?", "Two."), ("Third?", "Three."),
    }  # fmt: skip


def test_many_checkpoints_are_one_piece_of_news(session, world, project):
    run = a_run(session, project, state="running")
    for number in range(30):
        note(session, run.id, f"Checkpoint saved at step {number}.", kind="checkpoint", step=number)
    found = overview.recently(session, world.actor, project.id)
    assert [item.title for item in found if "Checkpoint" in item.title] == ["Checkpoint saved at step 29."]
    session.add(SourceFile(project_id=project.id, filename="cards.csv", size_bytes=1, sha256="0" * 64))
    session.flush()
    assert any(item.title == "Brought cards.csv" for item in overview.recently(session, world.actor, project.id))
