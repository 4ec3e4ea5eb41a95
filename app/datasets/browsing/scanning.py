"""Answers to questions: the numbers of the rows that fit, written while they are found, read a page at a time.

An answer is a folder: `rows.u32` grows while the scan goes on, `state.json` says how far it is.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from app.contracts.base import Contract
from app.datasets.browsing import columns, index
from app.datasets.browsing.questions import Question
from app.datasets.browsing.sets import RowSet, batches
from app.datasets.edits import DELETED, EXCLUDED, EditLayer

KEPT_ANSWERS = 20
FIRST_HITS, FIRST_HITS_S = 100, 0.02
_SEARCHED = ("kind", "messages", "text", "label")
TELL_EVERY_S = 0.2


class State(Contract):
    """How far a scan is: rows looked at, rows found, and whether it is over."""

    looked_at: int = 0
    total: int = 0
    found: int = 0
    is_done: bool = False
    rows_per_s: float = 0


def answers_dir(rows: RowSet) -> Path:
    """Where the answers of a set lie."""
    return rows.folder / "answers"


def state_of(folder: Path) -> State | None:
    """How far the scan into `folder` is; None before it began."""
    try:
        return State.model_validate(orjson.loads((folder / "state.json").read_bytes()))
    except FileNotFoundError:
        return None


def numbers_of(folder: Path, offset: int, limit: int) -> list[int]:
    """The numbers of the found rows `offset` to `offset + limit`."""
    try:
        descriptor = os.open(folder / "rows.u32", os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        raw = os.pread(descriptor, 4 * limit, 4 * offset)
    finally:
        os.close(descriptor)
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<u4").tolist()


def every_number(folder: Path) -> np.ndarray:
    """All found rows (for an action on all rows of a filter)."""
    path = folder / "rows.u32"
    return np.fromfile(path, "<u4") if path.exists() else np.zeros(0, np.uint32)


def scan(rows: RowSet, question: Question, layer: EditLayer, folder: Path, stop: Callable[[], bool] = bool) -> State:
    """Find all rows that fit, in the order asked for. The index must be there."""
    folder.mkdir(parents=True, exist_ok=True)
    total, begun, last, found = rows.rows, time.monotonic(), 0.0, 0
    state = State(total=total)
    wanted = _fitting(rows, question, layer, total)
    with (folder / "rows.part").open("wb") as out:
        for looked_at, hits in _hits(rows, question, layer, wanted, total):
            hits.astype("<u4").tofile(out)
            found += len(hits)
            now = time.monotonic()
            if not question.sort and (now - last >= TELL_EVERY_S or not last):
                last = now
                out.flush()
                if not (folder / "rows.u32").exists():
                    os.link(folder / "rows.part", folder / "rows.u32")
                rate = looked_at / max(now - begun, 1e-6)
                state = State(looked_at=looked_at, total=total, found=found, rows_per_s=round(rate))
                _write(folder, state)
            elif question.sort and now - last >= TELL_EVERY_S:
                last = now
                _write(folder, State(looked_at=looked_at, total=total, found=0))
            if stop():
                return state
    if question.sort:
        _sorted(rows, question, folder)
    (folder / "rows.part").replace(folder / "rows.u32")
    state = State(looked_at=total, total=total, found=found, is_done=True, rows_per_s=0)
    _write(folder, state)
    return state


def _write(folder: Path, state: State) -> None:
    temporary = folder / f".state-{os.getpid()}"
    temporary.write_bytes(orjson.dumps(state.model_dump()))
    temporary.replace(folder / "state.json")


def _fitting(rows: RowSet, question: Question, layer: EditLayer, total: int) -> np.ndarray | None:
    """Which rows fit everything but the search; None when the search alone decides."""
    folder, meta = index.folder_of(rows), index.meta_of(rows)
    assert meta is not None
    mask: np.ndarray | None = None

    def also(condition: np.ndarray) -> None:
        nonlocal mask
        mask = condition if mask is None else mask & condition

    for name, choices in (("split", meta.splits), ("source", meta.sources), ("language", meta.languages)):
        if value := getattr(question, name):
            number = next((choice.number for choice in choices if choice.value == value), None)
            also(columns.load(folder, name) == number if number is not None else np.zeros(total, bool))
    if question.label:
        number = next((choice.number for choice in meta.labels if choice.value == question.label), -2)
        has_label = np.asarray(columns.load(folder, "label") == number)
        for at, value in _edited_labels(rows, layer):
            has_label[at] = value == question.label
        also(has_label)
    if question.code:
        bit = next((choice.number for choice in meta.marks if choice.value == question.code), None)
        marks = columns.load(folder, "marks")
        also((marks >> np.uint64(bit)) & np.uint64(1) > 0 if bit is not None else np.zeros(total, bool))
    for name, low, high in (
        ("words", question.least, question.most),
        ("first", question.first_least, question.first_most),
        ("second", question.second_least, question.second_most),
    ):
        if low is not None or high is not None:
            values = columns.load(folder, name)
            also((values >= (low or 0)) & (values <= (high if high is not None else 2**32 - 1)))
    if question.tag or question.state:
        also(_touched(rows, question, layer, total))
    return mask


def _edited_labels(rows: RowSet, layer: EditLayer) -> Iterator[tuple[int, str]]:
    if layer.labels and not rows.is_frozen:
        keys = np.array(sorted(layer.labels), np.uint64)
        for at, key in zip(*_numbers_of_keys(rows, keys), strict=True):
            yield at, layer.labels[int(key)]


def _numbers_of_keys(rows: RowSet, keys: np.ndarray) -> tuple[list[int], list[int]]:
    """(row numbers, their keys) of those of the sorted `keys` that the set holds."""
    every = columns.load(index.folder_of(rows), "key")
    if not len(keys) or not len(every):
        return [], []
    at = np.minimum(np.searchsorted(keys, every), len(keys) - 1)
    numbers = np.flatnonzero(keys[at] == every)
    return numbers.tolist(), keys[at[numbers]].tolist()


def _touched(rows: RowSet, question: Question, layer: EditLayer, total: int) -> np.ndarray:
    flags = np.zeros(total, np.int16)
    is_tagged = np.zeros(total, bool)
    if len(layer) and not rows.is_frozen:
        numbers, keys = _numbers_of_keys(rows, layer.keys)
        places = np.searchsorted(layer.keys, np.array(keys, np.uint64))
        flags[numbers] = layer.flags[places].astype(np.int16) | 256
        if question.tag:
            tagged = {key for key, tags in layer.tags.items() if question.tag in tags}
            is_tagged[[n for n, key in zip(numbers, keys, strict=True) if key in tagged]] = True
    mask = is_tagged if question.tag else np.ones(total, bool)
    match question.state:
        case "deleted":
            mask &= (flags & DELETED) > 0
        case "excluded":
            mask &= (flags & EXCLUDED) > 0
        case "edited":
            mask &= flags > 0
        case "untouched":
            mask &= flags == 0
    return mask


def _hits(
    rows: RowSet, question: Question, layer: EditLayer, wanted: np.ndarray | None, total: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(rows looked at so far, numbers of the newly found ones)."""
    if not question.q:
        yield total, np.flatnonzero(wanted) if wanted is not None else np.arange(total)
        return
    edited = _edited_texts(rows, layer)
    numbers = np.array(sorted(edited), np.int64)
    term = question.q
    for _group, start, table in batches(rows, _SEARCHED):
        count = table.num_rows
        part = wanted[start : start + count] if wanted is not None else None
        if part is not None and not part.any():
            yield start + count, np.zeros(0, np.int64)
            continue
        mask = _matches(table, term)
        for number in numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, start + count)].tolist():
            mask[number - start] = term.casefold() in edited[number].casefold()
        if part is not None:
            mask &= part
        yield start + count, np.flatnonzero(mask) + start


