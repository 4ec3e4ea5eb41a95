"""One door to every format: records and problems in the order of the file, in bounded memory."""

import base64
import datetime
from collections import defaultdict
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading.delimited import read_delimited
from app.datasets.reading.formats import Sniffed
from app.datasets.reading.json_records import read_json, read_json_lines
from app.datasets.reading.lines import read_lines

BLOCK_CHARACTERS = 2000
BATCH_ROWS = 2000


# What Arrow raises on damaged files, damaged names and texts among them.
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


def corrected(sniffed: Sniffed, options: ReadOptions) -> Sniffed:
    """What was detected, with a person's corrections. A corrected encoding keeps no byte order mark."""
    changes: dict[str, Any] = {"has_header": options.has_header}
    if options.format:
        changes["format"] = options.format
    if options.encoding and options.encoding != sniffed.encoding:
        changes |= {"encoding": options.encoding, "bom_bytes": 0}
    if options.delimiter:
        changes["delimiter"] = options.delimiter
    return sniffed.model_copy(update=changes)


def read(path: Path, sniffed: Sniffed, options: ReadOptions) -> Iterator[Record | Problem]:
    """Every record of the file is yielded once, as a Record or as a Problem with `is_kept` false. Raises Refused."""
    sniffed = corrected(sniffed, options)
    match sniffed.format:
        case "csv" | "tsv":
            found = read_delimited(path, sniffed, options)
        case "jsonl":
            found = read_json_lines(path, sniffed, options)
        case "json":
            found = read_json(path, sniffed, options)
        case "parquet":
            found = _read_parquet(path)
        case "txt":
            found = _read_text(path, sniffed, options)
    return _with_known_keys(found, options) if sniffed.format in ("json", "jsonl") else found


def _read_parquet(path: Path) -> Iterator[Record | Problem]:
    try:
        source = pq.ParquetFile(path)
        names = source.schema_arrow.names
    except _DAMAGE as error:
        raise Refused("This Parquet file is damaged and cannot be opened. Export it again.") from error
    if len(set(names)) != len(names):
        raise Refused("Two columns of this Parquet file have the same name. Rename one, then bring it again.")
    row = 0
    batches = source.iter_batches(BATCH_ROWS)
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
                yield Record(row, {name: _plain(value) for name, value in values.items()})
            except (ValueError, RecursionError):
                yield Problem(row, "value.unreadable", repr(values)[:RAW_LIMIT_BYTES].encode())


def _plain(value: Any) -> Any:
    """Arrow's values as JSON has them: dates as ISO text, bytes as UTF-8 or base64, exact decimals as text."""
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    return str(value)


def _read_text(path: Path, sniffed: Sniffed, options: ReadOptions) -> Iterator[Record | Problem]:
    """Plain text in units: a line, a paragraph, blocks of whole paragraphs (about 2,000 characters), everything."""
    parts: list[str] = []
    start, size = 1, 0
    for line in read_lines(path, sniffed):
        if line.code:
            keep = line.code != "line.too_long" and options.wrong_encoding == "repair"
            yield Problem(line.number, line.code, line.raw[:RAW_LIMIT_BYTES], is_kept=keep)
            if not keep:
                continue
        is_blank = not line.text.strip()
        if parts and _is_unit_full(options.text_unit, size, is_blank):
            yield Record(start, {"text": "\n".join(parts).strip("\n")})
            parts, size = [], 0
        if not parts and is_blank:
            continue
        if not parts:
            start = line.number
        parts.append(line.text)
        size += len(line.text) + 1
    if parts:
        yield Record(start, {"text": "\n".join(parts).strip("\n")})


def _is_unit_full(unit: str, size: int, is_blank: bool) -> bool:
    """Blocks end at a blank line, or, in a text without any, at a line after twice their length."""
    if unit == "line" or (unit == "paragraph" and is_blank):
        return True
    if unit == "block":
        return size >= (BLOCK_CHARACTERS if is_blank else 2 * BLOCK_CHARACTERS)
    return size >= 32 * 1024 * 1024


def _with_known_keys(found: Iterator[Record | Problem], options: ReadOptions) -> Iterator[Record | Problem]:
    """Name rare keys that look like a common key missing in the same rows (`Prompt ` beside `prompt`)."""
    counts: dict[str, int] = defaultdict(int)
    rare: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)
    total = 0
    for item in found:
        if isinstance(item, Record):
            total += 1
            values = item.values
            if options.mistyped_columns == "map" and options.renamed:
                values = {_renamed(k, values, options.renamed): v for k, v in values.items()}
                item = Record(item.row, values)
            for key in values:
                counts[key] += 1
                if counts[key] <= 200 and len(rare) < 2000:
                    rare[key].append((item.row, frozenset(values)))
        yield item
    common = [key for key, count in counts.items() if count >= 0.5 * total]
    for key, rows in rare.items():
        if counts[key] >= 0.05 * total or counts[key] > 200:
            continue
        meant = look_alike(key, common)
        for row, keys in rows:
            if meant and meant not in keys:
                yield Problem(row, "key.unknown", key.encode()[:200], f"{key!r} looks like {meant!r}", is_kept=True)


def look_alike(key: str, common: list[str]) -> str:
    """The common column that `key` seems to mean, or an empty text."""
    folded = {"".join(c.split()).casefold(): c for c in common}
    exact = folded.get("".join(key.split()).casefold())
    close = get_close_matches(key.casefold(), folded, n=1, cutoff=0.8)
    return exact or (folded[close[0]] if close else "")


def _renamed(key: str, values: dict[str, Any], renamed: dict[str, str]) -> str:
    meant = renamed.get(key, key)
    return key if meant in values else meant
