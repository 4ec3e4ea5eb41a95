"""The supervisor with the real engine on tiny models: from the queue to a model, and back to it after every fault."""

import dataclasses
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from app.core import config, storage
from app.core.db import reading, transaction
from app.runs import continuing, service
from app.runs.models import Attempt, Checkpoint, MetricPoint, Model, Run, RunEvent, SampleAnswer
from app.runs.outcomes import Facts, judge
from app.runs.reconcile import Reconciler
from tests.conftest import wait_for
from tests.factories import World, a_recipe, a_world
from worker.engine.checkpoints import damage_of, read_state
from worker.supervision import next_relief, order_of, work_off
from worker.trainer import environment


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


LONG = {"max_steps": 5000, "epochs": 1000, "checkpoint_every_steps": 20, "evaluate_every_steps": 1000}


class Working:
    """A supervisor in a thread of this process."""

    def __init__(self) -> None:
        self.draining = threading.Event()
        self.thread = threading.Thread(target=work_off, args=("0", self.draining))
        self.thread.start()

    def over(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def working(database: Path) -> Iterator[Callable[[], Working]]:
    """Starts supervisors; none outlives the test."""
    started: list[Working] = []

    def begin() -> Working:
        started.append(Working())
        return started[-1]

    yield begin
    for one in started:
        one.draining.set()
        one.over()


def wait_for_checkpoint(run_id: str, after: int = 0) -> None:
    def newest() -> bool:
        with reading() as session:
            steps = session.scalars(select(Checkpoint.step).where(Checkpoint.run_id == run_id)).all()
        return max(steps, default=0) > after

    wait_for(newest, f"a checkpoint after step {after}", 60)


def diary(run_id: str) -> str:
    with reading() as session:
        return "\n".join(session.scalars(select(RunEvent.sentence).where(RunEvent.run_id == run_id)).all())


def ask(verb: Callable[..., Run], world: World, run_id: str, **named: object) -> None:
    with transaction() as session:
        verb(session, world.actor, run_id, **named)


def test_cancel_leaves_no_model_and_no_process(working: Callable[[], Working]) -> None:
    world, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id)
    ask(service.request_cancel, world, run_id)
    assert row(run_id).state == "cancelling"
    supervisor.over()
    assert row(run_id).state == "cancelled"
    with reading() as session:
        assert session.scalars(select(Model)).all() == []
        pid = session.scalars(select(Attempt.pid)).one()
    assert pid
    assert not psutil.pid_exists(pid)


def test_pause_lets_go_and_resume_goes_on(working: Callable[[], Working]) -> None:
    world, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id)
    ask(service.request_pause, world, run_id)
    supervisor.over()
    paused = row(run_id)
    assert (paused.state, paused.stalled_attempts) == ("paused", 0)
    ask(service.resume, world, run_id)
    supervisor = working()
    wait_for_checkpoint(run_id, paused.step)
    assert f"Resumed at step {paused.step} of 5000" in diary(run_id)
    ask(service.adjust, world, run_id, name="max_hours", value=9)
    ask(service.adjust, world, run_id, name="learning_rate", value=0.0005)
    wait_for(lambda: "learning rate 0.0005" in diary(run_id), "the new learning rate is in force")
    assert "hours of machine time at most 9" in diary(run_id)
    ask(service.request_stop_and_keep, world, run_id)
    supervisor.over()
    assert (row(run_id).state, row(run_id).reason) == ("succeeded", "stopped")
    with reading() as session:
        assert session.scalars(select(Model)).one().run_id == run_id


def test_a_run_that_stands_still_is_restarted_at_once_on_request(working: Callable[[], Working]) -> None:
    world, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id)
    with reading() as session:
        first = session.scalars(select(Attempt)).one()
    assert first.pid
    os.kill(first.pid, signal.SIGSTOP)
    ask(service.request_restart, world, run_id)
    wait_for(lambda: "Resumed at step" in diary(run_id), "the second attempt goes on")
    run = row(run_id)
    assert (run.want, run.attempts, run.stalled_attempts) == ("run", 2, 0)
    assert not psutil.pid_exists(first.pid)
    ask(service.request_cancel, world, run_id)
    supervisor.over()
    with reading() as session:
        kinds = session.scalars(select(Attempt.exit_kind).order_by(Attempt.fence)).all()
    assert kinds == ["restarted", "cancelled"]


def test_a_new_run_goes_on_from_the_checkpoint_of_an_ended_one_with_half_the_rate(
    working: Callable[[], Working],
) -> None:
    world, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id)
    ask(service.request_cancel, world, run_id)
    supervisor.over()
    with transaction() as session:
        kept = continuing.newest(session, session.get_one(Run, run_id))
        assert kept is not None
        new = continuing.go_on_slower(session, world.actor, run_id, client_request_id="second")
        new_id, place = new.id, kept.dir
    supervisor = working()
    wait_for_checkpoint(new_id, kept.step)
    assert f"Resumed at step {kept.step} of 5000" in diary(new_id)
    assert f"From step {kept.step + 1} on: learning rate 0.0015" in diary(new_id)
    ask(service.request_cancel, world, new_id)
    supervisor.over()
    assert damage_of(storage.run_dir(run_id) / place) is None
    assert read_state(storage.run_dir(run_id) / place)["run_id"] == run_id
    with reading() as session:
        points = select(MetricPoint.step, MetricPoint.value).where(MetricPoint.name == "loss")
        points = points.where(MetricPoint.step <= kept.step).order_by(MetricPoint.step)
        before, after = (session.execute(points.where(MetricPoint.run_id == one)).all() for one in (run_id, new_id))
    assert len(before) == kept.step
    assert after == before


