"""A part of a source file mapped at once: whole columns where the mapping allows it, row by row where it does not.

The result is the same as `mapping.apply` on every row (a test compares them).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from app.datasets.mapping import Mapping, apply, columns_of, render, text_of
from app.datasets.steps.batches import of_examples, series
from app.datasets.steps.contract import ASSISTANT, SYSTEM, TEXT, USER, Batch, Indexes
from app.datasets.tables import ROW, decoded

_ALONE = re.compile(r"\{[^{}]{1,200}\}")
_BLANK = r"\A[\s\x1c-\x1f]*\z"


class MappedPart(NamedTuple):
    """`batch` holds the rows that can be used, `kept` their places in the part; `codes`: code to places."""

    batch: Batch
    kept: Indexes
    codes: dict[str, Indexes]


def mapped(table: pa.Table, mapping: Mapping, file_id: str, first_rid: int) -> MappedPart:
    """The rows of one part. `table` has `_row` and the file's columns as `tables.RowWriter` wrote them."""
    is_plain = not mapping.cell and not mapping.history
    if is_plain and mapping.shape in ("pair", "label"):
        found = _pairs(table, mapping)
    elif is_plain and mapping.shape == "text":
        found = _texts(table, mapping)
    else:
        found = _one_by_one(table, mapping)
    batch = found.batch
    batch.rids = first_rid + found.kept
    batch.source_rows = table.column(ROW).to_numpy().astype(np.int64)[found.kept]
    batch.file_id = file_id
    return found


def _one_by_one(table: pa.Table, mapping: Mapping) -> MappedPart:
    examples, kept = [], []
    codes: dict[str, list[int]] = {}
    for place, values in enumerate(decoded(table)):
        values.pop(ROW)
        result = apply(values, mapping)
        for code in result.codes:
            codes.setdefault(code, []).append(place)
        if result.example is not None:
            examples.append(result.example)
            kept.append(place)
    return MappedPart(of_examples(examples), np.array(kept, np.int64), {c: np.array(p) for c, p in codes.items()})


class _Cells:
    """The columns of a part by their own names."""

    def __init__(self, table: pa.Table) -> None:
        self.rows = table.num_rows
        self._table = table
        self._is_json = {
            field.name[2:]: (field.metadata or {}).get(b"kind") == b"json"
            for field in table.schema
            if field.name != ROW
        }

    @property
    def names(self) -> list[str]:
        return list(self._is_json)

    def raw(self, name: str) -> list[str | None]:
        found: list[str | None] = self._table.column(f"c_{name}").to_pylist()
        return found

    def is_json(self, name: str) -> bool:
        return self._is_json[name]

    def values(self, name: str) -> list[Any]:
        """The cells as values; None where there is none."""
        if not self._is_json[name]:
            return self.raw(name)
        return [None if cell is None else orjson.loads(cell) for cell in self.raw(name)]

    def texts(self, name: str) -> pl.Series:
        """The cells as text, empty where there is none."""
        if name not in self._is_json:
            return pl.Series([""], dtype=pl.String).new_from_index(0, self.rows)
        if self._is_json[name]:
            return pl.Series([text_of(value) for value in self.values(name)], dtype=pl.String)
        return series(self._table.column(f"c_{name}")).fill_null("")

    def rendered(self, template: str) -> pl.Series:
        """`mapping.render` for every row."""
        used = [name for name in columns_of(Mapping(text=template)) if name in self._is_json]
        if _ALONE.fullmatch(template):
            return self.texts(template[1:-1])
        columns = [self.values(name) for name in used]
        filled = [
            render(template, {name: cell for name, cell in zip(used, cells, strict=True) if cell is not None})
            for cells in (zip(*columns, strict=True) if columns else [()] * self.rows)
        ]
        return pl.Series(filled, dtype=pl.String)

    def metas(self, used: set[str]) -> pl.Series:
        """Every other column as one JSON object a row, without empty cells."""
        others = [name for name in self._is_json if name not in used]
        if not others:
            return pl.Series(["{}"], dtype=pl.String).new_from_index(0, self.rows)
        columns = [_fragments(self.raw(name)) if self._is_json[name] else self.raw(name) for name in others]
        dumps: Callable[[Any], bytes] = orjson.dumps
        lines = [
            dumps({name: cell for name, cell in zip(others, cells, strict=True) if cell not in (None, "")}).decode()
            for cells in zip(*columns, strict=True)
        ]
        return pl.Series(lines, dtype=pl.String)


