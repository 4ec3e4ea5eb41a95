"""kill -9 and SIGSTOP on real processes: nothing is lost, nothing counted twice, and the weights are bit-equal."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from app.core import config, storage
from app.core.db import reading, transaction
from app.recipes.service import Ready
from app.runs import service
from app.runs.models import END_STATES, Attempt, MetricPoint, Model, Run
from app.runs.reconcile import Reconciler
from app.searches import progress
from app.searches import service as searches
from app.searches.models import Search
from app.searches.space import Dimension
from tests.conftest import ROOT, wait_for
from tests.factories import a_recipe, a_world
from worker.supervision import work_off

SUPERVISOR = """
import threading, time
from worker.supervision import work_off
while True:
    work_off("0", threading.Event())
    time.sleep(0.1)
"""
STEPS = 600
SHORT_LEASE = {
    "GPT_BUILDER_LEASE_TTL_S": "3", "GPT_BUILDER_LEASE_HEARTBEAT_S": "0.5", "GPT_BUILDER_LEASE_SELF_STOP_S": "2",
}  # fmt: skip


@pytest.fixture
def short_lease(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of three seconds."""
    for name, value in SHORT_LEASE.items():
        monkeypatch.setenv(name, value)
    config.get_settings.cache_clear()


@pytest.fixture
def reconciling(database: Path, short_lease: None) -> Iterator[None]:
    """A reconciler that sweeps four times a second."""
    stop, reconciler = threading.Event(), Reconciler()

    def sweep() -> None:
        while not stop.wait(0.25):
            reconciler.sweep()

    thread = threading.Thread(target=sweep)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def supervisor(reconciling: None) -> Iterator["Supervisor"]:
    """A supervisor in a process of its own."""
    one = Supervisor()
    yield one
    one.end()


class Supervisor:
    """A supervising process that can be killed and started again."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SUPERVISOR], cwd=ROOT, env=os.environ.copy())

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def freeze(self, database: Path) -> None:
        """Stop it between two of its writes: frozen within one it keeps the lock of an SQLite file from everybody."""
        while True:
            self.signal(signal.SIGSTOP)
            try:
                with closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as other:
                    other.execute("BEGIN IMMEDIATE")
                    return
            except sqlite3.OperationalError:
                self.signal(signal.SIGCONT)
                time.sleep(0.1)

    def kill_and_restart(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()
        self.start()

    def end(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not trainers(), "no trainer outlives its supervisor")


def trainers() -> list[psutil.Process]:
    """Engine processes of this test's home (by their environment they have none: by their parent or command)."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if "worker.engine" in line and process.info["status"] != psutil.STATUS_ZOMBIE and "--parent" in line:
            parent = int(line[line.index("--parent") + 1])
            if _is_ours(parent):
                found.append(process)
    return found


_OURS: set[int] = set()


def _is_ours(pid: int) -> bool:
    me = psutil.Process()
    _OURS.update(child.pid for child in me.children(recursive=True))
    _OURS.add(me.pid)
    return pid in _OURS


def queue_two(**changes: object) -> tuple[str, str]:
    """Two equal runs; the first is trained here, undisturbed, with a lease that a busy machine does not break."""
    with transaction() as session:
        world = a_world(session)
        ids = [
            service.start(
                session,
                world.actor,
                project_id=world.project_id,
                version_id=world.version_id,
                recipe=a_recipe(max_steps=STEPS, evaluate_every_steps=150, checkpoint_every_steps=25, **changes),
                client_request_id=name,
            ).id
            for name in ("undisturbed", "disturbed")
        ]
        session.get_one(Run, ids[1]).state = "paused"
    with pytest.MonkeyPatch.context() as patch:
        for name in SHORT_LEASE:
            patch.delenv(name, raising=False)
        config.get_settings.cache_clear()
        assert work_off("0", threading.Event()) == 1
    config.get_settings.cache_clear()
    with transaction() as session:
        service.resume(session, world.actor, ids[1])
    return ids[0], ids[1]


def state(run_id: str) -> Run:
    with reading() as session:
        return session.get_one(Run, run_id)


