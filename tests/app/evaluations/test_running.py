"""A whole evaluation against a real model server: asked, scored, interrupted, gone on with, summed up, shown."""

import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.contracts.room import Room
from app.core import config, storage
from app.core.db import reading, transaction
from app.core.work import Cancelled, claim, working
from app.datasets.freezing import FROZEN
from app.evaluations import own, running, service
from app.evaluations.models import Evaluation
from app.inference import client as model_client
from app.projects.models import Project
from app.runs.models import Model, Run
from tests.conftest import ROOT, wait_for
from tests.factories import a_recipe, a_world
from tests.worker.tiny import make_model

LABELS = ("card arrival", "lost card")


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    """A model server of this module's own."""
    path = Path(tempfile.mkdtemp(prefix="gptb-")) / "s" / "model.sock"
    child = subprocess.Popen([sys.executable, "-m", "worker.server", "--socket", str(path), "--threads", "1"], cwd=ROOT)
    yield path
    child.terminate()
    child.wait(15)


@pytest.fixture
def evaluation(database: Path, socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A queued evaluation of a tiny model against another one, on ten labelled rows."""
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(socket))
    config.get_settings.cache_clear()
    wait_for(model_client.is_ready, "the model server answers", 60)
    tuned, base = make_model(tmp_path / "tuned", seed=1), make_model(tmp_path / "base", seed=2)
    with transaction() as session:
        world = a_world(session)
        write_rows(world.version_id)
        parent = a_model(session, world, "parent", base, None)
        model = a_model(session, world, "tuned", tuned, parent.id)
        session.flush()
        found = service.start(session, world.actor, project_id=world.project_id, model_id=model.id, row_limit=10)
        assert service.start(session, world.actor, project_id=world.project_id, model_id=model.id).id == found.id
    return found.id


def write_rows(version_id: str) -> None:
    lines = [
        {
            "_rid": i,
            "split": "test" if i % 3 == 0 else "train",
            "kind": "chat",
            "messages": [
                {
                    "role": "user",
                    "content": f"Where is my card number {i}?" if i % 2 else f"I lost it {i}",
                    "train": True,
                },
                {"role": "assistant", "content": LABELS[i % 2 == 0], "train": True},
            ],
            "text": "",
            "meta": "{}",
        }
        for i in range(36)
    ]
    pq.write_table(pa.Table.from_pylist(lines, schema=FROZEN), storage.version_dir(version_id) / "data-00000.parquet")


def a_model(session, world, name: str, folder: Path, parent_id: str | None) -> Model:
    run = Run(
        project_id=world.project_id, workspace_id=world.workspace_id, number=1 if parent_id is None else 2, name=name,
        version_id=world.version_id, parent_model_id=parent_id, recipe=a_recipe().model_dump(mode="json"),
        frozen={"dataset": {"kind": "chat"}}, state="succeeded",
    )  # fmt: skip
    session.add(run)
    session.flush()
    files = {"base_dir": str(folder), "overlays": []}
    model = Model(project_id=world.project_id, run_id=run.id, name=name, kind="whole", files=files, step=20)
    session.add(model)
    session.flush()
    return model


def work(evaluation_id: str) -> None:
    lease = claim(Evaluation, evaluation_id)
    assert lease is not None
    with working(lease):
        with reading() as session:
            row = session.get_one(Evaluation, evaluation_id)
        running.run(lease, row)


def test_every_row_is_asked_of_everybody_and_summed_up(evaluation):
    work(evaluation)
    with reading() as session:
        row = session.get_one(Evaluation, evaluation)
        results = running.recorded(session, evaluation)
    assert (row.state, row.kind, row.done, row.total) == ("succeeded", "labels", 10, 10)
    assert [result.position for result in results] == list(range(10))
    assert all(set(result.scores) == {"tuned", "base", "nearest", "majority"} for result in results)
    assert all(result.scores["tuned"]["nll"] > 0 and result.scores["tuned"]["tokens"] > 1 for result in results)
    assert {result.scores["tuned"]["nll"] for result in results}.isdisjoint(
        {result.scores["base"]["nll"] for result in results}
    ), "two different models"
    # The test rows are worded like their neighbours in training, so copying those is always right.
    assert row.summary["table"]["exact"]["nearest"][0] == 1.0
    assert row.summary["verdict"]["kind"] in ("warn", "bad")


def test_while_training_holds_the_memory_it_waits_says_so_and_goes_on(evaluation):
    model_client.hold_room(Room(attempt_id="theirs", held_bytes=10**15, left_s=720, lapses_s=600))
    working = threading.Thread(target=work, args=(evaluation,))
    working.start()

    def phase() -> str:
        with reading() as session:
            return session.get_one(Evaluation, evaluation).phase

    try:
        wait_for(lambda: re.fullmatch(r"memory \d\d:\d\d", phase()), "the row says until when")
    finally:
        model_client.end_room("theirs")
        working.join(60)
    with reading() as session:
        assert session.get_one(Evaluation, evaluation).state == "succeeded"
        assert len(running.recorded(session, evaluation)) == 10


def test_an_interrupted_evaluation_keeps_its_rows_and_asks_only_the_others(evaluation, monkeypatch):
    real = running._row
    asked: list[int] = []

    def first_batch_only(evaluation_id, position, *rest):
        asked.append(position)
        if len(asked) > 6:
            raise Cancelled
        return real(evaluation_id, position, *rest)

    monkeypatch.setattr(running, "_row", first_batch_only)
    work(evaluation)
    with transaction() as session:
        row = session.get_one(Evaluation, evaluation)
        assert row.state == "cancelled"
        assert len(running.recorded(session, evaluation)) == 6
        row.state, row.want = "queued", "run"
    asked.clear()
    monkeypatch.setattr(running, "_row", lambda *order: asked.append(order[1]) or real(*order))
    work(evaluation)
    assert sorted(asked) == [6, 7, 8, 9]
    with reading() as session:
        assert session.get_one(Evaluation, evaluation).state == "succeeded"
        assert len(running.recorded(session, evaluation)) == 10


def test_the_projects_own_tests_are_asked_too_and_counted_apart(evaluation):
    with transaction() as session:
        row = session.get_one(Evaluation, evaluation)
        project = session.get_one(Project, row.project_id)
        actor = Actor(None, roles={project.workspace_id: "editor"})
        service.request_cancel(session, actor, evaluation)
        for place, ideal in enumerate(("card arrival", "")):
            asked = [Message(role="user", content=f"Where is my card number {place}?")]
            own.add(session, actor, project.id, messages=asked, ideal=ideal, source_id=f"answer{place}")
        again = service.start(session, actor, project_id=project.id, model_id=row.model_id, row_limit=10).id
    work(again)
    with reading() as session:
        row = session.get_one(Evaluation, again)
        results = running.recorded(session, again)
    assert (row.state, row.total, row.summary["n"]) == ("succeeded", 11, 10)
    assert [result.rid for result in results if result.rid < 0] == [-1], "one has no ideal answer yet"
    assert results[-1].prompt == "Where is my card number 0?"
    assert row.summary["own"]["n"] == 1
    assert set(row.summary["own"]["systems"]) == {"tuned", "base"}
