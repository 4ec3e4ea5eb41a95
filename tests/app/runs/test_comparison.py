"""Runs side by side: what differs, what does not, whose they are, and what is drawn."""

from itertools import pairwise

import pytest

from app.core.db import new_id, reading, transaction
from app.core.errors import NotFound
from app.runs import comparison, service
from app.runs.models import MetricPoint, Run
from tests.factories import World, a_recipe, a_world
from tests.visitors import browser_of, make_person


@pytest.fixture
def world(database: object) -> World:
    with transaction() as session:
        return a_world(session)


def a_run(world: World, losses: list[float], **changes: object) -> str:
    """A finished run with these validation losses, ten steps apart."""
    with transaction() as session:
        run = service.start(
            session, world.actor, project_id=world.project_id, version_id=world.version_id,
            recipe=a_recipe(**changes), client_request_id=new_id(),
        )  # fmt: skip
        run.state, run.step, run.best_loss = "succeeded", 10 * len(losses), min(losses)
        for i, value in enumerate(losses):
            session.add(MetricPoint(run_id=run.id, name="validation_loss", step=10 * (i + 1), value=value))
        return run.id


def compared(world: World, *run_ids: str) -> comparison.Comparison:
    with reading() as session:
        return comparison.compare(session, world.actor, world.project_id, run_ids)


def test_differences_only(world: World) -> None:
    found = compared(world, a_run(world, [2.0, 1.5]), a_run(world, [2.0, 1.8], learning_rate=0.01, seed=4))
    recipe = {row.label: row.values for row in found.shown(False)["Recipe"]}
    assert recipe == {"Learning rate": ["0.003", "0.01"], "Seed": ["1", "4"]}
    assert found.differing == 2
    results = {row.label: row for row in found.shown(False)["Result"]}
    assert results["Lowest validation loss"].best == {0}
    assert "Optimiser" in {row.label for row in found.shown(True)["Recipe"]}


def test_a_value_that_was_adjusted_while_running_counts(world: World) -> None:
    first, second = a_run(world, [2.0, 1.5]), a_run(world, [2.0, 1.5])
    with transaction() as session:
        session.get_one(Run, second).adjustments = {"learning_rate": 0.001}
    recipe = {row.label: row.values for row in compared(world, first, second).shown(False)["Recipe"]}
    assert recipe == {"Learning rate": ["0.003", "0.001"]}


def test_six_at_most_in_the_order_of_ticking_each_once(world: World) -> None:
    runs = [a_run(world, [2.0, 1.5]) for _ in range(7)]
    found = compared(world, runs[3], runs[0], runs[3], *runs[4:], runs[1], runs[2])
    assert [run.id for run in found.runs] == [runs[3], runs[0], runs[4], runs[5], runs[6], runs[1]]
    assert len(found.drawn) == 6


def test_lines_share_their_axes(world: World) -> None:
    found = compared(world, a_run(world, [3.0, 2.0, 1.0]), a_run(world, [3.0, 2.5]))
    (long, short) = found.drawn
    assert long.end[0] > short.end[0]
    assert long.end[1] > short.end[1]  # lower loss, further down


def test_names_of_lines_that_end_together_stand_under_one_another(world: World) -> None:
    ends = [one.end for one in compared(world, *(a_run(world, [3.0, 2.0]) for _ in range(3))).drawn]
    assert len({x for x, _y in ends}) == 1
    heights = sorted(y for _x, y in ends)
    assert all(later - earlier >= 13 for earlier, later in pairwise(heights))


def test_runs_of_another_project_do_not_exist_here(world: World) -> None:
    with transaction() as session:
        other = a_world(session, "Zoe")
    foreign = a_run(other, [2.0, 1.5])
    with pytest.raises(NotFound):
        compared(world, a_run(world, [2.0, 1.5]), foreign)


def test_the_list_offers_it_and_the_page_shows_it(app: object, world: World) -> None:
    person = make_person(workspace_id=world.workspace_id)
    browser = browser_of(app, person)
    runs = [a_run(world, [2.0, 1.5]), a_run(world, [2.0, 1.8], learning_rate=0.01)]
    listed = browser.get(f"/projects/{world.project_id}/runs").text
    assert all(f'name="run" value="{run_id}" form="compare-form"' in listed for run_id in runs)
    address = f"/projects/{world.project_id}/runs/compare?run={runs[0]}&run={runs[1]}"
    shown = browser.get(address).text
    assert "Differences only" in shown
    assert "Optimiser" not in shown
    assert "Optimiser" in browser.get(address + "&all=1").text
    assert "Tick two to six runs" in browser.get(f"/projects/{world.project_id}/runs/compare?run={runs[0]}").text
