"""A hub of our own on localhost: looked up, licence shown, one commit pinned, fetched, broken off and gone on with."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.core import config
from app.core.db import get_engine, reading, transaction
from app.core.errors import Invalid, Unavailable
from app.recipes import bases
from app.recipes.models import BaseModelEntry
from tests.factories import a_world
from tests.visitors import browser_of, make_person, make_project
from tests.worker.tiny import make_model
from worker.tasks.recipes import bring

COMMIT = "c" * 40
REF = "acme/tiny"


class Hub:
    """What the server does: files by name, which bytes were asked for, and after how many it breaks off."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.asked: list[tuple[str, str]] = []
        self.break_after: int | None = None
        self.is_down = False
        self.announced = b""
        self.card: dict[str, object] = {"license": "mit"}
        self.is_asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()


@pytest.fixture
def hub(tmp_path: Path, database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, and the setting that points at it."""
    state = Hub(make_model(tmp_path / "remote"))
    state.files["pytorch_model.bin"] = b"\x80\x04never fetched"

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            state.is_asked.set()
            state.may_answer.wait(20)
            if path.startswith(f"/api/models/{REF}"):
                siblings = [{"rfilename": name, "size": len(body)} for name, body in state.files.items()]
                for item in siblings:
                    if item["rfilename"] == "model.safetensors":
                        sha256 = hashlib.sha256(state.announced or state.files["model.safetensors"]).hexdigest()
                        item["lfs"] = {"sha256": sha256, "size": item["size"], "pointerSize": 130}
                self.send(200, json.dumps(
                    {"id": REF, "modelId": REF, "sha": COMMIT, "cardData": state.card, "tags": [], "siblings": siblings}
                ).encode(), {"content-type": "application/json"}, with_body)  # fmt: skip
                return
            prefix = f"/{REF}/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if not path.startswith(prefix) or name not in state.files:
                self.send(404, b"{}", {"x-error-code": "RepoNotFound"}, with_body)
                return
            body, status = state.files[name], 200
            wanted = self.headers.get("range", "")
            if state.is_down:
                self.send(503, b"{}", {}, with_body)
                return
            if with_body:
                state.asked.append((name, wanted))
            headers = {"etag": f'"{hash(name) & 0xFFFFFF:x}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
            if wanted.startswith("bytes="):
                start = int(wanted[6:].split("-")[0])
                headers["content-range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[start:], 206
            self.send(status, body, headers, with_body, limit=state.break_after if with_body else None)

        def send(
            self, status: int, body: bytes, headers: dict[str, str], with_body: bool, limit: int | None = None
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body if limit is None else body[:limit])
                if limit is not None and len(body) > limit:
                    state.is_down = True
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GPT_BUILDER_HUB_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    config.get_settings.cache_clear()
    yield state
    server.shutdown()


@pytest.fixture
def workspace_id(hub: Hub) -> str:
    with transaction() as session:
        return a_world(session).workspace_id


def find(workspace_id: str, ref: str = REF) -> BaseModelEntry:
    answer = bases.look_up(ref)
    with transaction() as session:
        return bases.bring_from_hub(session, workspace_id, answer)


def fetch(entry_id: str) -> BaseModelEntry:
    with transaction() as session:
        bases.confirm(session, session.get_one(BaseModelEntry, entry_id))
    bring(entry_id)
    with reading() as session:
        return session.get_one(BaseModelEntry, entry_id)


def test_a_model_is_looked_up_before_anything_is_fetched(hub, workspace_id):
    entry = find(workspace_id)
    assert (entry.state, entry.licence, entry.revision) == ("found", "mit", COMMIT)
    assert hub.asked == []
    assert "pytorch_model.bin" not in {name for name, _, _ in entry.details["hub_files"]}
    assert find(workspace_id).id == entry.id


def test_it_is_fetched_at_the_pinned_commit_checked_and_described(hub, workspace_id):
    entry = fetch(find(workspace_id).id)
    assert (entry.state, entry.error) == ("succeeded", "")
    assert entry.parameters > 10_000
    folder = Path(entry.folder)
    assert {path.name for path in folder.iterdir()} == set(entry.details["files"])
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert {name for name, _ in hub.asked}.isdisjoint({"pytorch_model.bin"})
    assert list(folder.parent.glob(".arriving-*")) == []


def test_a_broken_download_says_so_and_goes_on_where_it_stopped(hub, workspace_id, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    hub.break_after = 20_000
    entry = fetch(find(workspace_id).id)
    assert entry.state == "failed"
    assert "broke off at" in entry.error
    hub.break_after, hub.is_down = None, False
    before = len(hub.asked)
    entry = fetch(entry.id)
    assert (entry.state, entry.error) == ("succeeded", "")
    again = dict(hub.asked[before:])
    assert again["model.safetensors"].startswith("bytes="), "only the rest was asked for"
    assert "config.json" not in again, "what was whole was not asked for again"


def test_weights_that_are_not_what_they_say_are_refused_after_the_download(hub, workspace_id):
    hub.files["model.safetensors"] = b"\x80\x04" + b"pickle" * 4000
    entry = fetch(find(workspace_id).id)
    assert entry.state == "failed"
    assert "not a safetensors file" in entry.error
    assert entry.folder == ""


@pytest.mark.parametrize("ref", ["", "noowner", "../../etc", "a/b/c", "acme/tiny extra", "http://evil/x"])
def test_names_that_cannot_be_are_refused_without_asking(hub, workspace_id, ref):
    with pytest.raises(Invalid):
        find(workspace_id, ref)


def test_models_without_safetensors_or_tokenizer_are_refused(hub, workspace_id):
    weights = hub.files.pop("model.safetensors")
    with pytest.raises(Invalid, match="no safetensors"):
        find(workspace_id)
    hub.files["model.safetensors"] = weights
    hub.files.pop("tokenizer.json")
    with pytest.raises(Invalid, match=r"tokenizer\.json"):
        find(workspace_id)


def test_an_unknown_model_and_an_unreachable_hub_are_told_apart(hub, workspace_id, monkeypatch):
    with pytest.raises(Invalid, match="no open model"):
        find(workspace_id, "acme/unknown")
    monkeypatch.setenv("GPT_BUILDER_HUB_ENDPOINT", "http://127.0.0.1:9")
    config.get_settings.cache_clear()
    with pytest.raises(Unavailable, match="cannot be reached"):
        find(workspace_id)


def test_weights_that_the_hub_did_not_announce_are_not_kept(hub, workspace_id):
    hub.announced = b"something else"
    entry = fetch(find(workspace_id).id)
    assert entry.state == "failed"
    hub.announced = b""
    assert fetch(find(workspace_id).id).state == "succeeded"


def test_a_slow_hub_keeps_nobody_from_writing(hub, app):
    person = make_person(role="editor")
    project_id = make_project(person.workspace_id)
    browser = browser_of(app, person)
    hub.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(browser.post, f"/projects/{project_id}/recipe/hub", data={"ref": REF})
        try:
            assert hub.is_asked.wait(10)
            engine = get_engine()
            with engine.connect() as connection:  # BEGIN IMMEDIATE: waits for whoever holds the lock
                connection.exec_driver_sql("PRAGMA busy_timeout = 100")
                connection.exec_driver_sql("UPDATE projects SET name = 'Soup'")
                connection.exec_driver_sql("COMMIT")
        finally:
            hub.may_answer.set()
        assert asking.result().status_code == 303
    with reading() as session:
        assert [entry.ref for entry in bases.entries(session, person.workspace_id)] == [REF]
