"""A folder as one ZIP file, made while it is sent: nothing is written twice."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES = 2**20
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the same files make the same ZIP


class _Pipe:
    """What zipfile writes to; it cannot go back, so sizes stand behind each file."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, block: bytes) -> int:
        self.parts.append(bytes(block))
        return len(block)

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        block, self.parts = b"".join(self.parts), []
        return block


def zipped(folder: Path, names: list[str], top: str) -> Iterator[bytes]:
    """The ZIP's bytes; files lie in a folder `top`, unpacked (weights do not get smaller)."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload]
        for name in names:
            entry = zipfile.ZipInfo(f"{top}/{name}", _FIXED_TIME)
            entry.external_attr = 0o644 << 16
            with (folder / name).open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
                    yield pipe.taken()
    yield pipe.taken()
