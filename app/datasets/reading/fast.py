"""The fast path: CSV and flat JSONL by Arrow's own readers, only for files that prove clean.

Whatever the tolerant readers would name (a damaged byte, a short row, an empty line, a mistyped key) ends it with
`NotClean`, and the file is read again from its start. Both give the same rows with the same line numbers.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from app.datasets.options import ReadOptions
from app.datasets.reading.context import Context
from app.datasets.reading.delimited import (
    COLUMN_LIMIT,
    HEADER_LOOK_LINES,
    RECORD_LIMIT_LINES,
    clean_name,
    ends_open,
    looks_like_row,
    numbered,
    repeats,
)
from app.datasets.reading.lines import read_lines
from app.datasets.reading.sniffed import Sniffed

FROM_BYTES = 1 << 20
BLOCK_BYTES, COUNTED_BYTES = 4 << 20, 256 << 10
HEAD_LINES = 2000
RARE_SHARE = 0.05
Batch = tuple[np.ndarray, pa.Table]


class NotClean(Exception):
    """The tolerant reader must have this file."""


def may_be_clean(sniffed: Sniffed, options: ReadOptions, size_bytes: int) -> bool:
    """Whether the fast path is worth a try."""
    is_plain = sniffed.encoding == "utf-8" and not sniffed.is_old_mac and options.threads == "keep"
    return is_plain and sniffed.format in ("csv", "tsv", "jsonl") and size_bytes >= FROM_BYTES


def read_fast(path: Path, sniffed: Sniffed, context: Context) -> Iterator[Batch]:
    """(line of each row, columns of text) in the order of the file. Raises NotClean, also after the last batch."""
    try:
        yield from _json_lines(path, sniffed, context) if sniffed.format == "jsonl" else _csv(path, sniffed, context)
    except (pa.ArrowException, ValueError, csv.Error) as error:
        raise NotClean(str(error)[:200]) from error


class _Counted:
    """Looks over the bytes of the file beside Arrow, and counts the line ends that were passed.

    One small buffer is used again and again: it stays in the processor's cache.
    """

    def __init__(self, path: Path, sniffed: Sniffed, context: Context, seam: bytes) -> None:
        self._stream = path.open("rb", buffering=0)
        self._stream.seek(sniffed.bom_bytes)
        self._context, self._seam = context, seam
        self._buffer = bytearray(COUNTED_BYTES)
        self.feeds = self.returns = self.pairs = self.seams = 0
        self.is_plain = True
        self._last = b""

    def go_on(self, count: int) -> None:
        """Look over about `count` further bytes."""
        while count > 0 and (size := self._stream.readinto(self._buffer)):
            count -= size
            self._look(self._buffer if size == len(self._buffer) else self._buffer[:size])

    def finish(self) -> None:
        """Look over the rest."""
        self.go_on(1 << 62)
        self._stream.close()

    def _look(self, data: bytearray) -> None:
        if self._seam:
            self._look_at_ends(np.frombuffer(data, np.uint8))
            edge = self._last[1 - len(self._seam) :] + data[: len(self._seam) - 1]
            self.seams += edge.count(self._seam)
        else:
            self.feeds += data.count(b"\n")
        if self._seam and self.is_plain:
            # Only other bytes and escapes can become text that is no UTF-8.
            self.is_plain = data.isascii() and b"\\" not in data
        if self._last[-1:] == b"\r" or b"\r" in data:
            self.returns += data.count(b"\r")
            self.pairs += data.count(b"\r\n") + (self._last[-1:] == b"\r" and data[:1] == b"\n")
        self._last = bytes((self._last + data)[-8:] if len(data) < 8 else data[-8:])
        self._context.done_bytes += len(data)

    def _look_at_ends(self, data: np.ndarray) -> None:
        """Count line ends, and seams around them: sooner than looking for the seam everywhere."""
        ends = np.flatnonzero(data == ord("\n"))
        self.feeds += len(ends)
        reach = len(self._seam) - 2
        inner = ends[(ends >= reach) & (ends < len(data) - 1)]
        is_seam = (data[inner - reach] == ord("}")) & (data[inner + 1] == ord("{"))
        if reach > 1:
            is_seam &= data[inner - 1] == ord("\r")
        self.seams += int(np.count_nonzero(is_seam))

    @property
    def lines(self) -> int:
        """Lines so far; the last one may have no end."""
        return self.feeds + bool(self._last and self._last[-1:] != b"\n")


def _head(path: Path, sniffed: Sniffed) -> list[str]:
    lines = []
    for line in read_lines(path, sniffed):
        if line.code:
            raise NotClean(line.code)
        lines.append(line.text)
        if len(lines) >= HEAD_LINES:
            break
    return lines


def _repeated(head: list[str], first: list[str], delimiter: str) -> bool:
    """Whether one of the next lines has a value of the first in the same column: the tolerant reader says so."""
    lines = head[1 : HEADER_LOOK_LINES + 1]
    return any(repeats(next(csv.reader([line], delimiter=delimiter), []), first) for line in lines)


def _csv(path: Path, sniffed: Sniffed, context: Context) -> Iterator[Batch]:
    head = _head(path, sniffed)
    first = next(csv.reader(head[:1], delimiter=sniffed.delimiter), [])
    if not head[0].strip() or len(first) > COLUMN_LIMIT or ends_open(head[0], sniffed.delimiter, False):
        raise NotClean("header")
    names = [clean_name(cell) for cell in first] if sniffed.has_header else [""] * len(first)
    if sniffed.has_header and numbered(names) != names:
        raise NotClean("header")
    if sniffed.has_header and (looks_like_row(first) or _repeated(head, first, sniffed.delimiter)):
        raise NotClean("header")
    names = numbered(names)
    is_broken = any(ends_open(line, sniffed.delimiter, False) for line in head)
    source = _Counted(path, sniffed, context, b"")
    reader = pa_csv.open_csv(
        pa.OSFile(str(path)),
        read_options=pa_csv.ReadOptions(
            block_size=BLOCK_BYTES, column_names=names, skip_rows=int(sniffed.has_header), encoding="utf8"
        ),
        parse_options=pa_csv.ParseOptions(delimiter=sniffed.delimiter, newlines_in_values=is_broken),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
        ),
    )
    line = 1 + int(sniffed.has_header)
    inside = 0
    for batch in reader:
        source.go_on(BLOCK_BYTES)
        table = pa.Table.from_batches([batch])
        if not table.num_rows:
            continue
        numbers = np.arange(line, line + table.num_rows, dtype=np.int64)
        if is_broken:
            breaks = _breaks(table)
            if breaks.max() >= RECORD_LIMIT_LINES - 1:
                raise NotClean("quote.unclosed")
            numbers[1:] += np.cumsum(breaks)[:-1]
            inside += int(breaks.sum())
            line = int(numbers[-1] + breaks[-1]) + 1
        else:
            line += table.num_rows
        if (len(names) == 1 or not sniffed.delimiter.strip()) and _has_blank(table):
            raise NotClean("line.empty")
        yield numbers, table
    source.finish()
    if source.returns != source.pairs or (inside and source.pairs) or line - 1 != source.lines:
        raise NotClean("lines")


def _breaks(table: pa.Table) -> np.ndarray:
    """Line ends inside the cells of each row."""
    total = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        total += pc.count_substring(column, "\n").to_numpy(zero_copy_only=False)
    return total


def _has_blank(table: pa.Table) -> bool:
    """Whether a row holds nothing but blanks (the tolerant reader calls it an empty line)."""
    table = table.filter(pc.equal(pc.utf8_trim_whitespace(table.column(0)), ""))
    rows: list[dict[str, Any]] = table.to_pylist()
    return any(not "".join(row.values()).strip() for row in rows)


def _json_lines(path: Path, sniffed: Sniffed, context: Context) -> Iterator[Batch]:
    """Objects with texts only: any other value would be guessed at."""
    names: dict[str, None] = {}
    head = _head(path, sniffed)
    for text in head:
        values = orjson.loads(text)
        if not isinstance(values, dict) or not all(v is None or isinstance(v, str) for v in values.values()):
            raise NotClean("values")
        names.update(dict.fromkeys(values))
    if not 0 < len(names) <= COLUMN_LIMIT:
        raise NotClean("columns")
    is_pair = path.open("rb").readline().endswith(b"\r\n")
    source = _Counted(path, sniffed, context, b"}\r\n{" if is_pair else b"}\n{")
    schema = pa.schema([(name, pa.string()) for name in names])
    reader = pa_json.open_json(
        pa.OSFile(str(path)),
        read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pa_json.ParseOptions(
            explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="error"
        ),
    )
    line = 1
    # Always ahead of the batch, which may reach into the block behind its own.
    source.go_on(2 * BLOCK_BYTES)
    filled = dict.fromkeys(names, 0)
    for batch in reader:
        source.go_on(BLOCK_BYTES)
        if not source.is_plain:
            batch.validate(full=True)
        table = pa.Table.from_batches([batch]).select(list(names))
        for name in names:
            filled[name] += table.num_rows - table.column(name).null_count
        yield np.arange(line, line + table.num_rows, dtype=np.int64), table
        line += table.num_rows
    source.finish()
    rows = line - 1
    if source.seams != rows - 1 or source.lines != rows:
        raise NotClean("lines")
    if any(count < RARE_SHARE * rows for count in filled.values()):
        raise NotClean("key.unknown")
