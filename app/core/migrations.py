"""Brings the database to the newest revision, with a copy of an embedded one beforehand. For `up` and `upgrade`."""

import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from app.core.config import ROOT, get_settings
from app.core.db import make_engine

KEPT_COPIES = 5


class CannotUpgrade(Exception):
    """The database cannot be brought to this version; the sentence says why and what to do."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    return config


def newest() -> str:
    """The revision that this version of the product needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current() -> str | None:
    """The database's revision; None for an empty one. Raises sqlalchemy.exc.OperationalError when out of reach."""
    engine = make_engine(get_settings().database)
    try:
        with engine.execution_options(reader=True).connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def sqlite_file() -> Path | None:
    """The embedded database's file, or None where the database is a server."""
    url = get_settings().database
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def copy_sqlite(source: Path, target: Path) -> None:
    """A consistent copy of a database that may be in use, private to this user."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(source)) as origin, contextlib.closing(sqlite3.connect(temporary)) as copy:
        origin.backup(copy)
    temporary.replace(target)


def upgrade() -> str:
    """Upgrade if needed and say in a sentence what was done. Raises CannotUpgrade; the database is then as before."""
    have, want = current(), newest()
    if have == want:
        return f"Database: up to date (revision {want})."
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if have is not None and have not in known:
        raise CannotUpgrade(
            f"The database is of a newer version (revision {have}) than this program (revision {want}). "
            "Start the newer program, or restore an older backup with `gpt-builder restore`."
        )
    note, path = "", sqlite_file()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path is not None and have is not None:
        folder = path.parent / "backups"
        copy = folder / f"before-{want}-{datetime.now(UTC):%Y%m%d-%H%M%S}.db"
        copy_sqlite(path, copy)
        for old in sorted(folder.glob("before-*.db"))[:-KEPT_COPIES]:
            old.unlink()
        note = f" A copy of the old one is {copy}."
    try:
        command.upgrade(_config(), "head")
    except CommandError as error:
        raise CannotUpgrade(f"The database could not be upgraded: {error}.{note}") from error
    return f"Database: {'made' if have is None else f'upgraded from revision {have}'} (revision {want}).{note}"
