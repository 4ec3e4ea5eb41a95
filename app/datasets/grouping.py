"""Which rows belong together: near copies (J >= 0.7), the same question, the same value in a column that a person
named. One pass over the examples, in two processes where it pays; some 60 bytes a row stay in memory."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from app.datasets.distinct import distinct
from app.datasets.near.edges import Edges, components, edges_of
from app.datasets.near.overlap import Members
from app.datasets.near.shingles import Words, row_keys, shingles, shingles_and_keys
from app.datasets.near.spill import Batch, Rows, Spill, Tell, crew, kept_of, row_groups
from app.datasets.near.texts import COLUMNS, of_table
from app.datasets.splitting import SplitSettings
from app.datasets.tables import INPUT_BITS

LABELS_LIMIT = 1000
GRAM_WIDTH = 13
# Scripts stand for languages here: they cost one look at the bytes and are never wrong.
_SCRIPTS = ("Han", "Cyrillic", "Arabic", "Devanagari", "Hangul", "Thai", "Greek", "Hebrew")


class Facts(NamedTuple):
    """What the split needs to know of every row. `times` is NaN without a date, `hits` True where a row shares 13
    words in a row with what the project evaluates with; `touched`: those of its word runs that were met."""

    spilled: Spill
    keys: Words
    strata: Rows
    labels: npt.NDArray[np.int32]
    times: npt.NDArray[np.float64] | None
    hits: npt.NDArray[np.bool_]
    touched: Words
    edges: int


class _Order(NamedTuple):
    batch: Batch
    path: str
    groups: list[int]
    folder: str
    number: int
    group_columns: tuple[str, ...]
    time_column: str
    has_evaluation: bool


def facts_of(
    paths: Sequence[Path], settings: SplitSettings, folder: Path, *, workers: int, evaluation: Sequence[str], tell: Tell
) -> Facts:
    """One pass over the examples of `paths`, then the groups. Leaves its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    grams = shingles(pa.array(evaluation, pa.string()), GRAM_WIDTH).values if evaluation else np.empty(0, np.uint64)
    np.save(folder / "evaluation.npy", grams)
    orders, start = [], 0
    for number, (path, groups, rows) in enumerate(row_groups(paths)):
        files = (str(folder / f"{name}-{number:05d}.npy") for name in ("bands", "sizes", "values"))
        orders.append(
            _Order(
                Batch(start, rows, *files), str(path), groups, str(folder), number, tuple(settings.group_columns),
                settings.time_column, bool(evaluation),
            )
        )  # fmt: skip
        start += rows
    found: list[dict[str, Any]] = []
    with crew(workers) as work:
        for order, columns in zip(orders, work(_look, orders), strict=True):
            found.append(columns)
            tell(order.batch.start + order.batch.rows, 2 * start)
        spilled = Spill(str(folder), tuple(order.batch for order in orders))
        edges = edges_of(spilled, work, lambda done, total: tell(total + done, 2 * total))
    joined = {name: np.concatenate([columns[name] for columns in found]) for name in found[0]} if found else {}
    keys = joined.get("keys", np.empty(0, np.uint64))
    same = [keys, joined.get("prompts", keys)]
    same += [joined["origins"]] if "origins" in joined and joined["origins"].any() else []
    same += [joined[f"group{i}"] for i in range(len(settings.group_columns)) if f"group{i}" in joined]
    return Facts(
        spilled=spilled, keys=keys, strata=_strata(joined, spilled) if len(keys) else np.empty(0, np.int64),
        labels=_labels(edges, same), times=joined.get("times"), hits=joined.get("hits", np.zeros(len(keys), bool)),
        touched=distinct(joined.get("touched", np.empty(0, np.uint64))), edges=len(edges.a),
    )  # fmt: skip


def _labels(edges: Edges, same: list[Words]) -> npt.NDArray[np.int32]:
    """The group of every row: connected by near copies or by an equal key (0 is no key)."""
    left, right = [edges.a], [edges.b]
    for keys in same:
        order = np.argsort(keys, kind="stable")
        is_same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0)
        left.append(order[:-1][is_same])
        right.append(order[1:][is_same])
    return components(len(edges.sizes), np.concatenate(left), np.concatenate(right))


def _strata(joined: dict[str, Any], spilled: Spill) -> Rows:
    """A number for each mix of label (where there are few), source, script and quarter of length."""
    sizes = spilled.sizes()
    quarters = np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]), sizes)
    strata = np.zeros(len(sizes), np.int64)
    for values, limit in ((joined["labels"], LABELS_LIMIT), (joined["files"], LABELS_LIMIT), (joined["scripts"], 99)):
        if (values == values[0]).all():
            continue
        several, inverse = np.unique(values, return_inverse=True)
        if len(several) <= limit:
            strata = strata * len(several) + inverse
    strata = strata * 4 + quarters
    return np.asarray(np.unique(strata, return_inverse=True)[1], np.int64)


