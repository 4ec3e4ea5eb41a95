"""What people may do with runs: start once, steer, end; the words of refusals."""

import threading

import pytest
from sqlalchemy import func, select

from app.accounts.service import Actor
from app.core.db import reading, transaction
from app.core.errors import Conflict, Forbidden, Invalid, NotFound
from app.core.outbox import Outbox
from app.datasets.models import DatasetVersion
from app.runs import service
from app.runs.models import Run, RunEvent
from tests.factories import World, a_recipe, a_world


def start(world: World, request: str = "click", **changes: object) -> str:
    with transaction() as session:
        return service.start(
            session,
            world.actor,
            project_id=world.project_id,
            version_id=world.version_id,
            recipe=a_recipe(**changes),
            client_request_id=request,
        ).id


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


def put(run_id: str, state: str) -> None:
    with transaction() as session:
        session.get_one(Run, run_id).state = state


def test_a_doubled_click_is_one_run(any_database: str) -> None:
    with transaction() as session:
        world = a_world(session)
    found: list[str] = []
    gate = threading.Barrier(8)

    def click() -> None:
        gate.wait()
        found.append(start(world))

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 1
        assert session.scalar(select(func.count()).select_from(Outbox)) == 1


def test_numbers_have_no_gaps(world: World) -> None:
    ids = [start(world, f"click {i}") for i in range(3)]
    with reading() as session:
        assert [session.get_one(Run, one).number for one in ids] == [1, 2, 3]


def test_the_same_click_with_another_recipe_is_refused(world: World) -> None:
    start(world)
    with pytest.raises(Conflict, match="other values"):
        start(world, learning_rate=0.5)


def test_everything_used_is_frozen(world: World) -> None:
    run_id = start(world)
    with reading() as session:
        run = session.get_one(Run, run_id)
        assert run.frozen["dataset"]["content_hash"] == "0" * 64
        assert run.frozen["libraries"]["torch"].startswith("2.")
        assert len(run.frozen["spec_sha256"]) == 64
        assert run.recipe == a_recipe().model_dump(mode="json")


def test_strangers_find_nothing_and_viewers_may_only_look(world: World) -> None:
    run_id = start(world)
    viewer = Actor("v", roles={world.workspace_id: "viewer"})
    with reading() as session:
        with pytest.raises(NotFound):
            service.get(session, Actor("s"), run_id)
        assert service.get(session, viewer, run_id).id == run_id
        for verb in (service.request_cancel, service.request_pause, service.resume, service.request_stop_and_keep):
            with pytest.raises(Forbidden):
                verb(session, viewer, run_id)


def test_a_version_of_another_project_is_refused(world: World) -> None:
    with transaction() as session:
        other = a_world(session, "Bob")
    with transaction() as session, pytest.raises(Invalid, match="of this project"):
        service.start(
            session,
            world.actor,
            project_id=world.project_id,
            version_id=other.version_id,
            recipe=a_recipe(),
            client_request_id="x",
        )


def test_a_version_that_is_still_being_made_is_refused(world: World) -> None:
    with transaction() as session:
        session.get_one(DatasetVersion, world.version_id).state = "running"
    with pytest.raises(Invalid, match="still being made"):
        start(world)


@pytest.mark.parametrize(
    ("state", "verb", "after"),
    [
        ("queued", "request_cancel", "cancelled"),
        ("running", "request_cancel", "cancelling"),
        ("finalizing", "request_cancel", "cancelling"),
        ("waiting", "request_cancel", "cancelled"),
        ("paused", "request_cancel", "cancelled"),
        ("succeeded", "request_cancel", None),
        ("queued", "request_pause", "paused"),
        ("running", "request_pause", "pausing"),
        ("finalizing", "request_pause", None),
        ("failed", "request_pause", None),
        ("paused", "resume", "queued"),
        ("waiting", "resume", "queued"),
        ("running", "resume", None),
        ("running", "request_stop_and_keep", "running"),
        ("queued", "request_stop_and_keep", None),
        ("succeeded", "request_stop_and_keep", None),
    ],
)
def test_verbs(world: World, state: str, verb: str, after: str | None) -> None:
    run_id = start(world)
    put(run_id, state)
    with transaction() as session:
        action = getattr(service, verb)
        if after is None:
            with pytest.raises(Conflict):
                action(session, world.actor, run_id)
        else:
            assert action(session, world.actor, run_id).state == after
    with reading() as session:
        assert session.get_one(Run, run_id).state == (after or state)


def test_adjusting_stays_within_bounds(world: World) -> None:
    run_id = start(world)
    with transaction() as session:
        service.adjust(session, world.actor, run_id, name="learning_rate", value=0.01)
    with reading() as session:
        assert session.get_one(Run, run_id).adjustments == {"learning_rate": 0.01}
    for name, value in (("learning_rate", 0.0), ("learning_rate", float("nan")), ("seed", 3), ("epochs", 1e9)):
        with transaction() as session, pytest.raises(Invalid):
            service.adjust(session, world.actor, run_id, name=name, value=value)


def test_other_hours_plan_its_steps_anew(world: World) -> None:
    run_id = start(world)
    told = {"estimate": {"seconds": 100, "steps": 100}, "spent_s": 3600.0}
    for recipe, planned in (({"max_hours": 3, "max_steps": 7}, 3420), ({"max_steps": 7}, 7)):
        with transaction() as session:
            run = session.get_one(Run, run_id)
            run.recipe, run.estimate, run.spent_s = {**run.recipe, "max_hours": None, **recipe}, *told.values()
            service.adjust(session, world.actor, run_id, name="max_hours", value=2.0)
            assert run.adjustments == {"max_hours": 2.0, "max_steps": planned}
    with transaction() as session, pytest.raises(Invalid) as caught:
        service.adjust(session, world.actor, run_id, name="max_hours", value=0.5)
    assert "has taken 1 h already" in caught.value.fields["value"]


def test_again_is_a_new_run_with_the_change(world: World) -> None:
    run_id = start(world)
    with transaction() as session, pytest.raises(Conflict, match="still going on"):
        service.retry(session, world.actor, run_id, client_request_id="again")
    put(run_id, "failed")
    with transaction() as session:
        again = service.retry(session, world.actor, run_id, client_request_id="again", changes={"learning_rate": 0.001})
        assert again.id != run_id
        assert again.recipe["learning_rate"] == 0.001
        with pytest.raises(Invalid):
            service.retry(session, world.actor, run_id, client_request_id="bad", changes={"micro_batch_size": 3})


def test_the_diary_says_who_asked(world: World) -> None:
    run_id = start(world)
    with transaction() as session:
        service.request_cancel(session, world.actor, run_id)
    with reading() as session:
        assert "Cancelled by Ada." in session.scalars(select(RunEvent.sentence)).all()