def test_draining_puts_the_run_back_without_counting(working: Callable[[], Working]) -> None:
    _, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id)
    supervisor.draining.set()
    supervisor.over()
    run = row(run_id)
    assert (run.state, run.attempts, run.stalled_attempts) == ("queued", 0, 0)
    with reading() as session:
        assert session.scalars(select(Attempt.exit_kind)).all() == ["drained"]


def test_a_diverged_run_says_so_and_keeps_the_last_good_step(database: Path) -> None:
    # Decay of more than the whole: each step multiplies every matrix by minus nine, until no number can hold it.
    _, run_id = start(learning_rate=10.0, weight_decay=1.0, clip_norm=1000.0, max_steps=300, warmup_steps=0,
                      optimizer="adamw", schedule="constant", early_stopping=False,
                      evaluate_every_steps=200)  # fmt: skip
    work_off("0", threading.Event())
    run = row(run_id)
    assert (run.state, run.reason) == ("failed", "diverged"), (run.state, run.reason, run.sentence)
    assert "diverged" in run.sentence
    with reading() as session:
        assert all(math.isfinite(value) for value in session.scalars(select(MetricPoint.value)))


def test_a_trainer_that_takes_too_long_to_leave_has_done_its_work(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.get_settings(), "stop_grace_s", 0.2)
    _, run_id = start()
    leaving = "import time; from worker.engine.__main__ import main; main(); time.sleep(600)"
    work_off("0", threading.Event(), command=(sys.executable, "-c", leaving, "train"))
    run = row(run_id)
    assert (run.state, run.attempts) == ("succeeded", 1), (run.sentence, diary(run_id))


def test_a_damaged_checkpoint_is_skipped(working: Callable[[], Working]) -> None:
    world, run_id = start(**LONG)
    supervisor = working()
    wait_for_checkpoint(run_id, 20)
    ask(service.request_pause, world, run_id)
    supervisor.over()
    with reading() as session:
        kept = session.scalars(select(Checkpoint).where(Checkpoint.state == "kept").order_by(Checkpoint.step)).all()
    weights = next((storage.run_dir(run_id) / kept[-1].dir).rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    ask(service.resume, world, run_id)
    supervisor = working()
    wait_for(lambda: "was damaged" in diary(run_id), "the damage is in the diary", 60)
    wait_for_checkpoint(run_id, kept[-1].step)
    assert f"Resumed at step {kept[-2].step} of 5000" in diary(run_id)


def test_a_trainer_that_always_crashes_is_given_up_with_its_log(database: Path) -> None:
    _, run_id = start()
    broken = (sys.executable, "-c", "import sys; sys.exit('the last words')")
    for _ in range(3):
        with transaction() as session:
            session.get_one(Run, run_id).next_attempt_at = None
        work_off("0", threading.Event(), command=broken)
    run = row(run_id)
    assert (run.state, run.reason, run.attempts) == ("failed", "crash_loop", 3)
    assert "the last words" in run.sentence


def test_a_full_disk_makes_the_run_wait_and_space_wakes_it(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_id = start()
    monkeypatch.setenv("GPT_BUILDER_DISK_RESERVE_BYTES", str(10**18))
    config.get_settings.cache_clear()
    work_off("0", threading.Event())
    run = row(run_id)
    assert (run.state, run.reason) == ("waiting", "disk_full")
    assert "disk is full" in run.sentence
    assert Reconciler().wake_waiting() == 0
    monkeypatch.delenv("GPT_BUILDER_DISK_RESERVE_BYTES")
    config.get_settings.cache_clear()
    assert Reconciler().wake_waiting() == 1
    assert row(run_id).state == "queued"


def test_the_trainer_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in " ".join(environment().values())
    assert environment()["OMP_WAIT_POLICY"] == "PASSIVE"


def test_less_memory_means_fewer_rows_at_a_time(database: Path) -> None:
    """A kill for want of memory, as the supervisor judges it, leads to the same weights."""
    _, run_id = start()
    with transaction() as session:
        session.get_one(Run, run_id).plan = {"memory_rung": 1}
    with reading() as session:
        run = session.get_one(Run, run_id)
        assert order_of(run).memory_rung == 1
        relief = next_relief(run)
    assert "computed again" in relief
    facts = Facts(exit_code=-9, message="", want="run", step=5, total_steps=20, stalled_attempts=0, memory_rung=1,
                  relief=relief, learning_rate=1, kept_step=5, was_memory_short=True)  # fmt: skip
    outcome = judge(facts)
    assert (outcome.to, outcome.changes) == ("queued", {"memory_rung": 2})
    last = judge(dataclasses.replace(facts, memory_rung=4, relief=""))
    assert (last.to, last.reason) == ("failed", "out_of_memory")
