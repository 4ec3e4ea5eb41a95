"""XLS files looked over before their reader, which believes their sizes: chains without end, tables as big as a disk.

Layout: Microsoft's [MS-CFB] (the container, a small file system) and [MS-XLS] (the records of a workbook).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from app.datasets.findings import Refused

DAMAGED = "This spreadsheet is damaged and cannot be opened. Open it in your office program and save it again."
SPREAD = (
    "This spreadsheet is damaged, or its cells are so far apart that its tables would be huge. Open it in your office "
    "program and save it as XLSX or CSV, then bring that."
)
_END, _NO_SECTOR = 0xFFFFFFFE, 0xFFFFFFFA
_SECTOR_BYTES = {3: 512, 4: 4096}
_MINI_BYTES, _MINI_BELOW, _ENTRY_BYTES = 64, 4096, 128
_BOF, _SIZE = 0x0809, 0x0200
# Cells: formula, number, label, error, rich text, text of the shared table, and several numbers at once.
_CELLS = frozenset({0x0006, 0x0203, 0x0204, 0x0205, 0x027E, 0x00D6, 0x00FD, 0x00BD})
# What the format can hold in a sheet, and what all sheets of a file may span: 32 bytes a cell in the reader.
_ROWS, _COLUMNS, _SPAN = 65_536, 256, 40_000_000


def look_over(path: Path) -> None:
    """Raises Refused for an OLE file whose workbook would take its reader more memory than it can be worth."""
    try:
        _spans(_Container(path.read_bytes()).workbook())
    except struct.error as error:
        raise Refused(DAMAGED) from error


class _Container:
    """The file system in an OLE file: sectors, and tables that say which sector follows which."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        (version,) = struct.unpack_from("<H", content, 26)
        if version not in _SECTOR_BYTES:
            raise Refused(DAMAGED)
        self._size = _SECTOR_BYTES[version]
        self._sectors = -(-len(content) // self._size) - 1
        directories, tables, self._first = struct.unpack_from("<3I", content, 40)
        self._mini_first, mini_tables, more_first, more = struct.unpack_from("<4I", content, 60)
        if max(directories, tables, mini_tables, more) > self._sectors:
            raise Refused(DAMAGED)
        self._has_mini = mini_tables > 0
        self._next = self._table(more_first)

    def _table(self, more_first: int) -> list[int]:
        listed = list(struct.unpack_from("<109I", self._content, 76))
        place, seen = more_first, set[int]()
        while place < _NO_SECTOR:
            if place in seen:
                raise Refused(DAMAGED)
            seen.add(place)
            *ids, place = self._numbers(place)
            listed += ids
        return [number for place in listed if place < _NO_SECTOR for number in self._numbers(place)]

    def _sector(self, place: int) -> bytes:
        if place >= self._sectors:
            raise Refused(DAMAGED)
        return self._content[(place + 1) * self._size : (place + 2) * self._size]

    def _numbers(self, place: int) -> Sequence[int]:
        return _numbers(self._sector(place))

    def _stream(self, first: int) -> bytes:
        return b"".join(self._sector(place) for place in _chain(first, self._next, self._sectors))

    def workbook(self) -> bytes:
        """The stream of the workbook; empty where there is none, which its reader says."""
        entries = self._stream(self._first)
        mini_of: tuple[int, int] | None = None
        for start in range(0, len(entries) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
            entry = entries[start : start + _ENTRY_BYTES]
            first, short, long = struct.unpack_from("<III", entry, 116)
            size = short + (long << 32 if self._size > 512 else 0)
            mini_of = mini_of or (first, size)
            name = entry[:64].decode("utf-16-le", "replace").split("\0")[0]
            if start and name not in ("Workbook", "Book"):
                continue
            if size > len(self._content):
                raise Refused(DAMAGED)
            if start:
                return (self._mini(mini_of[0], first) if size < _MINI_BELOW else self._stream(first))[:size]
        return b""

    def _mini(self, root_first: int, first: int) -> bytes:
        """A small stream: pieces of 64 bytes inside the first entry's own stream."""
        pieces = self._stream(root_first) if root_first != _END else b""
        follows = _numbers(self._stream(self._mini_first)) if self._has_mini else ()
        places = _chain(first, follows, -(-len(pieces) // _MINI_BYTES))
        return b"".join(pieces[place * _MINI_BYTES : (place + 1) * _MINI_BYTES] for place in places)


def _numbers(content: bytes) -> Sequence[int]:
    return struct.unpack(f"<{len(content) // 4}I", content[: len(content) // 4 * 4])


def _chain(first: int, follows: Sequence[int], count: int) -> list[int]:
    """The places from `first` on. Raises Refused for one that comes again or lies outside."""
    found: list[int] = []
    seen, place = bytearray(count), first
    while place != _END:
        if place >= min(count, len(follows)) or seen[place]:
            raise Refused(DAMAGED)
        seen[place] = 1
        found.append(place)
        place = follows[place]
    return found


def _spans(book: bytes) -> None:
    """Raises Refused where the sheets, each from its first cell to its last, are beyond all measure."""
    place, span = 0, 0
    top, left, bottom, right = _ROWS, _COLUMNS, -1, -1
    while place + 4 <= len(book):
        kind, size = struct.unpack_from("<HH", book, place)
        place += 4
        if kind in _CELLS and size >= 4:
            row, column = struct.unpack_from("<HH", book, place)
            top, left, bottom, right = min(top, row), min(left, column), max(bottom, row), max(right, column)
            if right >= _COLUMNS:
                raise Refused(SPREAD)
        elif kind == _SIZE and size in (10, 14):
            rows = struct.unpack_from("<II" if size == 14 else "<HH", book, place)
            columns = struct.unpack_from("<HH", book, place + size - 6)
            if max(rows) > _ROWS or max(columns) > _COLUMNS:
                raise Refused(SPREAD)
        if kind == _BOF or place + size >= len(book):
            span += max(0, bottom - top + 1) * max(0, right - left + 1)
            top, left, bottom, right = _ROWS, _COLUMNS, -1, -1
        place += size
    if span > _SPAN:
        raise Refused(SPREAD)
