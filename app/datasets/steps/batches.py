"""Batches from examples and Arrow tables, and back; what a step changed put into force."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from app.datasets.steps.contract import MAIN, ROLES, SIDES, TEXT, Batch, Changes, Example, Indexes
from app.datasets.tables import MESSAGES

_ROLE_NAMES = pa.array(ROLES, pa.string())
_ROLE_INDEX = {name: index for index, name in enumerate(ROLES)}
EXTRAS = pa.schema([field for field in MESSAGES.value_type if field.name not in ("role", "content", "train")])


def storable(text: str) -> str:
    """The text without lone surrogates, which no file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def of_examples(examples: Sequence[Example], rids: Sequence[int] | None = None) -> Batch:
    """A batch of examples as `mapping.apply` makes them."""
    texts: list[str] = []
    found: list[tuple[int, int, int, bool]] = []
    extras: list[dict[str, Any]] = []
    has_extras = False
    for row, example in enumerate(examples):
        if example["kind"] == "text":
            texts.append(storable(example["text"]))
            found.append((row, TEXT, MAIN, True))
            extras.append({})
            continue
        for side, name in enumerate(SIDES):
            for message in example.get(name) or ():
                texts.append(storable(message["content"]))
                found.append((row, _ROLE_INDEX[message["role"]], side, message["train"]))
                extras.append(message)
                has_extras = has_extras or len(message) > 3
    flat = np.array(found, np.int64).reshape(-1, 4)
    return Batch(
        rids=np.arange(len(examples), dtype=np.int64) if rids is None else np.asarray(rids, np.int64),
        is_chat=np.array([e["kind"] == "chat" for e in examples], np.bool_),
        texts=pl.Series("texts", texts, pl.String),
        owners=flat[:, 0].astype(np.int32),
        roles=flat[:, 1].astype(np.uint8),
        sides=flat[:, 2].astype(np.uint8),
        is_learned=flat[:, 3].astype(np.bool_),
        labels=pl.Series("labels", [storable(e["label"]) for e in examples], pl.String),
        metas=pl.Series("metas", [_meta(e["meta"]) for e in examples], pl.String),
        source_rows=np.zeros(len(examples), np.int64),
        extras=pa.Table.from_pylist([{k: e.get(k) for k in EXTRAS.names} for e in extras], EXTRAS)
        if has_extras
        else None,
    )


def _meta(meta: Any) -> str:
    return meta if isinstance(meta, str) else storable(orjson.dumps(meta, option=orjson.OPT_NON_STR_KEYS).decode())


def examples_of(batch: Batch) -> list[Example]:
    """The rows as examples again (meta as values)."""
    texts, starts = batch.texts.to_list(), batch.starts()
    labels, metas = batch.labels.to_list(), batch.metas.to_list()
    extras = batch.extras.to_pylist() if batch.extras is not None else None
    found: list[Example] = []
    for row in range(len(batch)):
        is_chat = bool(batch.is_chat[row])
        example: Example = {"kind": "chat" if is_chat else "text", **{name: [] for name in SIDES}}
        example |= {"text": "" if is_chat else texts[starts[row]], "label": labels[row]}
        example["meta"] = orjson.loads(metas[row])
        for i in range(starts[row], starts[row + 1]) if is_chat else ():
            message = {"role": ROLES[batch.roles[i]], "content": texts[i], "train": bool(batch.is_learned[i])}
            if extras:
                message |= {key: value for key, value in extras[i].items() if value is not None}
            example[SIDES[batch.sides[i]]].append(message)
        found.append(example)
    return found


def series(array: pa.Array | pa.ChunkedArray) -> pl.Series:
    """An Arrow array of strings as a polars series; no copy of the characters where the layout allows."""
    found = pl.from_arrow(array)
    assert isinstance(found, pl.Series)
    return found


