"""From received bytes to a frozen version, with the real child process; what strangers and viewers may not."""

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from app.core import storage
from app.core.config import get_settings
from app.core.db import new_id, reading, transaction
from app.core.errors import Conflict, DiskFull, Forbidden, Invalid, NotFound, Unavailable
from app.core.outbox import Outbox
from app.datasets import child, plans, service, versions
from app.datasets.cleaning import STEPS
from app.datasets.combining import downloads
from app.datasets.freezing import is_intact
from app.datasets.mapping import Mapping
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.datasets.splitting import SplitSettings
from tests.conftest import wait_for
from worker import following
from worker.celery_app import draining
from worker.tasks import datasets as tasks

FIXTURES = Path(__file__).parents[2] / "fixtures"


def bring(place, path: Path, name: str = "") -> str:
    copy = storage.uploads_dir() / new_id()
    shutil.copyfile(path, copy)
    with transaction() as session:
        file = service.receive(
            session, place.ada, project_id=place.project_id, filename=name or path.name, path=copy,
            sha256=storage.file_sha256(copy), origin="upload",
        )  # fmt: skip
    return file.id


def row(model, row_id: str):
    with reading() as session:
        return session.get(model, row_id)


def plan_of(place) -> CleaningPlan:
    with reading() as session:
        return plans.get(session, place.ada, place.project_id)


def prepare(place) -> CleaningPlan:
    tasks.prepare(plan_of(place).id)
    return plan_of(place)


def test_from_file_to_version(place):
    file_id = bring(place, FIXTURES / "messy_made" / "missing_values.jsonl")
    tasks.import_file(file_id)
    file = row(SourceFile, file_id)
    assert (file.state, file.rows, file.error) == ("succeeded", 200, "")
    with transaction() as session:
        service.set_mapping(session, place.ada, file_id, Mapping(prompt="{prompt}", answer="{completion}"))
    plan = prepare(place)
    assert (plan.state, plan.report["rows"]) == ("succeeded", 200)
    missing = next(s for s in plan.report["steps"] if s["name"] == "missing")
    assert (missing["removed"], missing["is_applied"]) == (89, False)
    with transaction() as session:
        plans.apply_steps(session, place.ada, place.project_id, [name for name in STEPS if name != "tokens"])
    with transaction() as session, pytest.raises(Conflict, match="still being prepared"):
        versions.freeze(session, place.ada, place.project_id)
    assert prepare(place).report["rows"] == 110
    with transaction() as session:
        plans.set_split(session, place.ada, place.project_id, SplitSettings(test_percent=10))
        version = versions.freeze(session, place.ada, place.project_id)
    with transaction() as session:
        assert versions.freeze(session, place.ada, place.project_id).id == version.id, "the same plan, the same version"
    tasks.freeze(version.id)
    version = row(DatasetVersion, version.id)
    assert (version.state, version.number, version.train_rows + version.validation_rows + version.test_rows) == (
        "succeeded",
        1,
        110,
    )
    assert is_intact(versions.folder(version))
    lines = b"".join(downloads.jsonl(version)).splitlines()
    assert len(lines) == 110
    assert {m["role"] for m in json.loads(lines[0])["messages"]} == {"user", "assistant"}
    shutil.rmtree(storage.version_dir(version.id))
    assert is_intact(versions.folder(version)), "fetched from the storage again"
    stored = next((storage.get_settings().home_dir / "storage" / "versions" / version.id).glob("data-*.parquet"))
    stored.write_bytes(stored.read_bytes()[:-9] + b"123456789")
    shutil.rmtree(storage.version_dir(version.id))
    with pytest.raises(Unavailable, match="damaged"):
        versions.folder(version)
    assert not storage.version_dir(version.id).exists()


def test_undo_goes_back_step_by_step(place):
    tasks.import_file(bring(place, FIXTURES / "messy_made" / "utf8.csv"))
    for name in ("exact", "whitespace"):
        with transaction() as session:
            plans.apply_steps(session, place.ada, place.project_id, [name])
    assert [s.name for s in plans.chosen(plan_of(place))] == ["whitespace", "exact"]
    with transaction() as session:
        plans.undo(session, place.ada, place.project_id)
    assert [s.name for s in plans.chosen(plan_of(place))] == ["exact"]
    with transaction() as session:
        plans.undo(session, place.ada, place.project_id)
    with transaction() as session, pytest.raises(Conflict):
        plans.undo(session, place.ada, place.project_id)


