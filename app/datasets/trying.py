"""What a step would do: on all rows of a small set, else on a sample, with the range that the sample allows."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.cleaning import changes_of
from app.datasets.looking import EXCERPT_CHARACTERS, SHOWN_EXAMPLES, draws, excerpts, touched_rows
from app.datasets.overrides import Exempt
from app.datasets.plan import Plan
from app.datasets.reports import Shown, StepReport
from app.datasets.steps.batches import keep, of_examples, of_table, rows_changed, with_changes
from app.datasets.steps.boilerplate import repeated
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.contract import Batch, ChosenStep
from app.datasets.steps.personal import veiled_text
from app.datasets.tables import parts

# Up to this many rows every row is tried.
WHOLE_ROWS = 20_000
Z = 1.96
SUGGESTED_LINES = 40


def trials(plan: Plan, folder: Path, rows: int, names: list[str]) -> list[StepReport]:
    """The steps `names`, each alone on the rows that the plan's steps left in the working set `folder`."""
    if not names:
        return []
    is_whole = rows <= WHOLE_ROWS
    batch = _whole(folder) if is_whole else _sample(plan, folder)
    first = batch if is_whole else _whole(folder, WHOLE_ROWS)
    found = []
    for name in names:
        params = suggested(name, batch)
        if "reading" in STEPS[name].params.model_fields and plan.reading is not None:
            params["reading"] = plan.reading.model_dump(mode="json")
        chosen = ChosenStep(name=name, version=STEPS[name].version, params=params)
        if is_whole or STEPS[name].is_sampled:
            report = _tried(chosen, batch, rows, is_whole)
        else:
            report = _tried_on_some(chosen, first, rows)
        found.append(report.model_copy(update={"params": params}))
    return found


def suggested(name: str, batch: Batch) -> dict[str, Any]:
    """Parameters that a step needs and that the rows themselves tell: the lines that repeat at their edges."""
    if name != "boilerplate":
        return {}
    several = batch.texts.filter(batch.texts.str.count_matches("\n") >= 2).to_list()
    return {"lines": [found.line for found in repeated(several)[:SUGGESTED_LINES]]}


def preview(plan: Plan, folder: Path, rows: int, chosen: ChosenStep, *, is_all_sampled: bool = False) -> StepReport:
    """A step with parameters not applied yet, in its place among the steps of the plan. `rows`: of the whole set.

    Under a second: it looks at the 2,000 sampled rows only, which are all of a smaller set (`is_all_sampled`). A step
    that only the whole set can judge looks at the rows that are left, at the first 20,000 of a larger set, whose
    number tells nothing of the others.
    """
    if STEPS[chosen.name].is_set:
        left = _whole(folder, WHOLE_ROWS)
        return _tried(chosen, left, rows, True) if rows <= WHOLE_ROWS else _tried_on_some(chosen, left, rows)
    order = list(STEPS)
    before = [s for s in plan.applied() if order.index(s.name) < order.index(chosen.name)]
    batch = _sample(plan.model_copy(update={"steps": before}), folder)
    return _tried(chosen, batch, rows, is_all_sampled)


def _whole(folder: Path, most: int = WHOLE_ROWS) -> Batch:
    """The rows of a working set, at most the first `most`."""
    tables: list[pa.Table] = []
    for path in parts(folder, "data-"):
        with pq.ParquetFile(path) as source:
            for group in range(source.metadata.num_row_groups):
                if most <= 0:
                    break
                tables.append(source.read_row_group(group).slice(0, most))
                most -= tables[-1].num_rows
    return of_table(pa.concat_tables(tables)) if tables else of_examples([])


def _tried_on_some(chosen: ChosenStep, first: Batch, rows: int) -> StepReport:
    """What a step over all rows does among some of them: rows to look at, and no number."""
    found = _tried(chosen, first, rows, True)
    return StepReport(
        name=chosen.name, is_applied=False, rows_in=rows, is_known=False, sampled=len(first), examples=found.examples
    )


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
    with tempfile.TemporaryDirectory() as scratch:
        changes, removals = changes_of(chosen, batch, Path(scratch))
    after = with_changes(batch, changes)
    codes: dict[int, str] = {}
    twins: dict[int, tuple[int, float | None]] = {}
    is_gone, is_coded = np.zeros(number, np.bool_), np.zeros(number, np.bool_)
    for removal in removals:
        is_gone[removal.rows] = True
        codes.update(dict.fromkeys(removal.rows.tolist(), removal.code))
        if removal.of is not None:
            scores = [None] * len(removal.rows) if removal.score is None else removal.score.tolist()
            pairs = zip(removal.of.tolist(), scores, strict=True)
            twins.update(zip(removal.rows.tolist(), pairs, strict=True))
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
    report.made = round(sum(len(cuts) for cuts in changes.cuts.values()) * scale)
    shown = touched_rows(
        before=batch, after=after, rows=chosen_rows.tolist(), codes=codes, is_gone=is_gone, cuts=changes.cuts
    )
    report.examples = [
        Shown(**found, **_twin(batch, *twins.get(row, (-1, None))))
        for row, found in zip(chosen_rows.tolist(), excerpts(shown), strict=True)
    ]
    return report


def _twin(batch: Batch, of: int, score: float | None) -> dict[str, Any]:
    """The row that stays in the place of another: its number, its text, how alike they are. Empty for no row."""
    if of < 0:
        return {}
    texts = batch.texts.filter(pl.Series(batch.rids[batch.owners] == of)).to_list()
    shown = veiled_text("\n".join(texts))[:EXCERPT_CHARACTERS]
    return {"of": of, "twin": shown, "score": None if score is None else round(score, 3)}


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, square = hits / of, Z * Z / of
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)
