"""Old spreadsheets (XLS): what lies about its size is refused in words before the reader believes it."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from app.datasets.findings import Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading.formats import sniff
from app.datasets.reading.old_sheets import look_over
from app.datasets.reading.readers import read

OLD = Path(__file__).parents[2] / "fixtures" / "documents" / "old.xls"
FREE, END, TABLE = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD


def _rows(path: Path) -> list[dict[str, object]]:
    found = read(path, sniff(path, path.name), ReadOptions())
    return [item.values for item in found if isinstance(item, Record)]


def _record(kind: int, size: int) -> int:
    """Where the content of the first record of this kind begins."""
    place = OLD.read_bytes().find(struct.pack("<HH", kind, size), 512)
    assert place > 0
    return place + 4


def _table_of_sectors() -> int:
    return int(512 * (1 + struct.unpack_from("<I", OLD.read_bytes(), 76)[0]))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        # A sector follows itself, the directory begins far behind the end, a count of sectors is a lie.
        (lambda: _table_of_sectors() + 4, struct.pack("<I", 1)),
        (lambda: 48, struct.pack("<I", 0x00FFFFFF)),
        (lambda: 44, struct.pack("<I", 0x7FFFFFFF)),
        # A cell far right of the last column there can be, and a sheet that says it is as large as a disk.
        (lambda: _record(0x00FD, 10), struct.pack("<HH", 60_000, 60_000)),
        (lambda: _record(0x0200, 14), struct.pack("<IIHH", 0, 0xFFFFFFF0, 0, 0xFFF0)),
    ],
)
def test_files_that_lie_about_their_size_are_refused(tmp_path: Path, place: Callable[[], int], value: bytes) -> None:
    """Each of these asked for more memory than the reading child may have."""
    content = bytearray(OLD.read_bytes())
    at = place()
    content[at : at + len(value)] = value
    path = tmp_path / "old.xls"
    path.write_bytes(content)
    look_over(OLD)
    with pytest.raises(Refused, match="This spreadsheet is damaged"):
        look_over(path)


def test_a_small_workbook_lies_in_the_stream_of_small_streams(tmp_path: Path) -> None:
    """As office programs save small files: under 4,096 bytes a stream is kept in pieces of 64."""
    content = OLD.read_bytes()
    sectors, book = content[512:], b""
    place = 0
    while place + 4 <= 4096 and struct.unpack_from("<HH", sectors, place) != (0, 0):
        size = 4 + struct.unpack_from("<H", sectors, place + 2)[0]
        book += sectors[place : place + size]
        place += size
    assert len(book) < 4096
    pieces = -(-len(book) // 64)
    held = -(-pieces * 64 // 512)

    def entry(name: str, kind: int, child: int, first: int, size: int) -> bytes:
        text = name.encode("utf-16-le")
        return struct.pack(
            "<64sHBBIII36xIII", text, len(text) + 2, kind, 1, FREE, FREE, child, first, size, 0
        )  # fmt: skip

    # Sectors: 0 the table, 1 the directory, 2 the table of pieces, from 3 on the pieces.
    follows = [TABLE, END, END, *range(4, 3 + held), END]
    small = [*range(1, pieces), END]
    head = bytearray(content[:512])
    struct.pack_into("<3I", head, 40, 0, 1, 1)
    struct.pack_into("<4I", head, 60, 2, 1, END, 0)
    struct.pack_into("<109I", head, 76, 0, *[FREE] * 108)
    path = tmp_path / "small.xls"
    path.write_bytes(
        bytes(head)
        + struct.pack("<128I", *follows, *[FREE] * (128 - len(follows)))
        + (entry("Root Entry", 5, 1, 3, pieces * 64) + entry("Workbook", 2, FREE, 0, len(book))).ljust(512, b"\0")
        + struct.pack("<128I", *small, *[FREE] * (128 - len(small)))
        + book.ljust(held * 512, b"\0")
    )
    assert _rows(path) == _rows(OLD)
    assert len(_rows(OLD)) == 2
    whole = bytearray(path.read_bytes())
    struct.pack_into("<I", whole, 512 * 3, 0)
    path.write_bytes(whole)
    with pytest.raises(Refused, match="This spreadsheet is damaged"):
        look_over(path)