def test_a_fix_reads_the_file_again(place):
    file_id = bring(place, FIXTURES / "messy_made" / "broken_lines.jsonl")
    tasks.import_file(file_id)
    with reading() as session:
        found = {f.code: (f.count, f.out_count) for f in service.findings_of(session, session.get(SourceFile, file_id))}
    assert found["json.invalid"] == (45, 45)
    with transaction() as session:
        service.set_reading(session, place.ada, file_id, {"bad_json": "repair", "mistyped_columns": "map"})
    tasks.import_file(file_id)
    file = row(SourceFile, file_id)
    assert (file.rows, file.quarantined_rows) == (272, 20)
    assert "Prompt " not in file.detected["columns"]


def test_no_room_for_the_rows_is_said_and_what_was_written_is_gone(place, monkeypatch):
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as disk:
        full.write(b"x")
    assert "The disk is full" in child.OUT_OF_ROOM[disk.value.errno]
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    # A real write that the system refuses in the middle, as on a full disk.
    monkeypatch.setattr(tasks, "_limits", lambda _size: child.Limits(file_bytes=2000))
    tasks.import_file(file_id)
    file = row(SourceFile, file_id)
    assert (file.state, file.error) == ("failed", child.OUT_OF_ROOM[errno.EFBIG])
    assert sorted(p.name for p in storage.sources_dir(file_id).iterdir()) == ["original"]


def test_a_small_lack_of_room_is_told_in_small_units(monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda: get_settings().disk_reserve_bytes + 2_000_000)
    with pytest.raises(DiskFull, match=r"5\.0 MB are needed and 2\.0 MB may be used"):
        storage.require_space(5_000_000)


