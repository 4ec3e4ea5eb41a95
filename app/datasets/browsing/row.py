"""One row with everything that is known about it: where it came from, what cleaning did to it, who changed it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.datasets import cleaning, ledger, tables
from app.datasets.browsing.sets import RowSet, read
from app.datasets.cleaning import STEPS, ChosenStep
from app.datasets.edits import RowEdit, row_keys
from app.datasets.findings import Refused
from app.datasets.mapping import apply
from app.datasets.plan import Plan, PlannedFile
from app.datasets.row_changes import overlaid
from app.datasets.tables import part_of

SHOWN_COPIES = 5


@dataclass(frozen=True)
class StepDone:
    """What a step did to the row: its codes, and each text before and after."""

    title: str
    codes: tuple[str, ...]
    texts: list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Where a row stands in its file. `values` are the columns as they were read; `findings` what was found there."""

    filename: str = ""
    file_id: str = ""
    record: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    findings: list[ledger.LedgerLine] = field(default_factory=list)
    is_there: bool = True


@dataclass(frozen=True)
class RowView:
    """A row; `example` with the edits in force, `prepared` without."""

    number: int
    total: int
    key: int
    prepared: dict[str, Any]
    example: dict[str, Any]
    edit: RowEdit | None = None

    @property
    def part(self) -> int:
        """Which part of a longer input row this is, from 1; 0 when it is whole."""
        return part_of(int(self.prepared["_rid"])) if self.key else int(_meta(self.prepared).get("part", 0))


def row_at(rows: RowSet, number: int, edit: RowEdit | None = None) -> RowView:
    """Row `number` (from 1)."""
    prepared = read(rows, [number - 1])[0]
    return RowView(number, rows.rows, key_of(prepared), prepared, overlaid(prepared, edit), edit)


def key_of(row: dict[str, Any]) -> int:
    """The key by which edits know the row; 0 in a frozen version."""
    if "_file" not in row:
        return 0
    return int(row_keys([row["_file"]], np.array([row["_row"]]))[0])


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(row["meta"]) if isinstance(row.get("meta"), str) and row["meta"] else {}
    return found


def source_of(row: dict[str, Any], plan: Plan) -> Source:
    """The row as it stands in its file. What is gone since (the file was read again) is said, not guessed."""
    meta = _meta(row)
    if "_file" in row:
        file = next((f for f in plan.files if f.file_id == row["_file"]), None)
        record = row["_row"]
    else:
        name = row.get("source") or meta.get("source", "")
        file = next((f for f in plan.files if f.filename == name), None)
        record = row.get("row") if row.get("row") is not None else meta.get("row", 0)
    if file is None:
        return Source(filename=meta.get("source", ""), record=record or 0, is_there=False)
    folder = Path(file.rows_dir)
    values = _record(folder, record) if folder.exists() else None
    findings = _findings(folder / "findings.parquet", record) if folder.exists() else []
    return Source(file.filename, file.file_id, record, values or {}, findings, values is not None)


def _record(folder: Path, record: int) -> dict[str, Any] | None:
    """The values of one record; only the row group that may hold it is read."""
    for path in tables.parts(folder):
        with pq.ParquetFile(path) as source:
            meta = source.metadata
            at = source.schema_arrow.names.index(tables.ROW)
            for group in range(meta.num_row_groups):
                bounds = meta.row_group(group).column(at).statistics
                if bounds is not None and not bounds.min <= record <= bounds.max:
                    continue
                table = source.read_row_group(group, use_threads=False)
                found = table.filter(pc.equal(table.column(tables.ROW), record)).slice(0, 1)
                if found.num_rows:
                    values = tables.decoded(found)[0]
                    values.pop(tables.ROW, None)
                    return values
    return None


def _findings(path: Path, record: int) -> list[ledger.LedgerLine]:
    if not path.exists():
        return []
    found = pq.read_table(path, filters=[("row", "=", record)]).slice(0, 20).to_pylist()
    return [
        ledger.LedgerLine(line["row"], line["raw"].decode("utf-8", "replace")[:500], line["code"], line["is_kept"])
        for line in found
    ]


def steps_on(source: Source, plan: Plan) -> list[StepDone]:
    """What each applied step that looks at one row alone did to it, recomputed from the source (steps are pure)."""
    file = next((f for f in plan.files if f.file_id == source.file_id), None)
    if file is None or not source.values:
        return []
    mapped = apply(source.values, file.mapping)
    if mapped.example is None:
        return []
    example, done = mapped.example, []
    for step in plan.steps:
        if STEPS[step.name].is_set or STEPS[step.name].version != step.version:
            continue
        outcome = _outcome(step, example)
        if outcome is None or outcome.example is None:
            break
        if outcome.codes:
            pairs = zip(cleaning.texts_of(example), cleaning.texts_of(outcome.example), strict=False)
            texts = [(a, b) for a, b in pairs if a != b]
            done.append(StepDone(STEPS[step.name].title, outcome.codes, texts))
        example = outcome.example
    return done


def _outcome(step: ChosenStep, example: dict[str, Any]) -> cleaning.Outcome | None:
    try:
        found = cleaning.run(step, [example])
    except Refused:  # the tokenizer it counts with is gone; its step says so
        return None
    return found[0] if found else None


@dataclass(frozen=True)
class Copy:
    """A row that was left out because this one stays; `score` is how alike they are, from 0 to 1."""

    text: str
    code: str
    score: float | None = None


def copies_of(rows: RowSet, rid: int, plan: Plan) -> tuple[list[Copy], int]:
    """(some of the rows that were left out as copies of this one, how many there are)."""
    found: list[Copy] = []
    total, rid = 0, tables.input_rid(rid)
    for path in rows.traces:
        with pq.ParquetFile(path) as trace:
            names = trace.schema_arrow.names
            if "of" not in names:
                return [], 0
            at = names.index("of")
            for group in range(trace.metadata.num_row_groups):
                bounds = trace.metadata.row_group(group).column(at).statistics
                if bounds is not None and (not bounds.has_min_max or not bounds.min <= rid <= bounds.max):
                    continue
                wanted = [n for n in ("_rid", "of", "codes", "score") if n in names]
                table = trace.read_row_group(group, columns=wanted, use_threads=False)
                for line in table.filter(pc.equal(table.column("of"), rid)).to_pylist():
                    total += 1
                    if len(found) < SHOWN_COPIES:
                        found.append(Copy(_text_of(plan, line["_rid"]), line.get("codes") or "", line.get("score")))
    return found, total


def _text_of(plan: Plan, rid: int) -> str:
    """The texts of an input row by its number in the whole plan."""
    start = 0
    for file in plan.files:
        if rid < start + file.rows:
            return _mapped_text(file, rid - start)
        start += file.rows
    return ""


def _mapped_text(file: PlannedFile, offset: int) -> str:
    folder = Path(file.rows_dir)
    values = tables.page(tables.parts(folder), offset, 1) if folder.exists() else []
    if not values:
        return ""
    values[0].pop(tables.ROW, None)
    mapped = apply(values[0], file.mapping)
    return "\n".join(cleaning.texts_of(mapped.example)) if mapped.example else ""
