"""Backup and restore bring everything back or nothing; upgrades keep a copy of the old database."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
import stat
import tarfile
from pathlib import Path

import pytest
from alembic import command

from app.contracts.recipe import ModelFiles, Overlay
from app.core import backups, migrations, storage
from app.core.config import get_settings
from app.core.db import forget_engine, reading, transaction
from app.core.migrations import CannotUpgrade
from app.inference import targets
from app.projects.models import Project
from app.recipes import bases
from app.recipes.models import BaseModelEntry
from app.runs.models import Model, Run
from tests.conftest import ROOT
from tests.factories import a_world
from tests.visitors import make_person, make_workspace


@pytest.fixture
def lived_in(home: Path) -> Path:
    """A home with a project, a frozen version, an upload, a run's checkpoint and a link that leads out."""
    migrations.upgrade()
    with transaction() as session:
        a_world(session)
    (storage.uploads_dir() / "questions.csv").write_text("question,answer\n")
    (storage.run_dir("r1") / "weights").write_bytes(b"w" * 1000)
    os.symlink("/etc/passwd", storage.uploads_dir() / "link")
    (home / "secret.key").write_text("key")
    return home


def move_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_engine()
    monkeypatch.setenv("GPT_BUILDER_HOME", str(folder))
    get_settings.cache_clear()


