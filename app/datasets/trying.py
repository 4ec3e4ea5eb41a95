"""What a step would do: on all rows of a small set, else on a sample, with the range that the sample allows."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.cleaning import changes_of
from app.datasets.looking import SHOWN_EXAMPLES, Touched, draws, excerpts
from app.datasets.overrides import Exempt
from app.datasets.plan import Plan
from app.datasets.reports import Shown, StepReport
from app.datasets.steps.batches import keep, of_examples, of_table, rows_changed, with_changes
from app.datasets.steps.boilerplate import repeated
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.contract import Batch, ChosenStep
from app.datasets.tables import parts

# Up to this many rows every row is tried.
WHOLE_ROWS = 20_000
Z = 1.96
SUGGESTED_LINES = 40


def trials(plan: Plan, folder: Path, rows: int, names: list[str]) -> list[StepReport]:
    """The steps `names`, each alone on the rows that the plan's steps left in the working set `folder`."""
    is_whole = rows <= WHOLE_ROWS
    batch = _whole(folder) if is_whole else _sample(plan, folder)
    found = []
    for name in names:
        params = suggested(name, batch)
        report = _tried(ChosenStep(name=name, version=STEPS[name].version, params=params), batch, rows, is_whole)
        found.append(report.model_copy(update={"params": params}))
    return found


def suggested(name: str, batch: Batch) -> dict[str, Any]:
    """Parameters that a step needs and that the rows themselves tell: the lines that repeat at their edges."""
    if name != "boilerplate":
        return {}
    several = batch.texts.filter(batch.texts.str.count_matches("\n") >= 2).to_list()
    return {"lines": [found.line for found in repeated(several)[:SUGGESTED_LINES]]}


def preview(plan: Plan, folder: Path, rows: int, chosen: ChosenStep) -> StepReport:
    """A step with parameters not applied yet, in its place among the steps of the plan. `rows`: of the whole set.

    Under a second: it looks at the 2,000 sampled rows only. A step that only the whole set can judge says so.
    """
    order = list(STEPS)
    before = [s for s in plan.applied() if order.index(s.name) < order.index(chosen.name)]
    batch = _sample(plan.model_copy(update={"steps": before}), folder)
    return _tried(chosen, batch, rows, False)


def _whole(folder: Path) -> Batch:
    tables = [pq.read_table(path) for path in parts(folder, "data-")]
    return of_table(pa.concat_tables(tables)) if tables else of_examples([])


def _sample(plan: Plan, folder: Path) -> Batch:
    """The sampled rows after the row steps of the plan."""
    batch = of_table(pq.read_table(folder / "sample.parquet"))
    exempt = Exempt(plan.overrides, batch)
    for chosen in plan.applied():
        if STEPS[chosen.name].is_set or chosen.mode == "mark":
            continue
        changes, _removals = changes_of(chosen, batch, Path())
        changes = exempt.spared(chosen.name, batch, changes)
        is_kept = np.ones(len(batch), np.bool_)
        for found in changes.removed.values():
            is_kept[np.asarray(found, np.int64)] = False
        batch = keep(with_changes(batch, changes), is_kept)
        exempt.keep(is_kept)
    return batch


def _tried(chosen: ChosenStep, batch: Batch, rows: int, is_whole: bool) -> StepReport:
    step, report = STEPS[chosen.name], StepReport(name=chosen.name, is_applied=False, rows_in=rows)
    number = len(batch)
    if not number:
        return report
    if not is_whole and not step.is_sampled:
        return report.model_copy(update={"is_known": False})
    with tempfile.TemporaryDirectory() as scratch:
        changes, removals = changes_of(chosen, batch, Path(scratch))
    after = with_changes(batch, changes)
    codes: dict[int, str] = {}
    twins: dict[int, int] = {}
    is_gone, is_coded = np.zeros(number, np.bool_), np.zeros(number, np.bool_)
    for removal in removals:
        is_gone[removal.rows] = True
        codes.update(dict.fromkeys(removal.rows.tolist(), removal.code))
        if removal.of is not None:
            twins.update(zip(removal.rows.tolist(), removal.of.tolist(), strict=True))
    for code, found in changes.codes.items():
        is_coded[np.asarray(found, np.int64)] = True
        for row in np.asarray(found, np.int64).tolist():
            codes.setdefault(row, code)
    is_changed = np.zeros(number, np.bool_)
    is_changed[rows_changed(batch, changes)] = True
    is_changed &= ~is_gone
    touched = np.array(sorted(codes), np.int64)
    scale = 1.0 if is_whole else rows / number
    counts = {removal.code: len(removal.rows) for removal in removals}
    for code, found in changes.codes.items():
        counts[code] = counts.get(code, 0) + len(found)
    report.codes = {code: round(n * scale) for code, n in sorted(counts.items()) if n}
    report.changed, report.removed = round(int(is_changed.sum()) * scale), round(int(is_gone.sum()) * scale)
    report.marked = round(int((is_coded & ~is_gone & ~is_changed).sum()) * scale)
    if not is_whole:
        report.sampled = number
        report.low, report.high = (round(share * rows) for share in wilson(len(touched), number))
    chosen_rows = touched[np.argsort(draws(batch.rids[touched], step.bit), kind="stable")[:SHOWN_EXAMPLES]]
    report.examples = _shown(batch, after, chosen_rows.tolist(), codes, is_gone, twins)
    return report


def _shown(
    before: Batch, after: Batch, rows: list[int], codes: dict[int, str], is_gone: npt.NDArray[np.bool_],
    twins: dict[int, int],
) -> list[Shown]:  # fmt: skip
    starts = before.starts()
    touched = []
    for row in rows:
        turns = slice(int(starts[row]), int(starts[row + 1]))
        new = None if is_gone[row] else after.texts[turns].to_list()
        touched.append(Touched(int(before.rids[row]), codes[row], before.texts[turns].to_list(), new))
    return [Shown(**found, of=twins.get(row)) for row, found in zip(rows, excerpts(touched), strict=True)]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, square = hits / of, Z * Z / of
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)
