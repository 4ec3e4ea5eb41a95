"""Spreadsheets (XLSX, XLS, XLSB, ODS): the rows of one sheet or of all, under the names of the first row."""

import datetime
import html
import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.datasets.findings import Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading.context import Context
from app.datasets.reading.delimited import COLUMN_LIMIT, clean_name, numbered
from app.datasets.reading.old_sheets import DAMAGED, look_over
from app.datasets.reading.packages import BROKEN, member_bytes, open_package, refuse_entities

LOCKED = (
    "This spreadsheet is locked with a password. Open it in your office program, save it without one, then bring it "
    "again."
)
# A cell of XLSX with a formula and no stored result, as programs write that do not calculate.
_UNCOUNTED = re.compile(
    rb'<c\s[^<>]{0,99}?r="([A-Z]{1,3}\d{1,7})"[^<>]{0,99}>\s*<f\b[^<>]{0,999}(?:/>|>[^<]{0,9999}</f>)\s*(?:<v\s*/>|<v></v>)?\s*</c>'
)
_CHUNK, _CELL_BYTES, _BOOK_BYTES = 1 << 20, 1 << 16, 4 << 20
_ERRORS = ("#REF!", "#N/A", "#DIV/0!", "#VALUE!", "#NAME?", "#NULL!", "#NUM!")


