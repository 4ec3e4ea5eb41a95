"""Mapped and cleaned rows from source files: the working set that a person looks at before freezing.

Two passes over shards in a few processes, with the decisions of the set steps between. Every input row ends as kept,
out (with step and code) or unmapped (with code), and the trace says which. Finished shards outlive a kill.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets import crew
from app.datasets.deciding import Decisions, decide, drawn
from app.datasets.looking import (
    EXCERPT_CHARACTERS,
    SAMPLE_ROWS,
    SHOWN_EXAMPLES,
    Look,
    Shard,
    Touched,
    draws,
    excerpts,
    layout,
    look,
)
from app.datasets.plan import Plan
from app.datasets.reports import PrepareReport, Shown, StepReport
from app.datasets.statistics import Counting
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.contract import BATCH_ROWS
from app.datasets.steps.personal import veiled_texts
from app.datasets.tables import EXAMPLES
from app.datasets.trying import trials
from app.datasets.writing import TRACE, Write, write

Tell = Callable[[int, int], None]
# Below this, starting a process costs more than it brings.
ALONE_ROWS = 40_000
DRAWN_OF = 2**64


def prepared_digest(folder: Path) -> str:
    """Of which plan the working set in `folder` was made; empty when it is none."""
    path = folder / "digest"
    return path.read_text() if path.exists() else ""


def prepare(
    plan: Plan, out_dir: Path, tell: Tell, *, processes: int = 1, batch_rows: int = BATCH_ROWS
) -> PrepareReport:
    """Write data-*.parquet, trace.parquet, sample.parquet and report.json into `out_dir`, whole or not at all.

    Work in progress lies beside it, named by the plan: a second call after a kill goes on from the last shard. Steps
    that are not in the plan are tried, each alone, so that the page can say what they would do. `tell(rows, of)`
    counts half a row for each pass.
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    digest = plan.digest()
    work = out_dir.parent / f".work-{digest}"
    for stale in out_dir.parent.glob(".work-*"):
        if stale.name != work.name:
            shutil.rmtree(stale, ignore_errors=True)
    shards = layout(plan)
    total = sum(shard.rows for shard in shards)
    count = 1 if total < ALONE_ROWS else processes
    _look(plan, shards, work, count, batch_rows, lambda done: tell(done // 2, total))
    results, reports = _write(plan, shards, work, count, lambda done: tell((total + done) // 2, total))
    report = _report(plan, results, reports)
    temporary = out_dir.with_name(f".tmp-{out_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _gather(work, shards, temporary)
        report.steps = _with_trials(plan, report, temporary)
        (temporary / "report.json").write_bytes(orjson.dumps(report.model_dump(mode="json")))
        (temporary / "digest").write_text(digest)
        shutil.rmtree(out_dir, ignore_errors=True)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return report


def _look(
    plan: Plan, shards: list[Shard], work: Path, processes: int, batch_rows: int, tell: Callable[[int], None]
) -> None:
    looked = work / "looked"
    looked.mkdir(parents=True, exist_ok=True)
    total = sum(shard.rows for shard in shards)
    below = min(DRAWN_OF - 1, int(DRAWN_OF * 1.2 * SAMPLE_ROWS / max(1, total)))
    # Enough from each shard that the fifty of the whole set are among them.
    shown = min(SHOWN_EXAMPLES, 10 + 200 // max(1, len(shards)))
    orders = [Look(plan, shard, str(looked), below, shown, batch_rows) for shard in shards]
    done = 0
    for _number, rows in crew.each(look, orders, processes):
        done += rows
        tell(done)


def _write(
    plan: Plan, shards: list[Shard], work: Path, processes: int, tell: Callable[[int], None]
) -> tuple[list[dict[str, Any]], dict[str, list[Shown]]]:
    """(what each shard counted, in order; examples by step)."""
    looked, decided, out = work / "looked", work / "decided", work / "out"
    out.mkdir(parents=True, exist_ok=True)
    decisions = decide(plan, shards, looked, work)
    decisions.save(decided)
    chosen = drawn(decisions, plan)
    picked = _picked(decisions, sorted({rid for rids in chosen.values() for rid in rids}))
    wanted = set(picked) | {twin for _code, twin, _score in picked.values() if twin >= 0}
    names = tuple(step.name for step in plan.applied())
    orders = [
        Write(
            shard, names, str(looked), str(decided), str(out),
            tuple(rid for rid in sorted(wanted) if shard.first <= rid < shard.first + shard.rows),
        )
        for shard in shards
    ]  # fmt: skip
    results: list[dict[str, Any]] = [{}] * len(shards)
    done = 0
    for number, counted in crew.each(write, orders, processes):
        results[number] = counted
        done += shards[number].rows
        tell(done)
    texts = {int(rid): turns for result in results for rid, turns in result["texts"].items()}
    shown = _shown_of_rows(shards, looked)
    for position, chosen_rids in chosen.items():
        rids = [rid for rid in chosen_rids if rid in texts]
        before = excerpts([Touched(rid, picked[rid][0], texts[rid], None) for rid in rids])
        twins = veiled_texts(["\n".join(texts.get(picked[rid][1], [])) for rid in rids])
        shown[names[position]] = [
            Shown(**part, of=twin if twin >= 0 else None, twin=other[:EXCERPT_CHARACTERS], score=score)
            for part, (_code, twin, score), other in zip(before, map(picked.__getitem__, rids), twins, strict=True)
        ]
    return results, shown


def _picked(decisions: Decisions, rids: list[int]) -> dict[int, tuple[str, int, float | None]]:
    """(code, twin or -1, how alike or None) of some rows that go."""
    places = decisions.rids.searchsorted(rids).tolist()
    return {
        rid: (
            decisions.codes[int(decisions.code_ids[place])],
            int(decisions.of[place]),
            None if np.isnan(decisions.scores[place]) else round(float(decisions.scores[place]), 3),
        )
        for rid, place in zip(rids, places, strict=True)
    }


def _shown_of_rows(shards: list[Shard], looked: Path) -> dict[str, list[Shown]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for shard in shards:
        info = orjson.loads((looked / shard.name / "notes.json").read_bytes())
        for name, items in info["shown"].items():
            found.setdefault(name, []).extend(items)
    return {
        name: [
            Shown.model_validate({key: value for key, value in item.items() if key != "draw"})
            for item in sorted(items, key=lambda item: int(item["draw"]))[:SHOWN_EXAMPLES]
        ]
        for name, items in found.items()
    }


def _report(plan: Plan, results: list[dict[str, Any]], shown: dict[str, list[Shown]]) -> PrepareReport:
    counting, mapping = Counting(), Counter[str]()
    steps = [StepReport(name=step.name, is_applied=True) for step in plan.applied()]
    codes: list[Counter[str]] = [Counter() for _ in steps]
    rows_in = unmapped = kept = by_hand = 0
    for result in results:
        counting.join(result["statistics"])
        counts = result["counts"]
        rows_in, unmapped, kept = rows_in + counts["rows_in"], unmapped + counts["unmapped"], kept + result["kept"]
        by_hand += counts["by_hand"]
        mapping.update(counts["mapping_codes"])
        for step, own, counted in zip(steps, codes, counts["steps"], strict=True):
            own.update(counted["codes"])
            for name in ("rows_in", "changed", "removed", "marked", "made"):
                setattr(step, name, getattr(step, name) + counted[name])
    for step, own in zip(steps, codes, strict=True):
        step.codes = dict(sorted(own.items()))
        step.examples = shown.get(step.name, [])
    return PrepareReport(
        rows_in=rows_in, rows=kept, out=by_hand + sum(step.removed for step in steps), unmapped=unmapped,
        made=sum(step.made for step in steps), mapping_codes=dict(sorted(mapping.items())), steps=steps,
        statistics=counting.result(),
    )  # fmt: skip


def _gather(work: Path, shards: list[Shard], folder: Path) -> None:
    """The parts of all shards in `folder`: data renumbered without gaps, one trace, one sample, what steps keep."""
    number = 0
    with pq.ParquetWriter(folder / "trace.parquet", TRACE, compression="zstd", store_schema=False) as trace:
        for shard in shards:
            path = work / "out" / f"data-{shard.name}.parquet"
            if path.exists():
                link(path, folder / f"data-{number:05d}.parquet")
                number += 1
            trace.write_table(pq.read_table(work / "out" / f"trace-{shard.name}.parquet"), row_group_size=50_000)
    samples = [pq.read_table(work / "looked" / shard.name / "sample.parquet") for shard in shards]
    sample = pa.concat_tables(samples) if samples else EXAMPLES.empty_table()
    order = draws(sample.column("_rid").to_numpy(), 0).argsort(kind="stable")[:SAMPLE_ROWS]
    order.sort()
    pq.write_table(sample.take(pa.array(order)), folder / "sample.parquet", compression="zstd", store_schema=False)
    for keep in work.glob("set-*/keep"):
        shutil.copytree(keep, folder / "steps" / keep.parent.name)


def link(source: str | Path, target: str | Path) -> None:
    """A second name for a file that is never changed; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _with_trials(plan: Plan, report: PrepareReport, folder: Path) -> list[StepReport]:
    chosen = {step.name for step in plan.steps}
    found = [*report.steps, *trials(plan, folder, report.rows, [name for name in STEPS if name not in chosen])]
    order = list(STEPS)
    return sorted(found, key=lambda step: order.index(step.name))