def strings(values: pl.Series) -> pa.Array:
    """A polars series as an Arrow array of strings."""
    found = values.to_arrow().cast(pa.string())
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def of_table(table: pa.Table) -> Batch:
    """A batch of a table with the columns of `tables.EXAMPLES`, all rows of one file."""
    table = table.combine_chunks()
    is_chat = np.asarray(pc.equal(_whole(table, "kind"), "chat").to_numpy(zero_copy_only=False), np.bool_)
    # Texts side by side, each with its row: messages, chosen, rejected, then the rows of plain text.
    texts: list[pl.Series] = []
    places: list[tuple[Any, ...]] = []
    extras: list[pa.Table] = []
    for side, name in enumerate(SIDES):
        begins, flat = _turns(_whole(table, name))
        if not len(flat):
            continue
        owners = np.repeat(np.arange(len(begins) - 1, dtype=np.int32), np.diff(begins))
        roles = pc.index_in(flat.field("role"), _ROLE_NAMES).to_numpy(zero_copy_only=False).astype(np.uint8)
        learned = np.asarray(flat.field("train").to_numpy(zero_copy_only=False), np.bool_)
        texts.append(series(flat.field("content")))
        places.append((owners, roles, np.full(len(owners), side, np.uint8), learned))
        extras.append(pa.Table.from_arrays([flat.field(field) for field in EXTRAS.names], schema=EXTRAS))
    if not is_chat.all():
        plain = np.flatnonzero(~is_chat).astype(np.int32)
        number = len(plain)
        texts.append(series(_whole(table, "text")).gather(plain))
        places.append(
            (plain, np.full(number, TEXT, np.uint8), np.zeros(number, np.uint8), np.ones(number, np.bool_))
        )  # fmt: skip
        extras.append(EXTRAS.empty_table() if not number else _nothing(number))
    if not texts:
        return of_examples([])
    flats = [np.concatenate(column) for column in zip(*places, strict=True)]
    joined, carried = pl.concat(texts), pa.concat_tables(extras)
    if len(texts) > 1:
        order = np.argsort(flats[0], kind="stable")
        joined, carried, flats = joined.gather(order), carried.take(pa.array(order)), [f[order] for f in flats]
    return Batch(
        rids=table.column("_rid").to_numpy().astype(np.int64), is_chat=is_chat, texts=joined.alias("texts"),
        owners=flats[0], roles=flats[1], sides=flats[2], is_learned=flats[3],
        labels=series(_whole(table, "label")).alias("labels"), metas=series(_whole(table, "meta")).alias("metas"),
        source_rows=table.column("_row").to_numpy().astype(np.int64), file_id=table.column("_file")[0].as_py(),
        extras=carried if any(column.null_count < len(column) for column in carried.columns) else None,
    )  # fmt: skip


def _turns(column: pa.ListArray) -> tuple[npt.NDArray[np.int32], pa.StructArray]:
    """Where the turns of each row begin (one more at the end), and the turns of all rows."""
    if column.null_count:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), column.flatten()
    # Not `flatten`, which copies: the turns are looked at where they lie.
    offsets = column.offsets.to_numpy()
    return offsets - offsets[0], column.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    # Combining copies, even one chunk alone.
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def _nothing(rows: int) -> pa.Table:
    return pa.Table.from_arrays([pa.nulls(rows, field.type) for field in EXTRAS], schema=EXTRAS)


