"""Rows on disk: parts of Parquet files that are written in batches and read by page, whatever their columns are.

Cells are kept exactly: a column of texts as text, any other as JSON (noted in the part's schema), so that a number
stays a number and a postcode keeps its zero.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PART_ROWS = 20_000
# A row that is one of several made of an input row has its number among them, from 1, above these bits of its `_rid`;
# the bits below are the number of the input row. 0: the row is whole.
INPUT_BITS = 36
MOST_PARTS = 2**16 - 1
PART_BYTES = 32 * 1024 * 1024
GROUP_ROWS = 1000
ROW = "_row"
# What a turn may carry beside its text: `tool_calls` is JSON, `weight` only where the source gave one.
MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("train", pa.bool_()),
            ("name", pa.string()),
            ("tool_calls", pa.string()),
            ("tool_call_id", pa.string()),
            ("weight", pa.float32()),
        ]
    )
)
EXAMPLES = pa.schema(
    [
        ("_rid", pa.int64()),
        ("_file", pa.string()),
        ("_row", pa.int64()),
        ("kind", pa.string()),
        ("messages", MESSAGES),
        ("text", pa.string()),
        # Where two answers were compared: the turns in which they differ. Else empty.
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("label", pa.string()),
        ("meta", pa.string()),
    ]
)


class RowWriter:
    """Writes rows of any columns as parts `rows-00000.parquet`… of one schema each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.columns = folder, 0, {}  # type: ignore[var-annotated]
        self._numbers: list[int] = []
        self._values: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._size = self._part = self._waiting = 0

    def add(self, row: int, values: dict[str, Any]) -> None:
        """The next row; `row` is its place in the source."""
        self._numbers.append(row)
        self._values.append(values)
        self.rows += 1
        self._size += sum(len(v) if isinstance(v, str) else 64 for v in values.values())
        if len(self._numbers) >= PART_ROWS or self._size >= PART_BYTES:
            self.flush()

    def add_table(self, numbers: Any, table: pa.Table) -> None:
        """Many rows at once, all of whose columns are texts; `numbers` are their places in the source."""
        fields = [pa.field(ROW, pa.int64())]
        fields += [pa.field(f"c_{name}", pa.string(), metadata={"kind": "text"}) for name in table.column_names]
        arrays = [pa.chunked_array([pa.array(numbers, pa.int64())]), *table.columns]
        self._tables.append(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))
        self.rows += table.num_rows
        self._waiting += table.num_rows
        self._size += table.nbytes
        for name in table.column_names:
            if not self.columns.get(name):
                self.columns[name] = kind_of(table.column(name).slice(0, 200).to_pylist())
        while self._waiting >= PART_ROWS or self._size >= PART_BYTES:
            whole = pa.concat_tables(self._tables)
            rest = whole.slice(PART_ROWS)
            self._write_texts(whole.slice(0, PART_ROWS))
            self._tables, self._waiting, self._size = [rest], rest.num_rows, rest.nbytes

    def _write_texts(self, table: pa.Table) -> None:
        """One part. Texts of people hardly repeat, so no dictionary is tried."""
        if table.num_rows:
            path = self.folder / f"rows-{self._part:05d}.parquet"
            pq.write_table(
                table, path, compression="zstd", compression_level=1, row_group_size=GROUP_ROWS, use_dictionary=False,
                write_statistics=False,
            )  # fmt: skip
            self._part += 1

    def flush(self) -> None:
        """Write what is waiting."""
        if self._tables:
            self._write_texts(pa.concat_tables(self._tables))
            self._tables, self._waiting, self._size = [], 0, 0
        if not self._numbers:
            return
        names = list(dict.fromkeys(name for values in self._values for name in values))
        fields = [pa.field(ROW, pa.int64())]
        arrays = [pa.array(self._numbers, pa.int64())]
        for name in names:
            cells = [values.get(name) for values in self._values]
            is_text = all(cell is None or isinstance(cell, str) for cell in cells)
            if not is_text:
                cells = [
                    None if cell is None else orjson.dumps(cell, option=orjson.OPT_PASSTHROUGH_SUBCLASS).decode()
                    for cell in cells
                ]
            fields.append(pa.field(f"c_{name}", pa.string(), metadata={"kind": "text" if is_text else "json"}))
            arrays.append(pa.array([_storable(cell) for cell in cells], pa.string()))
            self.columns[name] = kind_of(values.get(name) for values in self._values[:200]) or self.columns.get(
                name, ""
            )
        table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        path = self.folder / f"rows-{self._part:05d}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=3, row_group_size=GROUP_ROWS)
        self._part += 1
        self._numbers, self._values, self._size = [], [], 0


def part_of(rid: int) -> int:
    """Which of several rows made of one input row this is, from 1; 0 for a whole one."""
    return rid >> INPUT_BITS


def input_rid(rid: int) -> int:
    """The number of the input row that a row is, or was made of."""
    return rid & (2**INPUT_BITS - 1)


def _storable(cell: str | None) -> str | None:
    """Parquet takes no lone surrogates."""
    if cell is None or cell.isascii():
        return cell
    return cell.encode("utf-8", "replace").decode("utf-8")


