"""A demo goes from shipped data to a queued run through the services and tasks that people's projects use."""

import pytest

from app.core.db import reading, transaction
from app.core.errors import NotFound
from app.overview import demos
from app.projects.models import Objective, Project
from app.recipes import bases
from app.runs.models import Run
from tests.factories import a_world
from worker.tasks import datasets as tasks


def _ids(model: type, **where: str) -> list[str]:
    with reading() as session:
        return [row.id for row in session.query(model).filter_by(**where)]


@pytest.mark.parametrize("key", sorted(demos.gallery()))
def test_from_shipped_data_to_a_queued_run(database: object, key: str) -> None:
    from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile

    if demos.gallery()[key].base == "starter" and bases.starter() is None:
        pytest.skip("the starter model has not been built here")
    with transaction() as session:
        world = a_world(session)
        project = demos.start(session, world.actor, key)
    with reading() as session:
        assert session.get_one(Objective, project.id).task == demos.gallery()[key].task
        assert demos.progress(session, project)[0][0].state == "working"
    assert demos.advance_all() == 0
    for file_id in _ids(SourceFile, project_id=project.id):
        tasks.import_file(file_id)
    for plan_id in _ids(CleaningPlan, project_id=project.id):
        tasks.prepare(plan_id)
    assert demos.advance_all() == 1
    for version_id in _ids(DatasetVersion, project_id=project.id):
        tasks.freeze(version_id)
    assert demos.advance_all() == 1
    assert demos.advance_all() == 0
    (run_id,) = _ids(Run, project_id=project.id)
    with reading() as session:
        run = session.get_one(Run, run_id)
        assert run.frozen["system_prompt"] == ""
        assert (run.state, run.name) == ("queued", demos.gallery()[key].run_name)
        steps, found, error = demos.progress(session, session.get_one(Project, project.id))
    assert (found, error) == (run_id, "")
    assert [step.state for step in steps] == ["done"] * 4


def test_an_unknown_demo(database: object) -> None:
    with transaction() as session:
        world = a_world(session)
    with pytest.raises(NotFound), transaction() as session:
        demos.start(session, world.actor, "nothing")