def _edited_texts(rows: RowSet, layer: EditLayer) -> dict[int, str]:
    if not layer.examples or rows.is_frozen:
        return {}
    keys = np.array(sorted(layer.examples), np.uint64)
    found = {}
    for number, key in zip(*_numbers_of_keys(rows, keys), strict=True):
        example = orjson.loads(layer.examples[int(key)])
        found[number] = "\n".join([example.get("text") or "", *(m["content"] for m in example.get("messages") or [])])
    return found


def _matches(table: pa.Table, term: str) -> np.ndarray:
    """Rows one of whose texts holds the term; capitals are ignored."""
    mask = np.zeros(table.num_rows, bool)
    messages = table.column("messages").combine_chunks()
    contents = messages.flatten().field("content")
    hits = np.flatnonzero(_holds(contents, term))
    if len(hits):
        lengths = pc.fill_null(pc.list_value_length(messages), 0).to_numpy(zero_copy_only=False)
        mask[np.searchsorted(np.cumsum(lengths), hits, side="right")] = True
    for name in ("text", "label"):
        if name in table.schema.names:
            mask |= _holds(table.column(name).combine_chunks(), term)
    return mask


def _holds(texts: pa.Array, term: str) -> np.ndarray:
    found = pc.fill_null(pc.match_substring(texts, term, ignore_case=True), False)
    return np.asarray(found.to_numpy(zero_copy_only=False), bool).copy()


def _sorted(rows: RowSet, question: Question, folder: Path) -> None:
    """Bring the found rows into the order asked for; equal ones stay in the order of the set."""
    found = np.fromfile(folder / "rows.part", "<u4")
    if question.sort == "-row":
        found = found[::-1]
    else:
        name = "words" if question.sort.endswith("length") else "score"
        values = columns.load(index.folder_of(rows), name)[found].astype(np.float64)
        values = np.where(np.isnan(values), np.inf, -values if question.sort.startswith("-") else values)
        found = found[np.argsort(values, kind="stable")]
    found.tofile(folder / "rows.part")


def first_hits(rows: RowSet, question: Question, budget_s: float = FIRST_HITS_S) -> list[int]:
    """The first found rows of a plain search within a few milliseconds, for the page that asks first."""
    found: list[int] = []
    if not question.q or question.parts().keys() != {"q"}:
        return found
    end, start = time.monotonic() + budget_s, 0
    with pq.ParquetFile(rows.parts[0]) as source:
        wanted = [name for name in _SEARCHED if name in source.schema_arrow.names]
        for batch in source.iter_batches(1000, columns=wanted, use_threads=False):
            found += (np.flatnonzero(_matches(pa.Table.from_batches([batch]), question.q)) + start).tolist()
            start += batch.num_rows
            if len(found) >= FIRST_HITS or time.monotonic() > end:
                break
    return found[:FIRST_HITS]


def prune(rows: RowSet) -> None:
    """Forget the oldest answers."""
    folders = [path for path in answers_dir(rows).glob("*") if path.is_dir()]
    for path in sorted(folders, key=lambda p: p.stat().st_mtime)[:-KEPT_ANSWERS]:
        shutil.rmtree(path, ignore_errors=True)
