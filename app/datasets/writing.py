"""The second pass over a shard: the rows that stay, their statistics, and the trace of every row."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.deciding import Decisions
from app.datasets.looking import BY_HAND, FIRST, KEPT, UNMAPPED, Shard
from app.datasets.statistics import Counting
from app.datasets.steps.batches import of_table
from app.datasets.steps.catalogue import STEPS
from app.datasets.steps.tokens import TOKENS, pieces
from app.datasets.tables import EXAMPLES, GROUP_ROWS, INPUT_BITS

NAMES = pa.dictionary(pa.int8(), pa.string())
SPANS = pa.list_(
    pa.struct([("text", pa.uint16()), ("kind", pa.string()), ("start", pa.uint32()), ("end", pa.uint32())])
)
# `codes`: every reason, blanks between; `code`: why the row is out. `spans` name places, never what stood there.
TRACE = pa.schema(
    [
        ("_rid", pa.int64()),
        ("status", pa.string()),
        ("step", pa.string()),
        ("code", pa.string()),
        ("codes", pa.string()),
        ("changed", pa.uint32()),
        ("of", pa.int64()),
        ("score", pa.float32()),
        ("language", pa.string()),
        ("tokens", pa.int32()),
        ("quality", pa.float32()),
        ("spans", SPANS),
    ]
)


class Write(NamedTuple):
    """An order for one shard. `steps`: names of the chain; `wanted`: rids whose text is told back."""

    shard: Shard
    steps: tuple[str, ...]
    looked: str
    decided: str
    out: str
    wanted: tuple[int, ...]


def write(order: Write) -> dict[str, Any]:
    """Write the shard's rows and trace; what it counted. Done before: read what it counted then."""
    out, name = Path(order.out), order.shard.name
    done = out / f"done-{name}.json"
    if done.exists():
        found: dict[str, Any] = orjson.loads(done.read_bytes())
        return found
    counted = _Shard(order).written()
    temporary = out / f".tmp-{name}-{os.getpid()}.json"
    temporary.write_bytes(orjson.dumps(counted))
    temporary.rename(done)
    return counted


