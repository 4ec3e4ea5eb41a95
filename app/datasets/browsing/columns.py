"""Columns of numbers and cells of text on disk, read by row number without loading them.

Reading is by `pread`, not by a memory map, so that looking through five million rows leaves nothing in memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CELL_CHARACTERS = 120
AT_ONCE_BYTES = 131_072
DTYPES = {
    "key": "<u8", "source": "<u2", "label": "<i4", "split": "u1", "language": "u1", "turns": "<u2", "words": "<u4",
    "first": "<u4", "second": "<u4", "marks": "<u8", "score": "<f4",
}  # fmt: skip


class ColumnWriter:
    """Appends batches to `<name>.col`, and texts to `<name>.cells` with their ends in `<name>.ends`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._ends: dict[str, int] = {}

    def add(self, name: str, values: np.ndarray) -> None:
        """The next values of a column of numbers."""
        np.ascontiguousarray(values, dtype=DTYPES[name]).tofile(self._open(f"{name}.col"))

    def add_cells(self, name: str, texts: pa.Array) -> None:
        """The next texts, each cut to what a table shows."""
        short = pc.fill_null(pc.utf8_slice_codeunits(texts, 0, CELL_CHARACTERS + 1), "").cast(pa.large_string())
        offsets = np.frombuffer(short.buffers()[1], "<i8")[short.offset : short.offset + len(short) + 1]
        body = short.buffers()[2]
        data = memoryview(body)[int(offsets[0]) : int(offsets[-1])] if body is not None else b""
        self._open(f"{name}.cells").write(data)
        start = self._ends.get(name, 0)
        ends = offsets[1:] - offsets[0] + start
        ends.tofile(self._open(f"{name}.ends"))
        self._ends[name] = int(ends[-1]) if len(ends) else start

    def _open(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        return self._files[name]

    def close(self) -> None:
        """Write what is buffered."""
        for file in self._files.values():
            file.close()


def load(folder: Path, name: str) -> np.ndarray:
    """A whole column, mapped (for the scanning child and the pass over all rows)."""
    path = folder / f"{name}.col"
    if not path.stat().st_size:
        return np.zeros(0, DTYPES[name])
    return np.memmap(path, DTYPES[name], mode="r")


def values_at(folder: Path, name: str, numbers: Sequence[int]) -> list[int]:
    """The values of some rows."""
    dtype = np.dtype(DTYPES[name])
    raw = _records(folder / f"{name}.col", dtype.itemsize, numbers)
    found: list[int] = np.frombuffer(b"".join(raw), dtype).tolist()
    return found


def cells_at(folder: Path, name: str, numbers: Sequence[int]) -> list[str]:
    """The shown texts of some rows."""
    if not numbers:
        return []
    raw = _records(folder / f"{name}.ends", 8, [n - 1 for n in numbers], length=16)
    # The end of the row before the first one is the zeros before the file.
    spans = np.frombuffer(b"".join(raw), "<i8").reshape(-1, 2).tolist()
    first, last = min(start for start, _end in spans), max(end for _start, end in spans)
    descriptor = os.open(folder / f"{name}.cells", os.O_RDONLY)
    try:
        if last - first <= AT_ONCE_BYTES:
            block = os.pread(descriptor, last - first, first)
            return [block[start - first : end - first].decode("utf-8", "replace") for start, end in spans]
        return [os.pread(descriptor, end - start, start).decode("utf-8", "replace") for start, end in spans]
    finally:
        os.close(descriptor)


def _records(path: Path, size: int, numbers: Sequence[int], length: int = 0) -> list[bytes]:
    """`length` bytes (one record by default) from each numbered record on; bytes before the file are zeros."""
    length = length or size
    if not numbers:
        return []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        first, last = min(numbers), max(numbers)
        if (last - first) * size <= 65_536:
            begin = max(0, first) * size
            block = os.pread(descriptor, (last - max(0, first)) * size + length, begin)
            block = bytes(max(0, -first) * size) + block
            return [block[(n - first) * size : (n - first) * size + length] for n in numbers]
        found = []
        for number in numbers:
            missing = max(0, -number) * size
            found.append(bytes(missing) + os.pread(descriptor, length - missing, max(0, number) * size))
        return found
    finally:
        os.close(descriptor)
