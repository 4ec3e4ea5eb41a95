"""CSV and TSV, tolerant: every record is read or named, and an open quote never swallows the rest of the file."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record
from app.datasets.options import ReadOptions
from app.datasets.reading.context import Context
from app.datasets.reading.lines import Line, read_lines
from app.datasets.reading.sniffed import Sniffed

RECORD_LIMIT_LINES = 500
COLUMN_LIMIT = 512
HEADER_LOOK_LINES = 200
_RETURN = "\ue00d"
csv.field_size_limit(64 * 1024 * 1024)


def read_delimited(
    path: Path, sniffed: Sniffed, options: ReadOptions, context: Context | None = None
) -> Iterator[Record | Problem]:
    """Records with text values only (a postcode keeps its zero); a problem for each record that does not fit."""
    header: list[str] = []
    first: tuple[Line, list[str]] | None = None
    for found in _assembled(read_lines(path, sniffed, context), sniffed.delimiter, options):
        if isinstance(found, Problem):
            yield found
            continue
        line, cells = found
        if not header:
            header = [clean_name(cell) for cell in cells] if sniffed.has_header else []
            header = header or [f"column {i}" for i in range(1, len(cells) + 1)]
            if len(header) > COLUMN_LIMIT:
                yield Problem(line.number, "columns.too_many", line.raw[:RAW_LIMIT_BYTES])
                header = header[:COLUMN_LIMIT]
            named = numbered(header)
            if named != header and sniffed.has_header:
                yield Problem(line.number, "header.doubled", line.raw[:RAW_LIMIT_BYTES], is_kept=True)
            header = named
            if sniffed.has_header:
                first = (line, cells)
                if looks_like_row(cells):
                    yield _header_is_row(line)
                    first = None
                continue
        if first and line.number <= first[0].number + HEADER_LOOK_LINES and repeats(cells, first[1]):
            yield _header_is_row(first[0])
            first = None
        yield from _fitted(line, cells, header, sniffed.delimiter, options)


_SENTENCE = re.compile(r"\S+\s+\S+\s+\S+.*[.?!]$", re.DOTALL)
_VALUE = re.compile(r"[-+]?\d[\d.,:/ -]*|\S+@\S+\.\S+|https?://\S+")


def looks_like_row(cells: list[str]) -> bool:
    """Whether a first line is hardly one of column names: a sentence, a number, a date, an address or a long text."""
    texts = [cell.strip() for cell in cells]
    return any(len(text) > 80 or _SENTENCE.match(text) or _VALUE.fullmatch(text) for text in texts if text)


def repeats(cells: list[str], first: list[str]) -> bool:
    """Whether a row has a value of the first line in the same column, without being the same line again."""
    return cells != first and any(a.strip() and a == b for a, b in zip(cells, first, strict=False))


def _header_is_row(line: Line) -> Problem:
    return Problem(line.number, "header.is_row", line.raw[:RAW_LIMIT_BYTES], is_kept=True)


def clean_name(name: str) -> str:
    """A column name in one line of at most 200 characters."""
    return " ".join(name.split()).lstrip("\ufeff")[:200]


def numbered(header: list[str]) -> list[str]:
    """Column names made whole and unique."""
    seen: set[str] = set()
    named = []
    for index, name in enumerate(header, 1):
        base = candidate = name or f"column {index}"
        number = 2
        while candidate in seen:
            candidate, number = f"{base} {number}", number + 1
        seen.add(candidate)
        named.append(candidate)
    return named


def _fitted(
    line: Line, cells: list[str], header: list[str], delimiter: str, options: ReadOptions
) -> Iterator[Record | Problem]:
    raw = line.raw[:RAW_LIMIT_BYTES]
    keep = True
    problems: list[tuple[str, str]] = []
    if line.code:
        problems.append((line.code, ""))
        keep = options.wrong_encoding == "repair"
    if len(cells) < len(header):
        problems.append(("row.short", f"{len(cells)} cells, {len(header)} columns"))
        keep = keep and options.short_rows == "pad"
        cells = cells + [""] * (len(header) - len(cells))
    elif len(cells) > len(header):
        problems.append(("row.long", f"{len(cells)} cells, {len(header)} columns"))
        keep = keep and options.long_rows != "skip"
        if options.long_rows == "join":
            last = len(header) - 1
            cells = [*cells[:last], delimiter.join(cells[last:])]
    # A record is set aside once, under its last problem; earlier ones are notes.
    for index, (code, note) in enumerate(problems):
        yield Problem(line.number, code, raw, note, is_kept=keep or index < len(problems) - 1)
    if keep:
        yield Record(line.number, dict(zip(header, cells, strict=False)))


def _assembled(
    lines: Iterator[Line], delimiter: str, options: ReadOptions
) -> Iterator[tuple[Line, list[str]] | Problem]:
    """Physical lines joined to records. A record that stays open for 500 lines is taken apart again."""
    pending: list[Line] = []
    waiting = iter(())
    source: Iterator[Line] = chain(waiting, lines)
    is_open = False
    while True:
        line = next(source, None)
        if line is not None:
            if line.code == "line.too_long":
                yield Problem(line.number, line.code, line.raw)
                continue
            if not pending and not line.text.strip():
                yield Problem(line.number, "line.empty", is_kept=True)
                continue
            is_open = ends_open(line.text, delimiter, is_open)
            pending.append(line)
            if is_open and len(pending) < RECORD_LIMIT_LINES:
                continue
        if not pending:
            return
        if not is_open:
            yield _record(pending, delimiter)
        else:
            first, *rest = pending
            if options.open_quotes == "repair":
                yield first, first.text.split(delimiter)
            else:
                yield Problem(first.number, "quote.unclosed", first.raw[:RAW_LIMIT_BYTES])
            source = chain(rest, source if line is not None else ())
        pending, is_open = [], False


def _record(pending: list[Line], delimiter: str) -> tuple[Line, list[str]]:
    text = "\n".join(line.text for line in pending)
    # Only line feeds part lines here; a lone carriage return inside a cell would stop the csv module.
    lines = [f"{part}\n" for part in text.replace("\r", _RETURN).split("\n")]
    cells = [cell.replace(_RETURN, "\n") for cell in next(csv.reader(lines, delimiter=delimiter), [])]
    if len(pending) == 1:
        return pending[0], cells
    code = next((line.code for line in pending if line.code), "")
    return Line(pending[0].number, text, b"\n".join(line.raw for line in pending), code), cells


def ends_open(text: str, delimiter: str, is_open: bool) -> bool:
    """Whether a quoted cell is still open at the end of the line (rules of the csv module, not strict)."""
    if '"' not in text:
        return is_open
    at_start = not is_open
    index, length = 0, len(text)
    while index < length:
        if is_open:
            index = text.find('"', index)
            if index < 0:
                return True
            if text[index + 1 : index + 2] == '"':
                index += 2
                continue
            is_open, at_start = False, False
            index += 1
        elif at_start and text[index] == '"':
            is_open, at_start = True, False
            index += 1
        else:
            index = text.find(delimiter, index)
            if index < 0:
                return False
            at_start = True
            index += 1
    return is_open
