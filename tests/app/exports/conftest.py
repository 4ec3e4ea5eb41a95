"""A person with a finished model, and a hub of our own on localhost that takes files."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.contracts.export import ExportOrder
from app.contracts.recipe import ModelFiles
from app.core.config import get_settings
from tests import serving, visitors
from tests.visitors import Person
from tests.worker.tiny import make_model
from worker.engine.export import folders, source

TOKEN = "hf_may-write"


@dataclass(frozen=True)
class Scene:
    """A person, their project and the reference of its model."""

    person: Person
    project_id: str
    model: str
    client: TestClient


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="session")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished files of an export, made here by the engine itself."""
    folder = tmp_path_factory.mktemp("made")
    order = ExportOrder(
        kind="merged", files=ModelFiles(base_dir=str(weights)), name="warm", prompts=["Hello"], out_dir=str(folder)
    )
    report = folders.write_merged(order, source.load(order), folder)
    (folder / "report.json").write_text(report.model_dump_json())
    return folder


@pytest.fixture
def scene(app: FastAPI, weights: Path) -> Scene:
    person = visitors.make_person("Ana", "owner")
    project_id = visitors.make_project(person.workspace_id)
    model = serving.a_trained_model(person.workspace_id, project_id, weights)
    return Scene(person, project_id, model, visitors.browser_of(app, person))


@dataclass
class Hub:
    """What has arrived: large files by their hash, small ones and the list of each commit by name."""

    url: str = ""
    large: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    is_private: bool = False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, and the setting that points at it. It speaks as the hub does."""
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def send(self, value: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            body = self.read()
            state.large[hashlib.sha256(body).hexdigest()] = body
            self.send({})

        def do_GET(self) -> None:
            self.send({"error": "unknown"}, 404)

        def do_POST(self) -> None:
            body = self.read()
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self.send({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                state.is_private = "private" in body.decode()  # as "visibility", or a flag of older clients
                self.send({"url": f"{state.url}/acme/warm", "id": "acme/warm"})
            elif "/preupload/" in self.path:
                found = [
                    {"path": f["path"], "uploadMode": "lfs" if f["size"] > 20_000 else "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self.send({"files": found})
            elif self.path.endswith("/objects/batch"):
                objects = [
                    o | {"actions": {"upload": {"href": f"{state.url}/store/{o['oid']}", "header": {}}}}
                    for o in json.loads(body)["objects"]
                ]
                self.send({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                self.commit(body)
            else:
                self.send({"error": self.path}, 404)

        def commit(self, body: bytes) -> None:
            import base64

            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    state.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    state.files[item["value"]["path"]] = state.large[item["value"]["oid"]]
            state.commits += 1
            self.send({"success": True, "commitOid": "c" * 40, "commitUrl": f"{state.url}/acme/warm/commit/{'c' * 40}"})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("GPT_BUILDER_HUB_ENDPOINT", state.url)
    get_settings.cache_clear()
    yield state
    server.shutdown()
    server.server_close()
