"""Mapped and cleaned rows from source files: the working set that a person looks at before freezing.

Every input row ends as kept, out (with step and code) or unmapped (with code), and the trace says which.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import Field

from app.contracts.base import Contract
from app.datasets.cleaning import STEPS, ChosenStep, Example, Outcome, in_order, run, texts_of
from app.datasets.edits import EditLayer, apply_edits, row_keys
from app.datasets.mapping import Mapping, apply
from app.datasets.options import ReadOptions
from app.datasets.splitting import SplitSettings
from app.datasets.statistics import Counting, Statistics
from app.datasets.tables import ExampleWriter, iterate, parts

Tell = Callable[[int, int], None]
SHOWN_EXAMPLES = 50
EXCERPT_CHARACTERS = 400
TRACE = pa.schema(
    [
        ("_rid", pa.int64()),
        ("status", pa.string()),
        ("step", pa.string()),
        ("codes", pa.string()),
        ("changed", pa.uint32()),
        ("of", pa.int64()),
    ]
)


class PlannedFile(Contract):
    """A source file in a plan. `file_id` and `rows_dir` are where it lies; the rest is what it is."""

    file_id: str
    filename: str
    sha256: str
    rows: int
    rows_dir: str
    mapping: Mapping
    options: ReadOptions = Field(default_factory=ReadOptions)


class PlannedEdits(Contract):
    """Changes by hand (`edits.EditLayer`): where the file lies, and what it is."""

    path: str
    sha256: str


class Plan(Contract):
    """Everything that makes a version again."""

    files: list[PlannedFile] = Field(default_factory=list)
    steps: list[ChosenStep] = Field(default_factory=list)
    split: SplitSettings = Field(default_factory=SplitSettings)
    edits: PlannedEdits | None = None


class Shown(Contract):
    """One row that a step touched: the text around the first difference, before and after."""

    rid: int
    code: str
    before: str
    after: str | None = None
    of: int | None = None
    twin: str = ""


class StepReport(Contract):
    """What a step did, or would do if it was applied now. `examples` is a seeded sample of at most 50."""

    name: str
    is_applied: bool
    changed: int = 0
    removed: int = 0
    codes: dict[str, int] = Field(default_factory=dict)
    examples: list[Shown] = Field(default_factory=list)


class PrepareReport(Contract):
    """`rows_in` = `rows` kept + `out` + the sum of `unmapped` rows."""

    rows_in: int
    rows: int
    out: int
    unmapped: int
    mapping_codes: dict[str, int] = Field(default_factory=dict)
    steps: list[StepReport] = Field(default_factory=list)
    statistics: Statistics


class _Watched:
    """A step with its counts and a sample of what it touched."""

    def __init__(self, chosen: ChosenStep, is_applied: bool) -> None:
        self.name, self.is_applied, self._chosen = chosen.name, is_applied, chosen
        self.bit = STEPS[chosen.name].bit
        self._codes: Counter[str] = Counter()
        self._changed = self._removed = self._touched = 0
        self._shown: list[Shown] = []
        self._random = random.Random(chosen.name)

    def run(self, rids: list[int], examples: list[Example]) -> list[Outcome]:
        outcomes = run(self._chosen, examples, rids)
        for rid, example, outcome in zip(rids, examples, outcomes, strict=True):
            if outcome.codes:
                self._codes.update(outcome.codes)
                self._removed += outcome.example is None
                self._changed += outcome.example is not None
                self._sample(rid, example, outcome)
        return outcomes

    def _sample(self, rid: int, example: Example, outcome: Outcome) -> None:
        self._touched += 1
        if len(self._shown) < SHOWN_EXAMPLES:
            self._shown.append(_shown(rid, example, outcome))
        elif (place := self._random.randrange(self._touched)) < SHOWN_EXAMPLES:
            self._shown[place] = _shown(rid, example, outcome)

    def report(self) -> StepReport:
        return StepReport(
            name=self.name, is_applied=self.is_applied, changed=self._changed, removed=self._removed,
            codes=dict(self._codes), examples=self._shown,
        )  # fmt: skip


def _shown(rid: int, example: Example, outcome: Outcome) -> Shown:
    before = texts_of(example)
    if outcome.example is None:
        text = "\n".join(before)
        return Shown(rid=rid, code=outcome.codes[0], before=text[:EXCERPT_CHARACTERS], of=outcome.of)
    after = texts_of(outcome.example)
    index = next((i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b), 0)
    old, new = before[index], after[index]
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    begin = max(0, place - 60)
    return Shown(
        rid=rid, code=outcome.codes[0],
        before=old[begin : begin + EXCERPT_CHARACTERS], after=new[begin : begin + EXCERPT_CHARACTERS],
    )  # fmt: skip


def prepare(plan: Plan, out_dir: Path, tell: Tell) -> PrepareReport:
    """Write examples.parquet, trace.parquet and report.json into `out_dir`, whole or not at all.

    Steps that are not in the plan are tried on the result, each alone, so that the page can say what they would do.
    """
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        report = _into(plan, temporary, tell)
        (temporary / "report.json").write_bytes(orjson.dumps(report.model_dump(mode="json")))
        shutil.rmtree(out_dir, ignore_errors=True)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _rows(plan: Plan) -> Iterator[tuple[PlannedFile, int, dict[str, Any]]]:
    for file in plan.files:
        for batch in iterate(parts(Path(file.rows_dir))):
            for values in batch:
                yield file, values.pop("_row"), values


def _into(plan: Plan, folder: Path, tell: Tell) -> PrepareReport:
    chosen = in_order(plan.steps)
    applied = [_Watched(step, True) for step in chosen]
    names = {step.name for step in chosen}
    suggested = [_Watched(ChosenStep(name=n, version=s.version), False) for n, s in STEPS.items() if n not in names]
    examples, trace = ExampleWriter(folder / "examples.parquet"), ExampleWriter(folder / "trace.parquet", TRACE)
    counting, codes = Counting(), Counter[str]()
    total = sum(file.rows for file in plan.files)
    rows: dict[int, tuple[Example, PlannedFile, int]] = {}
    lines: dict[int, dict[str, Any]] = {}
    for rid, (file, row, values) in enumerate(_rows(plan)):
        if rid % 1000 == 0:
            tell(rid, total)
        mapped = apply(values, file.mapping)
        codes.update(mapped.codes)
        if mapped.example is None:
            lines[rid] = _trace(rid, "unmapped", "map", mapped.codes, 0, None)
        else:
            rows[rid] = (mapped.example, file, row)
            lines[rid] = _trace(rid, "kept", "", mapped.codes, 0, None)
    unmapped = len(lines) - len(rows)
    by_hand = _edited(plan, rows, lines)
    for step in applied:
        rids = list(rows)
        for rid, outcome in zip(rids, step.run(rids, [rows[rid][0] for rid in rids]), strict=True):
            if outcome.example is None and by_hand.get(rid) != "kept":
                lines[rid] = _trace(rid, "out", step.name, outcome.codes, lines[rid]["changed"], outcome.of)
                del rows[rid]
            elif outcome.example is not None and outcome.codes:
                lines[rid]["changed"] |= step.bit
                rows[rid] = (outcome.example, *rows[rid][1:])
    for step in suggested:
        step.run(list(rows), [example for example, _file, _row in rows.values()])
    kept, out = len(rows), len(lines) - len(rows) - unmapped
    for rid, (example, file, row) in rows.items():
        counting.add(example)
        meta = orjson.dumps(example["meta"]).decode()
        examples.add({**example, "meta": meta, "_rid": rid, "_file": file.file_id, "_row": row})
    for line in lines.values():
        trace.add(line)
    examples.close()
    trace.close()
    tell(total, total)
    order = list(STEPS)
    reports = sorted((step.report() for step in [*applied, *suggested]), key=lambda r: order.index(r.name))
    return PrepareReport(
        rows_in=kept + out + unmapped, rows=kept, out=out, unmapped=unmapped, mapping_codes=dict(codes),
        steps=reports, statistics=counting.result(),
    )  # fmt: skip


def _edited(
    plan: Plan, rows: dict[int, tuple[Example, PlannedFile, int]], lines: dict[int, dict[str, Any]]
) -> dict[int, str]:
    """Apply the changes by hand before anything is cleaned; what was done to which row."""
    if plan.edits is None or not rows:
        return {}
    rids = list(rows)
    keys = row_keys([rows[rid][1].file_id for rid in rids], np.array([rows[rid][2] for rid in rids]))
    words = apply_edits([rows[rid][0] for rid in rids], keys, EditLayer.load(plan.edits.path))
    found = {rid: word for rid, word in zip(rids, words, strict=True) if word}
    for rid, word in found.items():
        if word in ("deleted", "excluded"):
            lines[rid] = _trace(rid, "out", "hand", (f"hand.{word}",), 0, None)
            del rows[rid]
        else:
            lines[rid]["codes"] = f"{lines[rid]['codes']} hand.{word}".strip()
    return found


def _trace(rid: int, status: str, step: str, codes: tuple[str, ...], changed: int, of: int | None) -> dict[str, Any]:
    return {"_rid": rid, "status": status, "step": step, "codes": " ".join(codes), "changed": changed, "of": of}
