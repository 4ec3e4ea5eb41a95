"""A received file between disk and database: a failed commit or a kill at any point loses and doubles nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.accounts.service import Actor
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading, transaction
from app.datasets import service, spool, uploads
from app.datasets.models import SourceFile, Upload
from tests.visitors import make_person, make_project

ROOT = Path(__file__).parents[3]
CONTENT = b"question,answer\nwho?,me\n"
# Ends itself with SIGKILL at the given moment of the transaction that takes the file over.
KILLED = """
import os, signal, sys
from sqlalchemy import event
import app.models
from app.accounts.service import Actor
from app.core.db import transaction
from app.datasets import spool, uploads
user, workspace, upload_id, moment, size = sys.argv[1:]
actor = Actor(user_id=user, email="a@example.org", name="Ana", roles={workspace: "owner"})
sha256 = spool.sha256_of(upload_id, int(size))
with transaction() as session:
    event.listen(session, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    uploads.complete(session, actor, upload_id, sha256=sha256)
"""


@pytest.fixture
def received(app) -> tuple[Actor, str]:
    """An upload all of whose bytes are on disk, and its person."""
    person = make_person()
    project_id = make_project(person.workspace_id)
    actor = Actor(
        user_id=person.user_id, email="a@example.org", name="Ana", roles={person.workspace_id: "owner"}
    )  # fmt: skip
    with transaction() as session:
        upload = uploads.create(
            session, actor, project_id=project_id, filename="rows.csv", size_bytes=len(CONTENT)
        )  # fmt: skip
        uploads.spool_path(upload.id).write_bytes(CONTENT)
        upload.offset_bytes = len(CONTENT)
        return actor, upload.id


def _complete(actor: Actor, upload_id: str, *, is_failing: bool = False) -> None:
    sha256 = spool.sha256_of(upload_id, len(CONTENT))
    with transaction() as session:
        uploads.complete(session, actor, upload_id, sha256=sha256)
        if is_failing:
            raise RuntimeError("no commit")


def _is_whole(upload_id: str) -> None:
    """One file with the right bytes, named by the upload, and nothing else that stays for good."""
    with reading() as session:
        assert session.scalar(select(func.count()).select_from(SourceFile)) == 1
        file = session.scalars(select(SourceFile)).one()
        assert session.get_one(Upload, upload_id).file_id == file.id
    assert service.original_path(file).read_bytes() == CONTENT
    for path in [*storage.uploads_dir().iterdir(), *storage.sources_root().iterdir()]:
        os.utime(path, (time.time() - 2 * uploads.LEFT_AFTER_S,) * 2)
    with transaction() as session:
        uploads.forget_leftovers(session)
    assert not list(storage.uploads_dir().iterdir())
    assert [path.name for path in storage.sources_root().iterdir()] == [file.id]
    assert service.original_path(file).read_bytes() == CONTENT


def test_a_commit_that_fails_keeps_the_bytes(received: tuple[Actor, str]) -> None:
    actor, upload_id = received
    with pytest.raises(RuntimeError, match="no commit"):
        _complete(actor, upload_id, is_failing=True)
    assert uploads.spool_path(upload_id).read_bytes() == CONTENT
    _complete(actor, upload_id)
    assert not uploads.spool_path(upload_id).exists()
    _is_whole(upload_id)


def test_bytes_that_are_there_already_stay_until_it_is_written_down(received: tuple[Actor, str]) -> None:
    actor, upload_id = received
    _complete(actor, upload_id)
    with transaction() as session:
        first = session.get_one(Upload, upload_id)
        again = uploads.create(
            session, actor, project_id=first.project_id, filename="b.csv", size_bytes=len(CONTENT)
        )  # fmt: skip
        again.offset_bytes = len(CONTENT)
    uploads.spool_path(again.id).write_bytes(CONTENT)
    with pytest.raises(RuntimeError, match="no commit"):
        _complete(actor, again.id, is_failing=True)
    assert uploads.spool_path(again.id).exists()
    _complete(actor, again.id)
    _is_whole(again.id)


@pytest.mark.parametrize("moment", ["before_commit", "after_commit"])
def test_a_kill_around_the_commit_loses_and_doubles_nothing(received: tuple[Actor, str], moment: str) -> None:
    actor, upload_id = received
    workspace = next(iter(actor.roles))
    home = get_settings()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT_BUILDER_")}
    environment |= {
        "GPT_BUILDER_HOME": str(home.home_dir), "GPT_BUILDER_DATABASE_URL": home.database_url, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-c", KILLED, actor.user_id, workspace, upload_id, moment, str(len(CONTENT))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    with reading() as session:
        is_written = session.get_one(Upload, upload_id).file_id is not None
    assert is_written == (moment == "after_commit")
    if not is_written:
        _complete(actor, upload_id)
    _is_whole(upload_id)
