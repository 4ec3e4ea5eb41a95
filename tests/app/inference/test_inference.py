"""References to models resolve for their owner only, and the client turns the server's states into words."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.accounts.service import Actor
from app.contracts.conversation import Message
from app.contracts.generation import Sampling
from app.contracts.recipe import ModelFiles
from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.errors import Invalid, NotFound, Unavailable
from app.inference import client, targets
from app.runs.models import Model, Run
from tests.conftest import ROOT, wait_for
from tests.factories import World, a_recipe, a_world
from tests.worker.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(database: Path, folder: Path) -> tuple[World, str]:
    with transaction() as session:
        world = a_world(session)
        run = Run(
            project_id=world.project_id,
            workspace_id=world.workspace_id,
            number=1,
            name="First",
            recipe=a_recipe().model_dump(mode="json"),
            frozen={"system_prompt": "Be kind."},
            state="succeeded",
        )
        session.add(run)
        session.flush()
        files = ModelFiles(base_dir=str(folder)).model_dump()
        made = Model(project_id=world.project_id, run_id=run.id, name="First", kind="whole", files=files, step=5)
        session.add(made)
        session.flush()
        return world, f"model:{made.id}"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    socket = Path(tempfile.mkdtemp(prefix="gptb-")) / "model.sock"
    monkeypatch.setenv("GPT_BUILDER_MODEL_SERVER_SOCKET", str(socket))
    get_settings.cache_clear()
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.server", "--socket", str(socket), "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(client.is_ready, "the model server is ready", 60)
        yield
    finally:
        child.terminate()
        child.wait(15)


def test_a_model_is_found_for_its_owner_and_missing_for_a_stranger(model: tuple[World, str]) -> None:
    world, ref = model
    stranger = Actor("somebody", roles={"other": "owner"})
    with reading() as session:
        found = targets.resolve(session, world.actor, world.project_id, ref)
        assert (found.name, found.system_prompt) == ("First", "Be kind.")
        assert [c.ref for c in targets.choices(session, world.actor, world.project_id)] == [ref]
        with pytest.raises(NotFound):
            targets.resolve(session, stranger, world.project_id, ref)
        for odd in ("model:nothing", "base:nothing", "checkpoint:x", "../../etc", "", "model:"):
            with pytest.raises(NotFound):
                targets.resolve(session, world.actor, world.project_id, odd)


def test_an_answer_comes_from_the_real_server(model: tuple[World, str], server: None) -> None:
    world, ref = model
    with reading() as session:
        target = targets.resolve(session, world.actor, world.project_id, ref)
    ask = [Message(role="user", content="Where is my card?")]
    request = client.request_for(target, Sampling(temperature=0, max_tokens=6), messages=ask)
    answer = client.answer(request)
    assert answer.finish_reason in {"stop", "length"}
    assert answer.prompt_tokens
    assert client.score(target, ["Soon."], messages=ask)[0]["tokens"] > 1
    with pytest.raises(Invalid, match="too long"):
        client.answer(client.request_for(target, Sampling(), messages=[Message(role="user", content="card " * 400)]))


def test_without_a_server_the_sentence_says_so(model: tuple[World, str]) -> None:
    world, ref = model
    with reading() as session:
        target = targets.resolve(session, world.actor, world.project_id, ref)
    with pytest.raises(Unavailable, match="starting or out of reach"):
        client.answer(client.request_for(target, Sampling(), prompt="x"))
