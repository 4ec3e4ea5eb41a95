"""The queue: people take turns, one's own runs go by priority and place, and the forecast is what the claim does."""

from datetime import UTC, datetime, timedelta

import pytest

from app.accounts.models import Member, User
from app.accounts.service import Actor
from app.core.db import new_id, reading, transaction
from app.core.errors import Conflict, Forbidden
from app.runs import ordering, service, turns
from app.runs.claim import claim
from app.runs.models import Attempt, Run
from app.runs.states import move
from app.runs.turns import Served, Waiting, forecast, next_of
from app.runs.view import queue_turns
from tests.factories import World, a_recipe, a_world

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def waits(name: str, *, minute: float = 0, workspace: str = "w", priority: int = 0) -> Waiting:
    """A queued run of the person that its name begins with."""
    return Waiting(name, workspace, name[0], priority, START + timedelta(minutes=minute))


def order(line: list[Waiting], had: list[Served] | None = None) -> list[str]:
    found = forecast(line, had or [], {one.id: 60.0 for one in line}, workspace_cap=4)
    return sorted(found, key=lambda name: found[name].place)


def test_one_device_and_a_flood_of_one_person() -> None:
    line = [waits(f"a{i}", minute=i) for i in range(5)] + [waits("b0", minute=10), waits("b1", minute=11)]
    assert order(line) == ["a0", "b0", "a1", "b1", "a2", "a3", "a4"]


def test_workspaces_take_turns_whoever_is_in_them() -> None:
    line = [waits("a0", minute=0), waits("b0", minute=1), waits("c0", minute=2), waits("z0", minute=3, workspace="v")]
    assert order(line) == ["a0", "z0", "b0", "c0"]


def test_priority_counts_among_ones_own_runs_only() -> None:
    line = [waits("a0"), waits("a1", minute=1, priority=1), waits("b0", minute=-1)]
    assert order(line) == ["b0", "a1", "a0"]
    assert order([*line, waits("b1", minute=5, priority=1)]) == ["a1", "b1", "b0", "a0"]


def test_a_run_that_was_interrupted_goes_on_before_those_that_came_later() -> None:
    had = [Served("a0", "w", "a", START + timedelta(minutes=2), False)]
    assert next_of([waits("a0", minute=1), waits("b0", minute=3)], had, 4) == waits("a0", minute=1)


def test_who_was_served_since_waits_for_the_other() -> None:
    had = [Served("a0", "w", "a", START + timedelta(minutes=2), False)]
    assert next_of([waits("a1", minute=1), waits("b0", minute=1.5)], had, 4) == waits("b0", minute=1.5)
    earlier = [Served("a0", "w", "a", START - timedelta(days=1), False)]
    assert next_of([waits("a1", minute=1), waits("b0", minute=1.5)], earlier, 4) == waits("a1", minute=1)


def test_expected_starts_follow_from_what_runs_and_waits() -> None:
    had = [Served("x", "w", "x", START - timedelta(hours=1), True)]
    line = [waits("a0"), waits("b0", minute=1), waits("a1", minute=2)]
    found = forecast(line, had, {"x": 100.0, "a0": 30.0, "b0": None, "a1": 5.0}, workspace_cap=4)
    assert [(found[name].place, found[name].starts_in_s) for name in ("a0", "b0", "a1")] == [
        (1, 100.0), (2, 130.0), (3, None),
    ]  # fmt: skip


def test_with_two_devices_the_shorter_run_makes_room_first() -> None:
    had = [Served(name, name, name, START, True) for name in ("x", "y")]
    line = [waits("a0"), waits("b0", minute=1)]
    found = forecast(line, had, {"x": 100.0, "y": 20.0, "a0": 10.0, "b0": 10.0}, workspace_cap=4)
    assert (found["a0"].starts_in_s, found["b0"].starts_in_s) == (20.0, 30.0)


def a_colleague(world: World, name: str, role: str = "editor") -> Actor:
    with transaction() as session:
        user = User(email=f"{new_id()}@example.org", name=name, password_hash="-")
        session.add(user)
        session.flush()
        session.add(Member(workspace_id=world.workspace_id, user_id=user.id, role=role))
        return Actor(user.id, user.email, name, {world.workspace_id: role})


