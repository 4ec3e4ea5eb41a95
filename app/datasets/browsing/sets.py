"""What can be browsed: a set of rows as parts on disk, with a trace and a place for an index.

The processes that scan import this and little more, so that they start at once. Both layouts of a working set are
read: one `examples.parquet`, or parts `data-00000.parquet`….
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class RowSet:
    """A set of rows: `parts` in order, `traces` of what was done to them, `folder` for its index.

    `sources` names the files by id; a frozen version names them in its rows instead.
    """

    parts: tuple[Path, ...]
    traces: tuple[Path, ...]
    folder: Path
    is_frozen: bool
    sources: dict[str, str] = field(default_factory=dict)

    @cached_property
    def rows(self) -> int:
        """All rows."""
        return sum(sum(group_rows(path)) for path in self.parts)


@lru_cache(maxsize=4096)
def _group_rows(path: Path, _modified_ns: int) -> tuple[int, ...]:
    with pq.ParquetFile(path) as source:
        meta = source.metadata
        return tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))


def group_rows(path: Path) -> tuple[int, ...]:
    """Rows of each row group of a part; read once for each file."""
    return _group_rows(path, path.stat().st_mtime_ns)


def in_folder(folder: Path, index_folder: Path, *, is_frozen: bool, sources: dict[str, str] | None = None) -> RowSet:
    """The set that lies in `folder`, whichever of the two layouts it has. Sets are written once and never changed."""
    try:
        parts, traces = _files(folder, folder.stat().st_mtime_ns)
    except FileNotFoundError:
        parts, traces = (), ()
    return RowSet(parts, traces, index_folder, is_frozen, sources or {})


@lru_cache(maxsize=256)
def _files(folder: Path, _modified_ns: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    parts = sorted(folder.glob("data-*.parquet")) or sorted(folder.glob("examples*.parquet"))
    return tuple(parts), tuple(sorted(folder.glob("trace*.parquet")))


def batches(rows: RowSet, columns: Sequence[str], first_group: int = 0) -> Iterator[tuple[int, int, pa.Table]]:
    """(number of the group, number of its first row, its rows) of every row group from `first_group` on."""
    number = start = 0
    for path in rows.parts:
        counts = group_rows(path)
        with pq.ParquetFile(path) as source:
            known = [name for name in columns if name in source.schema_arrow.names]
            for group, count in enumerate(counts):
                if number >= first_group:
                    yield number, start, source.read_row_group(group, columns=known, use_threads=False)
                number, start = number + 1, start + count


def read(rows: RowSet, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Whole rows by their numbers (from 0), in the order asked for; only the row groups that hold them are read."""
    starts, places = _places(rows)
    wanted: dict[int, list[int]] = {}
    for number in numbers:
        wanted.setdefault(bisect_right(starts, number) - 1, []).append(number)
    found: dict[int, dict[str, object]] = {}
    for group, members in wanted.items():
        path, inside = places[group]
        with pq.ParquetFile(path) as source:
            table = source.read_row_group(inside, columns=list(columns) if columns else None, use_threads=False)
        first = starts[group]
        for number, row in zip(members, table.take([m - first for m in members]).to_pylist(), strict=True):
            found[number] = row
    return [found[number] for number in numbers]


def _places(rows: RowSet) -> tuple[list[int], list[tuple[Path, int]]]:
    """The number of the first row of each group, and where the group lies."""
    starts: list[int] = []
    places: list[tuple[Path, int]] = []
    start = 0
    for path in rows.parts:
        for group, count in enumerate(group_rows(path)):
            starts.append(start)
            places.append((path, group))
            start += count
    return starts, places
