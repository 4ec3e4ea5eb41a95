"""A real stack for the API: the application in one process, the model server in another, a tiny real model."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy.orm import Session

from app.contracts.recipe import ModelFiles
from app.core import config, db
from app.core.db import new_id, transaction
from app.deployments import keys, names
from app.runs.models import Checkpoint, Model, Run
from tests.conftest import ROOT, wait_for
from tests.visitors import Person, make_person, make_project
from tests.worker.tiny import make_model

ASK: list[Any] = [{"role": "user", "content": "Where is my card?"}]


@dataclass(frozen=True)
class Stack:
    """Where the API answers, its keys, and the id of its model."""

    url: str
    key: str
    listing_key: str
    model: str
    home: Path
    owner: Person
    project_id: str
    folder: Path
    model_server: "subprocess.Popen[bytes]"

    def client(self, key: str | None = None) -> httpx.Client:
        """A plain HTTP client with the key."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=300)


def add_model(project_id: str, workspace_id: str, folder: Path, number: int = 1) -> Run:
    """A succeeded run with a model and a kept checkpoint, all of the same tiny weights."""
    with transaction() as session:
        run = Run(
            project_id=project_id,
            workspace_id=workspace_id,
            number=number,
            name=f"Run {number}",
            recipe={"method": "full"},
            frozen={"system_prompt": "Be kind.", "dataset": {"kind": "chat"}},
            state="succeeded",
        )
        session.add(run)
        session.flush()
        files = ModelFiles(base_dir=str(folder)).model_dump()
        session.add(
            Model(project_id=project_id, run_id=run.id, name=run.name, kind="whole", files=files, step=120, digest="d1")
        )
        session.add(
            Checkpoint(
                run_id=run.id,
                attempt_id=new_id(),
                fence=1,
                step=120,
                dir="checkpoints/step-00000120",
                manifest_sha256="c" * 64,
                size_bytes=1,
            )
        )
        weights = config.get_settings().home_dir / "runs" / run.id / "checkpoints" / "step-00000120" / "weights"
        shutil.copytree(folder, weights)
        return run


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Stack]:
    with running(make_model(tmp_path_factory.mktemp("model")), empty_database) as found:
        yield found


@contextmanager
def running(folder: Path, empty_database: Path) -> Iterator[Stack]:
    """The application and the model server as processes, with one project whose model lies in `folder`."""
    home = Path(tempfile.mkdtemp(prefix="gptb-"))
    patch = pytest.MonkeyPatch()
    patch.setenv("GPT_BUILDER_HOME", str(home))
    config.get_settings.cache_clear()
    db.forget_engine()
    shutil.copyfile(empty_database, home / "gpt-builder.db")
    owner = make_person()
    project_id = make_project(owner.workspace_id, "Support sorter")
    add_model(project_id, owner.workspace_id, folder)
    with transaction() as session:
        names.give_names(session, owner.workspace_id)
        more = {"name": "a program", "requests_per_minute": 10_000}
        _, key = keys.make(session, owner.actor, project_id, scopes=["read", "chat"], **more)  # type: ignore[arg-type]
        _, listing_key = keys.make(session, owner.actor, project_id, scopes=["read"], **more)  # type: ignore[arg-type]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    model_socket = config.get_settings().server_socket
    children = [
        subprocess.Popen(command, cwd=ROOT, env=environment)
        for command in (
            [sys.executable, "-m", "worker.server", "--socket", str(model_socket), "--threads", "1"],
            [sys.executable, "-m", "app.serve", "--listen", f"127.0.0.1:{port}"],
        )
    ]
    db.forget_engine()
    patch.undo()
    config.get_settings.cache_clear()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(model_socket.exists, "the model server listens", 300)
        wait_for(lambda: _answers(url), "the application answers", 300)
        yield Stack(url, key, listing_key, "support-sorter-run-1", home, owner, project_id, folder, children[0])
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)


def body(stack: Stack, **more: Any) -> dict[str, Any]:
    return {"model": stack.model, "messages": ASK, "max_tokens": 8, "temperature": 0, **more}


@contextmanager
def at_home(stack: Stack) -> Iterator[None]:
    """The stack's own database and home, for work that a test does there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GPT_BUILDER_HOME", str(stack.home))
    config.get_settings.cache_clear()
    db.forget_engine()
    try:
        yield
    finally:
        patch.undo()
        db.forget_engine()
        config.get_settings.cache_clear()


@contextmanager
def inside(stack: Stack) -> Iterator[Session]:
    """A transaction in the stack's own database."""
    with at_home(stack), transaction() as session:
        yield session


def key_of(stack: Stack, **more: Any) -> str:
    """A new key of the stack's project."""
    values: dict[str, Any] = {"name": "limited", "scopes": ["read", "chat"]} | more
    with inside(stack) as session:
        return keys.make(session, stack.owner.actor, stack.project_id, **values)[1]