def assert_equal(undisturbed: str, disturbed: str) -> None:
    """The disturbed run ended as if nothing had happened."""
    with reading() as session:
        ends = [session.get_one(Run, one) for one in (undisturbed, disturbed)]
        assert [run.state for run in ends] == ["succeeded", "succeeded"], ends[1].sentence
        digests = [session.scalar(select(Model.digest).where(Model.run_id == run.id)) for run in ends]
        assert digests[0] == digests[1]
        curves = [
            session.execute(
                select(MetricPoint.name, MetricPoint.step, MetricPoint.value)
                .where(MetricPoint.run_id == run.id, MetricPoint.name.in_(("loss", "validation_loss")))
                .order_by(MetricPoint.name, MetricPoint.step)
            ).all()
            for run in ends
        ]
        assert len([row for row in curves[0] if row.name == "loss"]) == STEPS
        assert curves[0] == curves[1]
        still_open = session.scalars(select(Attempt).where(Attempt.ended_at.is_(None))).all()
        assert not still_open


@pytest.mark.slow
def test_killed_trainers_and_supervisors_change_nothing(database: Path, short_lease: None, request: object) -> None:
    undisturbed, disturbed = queue_two()
    supervisor = request.getfixturevalue("supervisor")  # type: ignore[attr-defined]
    chance = random.Random(7)
    for victim in ("trainer", "supervisor", "trainer", "frozen supervisor", "supervisor"):
        before = state(disturbed).step
        wait_for(lambda at=before: state(disturbed).step > at or state(disturbed).state in END_STATES, "progress", 60)
        time.sleep(chance.uniform(0, 1))
        if victim == "trainer":
            for process in trainers():
                process.kill()
        elif victim == "supervisor":
            supervisor.kill_and_restart()
        else:
            fence = state(disturbed).fence
            supervisor.freeze(database)
            wait_for(lambda at=fence: state(disturbed).fence > at, "the lease of a frozen supervisor expires")
            supervisor.signal(signal.SIGCONT)
        assert len(trainers()) <= 1
    wait_for(lambda: state(disturbed).state in END_STATES, "the run ends", 120)
    assert_equal(undisturbed, disturbed)
    assert state(disturbed).attempts >= 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_goes_on_after_its_worker_was_killed(database: Path, supervisor: "Supervisor") -> None:
    steps = 400
    with transaction() as session:
        world = a_world(session)
        recipe = a_recipe(max_steps=steps, evaluate_every_steps=100, checkpoint_every_steps=25)
        ready = Ready(recipe, world.version_id, None, None, {"seconds": 5.0, "steps": steps}, "")
        search_id = searches.start(
            session,
            world.actor,
            project_id=world.project_id,
            ready=ready,
            space=[Dimension(name="learning_rate", scale="log", low=1e-3, high=1e-2)],
            way="bayesian",
            budget_runs=2,
            client_request_id="click",
        ).id

    def trials() -> list[Run]:
        progress.advance_all()
        with reading() as session:
            return [run for _, run in searches.trials(session, session.get_one(Search, search_id))]

    # The first trial's worker dies with its trainer before a step is done, the second's trainer in the middle.
    wait_for(lambda: len(trials()) == 1 and trainers(), "the first trainer")
    trainers()[0].send_signal(signal.SIGSTOP)
    supervisor.kill_and_restart()
    wait_for(lambda: len(trials()) == 2 and trainers(), "the second trainer", 200)
    (second,) = [run for run in trials() if run.state not in END_STATES]
    folder = storage.run_dir(second.id) / "checkpoints"
    wait_for(lambda: any(folder.glob("step-*")) or trials()[-1].state in END_STATES, "a checkpoint")
    for process in trainers():
        process.kill()

    def search() -> Search:
        progress.advance_all()
        with reading() as session:
            return session.get_one(Search, search_id)

    wait_for(lambda: search().state != "running", "the search ends", 120)
    assert (search().state, search().sentence) == ("succeeded", "All 2 runs are done.")
    runs = trials()
    assert [run.state for run in runs] == ["succeeded", "succeeded"]
    assert runs[0].attempts > 1
    assert runs[0].recipe["learning_rate"] != runs[1].recipe["learning_rate"]
    with reading() as session:
        assert set(session.scalars(select(Run.id))) == {run.id for run in runs}
        for run in runs:
            query = select(MetricPoint.step).where(MetricPoint.run_id == run.id, MetricPoint.name == "loss")
            assert sorted(session.scalars(query)) == list(range(1, steps + 1))
    # Of the two only the better one keeps its weights.
    kept = [run.id for run in runs if (storage.run_dir(run.id) / "model").is_dir()]
    assert kept == [search().best_run_id]