class _Shard:
    """A shard with what both passes know about it."""

    def __init__(self, order: Write) -> None:
        self._order, self._rows = order, order.shard.rows
        self._folder = Path(order.looked) / order.shard.name
        self._notes = np.load(self._folder / "notes.npz")
        info = orjson.loads((self._folder / "notes.json").read_bytes())
        self._span_kinds: list[str] = info["span_kinds"]
        decisions = Decisions.read(Path(order.decided))
        begin, end = order.shard.first, order.shard.first + self._rows
        cut = slice(*np.searchsorted(decisions.rids, [begin, end]))
        self._gone = np.asarray(decisions.rids[cut]) - begin
        self._gone_ids = np.asarray(decisions.code_ids[cut])
        self._of = np.asarray(decisions.of[cut])
        self._scores = np.asarray(decisions.scores[cut])
        self._ended = self._notes["ended"].copy()
        self._ended[self._gone] = FIRST + decisions.positions[cut]
        # How far each row came: a step behind the one that took it out has not touched it.
        self._reached = np.where(self._ended >= FIRST, self._ended.astype(np.int16) - FIRST, 254)
        self._reached[np.isin(self._ended, (UNMAPPED, BY_HAND))] = -1
        marked = slice(*np.searchsorted(decisions.marked_rids, [begin, end]))
        self._codes = [*info["codes"], *decisions.codes]
        base = len(info["codes"])
        rows = [self._notes["code_rows"], decisions.marked_rids[marked] - begin, self._gone]
        steps = [self._notes["code_steps"], decisions.marked_positions[marked] + 1, decisions.positions[cut] + 1]
        ids = [self._notes["code_ids"], decisions.marked_ids[marked] + base, self._gone_ids + base]
        self._code_rows = np.concatenate(rows).astype(np.int64)
        self._code_steps = np.concatenate(steps).astype(np.int16) - 1
        self._code_ids = np.concatenate(ids).astype(np.int64)
        is_true = self._code_steps <= self._reached[self._code_rows]
        self._code_rows, self._code_ids = self._code_rows[is_true], self._code_ids[is_true]
        self._code_steps = self._code_steps[is_true]
        bits = [STEPS[name].bit for name in order.steps]
        allowed = np.cumsum([0, *bits]).astype(np.uint32)
        self._changed = self._notes["changed"] & allowed[np.clip(self._reached, 0, len(bits))]

    def written(self) -> dict[str, Any]:
        out, name = Path(self._order.out), self._order.shard.name
        with pa.memory_map(str(self._folder / "rows.arrow")) as source:
            table = pa.ipc.open_file(source).read_all()
        texts = self._texts(table)
        counting = Counting()
        places = table.column("_rid").to_numpy() - self._order.shard.first
        is_kept = self._ended[places] == KEPT
        kept = table if is_kept.all() else table.filter(pa.array(is_kept))
        kept, places = self._parted(kept, places[is_kept])
        if kept.num_rows:
            counting.add_batch(of_table(kept), {k[5:]: self._notes[k][places] for k in self._mark_names()})
            temporary = out / f".tmp-{name}-{os.getpid()}.parquet"
            pq.write_table(
                kept, temporary, compression="zstd", compression_level=1, row_group_size=GROUP_ROWS, store_schema=False,
                use_dictionary=["kind", "_file", "label"], write_statistics=["_rid"],
            )  # fmt: skip
            temporary.rename(out / f"data-{name}.parquet")
        temporary = out / f".tmp-{name}-{os.getpid()}.trace"
        pq.write_table(self._trace(), temporary, compression="zstd", compression_level=1, row_group_size=10_000)
        temporary.rename(out / f"trace-{name}.parquet")
        made = kept.num_rows - int((self._ended == KEPT).sum())
        return {"counts": self._counts(made), "kept": kept.num_rows, "texts": texts, "statistics": counting.state()}

    def _mark_names(self) -> list[str]:
        return [name for name in self._notes.files if name.startswith("mark_")]

    def _texts(self, table: pa.Table) -> dict[str, list[str]]:
        """The texts of the wanted rows, by rid."""
        if not self._order.wanted:
            return {}
        rids = table.column("_rid").to_numpy()
        places = np.flatnonzero(np.isin(rids, np.array(self._order.wanted, np.int64)))
        if not len(places):
            return {}
        batch = of_table(table.take(pa.array(places)))
        starts, texts = batch.starts(), batch.texts.to_list()
        return {str(rid): texts[starts[i] : starts[i + 1]] for i, rid in enumerate(batch.rids.tolist())}

    def _parted(self, table: pa.Table, places: npt.NDArray[np.int64]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Rows that become several, as several: each with its number in `_rid`, and the place of the row it was."""
        cuts: dict[int, list[int]] = {}
        for place, at in self._notes["cuts"].tolist():
            cuts.setdefault(place, []).append(at)
        rows = [row for row, place in enumerate(places.tolist()) if place in cuts] if cuts else []
        if not rows:
            return table, places
        texts = table.column("text").take(pa.array(rows)).to_pylist()
        made = {row: pieces(text, cuts[int(places[row])]) for row, text in zip(rows, texts, strict=True)}
        counts = np.ones(len(places), np.int64)
        counts[rows] = [len(made[row]) for row in rows]
        of = np.repeat(np.arange(len(places)), counts)
        number = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        rids = table.column("_rid").to_numpy()[of] + np.where(counts[of] > 1, number << INPUT_BITS, 0)
        found = table.take(pa.array(of))
        new = found.column("text").to_pylist()
        for at in np.flatnonzero(np.isin(of, rows)).tolist():
            new[at] = made[int(of[at])][int(number[at]) - 1]
        for name, column in (("_rid", pa.array(rids)), ("text", pa.array(new, pa.string()))):
            found = found.set_column(found.schema.get_field_index(name), EXAMPLES.field(name), column)
        return found, places[of]

    def _counts(self, made: int) -> dict[str, Any]:
        """Rows in, unmapped, and for each step of the chain: rows before it, changed, removed, marked, made, codes."""
        steps = []
        for position, name in enumerate(self._order.steps):
            is_here = self._reached >= position
            is_gone = self._ended == FIRST + position
            is_changed = (self._changed & np.uint32(STEPS[name].bit)) != 0
            mine = self._code_steps == position
            coded = np.zeros(self._rows, np.bool_)
            coded[self._code_rows[mine]] = True
            steps.append(
                {
                    "rows_in": int(is_here.sum()), "changed": int((is_changed & is_here & ~is_gone).sum()),
                    "removed": int(is_gone.sum()), "marked": int((coded & ~is_gone & ~is_changed).sum()),
                    "made": made if name == TOKENS.name else 0, "codes": self._by_code(mine),
                }
            )  # fmt: skip
        unmapped = int((self._ended == UNMAPPED).sum())
        return {
            "rows_in": self._rows, "unmapped": unmapped, "steps": steps, "by_hand": int((self._ended == BY_HAND).sum()),
            "mapping_codes": self._by_code(self._code_steps == -1),
        }  # fmt: skip

    def _by_code(self, mine: npt.NDArray[np.bool_]) -> dict[str, int]:
        numbers = np.bincount(self._code_ids[mine], minlength=len(self._codes))
        counted: dict[str, int] = {}
        for code, number in zip(self._codes, numbers.tolist(), strict=True):
            if number:
                counted[code] = counted.get(code, 0) + number
        return counted

    def _trace(self) -> pa.Table:
        rows, shard = self._rows, self._order.shard
        status = np.where(self._ended == KEPT, 0, np.where(self._ended == UNMAPPED, 2, 1))
        names = pa.array(["", *self._order.steps, "map", "hand"])
        step = np.where(self._ended >= FIRST, self._reached + 1, 0)
        step[self._ended == UNMAPPED], step[self._ended == BY_HAND] = len(names) - 2, len(names) - 1
        of, score = np.full(rows, -1, np.int64), np.full(rows, np.nan, np.float32)
        of[self._gone], score[self._gone] = self._of, self._scores
        marks = {name[5:]: self._notes[name] for name in self._mark_names()}
        if "score" in marks:
            score = np.where(np.isnan(score), marks["score"], score)
        ending, codes = self._reasons()
        columns = {
            "_rid": pa.array(shard.first + np.arange(rows)),
            "status": pa.array(["kept", "out", "unmapped"]).take(pa.array(status)),
            "step": names.take(pa.array(step)),
            "code": ending,
            "codes": codes,
            "changed": pa.array(self._changed.astype(np.uint32)),
            "of": pa.array(of, mask=of < 0),
            "score": pa.array(score, mask=np.isnan(score)),
            "language": pa.array(marks["language"].tolist(), pa.string()) if "language" in marks else None,
            "tokens": pa.array(marks["tokens"]) if "tokens" in marks else None,
            "quality": pa.array(marks["quality"], mask=np.isnan(marks["quality"])) if "quality" in marks else None,
            "spans": self._spans(),
        }
        arrays = [pa.nulls(rows, field.type) if columns[field.name] is None else columns[field.name] for field in TRACE]
        return pa.Table.from_arrays(arrays, schema=TRACE)

    def _reasons(self) -> tuple[pa.Array, pa.Array]:
        """(why each row is out, every reason of each row): in the order of the steps."""
        order = np.lexsort((np.arange(len(self._code_rows)), self._code_steps, self._code_rows))
        lists: dict[int, list[str]] = {}
        ending: dict[int, str] = {}
        columns = (self._code_rows, self._code_steps, self._code_ids)
        for row, step, code in zip(*(values[order].tolist() for values in columns), strict=True):
            name = self._codes[code]
            lists.setdefault(row, []).append(name)
            if self._ended[row] in (UNMAPPED, BY_HAND) or self._ended[row] == FIRST + step:
                ending[row] = name
        return _sparse(ending, self._rows), _sparse({r: " ".join(c) for r, c in lists.items()}, self._rows)

    def _spans(self) -> pa.Array | None:
        spans = self._notes["spans"]
        if not len(spans):
            return None
        spans = spans[np.lexsort((spans[:, 3], spans[:, 1], spans[:, 0]))]
        counts = np.bincount(spans[:, 0], minlength=self._rows)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        kinds = pa.array(self._span_kinds, pa.string()).take(pa.array(spans[:, 2]))
        columns = [pa.array(spans[:, 1].astype(np.uint16)), kinds, pa.array(spans[:, 3]), pa.array(spans[:, 4])]
        return pa.ListArray.from_arrays(
            pa.array(offsets), pa.StructArray.from_arrays(columns, fields=list(SPANS.value_type))
        ).cast(SPANS)  # fmt: skip


def _sparse(values: dict[int, str], rows: int) -> pa.Array:
    """Texts at some places, empty ones at all others."""
    distinct = {text: number for number, text in enumerate(["", *dict.fromkeys(values.values())])}
    places = np.zeros(rows, np.int32)
    if values:
        places[np.fromiter(values, np.int64)] = [distinct[text] for text in values.values()]
    return pa.array(list(distinct), pa.string()).take(pa.array(places))
