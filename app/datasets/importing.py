"""Import of one received file: read it whole, keep its rows as Parquet, name everything that did not fit.

Runs in the limited child process (`child.py`). In: a file. Out: a folder with rows-*.parquet, findings.parquet and
report.json, which appears whole or not at all.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.detect import Detection, detect
from app.datasets.findings import RAW_LIMIT_BYTES, REASONS, Problem, Record, Refused
from app.datasets.options import ReadOptions
from app.datasets.reading.context import Context
from app.datasets.reading.delimited import COLUMN_LIMIT
from app.datasets.reading.fast import NotClean, may_be_clean, read_fast
from app.datasets.reading.formats import sniff
from app.datasets.reading.readers import corrected, read
from app.datasets.reading.sniffed import Sniffed
from app.datasets.reading.unpacking import inner_name, unpack
from app.datasets.shapes import ColumnShape, column_shapes
from app.datasets.tables import RowWriter
from app.datasets.threads import joined

Tell = Callable[[int, int], None]
FIRST_ROWS, SPREAD_ROWS = 200, 800
# Formats whose parsers a small hostile file can make work hard.
DOCUMENTS = frozenset({"pdf", "docx", "sheets", "epub", "html"})
LEDGER = pa.schema(
    [
        ("row", pa.int64()),
        ("code", pa.string()),
        ("note", pa.string()),
        ("raw", pa.binary()),
        ("is_kept", pa.bool_()),
        ("place", pa.string()),
    ]
)


class CodeCount(Contract):
    """All problems of one code in a file. `out` of them were set aside."""

    code: str
    count: int
    out: int
    first_row: int
    excerpt: str = ""
    note: str = ""
    place: str = ""


class ImportReport(Contract):
    """What was found in a file. `records` in the file = `rows` kept + `quarantined`."""

    sniffed: Sniffed
    rows: int
    quarantined: int
    columns: dict[str, str] = Field(default_factory=dict, description="name to kind")
    problems: list[CodeCount] = Field(default_factory=list)
    detections: list[Detection] = Field(default_factory=list)
    facts: dict[str, list[str]] = Field(default_factory=dict, description="to choose from: sheets, speakers")
    suggested_renames: dict[str, str] = Field(default_factory=dict)
    shapes: list[ColumnShape] = Field(default_factory=list, description="of at most 1,000 rows")


def import_file(
    source: Path,
    filename: str,
    out_dir: Path,
    options: ReadOptions,
    tell: Tell,
    password: str = "",
    confine: Callable[[str, int], None] = lambda kind, size_bytes: None,
) -> ImportReport:
    """Read `source` into `out_dir`. Raises Refused for what cannot be brought, and when not one row could be read.

    `tell(bytes read, bytes in all)` is called about every thousand rows, `confine(format, bytes)` before the first.
    """
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    # Left by an import that was killed.
    for old in out_dir.parent.glob(".tmp-*"):
        shutil.rmtree(old, ignore_errors=True)
    scratch = temporary / "scratch"
    scratch.mkdir(parents=True)
    try:
        context = Context(filename, scratch, password)
        source, sniffed = _opened(source, context)
        sniffed = corrected(sniffed, options)
        confine(sniffed.format, source.stat().st_size)
        context.total_bytes = source.stat().st_size
        report = _into(source, sniffed, temporary, options, context, tell)
        if not report.rows:
            raise Refused(_nothing_read(report), "file.no_rows")
        shutil.rmtree(scratch)
        (temporary / "report.json").write_bytes(orjson.dumps(report.model_dump(mode="json")))
        shutil.rmtree(out_dir, ignore_errors=True)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _opened(source: Path, context: Context) -> tuple[Path, Sniffed]:
    """The file, taken out of its packing, and what it is. Raises Refused for a packing inside a packing."""
    sniffed = sniff(source, context.name)
    if not sniffed.packing:
        return source, sniffed
    packing, context.name = sniffed.packing, inner_name(context.name)
    target = context.scratch / "unpacked"
    unpack(source, packing, target)
    sniffed = sniff(target, context.name)
    if sniffed.packing or sniffed.format == "zip":
        raise Refused("This is packed twice. Unpack it once, then bring what was inside.", "packed.twice")
    return target, sniffed.model_copy(update={"packing": packing})


def _nothing_read(report: ImportReport) -> str:
    if report.problems and report.problems[0].out:
        first = report.problems[0]
        reason = REASONS[first.code]
        place = first.place or f"line {first.first_row}"
        note = f" ({first.note})" if first.note else ""
        return (
            f"Not one row could be read from this file. The first problem, at {place}: "
            f"{reason.title[0].lower()}{reason.title[1:]}{note}. {reason.advice}"
        )
    return "There are no rows in this file, only column names or empty lines. Bring one with rows."


def _into(
    source: Path, sniffed: Sniffed, folder: Path, options: ReadOptions, context: Context, tell: Tell
) -> ImportReport:
    if may_be_clean(sniffed, options, context.total_bytes):
        try:
            return _into_fast(source, sniffed, folder, context, tell)
        except NotClean:
            context.done_bytes = 0
            for part in folder.glob("*.parquet"):
                part.unlink()
    writer, ledger = RowWriter(folder), _Ledger(folder / "findings.parquet")
    sample, pick, known = _Sample(), 0, set[str]()
    records = read(source, sniffed, options, context)
    for found in joined(records) if options.threads == "join" else records:
        if isinstance(found, Problem):
            ledger.add(found)
            continue
        if new := found.values.keys() - known:
            if len(known) + len(new) > COLUMN_LIMIT:
                ledger.add(
                    Problem(
                        found.row, "columns.too_many", repr(sorted(new))[:RAW_LIMIT_BYTES].encode("utf-8", "replace")
                    )
                )
                continue
            known |= new
        writer.add(found.row, found.values)
        sample.add(found)
        pick += 1
        if pick % 1000 == 0:
            tell(min(context.done_bytes, context.total_bytes), context.total_bytes)
    return _report(sniffed, writer, ledger, sample, context, tell)


def _into_fast(source: Path, sniffed: Sniffed, folder: Path, context: Context, tell: Tell) -> ImportReport:
    """Whole batches from reader to disk. Raises NotClean when the tolerant reader must have the file."""
    writer, ledger, sample = RowWriter(folder), _Ledger(folder / "findings.parquet"), _Sample()
    try:
        for numbers, table in read_fast(source, sniffed, context):
            writer.add_table(numbers, table)
            sample.add_table(numbers, table)
            tell(min(context.done_bytes, context.total_bytes), context.total_bytes)
    except NotClean:
        ledger.close()
        raise
    return _report(sniffed, writer, ledger, sample, context, tell)


def _report(
    sniffed: Sniffed, writer: RowWriter, ledger: "_Ledger", sample: "_Sample", context: Context, tell: Tell
) -> ImportReport:
    writer.flush()
    ledger.close()
    tell(context.total_bytes, context.total_bytes)
    rows = sample.rows()
    return ImportReport(
        sniffed=sniffed,
        rows=writer.rows,
        quarantined=ledger.out,
        columns=dict(list(writer.columns.items())[:COLUMN_LIMIT]),
        problems=ledger.counts(),
        detections=detect([(row, _meant(values)) for row, values in rows]),
        facts=context.facts,
        suggested_renames=ledger.renames,
        shapes=column_shapes([values for _row, values in rows], dict(list(writer.columns.items())[:60])),
    )


def _meant(values: dict[str, Any]) -> dict[str, Any]:
    """The columns that may be learned from: those that only say where a row comes from are left out."""
    hidden = {"source", "sheet"}
    if values.keys() >= {"document", "place", "heading", "text"}:
        hidden |= {"document", "place", "heading"}
    elif values.keys() >= {"messages", "speakers"}:
        hidden |= {"speakers", "began"}
    return {name: value for name, value in values.items() if name not in hidden}


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class _Sample:
    """The first 200 rows and 800 spread over the file (a reservoir with a fixed seed)."""

    def __init__(self) -> None:
        self._first: list[tuple[int, dict[str, Any]]] = []
        self._spread: list[tuple[int, dict[str, Any]]] = []
        self._seen = 0
        self._random = random.Random(7)
        self._draw = np.random.default_rng(7)

    def add(self, record: Record) -> None:
        if len(self._first) < FIRST_ROWS:
            self._first.append((record.row, record.values))
            return
        self._seen += 1
        if len(self._spread) < SPREAD_ROWS:
            self._spread.append((record.row, record.values))
        elif (place := self._random.randrange(self._seen)) < SPREAD_ROWS:
            self._spread[place] = (record.row, record.values)

    def add_table(self, numbers: np.ndarray, table: pa.Table) -> None:
        """Many rows at once; the same chances, drawn for the whole batch."""
        start = min(table.num_rows, FIRST_ROWS - len(self._first))
        for row, values in zip(numbers[:start], table.slice(0, start).to_pylist(), strict=True):
            self._first.append((int(row), _present(values)))
        rest = table.num_rows - start
        seen = self._seen + 1 + np.arange(rest)
        places = np.where(seen <= SPREAD_ROWS, seen - 1, (self._draw.random(rest) * seen).astype(np.int64))
        self._seen += rest
        chosen = np.flatnonzero(places < SPREAD_ROWS)
        for index, values in zip(chosen, table.take(chosen + start).to_pylist(), strict=True):
            item = (int(numbers[start + index]), _present(values))
            if places[index] < len(self._spread):
                self._spread[places[index]] = item
            else:
                self._spread.append(item)

    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        return self._first + sorted(self._spread, key=lambda item: item[0])


class _Ledger:
    """findings.parquet: one row for every problem; and the counts by code."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, LEDGER, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._count: Counter[str] = Counter()
        self._out: Counter[str] = Counter()
        self._first: dict[str, Problem] = {}
        self.renames: dict[str, str] = {}

    @property
    def out(self) -> int:
        return sum(self._out.values())

    def add(self, problem: Problem) -> None:
        self._count[problem.code] += 1
        self._out[problem.code] += not problem.is_kept
        self._first.setdefault(problem.code, problem)
        if problem.code == "key.unknown":
            self._note_rename(problem)
        self._rows.append(
            {
                "row": problem.row, "code": problem.code, "note": problem.note,
                "raw": problem.raw[:RAW_LIMIT_BYTES], "is_kept": problem.is_kept, "place": problem.place,
            }
        )  # fmt: skip
        if len(self._rows) >= 5000:
            self._flush()

    def _note_rename(self, problem: Problem) -> None:
        meant = problem.note.rsplit("looks like ", 1)[-1].strip("'\"")
        self.renames[problem.raw.decode("utf-8", "replace")] = meant

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=LEDGER))
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def counts(self) -> list[CodeCount]:
        found = []
        for code, number in self._count.most_common():
            first = self._first[code]
            excerpt = first.raw[:200].decode("utf-8", "replace")
            found.append(
                CodeCount(
                    code=code,
                    count=number,
                    out=self._out[code],
                    first_row=first.row,
                    excerpt=excerpt,
                    note=first.note,
                    place=first.place,
                )
            )
        return sorted(found, key=lambda c: -c.out)
