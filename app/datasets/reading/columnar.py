"""Parquet and Arrow IPC (Feather): batches of rows, with values as JSON has them."""

import base64
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record, Refused
from app.datasets.reading.context import Context

BATCH_ROWS = 2000
# What Arrow raises on damaged files, damaged names and texts among them.
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


def read_parquet(path: Path, context: Context) -> Iterator[Record | Problem]:
    """Rows of a Parquet file. Raises Refused when it cannot be opened."""
    try:
        source = pq.ParquetFile(path)
        names = source.schema_arrow.names
        total = source.metadata.num_rows
    except _DAMAGE as error:
        raise Refused("This Parquet file is damaged and cannot be opened. Export it again.") from error
    yield from _rows(source.iter_batches(BATCH_ROWS), names, total, context)


def read_arrow(path: Path, context: Context) -> Iterator[Record | Problem]:
    """Rows of an Arrow file, stream or Feather file. Raises Refused when it cannot be opened."""
    try:
        source = pa.memory_map(str(path))
        try:
            reader = ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            reader = ipc.open_stream(source)
            batches = iter(reader)
        names = reader.schema.names
    except _DAMAGE as error:
        raise Refused("This Arrow file is damaged and cannot be opened. Export it again.") from error
    yield from _rows(_small(batches), names, 0, context)


def _small(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Checked batches of at most 2,000 rows: offsets of a foreign file are not to be trusted."""
    for batch in batches:
        batch.validate(full=True)
        for first in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(first, BATCH_ROWS)


def _rows(
    batches: Iterator[pa.RecordBatch], names: list[str], total: int, context: Context
) -> Iterator[Record | Problem]:
    if len(set(names)) != len(names):
        raise Refused("Two columns of this file have the same name. Rename one, then bring it again.")
    row = 0
    while True:
        try:
            batch = next(batches, None)
            rows = batch.to_pylist() if batch is not None else []
        except _DAMAGE:
            yield Problem(row + 1, "value.unreadable", note="the file is damaged from here on")
            return
        if batch is None:
            return
        for values in rows:
            row += 1
            try:
                yield Record(row, {name: plain(value) for name, value in values.items()})
            except (ValueError, RecursionError):
                yield Problem(row, "value.unreadable", repr(values)[:RAW_LIMIT_BYTES].encode("utf-8", "replace"))
        if total:
            context.done_bytes = context.total_bytes * min(row, total) // total


def plain(value: Any) -> Any:
    """Arrow's values as JSON has them: dates as ISO text, bytes as UTF-8 or base64, exact decimals as text."""
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    return str(value)
