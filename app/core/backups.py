"""Backup and restore of a home: one tar file with a manifest of checksums. For the command line."""

import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from app.core import migrations
from app.core.config import get_settings

MANIFEST = "gpt-builder-backup.json"
FORMAT = 1
# Folders of the home whose content nothing else can make again.
_KEPT = ("sources", "versions", "uploads", "storage")
# Large, and made again by training or fetching; taken along with --with-models.
_MODELS = ("runs", "bases")


class BackupError(Exception):
    """A backup cannot be written or put back; the sentence says why and what to do."""


def _files(home: Path, with_models: bool) -> Iterator[Path]:
    """Regular files to keep: no links, no sockets, nothing that is still being written."""
    if get_settings().secrets_path.is_file() and get_settings().secrets_path.is_relative_to(home):
        yield get_settings().secrets_path
    for folder in (*_KEPT, *(_MODELS if with_models else ())):
        for root, folders, names in os.walk(home / folder):
            folders[:] = sorted(name for name in folders if not name.startswith(".tmp"))
            for name in sorted(names):
                path = Path(root) / name
                if stat.S_ISREG(path.lstat().st_mode) and not name.startswith(".tmp"):
                    yield path


def write(target: Path | None, *, with_models: bool = False) -> str:
    """Write a backup and say where. Safe while everything runs. Raises BackupError."""
    home, database = get_settings().home_dir, migrations.sqlite_file()
    if database is not None and not database.is_file():
        raise BackupError(f"There is nothing to back up: no database at {database}.")
    if target is None:
        target = home / "backups" / f"backup-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar"
    target = target.expanduser().resolve()
    if target.exists():
        raise BackupError(f"{target} exists already. Name another file; a backup never overwrites one.")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f".tmp-{target.name}")
    checksums: dict[str, str] = {}
    try:
        # Made by us alone: a file or a link that somebody else put there would keep their rights, or lead elsewhere.
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, tarfile.open(temporary, "w") as archive:
            if database is not None:
                copy = Path(scratch) / "gpt-builder.db"
                migrations.copy_sqlite(database, copy)
                checksums["gpt-builder.db"] = _add(archive, copy, "gpt-builder.db")
            for path in _files(home, with_models):
                name = path.relative_to(home).as_posix()
                try:
                    checksums[name] = _add(archive, path, name)
                except FileNotFoundError:
                    # Deleted between listing and reading; the database says so too.
                    continue
            manifest = {
                "format": FORMAT,
                "revision": migrations.current(),
                "made_at": datetime.now(UTC).isoformat(),
                "with_models": with_models,
                "sha256": checksums,
            }
            entry = tarfile.TarInfo(MANIFEST)
            text = json.dumps(manifest, indent=1).encode()
            entry.size, entry.mode = len(text), 0o600
            archive.addfile(entry, io.BytesIO(text))
        temporary.replace(target)
    except OSError as error:
        raise BackupError(f"The backup could not be written to {target}: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    note = "" if database else " PostgreSQL is not in it: back it up with pg_dump at the same time."
    size = target.stat().st_size / 2**20
    return f"Wrote {target} ({len(checksums)} files, {size:.1f} MB).{note} It holds secrets: keep it private."


def _add(archive: tarfile.TarFile, path: Path, name: str) -> str:
    """Add one file as it is now and return its SHA-256; growing meanwhile does not harm."""
    with path.open("rb") as stream:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = os.fstat(stream.fileno()).st_size, 0o600
        reader = _Hashing(stream, entry.size)
        archive.addfile(entry, reader)
    return reader.digest.hexdigest()


class _Hashing:
    """A reader that hashes what passes."""

    def __init__(self, stream: io.BufferedReader, size: int) -> None:
        self.stream, self.left, self.digest = stream, size, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self.stream.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(piece)
        self.digest.update(piece)
        return piece


def restore(source: Path) -> str:
    """Put a backup back into an empty home and say so. Nothing is left behind when it fails. Raises BackupError."""
    home = get_settings().home_dir
    if home.exists() and any(home.iterdir()):
        raise BackupError(
            f"{home} is not empty. Stop GPT Builder, move that folder away, or name an empty one with GPT_BUILDER_HOME."
        )
    if not source.is_file():
        raise BackupError(f"{source} is not a file.")
    home.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".restore-", dir=home.parent))
    try:
        manifest = _unpack(source, scratch)
        if home.exists():
            home.rmdir()
        scratch.chmod(0o700)
        scratch.rename(home)
    except (OSError, tarfile.TarError) as error:
        raise BackupError(f"{source} cannot be read as a backup: {error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    note = "" if migrations.sqlite_file() else " Put the PostgreSQL dump back with pg_restore."
    return f"Restored {len(manifest)} files to {home}.{note} Start with: gpt-builder up"


def _unpack(source: Path, folder: Path) -> dict[str, str]:
    """Write the archive's plain files below `folder` and compare every one with the manifest."""
    found: dict[str, str] = {}
    manifest: dict[str, object] = {}
    with tarfile.open(source, "r:") as archive:
        for entry in archive:
            path = PurePosixPath(entry.name)
            if not entry.isreg() or path.is_absolute() or ".." in path.parts:
                raise BackupError(
                    f"{source} holds {entry.name!r}, which no backup of ours would. Nothing was restored."
                )
            stream = archive.extractfile(entry)
            assert stream is not None
            if entry.name == MANIFEST:
                manifest = json.loads(stream.read())
                continue
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.touch(mode=0o600)
            digest = hashlib.sha256()
            with target.open("wb") as out:
                while piece := stream.read(2**20):
                    digest.update(piece)
                    out.write(piece)
            found[entry.name] = digest.hexdigest()
    if manifest.get("format") != FORMAT:
        raise BackupError(f"{source} is not a whole backup: its list of files is missing. Nothing was restored.")
    if manifest.get("sha256") != found:
        raise BackupError(f"{source} is damaged: its files do not match its list. Nothing was restored.")
    return found
