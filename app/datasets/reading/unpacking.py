"""One file out of gzip, zstd, bzip2 or xz, into the scratch folder and never more than is safe."""

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from app.core.errors import DiskFull
from app.datasets.findings import Refused
from app.datasets.reading.packages import RATIO_FROM_BYTES, RATIO_LIMIT

PACKED_STARTS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
LIMIT_BYTES = 50 * 10**9
_CHUNK = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, ValueError)
_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")


def packing_of(head: bytes) -> str:
    """gzip, zstd, bzip2, xz or nothing, by the first bytes."""
    return next((kind for start, kind in PACKED_STARTS.items() if head.startswith(start)), "")


def inner_name(filename: str) -> str:
    """The name without the ending of the packing."""
    return next((filename[: -len(s)] for s in _SUFFIXES if filename.lower().endswith(s)), filename)


def unpack(path: Path, kind: str, target: Path) -> None:
    """Write what is packed in `path` to `target`. Raises Refused for damage, bombs and over 50 GB; DiskFull."""
    packed, written = path.stat().st_size, 0
    checked_at = 0
    try:
        with _opened(path, kind) as source, target.open("wb") as out:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > RATIO_FROM_BYTES and written > RATIO_LIMIT * packed:
                    raise Refused(
                        "This file unpacks to more than a hundred times its size, as files made to break readers do. "
                        "Unpack it yourself, then bring what was inside.",
                        "packed.ratio",
                    )
                if written > LIMIT_BYTES:
                    raise Refused("This file unpacks to over 50 GB. Split it, then bring the parts.", "packed.size")
                if written - checked_at > 64 * _CHUNK:
                    # Imported where it is used: few files are packed, and it loads as long as a small one is read.
                    from app.core import storage

                    checked_at = written
                    storage.require_space(64 * _CHUNK)
                out.write(chunk)
    except DiskFull as error:
        raise Refused(error.sentence, "disk.full") from error
    except _DAMAGE as error:
        raise Refused("This packed file is damaged and cannot be unpacked. Pack it again.") from error


def _opened(path: Path, kind: str) -> IO[bytes] | Any:
    match kind:
        case "gzip":
            return gzip.open(path, "rb")
        case "bzip2":
            return bz2.open(path, "rb")
        case "xz":
            return lzma.LZMAFile(path, "rb")
        case _:
            return pa.input_stream(str(path), compression="zstd")
