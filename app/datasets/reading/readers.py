"""One door to every format: records and problems in the order of the file, in bounded memory."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from app.datasets.findings import RAW_LIMIT_BYTES, Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading import epub, markdown, web_pages, word
from app.datasets.reading.archives import read_archive
from app.datasets.reading.blocks import records
from app.datasets.reading.chats import read_chat
from app.datasets.reading.columnar import read_arrow, read_parquet
from app.datasets.reading.context import Context
from app.datasets.reading.delimited import read_delimited
from app.datasets.reading.formats import sniff
from app.datasets.reading.json_records import read_json, read_json_lines
from app.datasets.reading.lines import Line, read_lines
from app.datasets.reading.pdf import read_pdf
from app.datasets.reading.sheets import read_sheets
from app.datasets.reading.sniffed import Sniffed

BLOCK_CHARACTERS = 2000


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


def read(
    path: Path, sniffed: Sniffed, options: ReadOptions, context: Context | None = None
) -> Iterator[Record | Problem]:
    """Every record of the file is yielded once, as a Record or as a Problem with `is_kept` false. Raises Refused."""
    if context is not None:
        yield from _read(path, sniffed, options, context)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield from _read(path, sniffed, options, Context(path.name, Path(scratch)))


def _read(path: Path, sniffed: Sniffed, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    sniffed = corrected(sniffed, options)
    document = context.name
    match sniffed.format:
        case "csv" | "tsv":
            yield from read_delimited(path, sniffed, options, context)
        case "jsonl":
            yield from _with_known_keys(read_json_lines(path, sniffed, options, context), options)
        case "json":
            yield from _with_known_keys(read_json(path, sniffed, options, context), options)
        case "parquet":
            yield from read_parquet(path, context)
        case "arrow":
            yield from read_arrow(path, context)
        case "sheets":
            yield from read_sheets(path, options, context)
        case "pdf":
            yield from read_pdf(path, context)
        case "docx":
            yield from records(document, word.blocks(path))
        case "epub":
            yield from records(document, epub.blocks(path, context))
        case "html":
            yield from records(document, web_pages.blocks_of_page(_whole_text(path, sniffed)))
        case "markdown":
            yield from _read_markdown(path, sniffed, options, context)
        case "chat":
            yield from read_chat(path, sniffed, options, context)
        case "zip":
            yield from read_archive(
                path, context, lambda member, name, inner: _read_member(member, name, inner, options)
            )
        case _:
            yield from _read_text(path, sniffed, options, context)


def _read_member(path: Path, name: str, context: Context, options: ReadOptions) -> Iterator[Record | Problem]:
    """A file of an archive: told by its own bytes; an archive inside is not opened."""
    sniffed = sniff(path, name)
    if sniffed.format == "zip" or sniffed.packing:
        yield Problem(1, "member.packed")
        return
    own = options.model_copy(update={"format": "", "encoding": "", "delimiter": "", "sheet": ""})
    yield from _read(path, sniffed, own, context)


def _whole_text(path: Path, sniffed: Sniffed) -> str:
    if path.stat().st_size > web_pages.PAGE_LIMIT_BYTES:
        raise Refused("This web page is over 16 MB. Save its text as TXT, then bring that.")
    return path.read_bytes()[sniffed.bom_bytes :].decode(sniffed.encoding, "replace")


def _good_lines(path: Path, sniffed: Sniffed, options: ReadOptions, context: Context) -> Iterator[Line | Problem]:
    """Lines that may be used; a problem for each that was damaged."""
    for line in read_lines(path, sniffed, context):
        if line.code:
            keep = line.code != "line.too_long" and options.wrong_encoding == "repair"
            yield Problem(line.number, line.code, line.raw[:RAW_LIMIT_BYTES], is_kept=keep)
            if not keep:
                continue
        yield line


def _read_markdown(path: Path, sniffed: Sniffed, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    problems: list[Problem] = []

    def lines() -> Iterator[tuple[int, str]]:
        for found in _good_lines(path, sniffed, options, context):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                yield found.number, found.text

    for record in records(context.name, markdown.blocks(lines())):
        yield from problems
        problems.clear()
        yield record
    yield from problems


def _read_text(path: Path, sniffed: Sniffed, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    """Plain text in units: a line, a paragraph, blocks of whole paragraphs (about 2,000 characters), everything."""
    parts: list[str] = []
    start, size = 1, 0
    for line in _good_lines(path, sniffed, options, context):
        if isinstance(line, Problem):
            yield line
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
