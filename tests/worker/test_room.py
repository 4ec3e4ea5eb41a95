"""A worker tells the model server of its machine what a training takes; one that is killed takes its room along."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from sqlalchemy import select

from app.contracts.recipe import ModelFiles
from app.contracts.room import Unloaded
from app.core import config
from app.core.db import reading, transaction
from app.inference import client
from app.inference.targets import Target
from app.recipes.models import BaseModelEntry
from app.runs import service
from app.runs.models import Attempt, Run, RunEvent
from tests.conftest import ROOT, wait_for
from tests.factories import World, a_recipe, a_world
from tests.worker.tiny import make_model
from worker.room import held_bytes, sentence
from worker.server.api import create_server

SUPERVISOR = 'import threading; from worker.supervision import work_off; work_off("0", threading.Event())'
EVERYTHING = 10**15


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[None]:
    """A model server on a thread of this process, and heartbeats so frequent that a room lapses within two seconds."""
    folder = tempfile.mkdtemp(prefix="gptb-")
    socket = f"{folder}/model.sock"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", socket)
    monkeypatch.setenv("GPT_BUILDER_LEASE_HEARTBEAT_S", "0.4")
    config.get_settings.cache_clear()
    running = uvicorn.Server(uvicorn.Config(create_server(), uds=socket, log_config=None))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_for(client.is_ready, "the model server is ready")
    yield
    running.should_exit = True
    thread.join(10)


def _memory() -> dict[str, Any]:
    found = client.resident()
    assert found is not None
    return found["memory"] | {"names": {model["name"] for model in found["models"]}}


def _queued(folder: Path) -> tuple[World, str, str]:
    """A run that takes all memory there is, and the reference of a model of its own workspace."""
    with transaction() as session:
        world = a_world(session)
        run = service.start(
            session, world.actor, project_id=world.project_id, version_id=world.version_id, recipe=a_recipe(),
            client_request_id="first",
        )  # fmt: skip
        run.estimate = {**run.estimate, "memory_bytes": EVERYTHING}
        entry = BaseModelEntry(
            workspace_id=run.workspace_id, name="Starter", source="folder", ref="x", folder=str(folder),
            state="succeeded",
        )  # fmt: skip
        session.add(entry)
        session.flush()
        return world, run.id, f"base:{entry.id}"


def test_training_makes_room_says_so_and_a_killed_worker_gives_it_back(
    database: Path, server: None, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    _, run_id, own = _queued(folder)
    for ref, place in ((own, folder), ("base:of-others", make_model(tmp_path / "other", seed=1))):
        client.score(Target(ref, "", ModelFiles(base_dir=str(place)), "", ""), ["Yes."], prompt="Is it?")
    assert _memory()["names"] == {own, "base:of-others"}
    worker = subprocess.Popen([sys.executable, "-c", SUPERVISOR], cwd=ROOT, env=os.environ.copy())
    try:
        wait_for(lambda: _memory()["training_bytes"] == EVERYTHING, "the room is told", 60)
        assert _memory()["names"] == set()

        def diary() -> str:
            with reading() as session:
                query = select(RunEvent.sentence).where(RunEvent.run_id == run_id, RunEvent.kind == "room")
                return session.scalar(query) or ""

        told = wait_for(diary, "the diary says what was unloaded")
        assert "“Starter”" in told
        assert "1 other model" in told
        assert "of-others" not in told
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: _memory()["training_bytes"] == 0, "the room lapses")
    with reading() as session:
        pid = session.scalar(select(Attempt.pid))
    if pid is not None:
        with suppress(psutil.NoSuchProcess):
            wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "the trainer has ended")


def test_a_worker_that_was_killed_and_started_again_holds_one_room(
    database: Path, server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT_BUILDER_LEASE_HEARTBEAT_S", "30")  # the room of the killed one would last two minutes
    config.get_settings.cache_clear()
    _queued(make_model(tmp_path / "model"))
    for attempts in (1, 2):
        worker = subprocess.Popen([sys.executable, "-c", SUPERVISOR], cwd=ROOT, env=os.environ.copy())

        def pids(wanted: int = attempts) -> list[int]:
            with reading() as session:
                found = [pid for pid in session.scalars(select(Attempt.pid)) if pid is not None]
                return found if len(found) == wanted else []

        try:
            trainers = wait_for(pids, f"trainer {attempts} has begun, after its room was told", 60)
            assert _memory()["training_bytes"] == EVERYTHING
        finally:
            worker.kill()
            worker.wait()
    with suppress(psutil.NoSuchProcess):
        wait_for(lambda: psutil.Process(trainers[-1]).status() == psutil.STATUS_ZOMBIE, "the trainer has ended")


def test_a_run_holds_what_was_foretold_or_seen_and_little_beside_a_card() -> None:
    run = Run(estimate={"memory_bytes": 5 * 10**9}, plan={"device": "cpu"}, memory_bytes=None)
    assert held_bytes(run) == 5 * 10**9
    run.memory_bytes = 6 * 10**9
    assert held_bytes(run) == 6 * 10**9
    run.plan = {"device": "cpu", "computer": {"memory_bytes": 7 * 10**9}}
    assert held_bytes(run) == 7 * 10**9, "several processes train together"
    run.plan = {"device": "cuda", "computer": {"memory_bytes": 2 * 10**9}}
    assert held_bytes(run) == 2 * 10**9


def test_what_went_is_named_and_models_of_others_are_counted() -> None:
    gone = [Unloaded(ref="model:a", size_bytes=1_200_000_000), Unloaded(ref="", size_bytes=300_000_000)]
    assert sentence(gone, {"model:a": "Support bot"}) == (
        "Made room for this training: “Support bot” (1.2 GB) and 1 other model were unloaded. A question "
        "loads them again, or waits until there is room."
    )
    assert "“Support bot” (1.2 GB) was unloaded" in sentence(gone[:1], {"model:a": "Support bot"})
