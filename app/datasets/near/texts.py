"""Which text of an example is compared: everything that is said in it, or only what is asked or answered."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

What = Literal["example", "prompt", "answer"]
COLUMNS = ("messages", "text", "chosen", "rejected")


def read(path: Path | str, groups: list[int], what: What) -> pa.Array:
    """One text a row from row groups of a Parquet file of examples, or of one with `text` alone."""
    file = pq.ParquetFile(path)
    columns = [name for name in COLUMNS if name in file.schema_arrow.names]
    return of_table(file.read_row_groups(groups, columns=columns, use_threads=False), what)


def of_table(table: pa.Table, what: What) -> pa.Array:
    """One text for every row of a table of examples. `example`: all turns but the system prompt, which many rows
    share, and compared answers; `prompt`: what comes before the last answer, or before the compared ones; `answer`:
    the last answer, or the chosen one."""
    if "messages" not in table.schema.names:
        plain = pc.fill_null(_whole(table.column("text")), "")
        return plain if what == "example" else pc.binary_replace_slice(plain, 0, 2**31 - 1, "")
    turns = _whole(table.column("messages"))
    owners, is_system, is_answer = _turns(turns)
    rows = len(turns)
    compared = [_whole(table.column(name)) for name in ("chosen", "rejected") if name in table.schema.names]
    has_compared = np.zeros(rows, np.bool_)
    for column in compared:
        has_compared |= _lengths(column) > 0
    places, last = np.arange(len(owners)), np.full(rows, -1)
    last[owners[is_answer]] = places[is_answer]
    last[has_compared] = len(owners)
    if what == "answer":
        chosen = _joined(compared[0], None) if compared else None
        found = _joined(turns, places == last[owners])
        return found if chosen is None else pc.if_else(pa.array(has_compared), chosen, found)
    if what == "prompt":
        return _joined(turns, ~is_system & (places < last[owners]))
    texts = [_joined(turns, ~is_system), pc.fill_null(_whole(table.column("text")), "")]
    texts += [_joined(column, None) for column in compared if _lengths(column).any()]
    return pc.utf8_trim(pc.binary_join_element_wise(*texts, "\n"), "\n")


def _turns(turns: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of every turn: its row, whether it is the system prompt, whether it is an answer."""
    role = turns.flatten().field("role")
    owners = np.repeat(np.arange(len(turns)), _lengths(turns))
    is_system, is_answer = (
        pc.equal(role, name).to_numpy(zero_copy_only=False).astype(np.bool_) for name in ("system", "assistant")
    )
    return owners, is_system, is_answer


def _lengths(turns: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(turns), 0).to_numpy(zero_copy_only=False), np.int64)


def _joined(turns: pa.Array, is_in: npt.NDArray[np.bool_] | None) -> pa.Array:
    contents = turns.flatten().field("content")
    owners = np.repeat(np.arange(len(turns)), _lengths(turns))
    return joined(contents, owners, np.ones(len(owners), np.bool_) if is_in is None else is_in, len(turns))


def joined(contents: pa.Array, owners: npt.NDArray[np.integer], is_in: npt.NDArray[np.bool_], rows: int) -> pa.Array:
    """The turns of each row that are in, in one text. `owners`: the row of each turn, ascending."""
    lengths = np.bincount(owners[is_in], minlength=rows)
    chosen = contents if is_in.all() else contents.filter(pa.array(is_in))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pc.fill_null(chosen.cast(pa.string()), ""))
    return pc.fill_null(pc.binary_join(lists, "\n"), "")


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
