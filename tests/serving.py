"""A real model server with a tiny model, and a project whose run left that model behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from app.contracts.recipe import ModelFiles
from app.core.config import get_settings
from app.core.db import transaction
from app.inference import client
from app.recipes.models import BaseModelEntry
from app.runs.models import Model, Run
from tests.conftest import ROOT, wait_for
from tests.factories import a_recipe
from tests.worker.tiny import make_model


@dataclass(frozen=True)
class ModelServer:
    """A running model server."""

    socket: Path
    child: subprocess.Popen[bytes]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Frozen while the block runs: an answer in the making is still in the making at its end."""
        self.child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.child.send_signal(signal.SIGCONT)


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """The model server as a process of its own, ready."""
    folder = Path(tempfile.mkdtemp(prefix="gptb-"))
    socket = folder / "model.sock"
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.server", "--socket", str(socket), "--threads", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    before = os.environ.get("GPT_BUILDER_MODEL_SERVER_SOCKET")
    os.environ["GPT_BUILDER_MODEL_SERVER_SOCKET"] = str(socket)
    get_settings.cache_clear()
    try:
        wait_for(client.is_ready, "the model server is ready", 90)
        yield ModelServer(socket, child)
    finally:
        if before is None:
            os.environ.pop("GPT_BUILDER_MODEL_SERVER_SOCKET")
        child.terminate()
        child.wait(15)
        shutil.rmtree(folder, ignore_errors=True)


def endless_model(folder: Path, seed: int = 0, context_length: int = 8192) -> Path:
    """A tiny model that, asked greedily, never ends by itself: answers last as long as the longest reply."""
    make_model(folder, seed, context_length)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    embedding[:4] = 0  # the control tokens: their score is 0, always below the best of four hundred
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def a_trained_model(workspace_id: str, project_id: str, folder: Path, base: Path | None = None) -> str:
    """A finished run of the project with its model in `folder` (and the base it came from); the model's reference."""
    with transaction() as session:
        entry = None
        if base is not None:
            entry = BaseModelEntry(
                workspace_id=workspace_id,
                name="Starter",
                source="folder",
                ref=str(base),
                folder=str(base),
                state="succeeded",
            )
            session.add(entry)
            session.flush()
        run = Run(
            project_id=project_id,
            workspace_id=workspace_id,
            number=1,
            name="Warm and chatty",
            recipe=a_recipe().model_dump(mode="json"),
            frozen={"system_prompt": "Be kind."},
            base_model_id=entry.id if entry else None,
            state="succeeded",
        )
        session.add(run)
        session.flush()
        files = ModelFiles(base_dir=str(folder)).model_dump()
        made = Model(project_id=project_id, run_id=run.id, name="Warm and chatty", kind="whole", files=files, step=5)
        session.add(made)
        session.flush()
        return f"model:{made.id}"