def read_sheets(path: Path, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    """Records of the sheet that was chosen, else of every sheet with the column `sheet`. Raises Refused."""
    try:
        yield from _read(path, options, context)
    except BaseException as error:
        # A damaged file may stop the Rust reader by a panic, which is no Exception.
        if type(error).__name__ == "PanicException":
            raise Refused(DAMAGED) from error
        raise


def _read(path: Path, options: ReadOptions, context: Context) -> Iterator[Record | Problem]:
    if zipfile.is_zipfile(path):
        with open_package(path) as archive:
            refuse_entities(archive)
            yield from _without_results(archive)
    else:
        look_over(path)
    import python_calamine as calamine

    try:
        book = calamine.CalamineWorkbook.from_path(str(path))
        names = book.sheet_names
    except calamine.PasswordError as error:
        raise Refused(LOCKED, "file.password") from error
    except (calamine.CalamineError, ValueError, OSError) as error:
        raise Refused(DAMAGED) from error
    context.facts["sheets"] = names[:200]
    if options.sheet and options.sheet not in names:
        raise Refused(f"This file has no sheet “{options.sheet}”. Choose one of its sheets.")
    wanted = [options.sheet] if options.sheet else names
    number = 0
    for index, name in enumerate(wanted, 1):
        try:
            sheet = book.get_sheet_by_name(name)
            rows = sheet.iter_rows()
            start = (sheet.start or (0, 0))[0]
        except (calamine.CalamineError, ValueError, OSError):
            yield Problem(number + 1, "value.unreadable", note="this sheet is damaged", place=f"sheet {name}")
            continue
        kept = 0
        for found in _rows(rows, start, name, number, options, is_named=len(wanted) > 1):
            kept += isinstance(found, Record)
            number = max(number, found.row)
            yield found
        if not kept:
            yield Problem(number + 1, "sheet.empty", is_kept=True, place=f"sheet {name}")
        context.done_bytes = context.total_bytes * index // len(wanted)


def _without_results(archive: zipfile.ZipFile) -> Iterator[Problem]:
    """One finding for each worksheet with formulas that have no stored result: they are read as empty cells."""
    titles = _titles(archive)
    for member in archive.infolist():
        if not re.fullmatch(r"xl/worksheets/[^/]+\.xml", member.filename):
            continue
        cells: list[str] = []
        count, rest = 0, b""
        try:
            with archive.open(member) as stream:
                while chunk := stream.read(_CHUNK):
                    whole, mark, rest = (rest + chunk).rpartition(b"</c>")
                    found = _UNCOUNTED.findall(whole + mark)
                    cells += [name.decode() for name in found[: 5 - len(cells)]]
                    count += len(found)
                    rest = rest[-_CELL_BYTES:]
        except BROKEN:
            continue  # the reader says it better
        if count:
            row = int(re.sub(r"\D", "", cells[0]))
            note = f"{count:,}: {', '.join(cells)}" + (" …" if count > len(cells) else "")
            sheet = titles.get(member.filename) or member.filename.rpartition("/")[2]
            yield Problem(row, "cell.formula", note=note, is_kept=True, place=f"sheet {sheet}, row {row}")


def _titles(archive: zipfile.ZipFile) -> dict[str, str]:
    """The names of the sheets, as a person knows them, by the part of the file that holds each."""
    try:
        book = member_bytes(archive, "xl/workbook.xml", _BOOK_BYTES).decode("utf-8", "replace")
        links = member_bytes(archive, "xl/_rels/workbook.xml.rels", _BOOK_BYTES).decode("utf-8", "replace")
    except Refused:
        return {}  # the reader says it better
    targets = {
        link.get("Id"): posixpath.join("/xl", link.get("Target", ""))[1:] for link in _tags(links, "Relationship")
    }
    titles = {}
    for sheet in _tags(book, "sheet"):
        number = next((value for name, value in sheet.items() if name.endswith(":id")), None)
        titles[targets.get(number, "")] = sheet.get("name", "")[:200]
    return titles


def _tags(text: str, name: str) -> Iterator[dict[str, str]]:
    """The attributes of every tag of this name."""
    for found in re.finditer(rf"<(?:\w+:)?{name}\s([^<>]{{1,4000}})>", text):
        pairs = re.findall(r"""([\w:.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""", found.group(1))
        yield {key: html.unescape(double or single) for key, double, single in pairs}


def _rows(
    rows: Iterator[list[Any]], start: int, sheet: str, before: int, options: ReadOptions, *, is_named: bool
) -> Iterator[Record | Problem]:
    header: list[str] = []
    for line, raw in enumerate(rows, start + 1):
        row, place = before + line, f"sheet {sheet}, row {line}"
        cells = [_plain(cell) for cell in raw]
        if not any(cell not in (None, "") for cell in cells):
            continue
        if not header:
            names = [clean_name(str(cell or "")) for cell in cells] if options.has_header else [""] * len(cells)
            while names and not names[-1] and options.has_header:
                names.pop()
            header = numbered(names[:COLUMN_LIMIT])
            if len(names) > COLUMN_LIMIT:
                yield Problem(row, "columns.too_many", place=place)
            if options.has_header:
                continue
        errors = [cell for cell in cells if cell in _ERRORS]
        if errors:
            yield Problem(row, "cell.error", note=", ".join(errors[:5]), is_kept=True, place=place)
            cells = [None if cell in _ERRORS else cell for cell in cells]
        over = [cell for cell in cells[len(header) :] if cell not in (None, "")]
        if over:
            yield Problem(row, "row.long", repr(over).encode()[:4096], is_kept=options.long_rows != "skip", place=place)
            if options.long_rows == "skip":
                continue
            if options.long_rows == "join":
                cells[len(header) - 1] = " ".join(str(c) for c in [cells[len(header) - 1], *over] if c is not None)
        values = dict(zip(header, cells, strict=False))
        yield Record(row, {"sheet": sheet, **values} if is_named and "sheet" not in values else values, place)


def _plain(cell: Any) -> Any:
    """Whole numbers without a comma, dates as ISO text, everything else as the sheet has it."""
    if isinstance(cell, bool) or cell is None or isinstance(cell, str | int):
        return cell
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() and abs(cell) < 2**53 else cell if cell - cell == 0 else None
    if isinstance(cell, datetime.datetime):
        midnight = cell.time() == datetime.time()
        return cell.date().isoformat() if midnight else cell.isoformat(" ")
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell)
