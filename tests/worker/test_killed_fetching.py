"""A worker that is killed while it fetches or drafts: the housekeeper finds it, the next one goes on, once."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from sqlalchemy import select

from app.core import storage
from app.core.config import ROOT, get_settings
from app.core.db import reading, transaction
from app.core.work import Watcher
from app.datasets import service as files
from app.datasets.bringing import service as bringing
from app.datasets.models import RemoteSource, SourceFile
from app.drafting import service as drafting
from app.drafting.models import Draft, Drafting
from tests.app.datasets.conftest import Place, place  # noqa: F401
from tests.conftest import wait_for
from worker.long_work import LONG_WORK
from worker.tasks import datasets as bring_work
from worker.tasks import drafts as draft_work

CSV = b"question,answer\n" + b"".join(b"what is %d?,it is %d\n" % (i, i) for i in range(20_000))
PART = 300_000
PAGES = ["Light the stove with a match.", "The oven takes ten minutes.", "Soup is served at noon."]


class Held(ThreadingHTTPServer):
    """Serves CSV and answers questions; holds where it is told to until `go_on`. `asked`: ranges and questions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.holds, self.held, self.go_on = threading.Event(), threading.Event(), threading.Event()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def hold(self) -> bool:
        """Say that a request waits here, and let it wait; whether it did."""
        if not self.holds.is_set():
            return False
        self.held.set()
        self.go_on.wait(300)
        return True


class _Handler(BaseHTTPRequestHandler):
    server: Held

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        wanted = self.headers.get("range", "")
        self.server.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if first else 200)
        self.send_header("content-type", "text/csv")
        self.send_header("etag", '"one"')
        self.send_header("content-length", str(len(CSV) - first))
        self.end_headers()
        body = CSV[first:]
        self.wfile.write(body[:PART])
        self.wfile.flush()
        if not self.server.hold():
            self.wfile.write(body[PART:])

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][0]["content"]
        number = next(i for i, page in enumerate(PAGES) if page in text)
        self.server.asked.append(str(number))
        if number == 1 and self.server.hold():
            return
        said = json.dumps([{"question": f"Question {number}?", "answer": PAGES[number]}])
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:  # noqa: F811
    found = Held()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("GPT_BUILDER_FETCH_NETWORKS", '["127.0.0.1/32"]')
    # A claim counts as dead at the first look: nothing here depends on how long anything takes.
    monkeypatch.setenv("GPT_BUILDER_LEASE_TTL_S", "0")
    get_settings.cache_clear()
    found.holds.set()
    yield found
    found.go_on.set()
    found.shutdown()
    found.server_close()


def killed(server: Held, module: str, task: str, row_id: str, is_there: Callable[[], Any]) -> None:
    """Run the task in a process of its own and kill it where the server holds it and `is_there()` is true."""
    program = f"import sys, app.models\nfrom worker.tasks import {module}\n{module}.{task}(sys.argv[1])"
    worker = subprocess.Popen([sys.executable, "-c", program, row_id], cwd=ROOT, env=dict(os.environ))
    try:
        wait_for(lambda: server.held.is_set() or worker.poll() is not None, "the work is held half-way", 180)
        assert worker.poll() is None
        wait_for(is_there, "a part is kept", 60)
    finally:
        worker.send_signal(signal.SIGKILL)
        assert worker.wait(30) == -signal.SIGKILL
    server.holds.clear()
    server.go_on.set()


def found_dead(model: type[Any], row_id: str) -> None:
    """The housekeeper's own watch puts the row back into the queue."""
    task = next(task for watched, task in LONG_WORK if watched is model)
    with reading() as session:
        assert session.get_one(model, row_id).state == "running", "nobody has noticed"
    assert Watcher((model, task)).sweep() == 1
    with reading() as session:
        assert session.get_one(model, row_id).state == "queued"


def test_a_killed_fetch_goes_on_where_it_was_and_brings_one_file(place: Place, server: Held) -> None:  # noqa: F811
    with transaction() as session:
        source = bringing.bring_web(session, place.ada, project_id=place.project_id, address=f"{server.url}/rows.csv")
    part = bringing.folder_of(source) / "body.part"
    killed(server, "datasets", "bring", source.id, lambda: part.exists() and part.stat().st_size)
    kept = part.stat().st_size
    assert 0 < kept < len(CSV)
    with reading() as session:
        assert session.scalars(select(SourceFile)).all() == [], "half a file is no file"
    found_dead(RemoteSource, source.id)
    bring_work.bring(source.id)
    bring_work.bring(source.id)
    with reading() as session:
        row, (file,) = session.get_one(RemoteSource, source.id), session.scalars(select(SourceFile)).all()
    assert (row.state, row.attempts, server.asked) == ("succeeded", 2, ["", f"bytes={kept}-"])
    assert files.original_path(file).read_bytes() == CSV
    assert not list(storage.uploads_dir().iterdir())


def test_a_killed_drafting_loses_no_answer_and_doubles_none(place: Place, server: Held) -> None:  # noqa: F811
    with transaction() as session:
        text = "\n".join(json.dumps({"document": f"page {i}", "text": page}) for i, page in enumerate(PAGES))
        file = files.add_text(session, place.ada, project_id=place.project_id, text=text, name="kitchen")
    bring_work.import_file(file.id)
    with transaction() as session:
        drafting.set_endpoint(session, place.ada, place.project_id, url=f"{server.url}/v1", model="writer", key="")
        row = drafting.start(session, place.ada, file.id, target=drafting.ENDPOINT, size=64, overlap=8, pairs=1)

    def answers() -> list[str]:
        with reading() as session:
            return list(session.scalars(select(Draft.question).order_by(Draft.id)))

    killed(server, "drafts", "draft", row.id, answers)
    assert answers() == ["Question 0?"]
    found_dead(Drafting, row.id)
    draft_work.draft(row.id)
    draft_work.draft(row.id)
    with reading() as session:
        ended = session.get_one(Drafting, row.id)
    assert (ended.state, ended.asked, ended.attempts) == ("succeeded", 3, 2)
    assert answers() == ["Question 0?", "Question 1?", "Question 2?"]
    assert server.asked == ["0", "1", "1", "2"], "what was answered is not asked again"
