"""What the engine says becomes rows exactly once, however often a step was computed."""

import pytest
from sqlalchemy import select

from app.contracts.events import Adjusted, CheckpointDamaged, CheckpointSaved, Evaluated, Sample, Started, Step
from app.core import storage
from app.core.db import reading, transaction
from app.core.work import LostLease
from app.runs import service, settling
from app.runs.claim import RunLease, claim
from app.runs.models import Checkpoint, MetricPoint, Run, RunEvent, SampleAnswer
from app.runs.reconcile import release
from app.runs.recording import Recorder
from app.runs.view import badge_of
from tests.factories import a_recipe, a_world


def started(step: int) -> Started:
    return Started(
        step=step,
        total_steps=10,
        train_rows=8,
        validation_rows=2,
        tokens_per_epoch=64,
        supervised_tokens_per_epoch=64,
        parameters=9,
        trainable_parameters=9,
        device="cpu",
        precision="fp32",
    )


def step(number: int, loss: float) -> Step:
    return Step(
        step=number,
        epoch=1,
        loss=loss,
        learning_rate=0.1,
        grad_norm=1,
        tokens=10,
        supervised_tokens=8,
        step_s=0.5,
        memory_bytes=1,
    )


def saved(run_id: str, number: int) -> CheckpointSaved:
    place = f"checkpoints/step-{number:08d}"
    (storage.run_dir(run_id) / place).mkdir(parents=True)
    return CheckpointSaved(step=number, dir=place, manifest_sha256="0" * 64, size_bytes=1)


def test_a_second_attempt_counts_its_steps_once(any_database: str) -> None:
    with transaction() as session:
        world = a_world(session)
        run_id = service.start(
            session,
            world.actor,
            project_id=world.project_id,
            version_id=world.version_id,
            recipe=a_recipe(),
            client_request_id="x",
        ).id
    first = claim(node="here", device="0")
    assert first
    recorder = Recorder(RunLease(first))
    for event in (
        started(0),
        *(step(n, 5.0) for n in range(1, 5)),
        Evaluated(step=4, loss=3.0, accuracy=0.5, rows=2, is_best=True),
        saved(run_id, 4),
        *(step(n, 5.0) for n in range(5, 7)),
        Evaluated(step=6, loss=2.0, accuracy=0.5, rows=2, is_best=True),
        Sample(step=6, prompt_index=0, prompt="q", text="a\0", ended=True),
    ):
        recorder.take(event)
    recorder.flush()
    with reading() as session:
        # A model may say any byte, and PostgreSQL keeps no NUL.
        assert session.scalars(select(SampleAnswer.text)).all() == ["a\ufffd"]
    with transaction() as session:
        release(session, run_id, first.fence, exit_kind="lease_expired")
    recorder.take(step(7, 9.0))
    with pytest.raises(LostLease):
        recorder.flush()

    second = claim(node="there", device="0")
    assert second
    again = Recorder(RunLease(second))
    for event in (started(4), step(5, 1.0)):
        again.take(event)
    again.flush()
    with reading() as session:
        query = select(MetricPoint.step, MetricPoint.value).where(MetricPoint.name == "loss").order_by(MetricPoint.step)
        assert [tuple(row) for row in session.execute(query)] == [(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0), (5, 1.0)]
        run = session.get_one(Run, run_id)
        assert (run.state, run.step, run.best_step, run.best_loss) == ("running", 5, 4, 3.0)
        assert (run.trained_s, run.tokens_seen) == (2.5, 50)
        assert session.scalars(select(SampleAnswer)).all() == []
        assert session.scalars(select(Checkpoint.is_best)).all() == [True]


def test_another_number_of_passes_moves_the_end_of_the_run(database: object) -> None:
    with transaction() as session:
        world = a_world(session)
        run_id = service.start(
            session, world.actor, project_id=world.project_id, version_id=world.version_id, recipe=a_recipe(),
            client_request_id="x",
        ).id  # fmt: skip
    claimed = claim(node="here", device="0")
    assert claimed
    recorder = Recorder(RunLease(claimed))
    events = (started(0), *(step(n, 5.0) for n in range(1, 10)),
              Adjusted(step=9, name="epochs", value=4, total_steps=40), step(10, 5.0))  # fmt: skip
    for event in events:
        recorder.take(event)
    recorder.flush()
    with reading() as session:
        run = session.get_one(Run, run_id)
        # Step 10 was the last of the old plan: it must not look as if nothing followed.
        assert (run.step, run.total_steps) == (10, 40)
        assert badge_of(run)[0] == "Training"
        assert "From step 10 on: passes over the rows 4." in session.scalars(select(RunEvent.sentence)).all()


def test_checkpoints_that_nobody_registered_are_dropped(any_database: str) -> None:
    with transaction() as session:
        world = a_world(session)
        run_id = service.start(
            session,
            world.actor,
            project_id=world.project_id,
            version_id=world.version_id,
            recipe=a_recipe(),
            client_request_id="x",
        ).id
    claimed = claim(node="here", device="0")
    assert claimed
    lease = RunLease(claimed)
    recorder = Recorder(lease)
    for event in (started(0), step(1, 1.0), step(2, 1.0), saved(run_id, 2)):
        recorder.take(event)
    assert recorder.recorded_step is None
    recorder.flush()
    assert recorder.recorded_step == 2
    unregistered = saved(run_id, 4)
    assert settling.drop_unregistered(lease) == 2
    folder = storage.run_dir(run_id)
    assert not (folder / unregistered.dir).exists()
    assert (folder / "checkpoints/step-00000002").is_dir()
    recorder.take(CheckpointDamaged(dir="checkpoints/step-00000002", reason="weights are missing"))
    recorder.flush()
    with reading() as session:
        assert session.scalars(select(Checkpoint.state)).all() == ["damaged"]
        assert "Checkpoint 2 was damaged" in "\n".join(session.scalars(select(RunEvent.sentence)).all())
