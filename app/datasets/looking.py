"""The first pass over a shard: map its rows, run the chain of steps, note what each did, leave all of it on disk.

A shard is one part of a source file. Its folder appears whole or not at all, so finished shards outlive a kill.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.cleaning import start
from app.datasets.columnar import mapped
from app.datasets.edits import EditLayer, apply_edits, row_keys
from app.datasets.overrides import Exempt
from app.datasets.plan import Plan
from app.datasets.steps.batches import examples_of, keep, of_examples, rows_changed, table_of, with_changes
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.contract import BATCH_ROWS, MARKS, Batch, Changes, Indexes
from app.datasets.steps.copies import mixed
from app.datasets.steps.personal import veiled_texts
from app.datasets.steps.tokens import pieces
from app.datasets.tables import EXAMPLES, parts

# How a row ended: kept, not usable, taken out by hand, or (FIRST + its place in the chain) by a step.
KEPT, UNMAPPED, BY_HAND, FIRST = 0, 1, 2, 3
SHOWN_EXAMPLES = 50
EXCERPT_CHARACTERS = 400
SAMPLE_ROWS = 2000
# How a place is shown at which a row becomes two.
SEAM = "\n✂ ──────\n"
_GOLD = np.uint64(0x9E3779B97F4A7C15)


class Shard(NamedTuple):
    """Rows `first` to `first + rows` of the whole set: one part of file number `file`."""

    number: int
    file: int
    path: str
    first: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


class Look(NamedTuple):
    """An order for one shard. Rows whose draw is below `sample_below` are kept for previews."""

    plan: Plan
    shard: Shard
    folder: str
    sample_below: int
    shown: int
    batch_rows: int = BATCH_ROWS


def layout(plan: Plan) -> list[Shard]:
    """The shards of a plan, in order. Depends on the files alone."""
    shards: list[Shard] = []
    first = 0
    for number, file in enumerate(plan.files):
        for path in parts(Path(file.rows_dir)):
            rows = pq.read_metadata(path).num_rows
            shards.append(Shard(len(shards), number, str(path), first, rows))
            first += rows
    return shards


def draws(rids: Indexes, salt: int) -> npt.NDArray[np.uint64]:
    """A number drawn for each row, the same in every run: samples are the rows with the smallest."""
    with np.errstate(over="ignore"):
        return mixed(mixed(rids.astype(np.uint64) + np.uint64(salt) * _GOLD))


class ByHand(NamedTuple):
    """A batch after the changes by hand. `is_left` False: taken out; `is_kept`: no step may take it out."""

    batch: Batch
    is_left: npt.NDArray[np.bool_]
    is_kept: npt.NDArray[np.bool_]
    words: dict[str, Indexes]


def by_hand(batch: Batch, layer: EditLayer | None) -> ByHand:
    """Put the changes that people made into the rows, before anything is cleaned."""
    is_left, is_kept = np.ones(len(batch), np.bool_), np.zeros(len(batch), np.bool_)
    if layer is None or not len(batch):
        return ByHand(batch, is_left, is_kept, {})
    keys = row_keys([batch.file_id] * len(batch), batch.source_rows)
    if not len(layer.places(keys)[0]):
        return ByHand(batch, is_left, is_kept, {})
    examples = examples_of(batch)
    words = np.array(apply_edits(examples, keys, layer))
    changed = of_examples(examples, batch.rids.tolist())
    changed.source_rows, changed.file_id = batch.source_rows, batch.file_id
    found = {word: np.flatnonzero(words == word) for word in ("deleted", "excluded", "kept", "edited")}
    is_left = ~np.isin(words, ("deleted", "excluded"))
    return ByHand(changed, is_left, words == "kept", {word: rows for word, rows in found.items() if len(rows)})


class Touched(NamedTuple):
    """A row that a step touched: its texts before and after (None: the row goes)."""

    rid: int
    code: str
    old: list[str]
    new: list[str] | None


class _Notes:
    """What is known about the rows of a shard, by their place in it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.ended = np.zeros(rows, np.uint8)
        self.changed = np.zeros(rows, np.uint32)
        self.codes: list[str] = []
        self.code_rows: list[Indexes] = []
        self.code_steps: list[int] = []
        self.code_ids: list[int] = []
        self.marks: dict[str, npt.NDArray[Any]] = {}
        self.span_kinds: list[str] = []
        self.spans: list[tuple[int, int, int, int, int]] = []
        self.cuts: list[tuple[int, int]] = []
        self.touched: dict[str, list[tuple[int, Touched]]] = {}

    def code(self, position: int, code: str, rows: Indexes) -> None:
        """`position` in the chain; -1 is the mapping."""
        if len(rows):
            if code not in self.codes:
                self.codes.append(code)
            self.code_rows.append(rows)
            self.code_steps.append(position + 1)
            self.code_ids.append(self.codes.index(code))

    def mark(self, name: str, rows: Indexes, values: npt.NDArray[Any]) -> None:
        if name not in self.marks:
            kind = MARKS[name]
            empty = np.full(self.rows, "", "<U12") if kind is str else np.zeros(self.rows, kind)
            self.marks[name] = empty if kind is not np.float32 else np.full(self.rows, np.nan, np.float32)
        self.marks[name][rows] = values

    def span(self, batch: Batch, rows: Indexes, changes: Changes) -> None:
        starts = batch.starts()
        for span in changes.spans:
            if span.kind not in self.span_kinds:
                self.span_kinds.append(span.kind)
            owner = int(batch.owners[span.text])
            place = span.text - int(starts[owner])
            self.spans.append((int(rows[owner]), place, self.span_kinds.index(span.kind), span.start, span.end))

    def save(self, folder: Path) -> None:
        lengths = [len(rows) for rows in self.code_rows]
        arrays = {
            "ended": self.ended,
            "changed": self.changed,
            "code_rows": np.concatenate([np.zeros(0, np.int64), *self.code_rows]).astype(np.uint32),
            "code_steps": np.repeat(np.array(self.code_steps, np.uint8), lengths),
            "code_ids": np.repeat(np.array(self.code_ids, np.uint16), lengths),
            "spans": np.array(self.spans, np.uint32).reshape(-1, 5),
            "cuts": np.array(self.cuts, np.int64).reshape(-1, 2),
            **{f"mark_{name}": values for name, values in self.marks.items()},
        }
        np.savez(folder / "notes.npz", **arrays)  # type: ignore[arg-type]
        # All at once: looking for personal data in a few texts costs nearly as much as in many.
        parts = iter(excerpts([row for rows in self.touched.values() for _draw, row in rows]))
        shown = {name: [{"draw": n, **next(parts)} for n, _row in rows] for name, rows in self.touched.items()}
        info = {"codes": self.codes, "span_kinds": self.span_kinds, "shown": shown}
        (folder / "notes.json").write_bytes(orjson.dumps(info))