def turns_of_side(batch: Batch, side: int) -> pa.Array:
    """The column `messages`, `chosen` or `rejected` of a batch: empty lists for rows without."""
    is_in = batch.is_chat[batch.owners] & (batch.sides == side)
    counts = np.bincount(batch.owners[is_in], minlength=len(batch))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    is_all = bool(is_in.all())
    names = pa.array(ROLES, pa.string()).take(pa.array(batch.roles[is_in]))
    contents = strings(batch.texts if is_all else batch.texts.filter(pl.Series(is_in)))
    carried = _nothing(int(counts.sum())) if batch.extras is None else batch.extras.filter(pa.array(is_in))
    columns = [names, contents, pa.array(batch.is_learned[is_in]), *(_whole(carried, n) for n in EXTRAS.names)]
    turns = pa.StructArray.from_arrays(columns, fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(offsets, turns).cast(MESSAGES)


def texts_of_text_rows(batch: Batch) -> pa.Array:
    """The column `text` of a batch: empty for chat rows."""
    if batch.is_chat.all():
        return pa.array([""], pa.string()).take(pa.array(np.zeros(len(batch), np.int64)))
    if not batch.is_chat.any():
        return strings(batch.texts)
    firsts = np.minimum(batch.starts()[:-1], max(0, len(batch.texts) - 1))
    chosen = batch.texts.gather(firsts)
    return strings(pl.select(pl.when(pl.lit(pl.Series(batch.is_chat))).then(pl.lit("")).otherwise(chosen)).to_series())


def table_of(batch: Batch, schema: pa.Schema) -> pa.Table:
    """A batch as a table of `tables.EXAMPLES`."""
    rows = len(batch)
    columns = {
        "_rid": pa.array(batch.rids),
        "_file": pa.array([batch.file_id], pa.string()).take(pa.array(np.zeros(rows, np.int64))),
        "_row": pa.array(batch.source_rows),
        "kind": pa.array(["text", "chat"], pa.string()).take(pa.array(batch.is_chat.astype(np.int64))),
        **{name: turns_of_side(batch, side) for side, name in enumerate(SIDES)},
        "text": texts_of_text_rows(batch),
        "label": strings(batch.labels),
        "meta": strings(batch.metas),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def keep(batch: Batch, is_kept: npt.NDArray[np.bool_]) -> Batch:
    """The batch without the other rows."""
    if is_kept.all():
        return batch
    of_kept = is_kept[batch.owners]
    places = (np.cumsum(is_kept) - 1).astype(np.int32)
    rows, texts = pl.Series(is_kept), pl.Series(of_kept)
    return Batch(
        rids=batch.rids[is_kept], is_chat=batch.is_chat[is_kept], texts=batch.texts.filter(texts),
        owners=places[batch.owners[of_kept]], roles=batch.roles[of_kept], sides=batch.sides[of_kept],
        is_learned=batch.is_learned[of_kept],
        labels=batch.labels.filter(rows), metas=batch.metas.filter(rows), source_rows=batch.source_rows[is_kept],
        extras=None if batch.extras is None else batch.extras.filter(pa.array(of_kept)),
        file_id=batch.file_id, marks={name: values[is_kept] for name, values in batch.marks.items()},
    )  # fmt: skip


def with_changes(batch: Batch, changes: Changes) -> Batch:
    """The batch with the new texts and labels and without the dropped texts; marks are added, rows stay."""
    texts, labels = _placed(batch.texts, changes.texts), _placed(batch.labels, changes.labels)
    after = Batch(
        rids=batch.rids, is_chat=batch.is_chat, texts=texts, owners=batch.owners, roles=batch.roles,
        sides=batch.sides, is_learned=batch.is_learned, labels=labels,
        metas=_placed(batch.metas, changes.metas), extras=batch.extras,
        source_rows=batch.source_rows, file_id=batch.file_id, marks={**batch.marks, **changes.marks},
    )  # fmt: skip
    return _without(after, np.asarray(changes.dropped, np.int64)) if len(changes.dropped) else after


def _without(batch: Batch, texts: Indexes) -> Batch:
    """The batch without these texts; every row keeps others."""
    is_kept = np.ones(len(batch.texts), np.bool_)
    is_kept[texts] = False
    return replace(
        batch, texts=batch.texts.filter(pl.Series(is_kept)), owners=batch.owners[is_kept], roles=batch.roles[is_kept],
        sides=batch.sides[is_kept], is_learned=batch.is_learned[is_kept],
        extras=None if batch.extras is None else batch.extras.filter(pa.array(is_kept)),
    )  # fmt: skip


def _placed(values: pl.Series, changed: tuple[Sequence[int] | Indexes, Sequence[str]]) -> pl.Series:
    indexes, new = changed
    if not len(indexes):
        return values
    # One gather over the old and the new: cheaper than setting strings one by one.
    places = np.arange(len(values), dtype=np.int64)
    places[np.asarray(indexes, np.int64)] = len(values) + np.arange(len(new))
    return pl.concat([values, pl.Series(values.name, new, pl.String)]).gather(places)


def rows_changed(batch: Batch, changes: Changes) -> Indexes:
    """Rows with a new text, label or column beside them, or that lose turns or become several, ascending."""
    texts = np.concatenate([np.asarray(found, np.int64) for found in (changes.texts[0], changes.dropped)])
    rows = [
        batch.owners[texts],
        np.array(list(changes.cuts), np.int64),
        np.asarray(changes.labels[0], np.int64),
        np.asarray(changes.metas[0], np.int64),
    ]
    return np.unique(np.concatenate(rows)).astype(np.int64)
