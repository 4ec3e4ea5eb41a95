"""The supervisor with the real engine on tiny models: from the queue to a model, and back to it after every fault."""

import threading
from pathlib import Path

from sqlalchemy import select

from app.core.db import reading, transaction
from app.runs import service
from app.runs.models import Attempt, Checkpoint, MetricPoint, Model, Run, RunEvent, SampleAnswer
from tests.factories import World, a_recipe, a_world
from worker.supervision import work_off


def start(world: World | None = None, **changes: object) -> tuple[World, str]:
    with transaction() as session:
        world = world or a_world(session)
        run = service.start(
            session,
            world.actor,
            project_id=world.project_id,
            version_id=world.version_id,
            recipe=a_recipe(**changes),
            client_request_id="first",
        )
        return world, run.id


def row(run_id: str) -> Run:
    with reading() as session:
        return session.get_one(Run, run_id)


def test_a_queued_run_becomes_a_model(database: Path) -> None:
    _, run_id = start()
    assert work_off("0", threading.Event()) == 1
    run = row(run_id)
    assert (run.state, run.reason, run.step) == ("succeeded", "completed", 20), run.sentence
    with reading() as session:
        steps = session.scalars(
            select(MetricPoint.step).where(MetricPoint.run_id == run_id, MetricPoint.name == "loss")
        ).all()
        assert sorted(steps) == list(range(1, 21))
        model = session.scalars(select(Model)).one()
        assert model.kind == "whole"
        assert (Path(model.files["base_dir"]) / "model.safetensors").is_file()
        assert len(model.digest) == 64
        assert session.scalars(select(Attempt)).one().exit_kind == "done"
        kept = session.scalars(select(Checkpoint).where(Checkpoint.state == "kept")).all()
        assert kept
        assert [one.step for one in kept if one.is_best] == [run.best_step]
        assert session.scalars(select(SampleAnswer)).all()
        first = session.scalars(select(RunEvent).order_by(RunEvent.id)).first()
        assert first is not None
        assert first.kind == "queued"