def start(world: World, actor: Actor) -> str:
    with transaction() as session:
        return service.start(
            session, actor, project_id=world.project_id, version_id=world.version_id, recipe=a_recipe(),
            client_request_id=new_id(), estimate={"seconds": 60.0, "steps": 20},
        ).id  # fmt: skip


def test_the_places_that_are_shown_are_the_order_of_the_claims(any_database: str) -> None:
    with transaction() as session:
        world, other = a_world(session, "Ada"), a_world(session, "Zoe")
    bob = a_colleague(world, "Bob")
    for actor, place in [(world.actor, world)] * 3 + [(bob, world)] * 2 + [(other.actor, other)] * 2:
        start(place, actor)
    with reading() as session:
        places = queue_turns(session)
    promised = sorted(places, key=lambda run_id: places[run_id].place)
    assert [places[one].starts_in_s for one in promised] == [60.0 * i for i in range(7)]
    claims = []
    while claimed := claim(node="here", device="0"):
        claims.append(claimed.run_id)
        with transaction() as session:
            move(session, claimed.run_id, "failed", claimed=claimed)
    assert claims == promised


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


def line_of(world: World) -> list[str]:
    with reading() as session:
        places = queue_turns(session)
    return sorted(places, key=lambda run_id: places[run_id].place)


def test_a_run_moves_among_ones_own(world: World) -> None:
    first, second, third = (start(world, world.actor) for _ in range(3))

    def moved(run_id: str, direction: ordering.Direction) -> list[str]:
        with transaction() as session:
            ordering.reorder(session, world.actor, run_id, direction=direction)
        return line_of(world)

    assert moved(third, "earlier") == [first, third, second]
    assert moved(first, "later") == [third, first, second]
    assert moved(second, "first") == [second, third, first]
    assert moved(second, "earlier") == [second, third, first]
    assert moved(first, "later") == [second, third, first]
    with transaction() as session:
        ordering.set_priority(session, world.actor, first, priority="high")
    assert line_of(world) == [first, second, third]
    # It takes over the level of the run that it passes.
    assert moved(third, "first") == [third, first, second]


def test_runs_that_were_queued_at_one_moment_can_be_told_apart(world: World) -> None:
    runs = [start(world, world.actor) for _ in range(4)]
    with transaction() as session:
        for run_id in runs:
            session.get_one(Run, run_id).queued_at = START
    for run_id in reversed(runs):
        with transaction() as session:
            ordering.reorder(session, world.actor, run_id, direction="first")
    assert line_of(world) == runs


def test_moving_ones_own_runs_takes_no_turn_from_others(world: World) -> None:
    bob = a_colleague(world, "Bob")
    of_bob = start(world, bob)
    first, second = start(world, world.actor), start(world, world.actor)
    with transaction() as session:
        ordering.reorder(session, world.actor, second, direction="first")
        ordering.set_priority(session, world.actor, second, priority="high")
    assert line_of(world) == [of_bob, second, first]


def test_only_what_waits_can_be_moved_and_only_by_editors(world: World) -> None:
    run_id = start(world, world.actor)
    with pytest.raises(Forbidden), transaction() as session:
        ordering.reorder(session, a_viewer(world), run_id, direction="first")
    assert claim(node="here", device="0")
    with pytest.raises(Conflict, match="waits in the queue"), transaction() as session:
        ordering.set_priority(session, world.actor, run_id, priority="high")


def a_viewer(world: World) -> Actor:
    return Actor(world.actor.user_id, "", "Vic", {world.workspace_id: "viewer"})


def test_a_resumed_run_has_had_one_turn(world: World) -> None:
    run_id = start(world, world.actor)
    with transaction() as session:
        for fence in (1, 2):
            begun = START + timedelta(minutes=fence)
            session.add(Attempt(run_id=run_id, fence=fence, node="n", device="0", started_at=begun, ended_at=begun))
    with reading() as session:
        (had,) = turns.served(session, [waits("a0")])
    assert had.started_at == START + timedelta(minutes=1)