def test_a_refused_file_says_why_and_leaves_nothing(place):
    path = storage.uploads_dir() / "x"
    path.write_bytes(b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.")
    file_id = bring(place, path, "rows.jsonl")
    tasks.import_file(file_id)
    file = row(SourceFile, file_id)
    assert file.state == "failed"
    assert "pickle" in file.error
    assert sorted(p.name for p in storage.sources_dir(file_id).iterdir()) == ["original"]


def test_same_bytes_are_one_file(place):
    one = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    assert bring(place, FIXTURES / "messy_made" / "utf8.csv", "other.csv") == one


def test_strangers_and_viewers(place):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    with reading() as session:
        with pytest.raises(NotFound):
            service.get_file(session, place.bob, file_id)
        with pytest.raises(NotFound):
            service.list_files(session, place.bob, place.project_id)
        assert service.get_file(session, place.vera, file_id).id == file_id
    with transaction() as session:
        for call in (
            lambda: service.delete_file(session, place.vera, file_id),
            lambda: service.set_reading(session, place.vera, file_id, {}),
            lambda: plans.apply_steps(session, place.vera, place.project_id, ["exact"]),
            lambda: plans.set_split(session, place.vera, place.project_id, SplitSettings()),
            lambda: versions.freeze(session, place.vera, place.project_id),
            lambda: service.add_text(session, place.vera, project_id=place.project_id, text="x"),
        ):
            with pytest.raises(Forbidden):
                call()


def test_a_mapping_that_fits_nothing_is_refused(place):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    tasks.import_file(file_id)
    with transaction() as session:
        with pytest.raises(Invalid, match="no column"):
            service.set_mapping(session, place.ada, file_id, Mapping(prompt="{nothing}", answer="{answer}"))
        with pytest.raises(Invalid, match="No row fits"):
            service.set_mapping(session, place.ada, file_id, Mapping(shape="messages", messages="question"))


def test_samples_are_read_as_they_should_be(place):
    expected = {"support": ("label", 1608), "orders": ("messages", 600), "shakespeare": ("text", 499)}
    for key, (kind, rows) in expected.items():
        with transaction() as session:
            file = service.add_sample(session, place.ada, project_id=place.project_id, key=key)
        tasks.import_file(file.id)
        file = row(SourceFile, file.id)
        assert (file.detected["detections"][0]["format"], file.rows, file.is_mapping_confirmed) == (kind, rows, True)
        assert file.licence


def test_deleted_files_leave_the_rows_and_come_back(place):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    tasks.import_file(file_id)
    assert prepare(place).report["rows"] == 600
    with transaction() as session:
        service.delete_file(session, place.ada, file_id)
    assert prepare(place).report == {}
    with transaction() as session:
        service.restore_file(session, place.ada, file_id)
    assert prepare(place).report["rows"] == 600


def test_the_queue_is_told_after_the_change(place):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    with reading() as session:
        assert [(o.task, o.subject_id) for o in session.query(Outbox)] == [("datasets.import_file", file_id)]


def test_cancel_stops_the_child(place, monkeypatch):
    """The child is held still, so that it cannot be faster than the person who stops it."""
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    real, children = following.subprocess.Popen, []

    def held(*args, **kwargs):
        child = real(*args, **kwargs)
        os.kill(child.pid, signal.SIGSTOP)
        children.append(child)
        return child

    monkeypatch.setattr(following.subprocess, "Popen", held)
    thread = threading.Thread(target=tasks.import_file, args=(file_id,))
    thread.start()
    wait_for(lambda: children, "the child was started", 60)
    with transaction() as session:
        session.get(SourceFile, file_id).want = "cancel"
    thread.join(60)
    assert not thread.is_alive()
    assert children[0].returncode == -signal.SIGKILL
    assert row(SourceFile, file_id).state == "cancelled"
    assert sorted(p.name for p in storage.sources_dir(file_id).glob("rows*")) == []


def test_a_killed_child_is_a_sentence(place, monkeypatch):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    real = following.subprocess.Popen

    def killed(*args, **kwargs):
        child = real(*args, **kwargs)
        os.killpg(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(following.subprocess, "Popen", killed)
    tasks.import_file(file_id)
    file = row(SourceFile, file_id)
    assert file.state == "failed"
    assert file.error.endswith(".")
    monkeypatch.undo()
    with transaction() as session:
        service.retry_import(session, place.ada, file_id)
    tasks.import_file(file_id)
    assert row(SourceFile, file_id).state == "succeeded"


def test_a_stopping_worker_gives_the_row_back(place, monkeypatch):
    file_id = bring(place, FIXTURES / "messy_made" / "utf8.csv")
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.01)
    draining.set()
    try:
        tasks.import_file(file_id)
    finally:
        draining.clear()
    file = row(SourceFile, file_id)
    assert (file.state, file.attempts) == ("queued", 0)
    tasks.import_file(file_id)
    assert row(SourceFile, file_id).state == "succeeded"


def test_preparing_and_freezing_can_be_stopped_and_begun_again(place):
    file_id = bring(place, FIXTURES / "messy_made" / "missing_values.jsonl")
    tasks.import_file(file_id)
    with transaction() as session:
        service.set_mapping(session, place.ada, file_id, Mapping(prompt="{prompt}", answer="{completion}"))
    with transaction() as session:
        plans.cancel(session, place.ada, place.project_id)
    assert prepare(place).state == "cancelled", "what was stopped is not taken up"
    with transaction() as session, pytest.raises(Conflict):
        versions.freeze(session, place.ada, place.project_id)
    with transaction() as session, pytest.raises(Conflict, match="not being prepared"):
        plans.cancel(session, place.ada, place.project_id)
    with transaction() as session:
        plans.again(session, place.ada, place.project_id)
    assert prepare(place).state == "succeeded"
    with transaction() as session:
        version_id = versions.freeze(session, place.ada, place.project_id).id
    with transaction() as session:
        session.get(DatasetVersion, version_id).state = "running"
        assert versions.cancel(session, place.ada, version_id).want == "cancel"
        session.get(DatasetVersion, version_id).state = "queued"
    tasks.freeze(version_id)
    assert row(DatasetVersion, version_id).state == "cancelled"
    assert not storage.version_dir(version_id).exists()
    with transaction() as session:
        newer = versions.freeze(session, place.ada, place.project_id)
    assert newer.number == 2
    tasks.freeze(newer.id)
    assert row(DatasetVersion, newer.id).state == "succeeded"
