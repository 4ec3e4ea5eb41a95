"""An export from the form to the file: made in the background, checked, fetched whole, sent, stopped and deleted."""

import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.contracts.export import ExportOrder
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.work import Watcher
from app.exports import service
from app.exports.models import Export
from app.runs.models import Model
from app.runs.reconcile import tidy
from tests.app.exports.conftest import TOKEN, Hub, Scene
from tests.conftest import ROOT, wait_for
from worker.tasks.exports import make


def asked(scene: Scene, **form: str) -> str:
    """Ask for an export by the form; its id."""
    answer = scene.client.post(
        f"/projects/{scene.project_id}/exports", data={"model": scene.model} | form, follow_redirects=False
    )
    assert answer.status_code == 303, answer.text
    with reading() as session:
        return service.listing(session, scene.person.actor, scene.project_id)[0].id


def row_of(export_id: str) -> Export:
    with reading() as session:
        return session.get_one(Export, export_id)


def published(export_id: str, made: Path) -> None:
    """An earlier attempt got as far as the finished files."""
    shutil.copytree(made, service.folder_of(row_of(export_id)))


def kill_while_it_is_made(export_id: str) -> None:
    """Begin the export in a worker of its own, and kill that while its child works."""
    code = f"from worker.tasks.exports import make; make({export_id!r})"
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ))
    children: list[psutil.Process] = []

    def has_child() -> bool:
        children[:] = psutil.Process(worker.pid).children()
        return bool(children)

    wait_for(has_child, "the export's child runs", 60)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    wait_for(lambda: not any(c.is_running() and c.status() != "zombie" for c in children), "the child is gone, too")
    assert row_of(export_id).state == "running"


def test_a_killed_export_is_made_again_checked_and_fetched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    export_id = asked(scene, kind="merged")
    assert "Waiting" in scene.client.get(f"/projects/{scene.project_id}/exports").text
    kill_while_it_is_made(export_id)
    monkeypatch.setenv("GPT_BUILDER_LEASE_TTL_S", "0")
    # A small model asks for little room: here a gigabyte and a half may be used.
    monkeypatch.setenv("GPT_BUILDER_DISK_RESERVE_BYTES", str(storage.free_bytes() - 1_500_000_000))
    get_settings.cache_clear()
    assert Watcher((Export, service.TASK)).sweep() == 1
    make(export_id)
    row = row_of(export_id)
    assert (row.state, row.error, row.attempts) == ("succeeded", "", 2)
    assert [path.name for path in service.folder_of(row).parent.iterdir()] == [export_id]
    page = scene.client.get(f"/projects/{scene.project_id}/exports/live").text
    assert "8 of 8 answers the same" in page
    assert "hx-trigger" not in page
    answer = scene.client.get(f"/exports/{export_id}/download")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    names = {name.split("/", 1)[1] for name in archive.namelist()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    card = archive.read("warm-and-chatty-merged/README.md").decode()
    assert "> Be kind." in card
    assert "8 answers are the same" in card
    part = scene.client.get(f"/exports/{export_id}/files/model.safetensors", headers={"range": "bytes=8-15"})
    assert part.status_code == 206
    assert part.content == archive.read("warm-and-chatty-merged/model.safetensors")[8:16]
    for wrong in ("report.json", "..%2F..%2Frecipe.json", "other"):
        assert scene.client.get(f"/exports/{export_id}/files/{wrong}").status_code == 404


def test_what_cannot_be_exported_says_why(scene: Scene) -> None:
    answer = scene.client.post(f"/projects/{scene.project_id}/exports", data={"model": scene.model, "kind": "adapter"})
    assert answer.status_code == 422
    assert "not trained as an adapter" in answer.text
    answer = scene.client.post(
        f"/projects/{scene.project_id}/exports", data={"model": scene.model, "repository": "acme/warm"}
    )
    assert "access token" in answer.text


def test_a_model_that_is_gone_gives_no_files(scene: Scene, made: Path) -> None:
    export_id = asked(scene, kind="merged")
    published(export_id, made)
    make(export_id)
    assert row_of(export_id).state == "succeeded"
    with transaction() as session:
        model = session.get_one(Model, scene.model.removeprefix("model:"))
        model.deleted_at, model.retired_because = model.created_at, "The source was forgotten."
    assert scene.client.get(f"/exports/{export_id}/download").status_code == 404
    folder = service.folder_of(row_of(export_id))
    assert folder.is_dir()
    scene.client.post(f"/exports/{export_id}/delete")
    assert not folder.exists()


def test_tidying_leaves_an_export_alone_that_is_being_made(scene: Scene) -> None:
    row = row_of(asked(scene, kind="merged"))
    making = service.making_of(row)
    stray = making.parents[1] / ".tmp-sample"
    for folder in (making, stray):
        folder.mkdir(parents=True)
    tidy()
    assert making.is_dir(), "the half-made files of an export that takes long were deleted under it"
    assert not stray.exists()
    scene.client.post(f"/exports/{row.id}/cancel")
    scene.client.post(f"/exports/{row.id}/delete")
    assert not making.exists()


def test_an_export_goes_to_a_hub_and_the_token_is_forgotten(scene: Scene, hub: Hub, made: Path) -> None:
    export_id = asked(scene, kind="merged", repository="acme/warm", token=TOKEN)
    published(export_id, made)
    assert TOKEN not in row_of(export_id).sealed_token
    make(export_id)
    row = row_of(export_id)
    assert (row.state, row.error, row.sealed_token) == ("succeeded", "", "")
    assert hub.is_private
    assert hub.commits == 1
    folder = service.folder_of(row)
    assert hub.files == {file["name"]: (folder / file["name"]).read_bytes() for file in row.files}
    assert hub.large, "the weights did not go the way of large files"
    assert row.hub_url in scene.client.get(f"/projects/{scene.project_id}/exports").text


def test_a_wrong_token_is_told_and_the_files_stay(scene: Scene, hub: Hub, made: Path) -> None:
    export_id = asked(scene, kind="merged", repository="acme/warm", token="hf_wrong")
    published(export_id, made)
    make(export_id)
    row = row_of(export_id)
    assert row.state == "failed"
    assert "refuses this token" in row.error
    assert (service.folder_of(row) / "model.safetensors").is_file()
    assert not hub.files


def test_an_export_is_stopped_before_and_while_it_is_made(scene: Scene) -> None:
    export_id = asked(scene, kind="merged")
    scene.client.post(f"/exports/{export_id}/cancel")
    make(export_id)
    assert row_of(export_id).state == "cancelled"
    scene.client.post(f"/exports/{export_id}/retry")
    with transaction() as session:
        session.get_one(Export, export_id).want = "cancel"
    make(export_id)
    assert row_of(export_id).state == "cancelled"
    assert not Path(service.folder_of(row_of(export_id))).exists()


def test_a_model_that_is_deleted_while_it_is_exported_is_the_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_id = asked(scene, kind="merged")
    order_of = service.order_of

    def and_deleted(*given: Any) -> ExportOrder:
        order = order_of(*given)
        with transaction() as session:
            model = session.get_one(Model, scene.model.split(":")[1])
            model.deleted_at, model.retired_because = utcnow(), "The model “Warm and chatty” was deleted."
        gone = order.files.model_copy(update={"base_dir": str(get_settings().home / "gone")})
        return order.model_copy(update={"files": gone})

    monkeypatch.setattr(service, "order_of", and_deleted)
    make(export_id)
    assert (row_of(export_id).state, row_of(export_id).error) == ("failed", "The model “Warm and chatty” was deleted.")
