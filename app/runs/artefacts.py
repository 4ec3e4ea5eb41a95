"""Checking what a trainer left on disk before anything is called finished."""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from app.core import storage
from app.core.errors import AppError

_MANIFEST = "MANIFEST.json"
_HEADER_LIMIT = 100 * 2**20


class Damaged(AppError):
    """A file that should be whole is not."""

    default = "The files of this model are damaged."


def verify(folder: Path) -> None:
    """Raise Damaged unless the folder's manifest (where it has one) and every safetensors file in it are whole."""
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise Damaged("The training ended without leaving any weights behind.")
    manifest = folder / _MANIFEST
    if manifest.is_file():
        for name, about in orjson.loads(manifest.read_bytes())["files"].items():
            path = folder / name
            if not path.is_file() or storage.file_sha256(path) != about["sha256"]:
                raise Damaged(f"{name} is missing or changed after it was written.")
    for path in weights:
        _verify_safetensors(path)


def _verify_safetensors(path: Path) -> None:
    """Length, header and offsets (format: https://github.com/huggingface/safetensors#format)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_HEADER_LIMIT, size - 8):
            raise Damaged(f"{path.name} has no readable header.")
        try:
            header: dict[str, Any] = orjson.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Damaged(f"{path.name} has no readable header.") from error
    if end == 0 or 8 + length + end != size:
        raise Damaged(f"{path.name} has {size} bytes, but its header promises {8 + length + end}.")


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all weights: equal for bit-equal models."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(f"{path.relative_to(folder).as_posix()} {storage.file_sha256(path)}\n".encode())
    return total.hexdigest()


def size_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    temporary.replace(path)