def test_a_restored_home_is_the_same(lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "copy.tar"
    with transaction() as session:
        # An open write transaction must neither block the copy nor be in it.
        session.add(Project(workspace_id="w", name="not committed"))
        sentence = backups.write(target)
        session.rollback()
    assert str(target) in sentence
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    move_to(tmp_path / "new", monkeypatch)
    backups.restore(target)
    with reading() as session:
        assert [project.name for project in session.query(Project)] == ["Rhymes"]
    assert (tmp_path / "new/uploads/questions.csv").read_text() == "question,answer\n"
    assert (tmp_path / "new/secret.key").read_text() == "key"
    assert list((tmp_path / "new/versions").rglob("*.parquet"))
    assert not (tmp_path / "new/uploads/link").exists()
    assert not (tmp_path / "new/runs").exists()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_models_come_along_when_asked(lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backups.write(tmp_path / "copy.tar", with_models=True)
    move_to(tmp_path / "new", monkeypatch)
    backups.restore(tmp_path / "copy.tar")
    assert (tmp_path / "new/runs/r1/weights").read_bytes() == b"w" * 1000


def test_a_home_in_use_is_never_overwritten(lived_in: Path, tmp_path: Path) -> None:
    backups.write(tmp_path / "copy.tar")
    with pytest.raises(backups.BackupError, match="is not empty"):
        backups.restore(tmp_path / "copy.tar")
    with pytest.raises(backups.BackupError, match="exists already"):
        backups.write(tmp_path / "copy.tar")


def test_models_are_found_in_the_home_they_were_restored_to(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model over a base of the home, over the starter that ships with the product, and a copied base by itself."""
    person = make_person(workspace_id=make_workspace())
    weights, base = storage.run_dir("r9") / "model", storage.bases_dir() / "b9"
    for folder in (weights, base):
        folder.mkdir()
        (folder / "config.json").write_text('{"n_positions": 77}')
    overlays = [Overlay(kind="lora", dir=str(weights))]
    with transaction() as session:
        project = Project(workspace_id=person.workspace_id, name="Soup")
        session.add(project)
        session.flush()
        refs = []
        for number, below in enumerate((base, bases.STARTER), 1):
            files = ModelFiles(base_dir=str(below), overlays=overlays).model_dump()
            run = Run(
                project_id=project.id, workspace_id=person.workspace_id, number=number, name="First",
                recipe={"method": "lora"}, frozen={"base": files, "system_prompt": f"{lived_in}/kept as it is"},
            )  # fmt: skip
            session.add(run)
            session.flush()
            model = Model(project_id=project.id, run_id=run.id, name="First", kind="lora", files=files, step=5)
            session.add(model)
            session.flush()
            refs.append((f"model:{model.id}", run.id))
        entry = BaseModelEntry(
            workspace_id=person.workspace_id, source="folder", ref="x", name="x", folder=str(base), state="succeeded"
        )
        session.add(entry)
        session.flush()
        entry_id, project_id = entry.id, project.id
    backups.write(tmp_path / "copy.tar", with_models=True)
    before = lived_in
    move_to(tmp_path / "new", monkeypatch)
    backups.restore(tmp_path / "copy.tar")
    shutil.rmtree(before)
    with reading() as session:
        first, second = (targets.resolve(session, person.actor, project_id, ref) for ref, _ in refs)
        assert targets.context_tokens(first.files) == 77
        assert first.files.base_dir == str(tmp_path / "new/bases/b9")
        assert second.files.base_dir == str(bases.STARTER)
        assert [o.dir for o in second.files.overlays] == [str(tmp_path / "new/runs/r9/model")]
        base_target = targets.resolve(session, person.actor, project_id, f"base:{entry_id}")
        assert (Path(base_target.files.base_dir) / "config.json").is_file()
        frozen = session.get_one(Run, refs[0][1]).frozen
        assert frozen["base"]["base_dir"] == str(tmp_path / "new/bases/b9")
        assert frozen["system_prompt"] == f"{before}/kept as it is"
        stored = session.connection().exec_driver_sql("SELECT files FROM models").scalars().all()
    assert not any(str(before) in text or str(ROOT) in text for text in stored)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_backup_restores_nothing(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    target = tmp_path / "copy.tar"
    backups.write(target)
    data = bytearray(target.read_bytes())
    place = data.index(b"question,answer")
    if damage == "flip":
        data[place] ^= 1
    else:
        del data[len(data) // 2 :]
    target.write_bytes(data)
    move_to(tmp_path / "new", monkeypatch)
    with pytest.raises(backups.BackupError):
        backups.restore(target)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".restore-*"))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_an_archive_that_leads_outside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    move_to(tmp_path / "new" / "home", monkeypatch)
    with pytest.raises(backups.BackupError, match="no backup of ours would"):
        backups.restore(tmp_path / "evil.tar")
    assert [path.name for path in (tmp_path / "new").iterdir()] == []


def test_an_archive_with_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        entry = tarfile.TarInfo("uploads")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(entry)
    move_to(tmp_path / "new", monkeypatch)
    with pytest.raises(backups.BackupError, match="no backup of ours would"):
        backups.restore(tmp_path / "evil.tar")


def test_a_list_without_files_is_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"format": 99, "sha256": {}}).encode()
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        entry = tarfile.TarInfo(backups.MANIFEST)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    move_to(tmp_path / "new", monkeypatch)
    with pytest.raises(backups.BackupError, match="not a whole backup"):
        backups.restore(tmp_path / "odd.tar")


SECOND = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.create_table("added_later", sa.Column("id", sa.Integer, primary_key=True))
"""


def test_an_upgrade_keeps_a_copy_of_the_old_database(
    lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "up to date" in migrations.upgrade()
    assert not (lived_in / "backups").exists()
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations/versions/0002_later.py").write_text(SECOND)
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    assert "upgraded from revision 0001 (revision 0002). A copy" in migrations.upgrade()
    (copy,) = (lived_in / "backups").glob("before-0002-*.db")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as old:
        assert old.execute("SELECT name FROM projects").fetchall() == [("Rhymes",)]
        assert old.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    with contextlib.closing(sqlite3.connect(lived_in / "gpt-builder.db")) as new:
        assert new.execute("SELECT count(*) FROM added_later").fetchall() == [(0,)]
        assert new.execute("SELECT name FROM projects").fetchall() == [("Rhymes",)]


def test_a_database_of_a_newer_version_is_left_alone(home: Path) -> None:
    migrations.upgrade()
    with sqlite3.connect(home / "gpt-builder.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CannotUpgrade, match="newer version"):
        migrations.upgrade()
    assert migrations.current() == "9999"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_migrations_and_tables_agree(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "postgres":
        request.getfixturevalue("postgres")
    migrations.upgrade()
    command.check(migrations._config())


def test_a_backup_is_not_written_into_what_somebody_else_has_prepared(lived_in: Path, tmp_path: Path) -> None:
    """Backups hold secrets; in a shared folder the name of the temporary file can be guessed."""
    theirs = tmp_path / "theirs"
    theirs.touch(mode=0o666)
    (tmp_path / ".tmp-copy.tar").symlink_to(theirs)
    backups.write(tmp_path / "copy.tar")
    assert theirs.read_bytes() == b""
    assert not (tmp_path / "copy.tar").is_symlink()
    assert stat.S_IMODE((tmp_path / "copy.tar").stat().st_mode) == 0o600