def look(order: Look) -> int:
    """Make the shard's folder below `order.folder`; the number of its rows. Done before: nothing to do."""
    target = Path(order.folder) / order.shard.name
    if target.exists():
        return order.shard.rows
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _into(order, temporary)
        temporary.rename(target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return order.shard.rows


def _into(order: Look, folder: Path) -> None:
    chain = [(position, step, start(step)) for position, step in enumerate(order.plan.applied())]
    shard, notes = order.shard, _Notes(order.shard.rows)
    file = order.plan.files[shard.file]
    table = pq.read_table(shard.path, use_threads=False)
    samples: list[pa.Table] = []
    layer = EditLayer.load(order.plan.edits.path) if order.plan.edits else None
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as sink:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(sink, EXAMPLES, options=options) as writer:
            for cut, first in enumerate(range(0, shard.rows, order.batch_rows)):
                found = mapped(table.slice(first, order.batch_rows), file.mapping, file.file_id, shard.first + first)
                notes.ended[first : first + order.batch_rows] = UNMAPPED
                notes.ended[first + found.kept] = KEPT
                for code, places in found.codes.items():
                    notes.code(-1, code, first + np.asarray(places, np.int64))
                edited = by_hand(found.batch, layer)
                places = first + found.kept
                for word, rows in edited.words.items():
                    notes.code(-1, f"hand.{word}", places[rows])
                notes.ended[places[~edited.is_left]] = BY_HAND
                batch, places = keep(edited.batch, edited.is_left), places[edited.is_left]
                drawn = draws(batch.rids, 0) < np.uint64(order.sample_below)
                if drawn.any():
                    samples.append(table_of(keep(batch, drawn), EXAMPLES))
                exempt = Exempt(order.plan.overrides, batch, edited.is_kept[edited.is_left])
                batch = _run(order, chain, batch, places, exempt, notes, folder, cut)
                writer.write_table(table_of(batch, EXAMPLES))
    sample = pa.concat_tables(samples) if samples else EXAMPLES.empty_table()
    pq.write_table(sample, folder / "sample.parquet", compression="zstd", store_schema=False)
    notes.save(folder)


def _run(
    order: Look, chain: list[Any], batch: Batch, rows: Indexes, exempt: Exempt, notes: _Notes, folder: Path, cut: int
) -> Batch:
    """The chain over one batch; `rows` are the places of its rows in the shard."""
    for position, chosen, runner in chain:
        step = STEPS[chosen.name]
        if step.is_set:
            for name, values in runner.look(batch).items():
                np.save(folder / f"state-{position}-{name}-{cut:03d}.npy", values)
            np.save(folder / f"seen-{position}-{cut:03d}.npy", rows.astype(np.uint32))
            for code in step.codes if exempt.is_any else ():
                spared = np.flatnonzero(exempt.rows(step.name, code, len(batch)) | exempt.is_kept)
                np.save(folder / f"spared-{position}-{code}-{cut:03d}.npy", rows[spared].astype(np.uint32))
            continue
        changes = exempt.spared(step.name, batch, runner(batch))
        is_gone = np.zeros(len(batch), np.bool_)
        for code, found in changes.codes.items():
            notes.code(position, code, rows[np.asarray(found, np.int64)])
        for code, found in changes.removed.items():
            new = np.asarray(found, np.int64)
            new = new[~is_gone[new] & ~exempt.is_kept[new]]
            is_gone[new] = True
            notes.code(position, code, rows[new])
        for name, values in changes.marks.items():
            notes.mark(name, rows, values)
        notes.span(batch, rows, changes)
        if chosen.mode == "mark":
            changes.texts, changes.labels, changes.metas = ((), ()), ((), ()), ((), ())
            changes.dropped, changes.cuts = (), {}
        after = with_changes(batch, changes)
        is_marked = chosen.mode == "mark"
        _show(order, chosen.name, batch, after, changes, is_gone, is_marked, notes)
        if is_marked:
            batch = after
            continue
        notes.ended[rows[is_gone]] = FIRST + position
        touched = rows_changed(batch, changes)
        notes.cuts += [(int(rows[row]), at) for row, cuts in changes.cuts.items() for at in cuts]
        notes.changed[rows[touched[~is_gone[touched]]]] |= np.uint32(step.bit)
        batch, rows = keep(after, ~is_gone), rows[~is_gone]
        exempt.keep(~is_gone)
    return batch


def _show(
    order: Look, name: str, before: Batch, after: Batch, changes: Changes, is_gone: Any, is_marked: bool, notes: _Notes
) -> None:
    """Keep an excerpt of the drawn rows that the step touched."""
    codes: dict[int, str] = {}
    for code, rows in [*changes.removed.items(), *changes.codes.items()]:
        for row in np.asarray(rows, np.int64).tolist() if len(rows) <= order.shown else _few(before, rows, name, order):
            codes.setdefault(row, code)
    if not codes:
        return
    chosen = np.array(sorted(codes), np.int64)
    drawn = draws(before.rids[chosen], STEPS[name].bit)
    order_of = np.argsort(drawn, kind="stable")[: order.shown]
    touched = touched_rows(before, after, chosen[order_of].tolist(), codes, is_gone & (not is_marked), changes.cuts)
    kept = [*notes.touched.get(name, []), *zip(drawn[order_of].tolist(), touched, strict=True)]
    notes.touched[name] = sorted(kept, key=lambda one: int(one[0]))[: order.shown]


def _few(batch: Batch, rows: Any, name: str, order: Look) -> list[int]:
    rows = np.asarray(rows, np.int64)
    return rows[np.argsort(draws(batch.rids[rows], STEPS[name].bit), kind="stable")[: order.shown]].tolist()


def touched_rows(
    before: Batch, after: Batch, rows: list[int], codes: dict[int, str], is_gone: npt.NDArray[np.bool_],
    cuts: dict[int, list[int]],
) -> list[Touched]:  # fmt: skip
    """These rows as a step found and left them; where a row becomes several there is a line between them."""
    sides, found = [(batch.texts, batch.starts()) for batch in (before, after)], []
    for row in rows:
        old, new = (texts[int(starts[row]) : int(starts[row + 1])].to_list() for texts, starts in sides)
        if row in cuts:
            new = [SEAM.join(pieces(new[0], cuts[row]))]
        found.append(Touched(int(before.rids[row]), codes[row], old, None if is_gone[row] else new))
    return found


def _differing(old: list[str], new: list[str]) -> tuple[str, str]:
    """The first text that differs, before and after; all of them where some went."""
    if len(old) != len(new):
        return "\n".join(old), "\n".join(new)
    return next(((a, b) for a, b in zip(old, new, strict=True) if a != b), (old[0], new[0]) if old else ("", ""))


def excerpts(rows: Sequence[Touched]) -> list[dict[str, Any]]:
    """The text around the first difference, before and after, personal data made unreadable."""
    found, raw = [], []
    for row in rows:
        if row.new is None or row.new == row.old:
            raw.append("\n".join(row.old))
        else:
            raw += _differing(row.old, row.new)
    texts = list(zip(raw, veiled_texts(raw), strict=True))[::-1]
    for row in rows:
        one, before = texts.pop()
        after: str | None = None
        if row.new is None:
            before = before[:EXCERPT_CHARACTERS]
        elif row.new == row.old:  # marked only: what it is marked for may stand anywhere, and ends tell the most
            if len(before) > EXCERPT_CHARACTERS:
                before = f"{before[: EXCERPT_CHARACTERS // 2]} … {before[-EXCERPT_CHARACTERS // 2 :]}"
            after = before
        else:
            other, after = texts.pop()
            pairs = enumerate(zip(one, other, strict=False))
            begin = max(0, next((i for i, (a, b) in pairs if a != b), min(len(one), len(other))) - 60)
            before, after = (text[begin : begin + EXCERPT_CHARACTERS] for text in (before, after))
        found.append({"rid": row.rid, "code": row.code, "before": before, "after": after})
    return found
