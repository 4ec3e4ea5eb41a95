"""Where artefacts lie: local folders to work in, and the storage URL that keeps what is finished."""

import hashlib
import os
import shutil
from pathlib import Path

import fsspec

from app.core.config import get_settings
from app.core.errors import DiskFull
from app.core.numbers import size

MANIFEST = "manifest.json"


def _below_home(*parts: str) -> Path:
    path = get_settings().home_dir.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def uploads_dir() -> Path:
    """Spool files of uploads, named by upload id."""
    return _below_home("uploads")


def sources_root() -> Path:
    """The folders of all received files, named by file id."""
    return _below_home("sources")


def sources_dir(file_id: str) -> Path:
    """The received file and its parsed rows."""
    return _below_home("sources", file_id)


def working_dir(plan_id: str) -> Path:
    """The mapped and cleaned rows that a person looks at before freezing."""
    return _below_home("working", plan_id)


def versions_dir() -> Path:
    """Parent of all frozen dataset versions."""
    return _below_home("versions")


def version_dir(version_id: str) -> Path:
    """One frozen dataset version (may not exist)."""
    return versions_dir() / version_id


def tokens_dir(version_id: str) -> Path:
    """Rows of a frozen version as token ids, a folder for each split and way: made again whenever they are missing."""
    return _below_home("tokens", version_id)


def browsing_dir(version_id: str) -> Path:
    """The index of a frozen version's rows: made again whenever it is missing."""
    return _below_home("browsing", version_id)


def run_dir(run_id: str) -> Path:
    """A run's folder: checkpoints/ and model/."""
    return _below_home("runs", run_id)


def bases_dir() -> Path:
    """Base models brought in from folders and the hub."""
    return _below_home("bases")


def free_bytes(path: Path | None = None) -> int:
    """Free disk space at `path` (default: home)."""
    return shutil.disk_usage(path or _below_home()).free


def require_space(needed_bytes: int) -> None:
    """Raise DiskFull unless `needed_bytes` fit beside the reserve."""
    free = free_bytes() - get_settings().disk_reserve_bytes
    if needed_bytes > free:
        raise DiskFull(
            f"The disk is full: {size(needed_bytes)} are needed and {size(max(0, free))} may be used. "
            "Free some space, then try again; nothing was lost."
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link(source: Path, target: Path) -> None:
    """The same bytes under a second name, durable; copied where the disk knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    fsync_tree(target.parent)


def fsync_tree(folder: Path) -> None:
    """Make every file below `folder`, and the folders themselves, durable."""
    for root, _folders, files in os.walk(folder):
        for name in [*files, "."]:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def publish_artefact(local: Path, key: str) -> str:
    """Copy a finished folder to the storage URL under `key`, its manifest last; returns the URL. Repeatable."""
    url = get_settings().storage
    target = f"{url.rstrip('/')}/{key}"
    filesystem, path = fsspec.core.url_to_fs(target)
    files = sorted((f for f in local.rglob("*") if f.is_file()), key=lambda f: f.name.lower() == MANIFEST)
    for source in files:
        destination = f"{path}/{source.relative_to(local).as_posix()}"
        filesystem.makedirs(destination.rsplit("/", 1)[0], exist_ok=True)
        filesystem.put_file(str(source), destination)
    return target


def delete_artefact(key: str) -> None:
    """Delete `key` from the storage URL; what is gone already is passed over."""
    filesystem, path = fsspec.core.url_to_fs(f"{get_settings().storage.rstrip('/')}/{key}")
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def fetch_artefact(key: str, local: Path) -> None:
    """Copy `key` from the storage URL into the folder `local`, whole or not at all. Raises FileNotFoundError."""
    filesystem, path = fsspec.core.url_to_fs(f"{get_settings().storage.rstrip('/')}/{key}")
    temporary = local.with_name(f".tmp-{local.name}-{os.getpid()}")
    try:
        for source in filesystem.find(path):
            destination = temporary / source[len(path) :].lstrip("/")
            destination.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(source, str(destination))
        temporary.rename(local)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