def _look(order: _Order) -> dict[str, npt.NDArray[Any]]:
    """Spill the shingles of a batch; its small columns come back."""
    file = pq.ParquetFile(order.path)
    columns = [name for name in (*COLUMNS, "_rid", "label", "_file", "meta") if name in file.schema_arrow.names]
    table = file.read_row_groups(order.groups, columns=columns, use_threads=False)
    texts = of_table(table, "example")
    sets, keys = shingles_and_keys(texts)
    for name, values in kept_of(sets).items():
        np.save(getattr(order.batch, name), values)
    found: dict[str, npt.NDArray[Any]] = {
        "keys": keys,
        "prompts": row_keys(of_table(table, "prompt")),
        "labels": _hashed(_texts(table, "label")),
        "files": _hashed(_texts(table, "_file")),
        "scripts": _scripts(texts),
        "origins": _origins(table),
    }
    if order.group_columns or order.time_column:
        metas = [orjson.loads(meta) for meta in table.column("meta").to_pylist()]
        for index, name in enumerate(order.group_columns):
            found[f"group{index}"] = np.array([_group_key(meta.get(name)) for meta in metas], np.uint64)
        if order.time_column:
            found["times"] = np.array([seconds(meta.get(order.time_column)) for meta in metas], np.float64)
    if order.has_evaluation:
        runs = shingles(texts, GRAM_WIDTH)
        places, _ = Members(np.load(Path(order.folder, "evaluation.npy"))).find(runs.values)
        hits = np.zeros(len(texts), np.bool_)
        hits[np.searchsorted(runs.offsets, places, side="right") - 1] = True
        found |= {"hits": hits, "touched": distinct(runs.values[places])}
    return found


def _texts(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of texts; empty ones where there is none (the shards of a frozen version)."""
    return table.column(name) if name in table.schema.names else pa.chunked_array([pa.array([""] * table.num_rows)])


def _origins(table: pa.Table) -> Words:
    """A key that rows share which were made of one input row; 0 for whole rows."""
    if "_file" in table.schema.names:
        rids = table.column("_rid").to_numpy().astype(np.uint64)
        is_part = rids >> np.uint64(INPUT_BITS) > 0
        return np.where(is_part, (rids & np.uint64(2**INPUT_BITS - 1)) + np.uint64(1), np.uint64(0))
    found = np.zeros(table.num_rows, np.uint64)
    if "meta" not in table.schema.names:
        return found
    # A frozen row says it among the other things that are known of it.
    for row in np.flatnonzero(
        pc.match_substring(pc.fill_null(table.column("meta"), ""), '"part":').to_numpy()
    ).tolist():
        meta = orjson.loads(table.column("meta")[row].as_py())
        if "part" in meta:
            found[row] = xxhash.xxh3_64_intdigest(orjson.dumps([meta.get("source"), meta.get("row")])) | 1
    return found


def _hashed(column: pa.ChunkedArray) -> Words:
    """64 bits for each text of a column of few values."""
    codes = column.combine_chunks().dictionary_encode()
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    hashes = [xxhash.xxh3_64_intdigest((value or "").encode()) for value in codes.dictionary.to_pylist()]
    return np.array([*hashes, 0], np.uint64)[pc.fill_null(codes.indices, len(hashes)).to_numpy(zero_copy_only=False)]


def _group_key(value: Any) -> int:
    return 0 if value is None or value == "" else xxhash.xxh3_64_intdigest(orjson.dumps(value))


def _scripts(texts: pa.Array) -> npt.NDArray[np.int8]:
    found = np.zeros(len(texts), np.int8)
    places = np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False))
    others = texts.take(pa.array(places))
    for index, name in enumerate(_SCRIPTS, 1):
        is_in = pc.match_substring_regex(others, rf"\p{{{name}}}").to_numpy(zero_copy_only=False)
        found[places[is_in & (found[places] == 0)]] = index
    return found


_FORMATS = ("%d.%m.%Y", "%d.%m.%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%Y")


def seconds(value: Any) -> float:
    """A date as seconds since 1970: ISO 8601, RFC 2822, common forms, or a number of seconds or milliseconds. NaN for
    what is no date. A day and a month that could be either are read as month/day."""
    if isinstance(value, bool) or value in (None, ""):
        return float("nan")
    text = str(value).strip()
    if re.fullmatch(r"\d{9,13}(\.\d+)?", text):
        return float(text) / (1000 if float(text) > 1e11 else 1)
    for read in (datetime.fromisoformat, parsedate_to_datetime, *(_reader(form) for form in _FORMATS)):
        try:
            found = read(text)
        except (ValueError, TypeError, IndexError):
            continue
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return float("nan")


def _reader(form: str) -> Any:
    return lambda text: datetime.strptime(text, form).replace(tzinfo=UTC)