def kind_of(cells: Any) -> str:
    """What a column holds, for people: Text, Number, List, Object, Yes or no; mixed columns count as text."""
    kinds = set()
    for cell in cells:
        if cell is None or cell == "":
            continue
        if isinstance(cell, bool):
            kinds.add("Yes or no")
        elif isinstance(cell, int | float):
            kinds.add("Number")
        elif isinstance(cell, list):
            kinds.add("List")
        elif isinstance(cell, dict):
            kinds.add("Object")
        else:
            kinds.add("Text")
    return kinds.pop() if len(kinds) == 1 else ("Text" if kinds else "")


class ExampleWriter:
    """Writes examples into one Parquet file, in row groups of 1,000."""

    def __init__(self, path: Path, schema: pa.Schema = EXAMPLES) -> None:
        self._schema, self._rows = schema, []  # type: ignore[var-annotated]
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3, store_schema=False)

    def add(self, row: dict[str, Any]) -> None:
        """The next row, with the names of the schema."""
        self._rows.append(row)
        if len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), row_group_size=GROUP_ROWS)
            self._rows = []

    def close(self) -> None:
        """Write the rest and the footer."""
        self._flush()
        self._writer.close()


def parts(folder: Path, prefix: str = "rows") -> list[Path]:
    """The parts in order."""
    return sorted(folder.glob(f"{prefix}*.parquet"))


@lru_cache(maxsize=512)
def _counts(path: Path, _modified_ns: int) -> tuple[int, ...]:
    """Rows of each row group."""
    meta = pq.read_metadata(path)
    return tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))


def _group_counts(path: Path) -> tuple[int, ...]:
    return _counts(path, path.stat().st_mtime_ns)


def count(paths: Sequence[Path]) -> int:
    """All rows."""
    return sum(sum(_group_counts(path)) for path in paths)


def decoded(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of one part with their own names; JSON cells become values again."""
    schema = table.schema
    if ROW not in schema.names or "kind" in schema.names:
        return table.to_pylist()
    readers: dict[str, Callable[[str], Any] | None] = {}
    for field in schema:
        is_json = (field.metadata or {}).get(b"kind") == b"json"
        readers[field.name] = orjson.loads if is_json else None
    rows = []
    for raw in table.to_pylist():
        row: dict[str, Any] = {ROW: raw.pop(ROW)}
        for name, cell in raw.items():
            if cell is not None:
                reader = readers[name]
                row[name[2:]] = reader(cell) if reader else cell
        rows.append(row)
    return rows


def page(paths: Sequence[Path], offset: int, limit: int) -> list[dict[str, Any]]:
    """Rows `offset` to `offset + limit`; only the row groups that hold them are read."""
    found: list[dict[str, Any]] = []
    start = 0
    for path in paths:
        source: pq.ParquetFile | None = None
        for group, rows in enumerate(_group_counts(path)):
            if start + rows > offset and len(found) < limit:
                source = source or pq.ParquetFile(path)
                table = source.read_row_group(group)
                first = max(0, offset - start)
                found += decoded(table.slice(first, limit - len(found)))
            start += rows
            if len(found) >= limit:
                return found
    return found


def iterate(paths: Sequence[Path], batch_rows: int = GROUP_ROWS) -> Iterator[list[dict[str, Any]]]:
    """All rows, in order, in batches."""
    for path in paths:
        source = pq.ParquetFile(path)
        for group in range(source.metadata.num_row_groups):
            table = source.read_row_group(group)
            for first in range(0, table.num_rows, batch_rows):
                yield decoded(table.slice(first, batch_rows))


def search(paths: Sequence[Path], term: str, offset: int, limit: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """((index, row) of the hits `offset` to `offset + limit`, number of all hits); capitals are ignored."""
    hits: list[tuple[int, dict[str, Any]]] = []
    total = start = 0
    for path in paths:
        source = pq.ParquetFile(path)
        for group in range(source.metadata.num_row_groups):
            table = source.read_row_group(group)
            mask = None
            for column in _text_columns(table):
                found = pc.fill_null(pc.match_substring(column, term, ignore_case=True), False)
                mask = found if mask is None else pc.or_(mask, found)
            indexes = pc.indices_nonzero(mask).to_pylist() if mask is not None else []
            wanted = [i for n, i in enumerate(indexes, total) if offset <= n < offset + limit]
            if wanted:
                hits += zip((start + i for i in wanted), decoded(table.take(wanted)), strict=True)
            total += len(indexes)
            start += table.num_rows
    return hits, total


def _text_columns(table: pa.Table) -> Iterator[pa.ChunkedArray | pa.Array]:
    for name in table.schema.names:
        column = table.column(name)
        if name in ("messages", "chosen", "rejected"):
            # One text a row: its turns joined.
            yield pa.array(
                ["\n".join(m["content"] or "" for m in turns or []) for turns in column.to_pylist()], pa.string()
            )
        elif pa.types.is_string(column.type) and not (name.startswith("_") or name == "kind"):
            yield column