def _fragments(cells: list[str | None]) -> list[Any]:
    return [None if cell in (None, "null", '""') else orjson.Fragment(cell) for cell in cells]


def _is_blank(texts: pl.Series) -> np.ndarray:
    return texts.str.contains(_BLANK).to_numpy()


def _batch(cells: _Cells, mapping: Mapping, kept: Indexes, texts: pl.Series, flat: np.ndarray, is_chat: bool) -> Batch:
    """`flat`: (owner, role) of each text; owners count the kept rows."""
    rows = len(kept)
    labels = cells.texts(mapping.label) if mapping.label else pl.Series([""]).new_from_index(0, cells.rows)
    return Batch(
        rids=kept, is_chat=np.full(rows, is_chat), texts=texts.alias("texts"), owners=flat[:, 0].astype(np.int32),
        roles=flat[:, 1].astype(np.uint8), sides=np.zeros(len(flat), np.uint8),
        is_learned=np.ones(len(flat), np.bool_), labels=labels.gather(kept).alias("labels"),
        metas=cells.metas(columns_of(mapping)).gather(kept).alias("metas"), source_rows=kept,
    )  # fmt: skip


def _pairs(table: pa.Table, mapping: Mapping) -> MappedPart:
    cells = _Cells(table)
    prompts, answers = cells.rendered(mapping.prompt), cells.rendered(mapping.answer)
    no_prompt, no_answer = _is_blank(prompts), _is_blank(answers)
    kept = np.flatnonzero(~(no_prompt & no_answer))
    codes = {
        "map.empty": np.flatnonzero(no_prompt & no_answer),
        "map.no_prompt": np.flatnonzero(no_prompt & ~no_answer),
        "map.no_answer": np.flatnonzero(~no_prompt & no_answer),
    }
    sides = [(prompts, USER), (answers, ASSISTANT)]
    has_system = np.zeros(cells.rows, np.bool_)
    if mapping.system:
        systems = pl.Series([text.strip() for text in cells.rendered(mapping.system).to_list()], dtype=pl.String)
        has_system = (systems != "").to_numpy()
        sides.insert(0, (systems, SYSTEM))
    owners, roles, places = [], [], []
    for number, (_texts, role) in enumerate(sides):
        rows = kept[has_system[kept]] if role == SYSTEM else kept
        owners.append(np.searchsorted(kept, rows))
        roles.append(np.full(len(rows), role))
        places.append(rows + number * cells.rows)
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    texts = pl.concat([texts for texts, _role in sides]).gather(np.concatenate(places)[order])
    flat = np.stack([owner[order], np.concatenate(roles)[order]], axis=1)
    return MappedPart(_batch(cells, mapping, kept, texts, flat, True), kept, {c: p for c, p in codes.items() if len(p)})


def _texts(table: pa.Table, mapping: Mapping) -> MappedPart:
    cells = _Cells(table)
    texts = cells.rendered(mapping.text)
    is_empty = _is_blank(texts)
    kept = np.flatnonzero(~is_empty)
    flat = np.stack([np.arange(len(kept)), np.full(len(kept), TEXT)], axis=1)
    codes = {"map.empty": np.flatnonzero(is_empty)} if is_empty.any() else {}
    return MappedPart(_batch(cells, mapping, kept, texts.gather(kept), flat, False), kept, codes)
